"""Items of several sources, batches of about so many tokens, and what happens to samples that cannot be learnt."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pixelrefer_fast.train.batch import Sample
from pixelrefer_fast.train.config import Records, World
from pixelrefer_fast.train.data import Collator, Items, TokenBatches, begin_worker
from pixelrefer_fast.train.malformed import Malformed, MalformedError, MalformedLog
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.records_source import RecordsSource
from pixelrefer_fast.train.scenes import WorldSource, scene_samples
from pixelrefer_fast.world import ask_about, make_scene
from pixelrefer_fast.world.marked import scene_media, scene_region


def batches(costs: Any, budget: int = 10, most: int | None = None, **rest: Any) -> TokenBatches:
    options = {"batches": None, "passes": 1.0, "seed": 0} | rest
    return TokenBatches(np.array(costs, np.int64), budget, most, **options)


def test_batches_hold_their_budget_and_every_item_once_a_pass() -> None:
    costs = np.random.default_rng(0).integers(1, 9, 100)
    drawn = list(batches(costs, budget=20))
    assert sorted(itertools.chain.from_iterable(drawn)) == list(range(100))
    assert all(costs[batch].sum() <= 20 for batch in drawn)
    # no batch that the next item would still have fitted in
    assert all(costs[a].sum() + costs[b[0]] > 20 for a, b in itertools.pairwise(drawn))


def test_an_item_beyond_the_budget_is_a_batch_of_its_own() -> None:
    drawn = list(batches([3, 50, 3, 3], budget=10))
    assert [1] in drawn
    assert sorted(itertools.chain.from_iterable(drawn)) == [0, 1, 2, 3]


def test_a_batch_has_at_most_so_many_items() -> None:
    assert sorted(map(len, batches([1] * 10, budget=100, most=4))) == [2, 4, 4]


def test_the_order_is_that_of_seed_and_pass() -> None:
    orders = [list(itertools.chain.from_iterable(batches([1] * 50, seed=seed, passes=2))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:50] != orders[0][50:]
    assert sorted(orders[0][:50]) == sorted(orders[0][50:]) == list(range(50))


@pytest.mark.parametrize("passes", [0.5, 1.0, 2.25])
def test_parts_of_passes(passes: float) -> None:
    sampler = batches([1] * 40, most=1, passes=passes)
    drawn = list(itertools.chain.from_iterable(sampler))
    assert len(drawn) == len(sampler) == passes * 40
    assert sampler.passes_after(len(drawn)) == passes
    assert sampler.passes_after(10) == 0.25


def test_as_many_batches_as_asked_for_whatever_the_data() -> None:
    sampler = batches([6] * 7, batches=25, passes=None)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 25
    assert all(len(batch) == 1 for batch in drawn)
    assert list(sampler) == drawn


@pytest.mark.parametrize("limits", [{"batches": 5, "passes": None}, {"passes": 1.0}])
def test_processes_share_the_batches(limits: dict[str, Any]) -> None:
    costs = np.random.default_rng(0).integers(1, 9, 60)
    shares = [list(batches(costs, process=i, processes=3, **limits)) for i in range(3)]
    assert len({len(share) for share in shares}) == 1
    together = [batch for turn in zip(*shares, strict=True) for batch in turn]
    alone = list(batches(costs, **(limits | ({"batches": 15} if limits.get("batches") else {}))))
    assert together == alone[: len(together)]
    assert len(alone) - len(together) < 3


@pytest.fixture
def samples_file(world_folder: Path, tmp_path: Path) -> Path:
    """The samples of the world, with three malformed ones among them: one of each time at which that is found out."""
    samples = json.loads((world_folder / "samples.json").read_text())
    no_tag = dict(samples[0], conversations=[{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "No."}])
    # told from the image alone
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(tmp_path / "other.png")
    image = next(s for s in samples if "image" in s)
    other_size = dict(image, image=str((tmp_path / "other.png").name))
    (tmp_path / "other.png").rename(world_folder / "other.png")
    # told when its mask is drawn
    empty = {"size": image["masks"][0]["size"], "counts": [image["height"] * image["width"]]}
    nothing = dict(image, masks=[empty] * len(image["masks"]))
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([no_tag, *samples[:4], other_size, *samples[4:], nothing]))
    return path


def source_of(path: Path, root: Path, model: Any, log: MalformedLog, said: list[str] | None = None) -> RecordsSource:
    return RecordsSource(Records(path, root), model.config, log, None if said is None else said.append)


def test_malformed_samples_are_reported_counted_and_left_out(
    samples_file: Path, world_folder: Path, tmp_path: Path, lite: Any
) -> None:
    log, said = MalformedLog(tmp_path / "malformed.jsonl"), list[str]()
    source = source_of(samples_file, world_folder, lite, log, said)
    assert source.total == len(source) + 1
    assert source.malformed_count == log.count() == 1
    assert f"{samples_file}, sample 0: conversations: expected a <region> tag" in said[1]
    assert said[-1] == f"{samples_file}: {len(source)} samples, 1 malformed ones left out"
    items = Items([(source, 1)], log)
    assert len(items) == len(source)
    read = [items[i] for i in range(len(items))]
    assert [item.index for item in read if not item.samples] == [4]
    assert log.count() == 2
    collator = Collator(items, lite.config, lite.tokenizer, None)
    batch = collator(read)["batch"]
    whole = Collator(items, lite.config, lite.tokenizer, None)([i for i in read[:-1] if i.samples])["batch"]
    assert torch.equal(batch.input_ids, whole.input_ids)
    assert log.count() == 3
    entries = [json.loads(line) for line in (tmp_path / "malformed.jsonl").read_text().splitlines()]
    found = {entry["index"]: entry["reason"] for entry in entries}
    assert {entry["file"] for entry in entries} == {str(samples_file)}
    assert sorted(found) == [0, 5, source.total - 1]
    assert "expected masks and size of 7x9" in found[5]
    assert "expected at least one marked pixel" in found[source.total - 1]
    # met again in the next pass, it still counts once
    assert not items[4].samples
    assert log.count() == 3


def test_a_strict_training_stops_at_the_first(samples_file: Path, world_folder: Path, lite: Any) -> None:
    log = MalformedLog(None, strict=True)
    with pytest.raises(MalformedError, match="sample 0: conversations"):
        source_of(samples_file, world_folder, lite, log)
    samples = json.loads(samples_file.read_text())[1:]
    samples_file.write_text(json.dumps(samples))
    items = Items([(source_of(samples_file, world_folder, lite, log), 1)], log)
    with pytest.raises(MalformedError, match="sample 4: expected masks and size of 7x9"):
        items[4]
    with pytest.raises(MalformedError, match=f"sample {len(samples) - 1}: region 0: expected at least one"):
        Collator(items, lite.config, lite.tokenizer, None)([items[len(samples) - 1]])


class FakeSource:
    """Items of which some cannot be read."""

    def __init__(self, good: list[bool], sample: Sample) -> None:
        self.costs = np.ones(len(good), np.int64)
        self._good, self._sample = good, sample

    def __getitem__(self, index: int) -> list[Sample]:
        if not self._good[index]:
            raise ValueError("expected better")
        return [self._sample]

    def malformed(self, index: int, reason: str) -> Malformed:
        return Malformed("fake", index, reason)


@pytest.fixture
def sample() -> Sample:
    scene = make_scene(0, video=False)
    return scene_samples(scene, ask_about(scene, 0, limit=1), "lite")[0]


def test_a_batch_of_malformed_items_takes_the_next_ones(sample: Sample, lite: Any, tmp_path: Path) -> None:
    log = MalformedLog(tmp_path / "log.jsonl")
    items = Items([(FakeSource([True, False, False, False, True], sample), 1)], log)
    collator = Collator(items, lite.config, lite.tokenizer, None)
    wanted = collator([items[4]])["batch"]
    assert torch.equal(collator([items[1], items[2]])["batch"].input_ids, wanted.input_ids)
    assert log.count() == 3
    alone = Items([(FakeSource([False] * 3, sample), 1)], log)
    with pytest.raises(ValueError, match="expected a sample that can be learnt from, the 100 after item 1"):
        Collator(alone, lite.config, lite.tokenizer, None)([alone[1]])


def test_a_conversation_longer_than_the_context_is_malformed(sample: Sample, lite: Any, tmp_path: Path) -> None:
    long = Sample(sample.request, ((sample.turns[0][0], "word " * 40_000),))
    log = MalformedLog(tmp_path / "log.jsonl")
    items = Items([(FakeSource([True], long), 1), (FakeSource([True], sample), 1)], log)
    collator = Collator(items, lite.config, lite.tokenizer, None)
    packed = collator([items[0], items[1]])["batch"]
    assert torch.equal(packed.input_ids, collator([items[1]])["batch"].input_ids)
    assert "tokens in a conversation" in (tmp_path / "log.jsonl").read_text()


def test_sources_stand_one_after_the_other_and_may_repeat(sample: Sample) -> None:
    log = MalformedLog(None)
    first, second = FakeSource([True, True], sample), FakeSource([True, False, True], sample)
    items = Items([(first, 2), (second, 1)], log)
    assert len(items) == 7
    assert [bool(items[i].samples) for i in range(7)] == [True, True, True, True, True, False, True]
    with pytest.raises(ValueError, match="data: expected at least one sample to learn from, got none"):
        Items([(FakeSource([], sample), 3)], log)


def test_items_are_read_by_other_processes_as_well(world_folder: Path, lite: Any, tmp_path: Path) -> None:
    log = MalformedLog(tmp_path / "log.jsonl")
    source = source_of(world_folder / "samples.json", world_folder, lite, log)
    items = Items([(source, 1)], log)
    collate = Collator(items, lite.config, lite.tokenizer, None)
    order = [[0, 1, 2], [3, 4]]
    (own, other), (again, last) = (
        [
            batch["batch"]
            for batch in DataLoader(
                items, batch_sampler=order, collate_fn=collate, num_workers=workers, worker_init_fn=begin_worker
            )
        ]
        for workers in (0, 1)
    )
    assert torch.equal(own.patches, again.patches)
    assert torch.equal(own.input_ids, again.input_ids)
    assert torch.equal(other.targets, last.targets)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_scenes_of_the_world_are_marked_as_each_model_takes_them(kind: str) -> None:
    scene = make_scene(3, video=True)
    region = scene_region(scene, 0, kind)
    assert len(region.frames or ()) == (1 if kind == "full" else len(scene.frames))
    samples = scene_samples(scene, ask_about(scene, 0), kind)
    sources = {id(sample.request.source) for sample in samples}
    assert len(sources) == 1
    requests = {id(s.request): len(s.request.regions) for s in samples}
    assert len(requests) < len(samples)
    assert list(samples[0].request.scene) == (list(range(len(scene.frames))) if kind == "full" else [])
    image = make_scene(3, video=False)
    assert scene_region(image, 0, kind).frames is None
    np.testing.assert_array_equal(scene_media(image), image.frames[0])


def test_a_world_is_the_same_one_every_time() -> None:
    world = World(10, first_seed=5, questions=2, categories=("name", "color"))
    one, two = (WorldSource(world, "lite", 4)[3] for _ in range(2))
    assert [s.turns for s in one] == [s.turns for s in two]
    assert 0 < len(one) <= 2
    other = WorldSource(World(10, first_seed=8, questions=2, categories=("name", "color")), "lite", 4)[0]
    assert [s.turns for s in other] == [s.turns for s in one]
    assert WorldSource(world, "lite", 4).malformed(3, "x") == Malformed("world", 8, "x")


def test_full_learns_from_questions_about_whole_pictures(world_folder: Path, full: Any, tmp_path: Path) -> None:
    samples = json.loads((world_folder / "samples.json").read_text())
    image, video = (next(s for s in samples if key in s) for key in ("image", "video"))
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A picture."}]
    path = tmp_path / "whole.json"
    path.write_text(json.dumps([{"image": image["image"], "conversations": talk, "masks": []}, video]))
    log = MalformedLog(tmp_path / "log.jsonl")
    items = Items([(source_of(path, world_folder, full, log), 1)], log)
    collator = Collator(items, full.config, full.tokenizer, None)
    alone = collator([items[0]])["batch"]
    said = full.tokenizer.decode(alone.targets)
    assert said.startswith("A picture.")
    loss = TrainingModel(full.network)(alone)["loss"]
    assert torch.isfinite(loss)
    both = collator([items[0], items[1]])["batch"]
    assert torch.equal(both.targets[: len(alone.targets)], alone.targets)
    assert torch.isfinite(TrainingModel(full.network)(both)["loss"])
    assert log.count() == 0
