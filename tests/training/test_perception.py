"""The encoder's pretraining: what each patch is said to show, and what the encoder begins with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipe.perception import (
    COLOR_PIXELS,
    COLUMN,
    COVERED_PIXELS,
    HEADS,
    IGNORED,
    PLACES,
    PerceptionData,
    PerceptionModel,
    _object_labels,
    perception_batch,
    without_budget,
)
from recipe.pretrain import load_encoder, look_around, pretrain, whiten
from recipe.sizes import VISION, make_tokenizer, mini_config, world_texts

from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.ops.rope2d import rope2d, rope2d_table
from pixelrefer_fast.world import make_scene
from pixelrefer_fast.world.things import COLORS

CONFIGS = without_budget(mini_config("lite")), without_budget(mini_config("full"))
NOTHING = len(COLORS)


@pytest.fixture(scope="module")
def batch():
    scenes = [make_scene(seed) for seed in range(6)]
    assert {s.video for s in scenes} == {False, True}  # videos of the full model come in 2x2 order
    return perception_batch(scenes, CONFIGS, [make_scene(seed, video=False) for seed in range(100, 106)])


def test_labels_lie_where_the_patches_do(batch):
    """A patch that shows one plain tone all over is labelled with that tone's colour, or as background."""
    assert batch.labels.shape == (len(batch.patches), len(HEADS))
    assert sum(h * w for h, w, _ in batch.grids) == len(batch.patches)
    assert {merge for _, _, merge in batch.grids} == {1, 2}
    pixels = (batch.patches.view(-1, 3, 196) + 1) * 127.5
    plain = pixels.std(2).max(1).values < 4
    mean = pixels.mean(2)
    tones = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    vivid = (mean.max(1).values - mean.min(1).values) > 90  # no background is
    chosen = plain & vivid
    assert chosen.sum() > 50
    nearest = torch.cdist(mean[chosen], tones).argmin(1)
    told = batch.labels[chosen, 0]
    assert (told == nearest).float().mean() > 0.97


def test_background_has_no_shape_and_objects_have_colors(batch):
    empty = batch.labels[:, 0] == NOTHING
    assert 0.2 < empty.float().mean() < 0.9
    assert (batch.labels[empty, 1 : COLUMN["row"]] == IGNORED).all()
    assert (batch.labels[:, 0] != IGNORED).all()
    for i, size in enumerate(HEADS.values()):
        told = batch.labels[:, i][batch.labels[:, i] != IGNORED]
        assert len(told)
        assert told.min() >= 0
        assert told.max() < size


