"""Held-out combinations and seeds: training never sees them, and every word stays frequent."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from pixelrefer_fast.world import make_scene
from pixelrefer_fast.world.splits import SPLITS, generator, held_out
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES

SCENES = 100  # of each split and kind


def test_about_an_eighth_is_held_out():
    combinations = set(itertools.product(SHAPES, COLORS, PATTERNS))
    assert held_out() <= combinations
    assert 0.10 <= len(held_out()) / len(combinations) <= 0.14


def test_held_out_set_stays_what_it_is():
    """Models are trained against it: a change of the words or of the rule must not move it unseen."""
    words = " ".join("/".join(c) for c in sorted(held_out()))
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "21e8a292cd7fc59f"


def test_every_word_stays_frequent_in_training():
    counts = Counter(word for combination in held_out() for word in combination)
    words_left = {w: n - counts[w] for n, words in ((30, SHAPES), (30, COLORS), (100, PATTERNS)) for w in words}
    assert min(words_left[w] for w in SHAPES) >= 25
    assert min(words_left[w] for w in COLORS) >= 25
    assert min(words_left[w] for w in PATTERNS) >= 80
    assert max(Counter((s, c) for s, c, _ in held_out()).values()) == 1


@pytest.mark.parametrize("video", [False, True])
def test_training_has_no_held_out_combination(video: bool):
    for seed in range(SCENES):
        things = make_scene(seed, "train", video).things
        assert not held_out() & {t.combination for t in things}


@pytest.mark.parametrize("video", [False, True])
def test_held_out_scenes_have_one_each_and_half_of_all(video: bool):
    apart = [[t.combination in held_out() for t in make_scene(seed, "heldout", video).things] for seed in range(SCENES)]
    assert all(map(any, apart))
    assert 0.4 <= np.mean(list(itertools.chain(*apart))) <= 0.6


def test_splits_draw_other_numbers_for_the_same_seed():
    first = {split: generator(5, split).integers(0, 2**62, 4).tolist() for split in SPLITS}
    assert first["train"] != first["heldout"]
    streams = [generator(s, split).integers(0, 2**62) for split in SPLITS for s in range(500)]
    assert len(set(map(int, streams))) == 1000


def test_splits_share_no_scene():
    pixels = {(split, make_scene(seed, split, False).frames[0].tobytes()) for split in SPLITS for seed in range(40)}
    assert len({p for _, p in pixels}) == 80


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None])
def test_bad_seeds_are_named(seed: object):
    with pytest.raises(ValueError, match="seed: expected an integer from 0 on"):
        make_scene(seed)  # type: ignore[arg-type]


def test_bad_split_and_kind_are_named():
    with pytest.raises(ValueError, match="split: expected one of train, heldout, got 'test'"):
        make_scene(0, "test")
    with pytest.raises(ValueError, match="video: expected True, False or None, got 3"):
        make_scene(0, video=3)  # type: ignore[arg-type]