def test_patches_of_whole_images_know_where_they_lie(batch):
    whole = [i for i, grid in enumerate(batch.grids) if grid[2] == 2]  # Full's images and frames, in 2x2 order
    first = np.cumsum([0, *(rows * columns for rows, columns, _ in batch.grids)])
    for i in whole:
        rows, columns, _ = batch.grids[i]
        own = batch.labels[first[i] : first[i + 1]]
        corner = own[[0, -1]]  # the first patch and the last
        assert corner[:, COLUMN["row"]].tolist() == [0, (rows - 1) * PLACES // rows]
        assert corner[:, COLUMN["column"]].tolist() == [0, (columns - 1) * PLACES // columns]
        # the third patch of the 2x2 order stands below the first
        assert own[2, COLUMN["row"]] == PLACES // rows
        assert own[2, COLUMN["column"]] == 0


def test_angles_are_told_as_far_as_shapes_show_them():
    scenes = [s for s in map(make_scene, range(100)) if "star" in [t.shape for t in s.things]]
    star = next(s for s in scenes if s.facts.visible.min() > 0.9)
    i = [t.shape for t in star.things].index("star")
    turned = replace(star, angles=star.angles + 72.0)
    other = replace(star, angles=star.angles + 40.0)
    tables = [_object_labels(scene)[0][i, COLUMN["angle"]] for scene in (star, turned, other)]
    assert IGNORED not in tables
    assert tables[0] == tables[1] != tables[2]


def test_whole_views_are_all_that_is_shown_of_some_scenes():
    scenes = [make_scene(seed, video=False) for seed in range(5)]
    batch = perception_batch([], CONFIGS, whole=scenes)
    assert len(batch.grids) == len(scenes)
    assert (batch.labels[:, [COLUMN["row"], COLUMN["column"]]] != IGNORED).all()
    side = CONFIGS[0].global_view_size // 14
    assert [grid[:2] for grid in batch.grids[:3]] == [(side, side)] * 3  # Lite's share of them, the first, third, fifth


def test_crowds_show_more_of_what_is_hard_to_see():
    data = PerceptionData(CONFIGS, 0, whole=1, crowds=3, first_seed=50)
    first, second = (data.make(number)["batch"] for number in (0, 1))
    assert len(first.grids) == 4
    owners = [int(owner.max()) + 1 for owner in first.whole.owner]
    assert max(owners) > 6  # more than any scene has
    many = first.labels[:, [COLUMN["same_color"], COLUMN["same_shape"]]]
    assert many.max() < HEADS["same_color"]
    assert not torch.equal(first.patches[-50:], second.patches[-50:])


def test_an_object_is_told_whether_it_hides_another_and_whether_it_is_hidden():
    told = set()
    for seed in range(60):
        scene = make_scene(seed, video=False)
        covers = scene.facts.covers[0]
        table = _object_labels(scene)[0]
        for i in range(len(scene.things)):
            for name, pixels in (("hides", covers[i].max()), ("hidden", covers[:, i].max())):
                label = int(table[i, COLUMN[name]])
                assert label == (0 if pixels == 0 else 1 if pixels >= COVERED_PIXELS else IGNORED)
                told.add((name, label))
    assert told == {(name, label) for name in ("hides", "hidden") for label in (0, 1, IGNORED)}


def test_objects_of_a_color_are_counted_where_all_colors_are_seen():
    for seed in range(30):
        scene = make_scene(seed, video=False)
        table = _object_labels(scene)[0]
        for i, thing in enumerate(scene.things):
            count = sum(other.color == thing.color for other in scene.things)
            seen = scene.facts.areas.min() >= COLOR_PIXELS
            assert table[i, COLUMN["same_color"]] == (count - 1 if seen else IGNORED)


def test_loss_falls():
    torch.manual_seed(0)
    batch = perception_batch([], CONFIGS, [make_scene(seed, video=False) for seed in range(4)])
    model = PerceptionModel(VisionEncoder(VISION))
    whiten(model.encoder, batch.patches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):  # heads that begin at zero first find out what they can read
        outputs = model(batch)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        losses.append(outputs["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
    assert outputs["accuracy"].shape == (len(HEADS),)


def test_whitened_channels_have_variance_one_in_order(batch):
    encoder = VisionEncoder(VISION)
    whiten(encoder, batch.patches)
    channels = encoder.patch_embedding(batch.patches)
    spread = torch.cov(channels.detach().double().T)
    assert torch.allclose(channels.mean(0), torch.zeros(160), atol=1e-2)
    assert 0.9 < spread.diagonal()[-1] <= 1.01  # the largest component; the floor keeps small ones below
    assert spread.diagonal().min() > 0.05
    off = spread - torch.diag(spread.diagonal())
    assert off.abs().max() < 1e-2


def test_heads_begin_with_their_neighbours():
    encoder = VisionEncoder(VISION)
    before = encoder.layers[3].qkv.bias.clone()
    look_around(encoder, 3)
    assert torch.equal(encoder.layers[3].qkv.bias, before)
    row = torch.arange(5).repeat_interleave(5).int()
    column = torch.arange(5).repeat(5).int()
    qkv = torch.zeros(25, 3, 5, 32)
    rope2d(qkv, encoder.layers[0].qkv.bias.detach().view(3, 5, 32), row, column, *rope2d_table(8, 32, "cpu"))
    scores = torch.einsum("qhd,khd->hqk", qkv[:, 0], qkv[:, 1])
    seen = [divmod(int(head[12].argmax()), 5) for head in scores]  # from the middle
    assert seen == [(1, 2), (3, 2), (2, 1), (2, 3), (2, 2)]


def test_a_pretraining_writes_what_an_encoder_takes(tmp_path):
    lite, full = mini_config("lite"), mini_config("full")
    path = pretrain(lite, full, tmp_path / "first", steps=2, scenes=1, close=2)
    entries = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["step"] == 2
    encoder = VisionEncoder(VISION)
    load_encoder(encoder, path)
    again = pretrain(lite, full, tmp_path / "second", steps=3, scenes=0, close=2, start=path)
    # the first warms up, and in the second heads that begin at zero move alone
    other = VisionEncoder(VISION)
    load_encoder(other, again)
    moved = (other.post_norm.weight - encoder.post_norm.weight).abs().max()
    assert 0 < moved < 0.01  # a step from where the first ended


def test_processes_and_workers_share_the_scenes(monkeypatch):
    def first(process: int) -> np.ndarray:
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", "2")
        return next(iter(PerceptionData(CONFIGS, 1)))["batch"].patches.numpy()

    assert not np.array_equal(first(0)[:50], first(1)[:50])
    assert np.array_equal(first(1), perception_batch([make_scene(1)], CONFIGS).patches.numpy())


def test_tokenizer_of_the_small_models():
    tokenizer = make_tokenizer(world_texts(60))
    assert len(tokenizer) <= 1024
    for text in ("a large red striped star", "Welches Objekt? 你好 \U0001f600", "x\n\n  y"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    said = tokenizer("a large red striped star<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(said) == 6
    assert said[-1] == tokenizer.eos_token_id
    region, image = tokenizer.convert_tokens_to_ids(["<REGION>", "<image>"])
    assert tokenizer("[<REGION><REGION>]<image>", add_special_tokens=False)["input_ids"].count(region) == 2
    assert region != image
