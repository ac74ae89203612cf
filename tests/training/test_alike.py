"""The heads of a vision encoder that learn what to count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recipe.alike import (
    BACKGROUND,
    CENTRES,
    HEADS,
    LOOKS,
    PADDING,
    Watch,
    WholeViews,
    _divergence,
    _off_centre,
    alike,
    heads_of,
)
from recipe.perception import PerceptionModel, perception_batch, without_budget
from recipe.sizes import VISION, mini_config

from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.world import make_scene

CONFIGS = without_budget(mini_config("lite")), without_budget(mini_config("full"))


@pytest.fixture(scope="module")
def batch():
    return perception_batch([make_scene(3, video=False)], CONFIGS, whole=[make_scene(s, video=False) for s in (4, 5)])


def test_each_patch_of_a_whole_image_knows_its_object(batch):
    """Its labels are those of its object, and the objects that are alike are as many as its labels say."""
    from recipe.perception import COLUMN, IGNORED

    for view in range(len(batch.whole.patches)):
        owner = batch.whole.owner[view]
        labels = batch.labels[batch.whole.patches[view]]
        assert (labels[owner == BACKGROUND, 0] == labels[:, 0].max()).all()
        for i in owner[owner >= 0].unique().tolist():
            assert len(labels[owner == i, COLUMN["color"]].unique()) == 1
            for k, look in enumerate(LOOKS):
                count = labels[owner == i, COLUMN[f"same_{look}"]].unique().tolist()
                alike_it = int(batch.whole.alike[view, k, i].sum())
                assert count == [alike_it - 1 if alike_it else IGNORED]
    spans = {tuple(p[o != PADDING].tolist()) for p, o in zip(batch.whole.patches, batch.whole.owner, strict=True)}
    assert len(spans) == len(batch.whole.patches)  # every view its own


def test_what_is_not_plain_is_not_counted():
    scene = make_scene(4, video=False)
    table = alike(scene, (True, False))
    assert table[0].diagonal().all()
    assert not table[1].any()


def test_an_even_attention_misses_nothing():
    """Two of three objects alike: a third each of the attention, wherever within them, and a third for the rest."""
    owner = torch.tensor([[0, 1, 1, 2, BACKGROUND, PADDING]])
    looks = torch.zeros(1, 3, 3, dtype=torch.bool)
    looks[0, :2, :2] = True
    parts = torch.tensor([1 / 3, 1 / 3 - 0.1, 0.1, 0.03, 1 / 3 - 0.03, 1.0])
    scores = _padded(parts, owner)
    assert float(_divergence(scores, owner, looks)) == pytest.approx(0, abs=1e-5)
    uneven = _padded(torch.tensor([2 / 3 - 0.01, 0.01, 1e-9, 0.03, 1 / 3 - 0.03, 1.0]), owner)
    expected = -(np.log(2 / 3 - 0.01) + np.log(0.01) + np.log(1 / 3)) / 3 - np.log(3)
    assert float(_divergence(uneven, owner, looks)) == pytest.approx(expected, abs=1e-4)
    assert float(_divergence(uneven, owner, torch.zeros_like(looks))) == 0


def _padded(parts, owner):
    """(1, L, L) scores of queries that all attend to the keys by these parts."""
    return parts.log().masked_fill(owner == PADDING, -torch.inf).expand(1, len(parts), len(parts))


def test_attention_to_centres_misses_nothing():
    """Two of three objects alike, one with its centre between two patches: a third each, and a third for what shows
    no object; what any other patch of an object gets is missed."""
    owner = torch.tensor([[0, 0, 1, 1, 1, 2, BACKGROUND, BACKGROUND, PADDING]])
    centre = torch.tensor([[0.0, 1.0, 0.25, 0.75, 0.0, 1.0, 0.0, 0.0, 0.0]])
    looks = torch.zeros(1, len(LOOKS), 3, 3, dtype=torch.bool)
    looks[0, 1, :2, :2] = True
    views = WholeViews(torch.arange(9)[None], owner, looks, centre)
    third = 1 / 3
    parts = torch.tensor([0.0, third, third / 4, third * 3 / 4, 0.0, 0.0, third - 0.1, 0.1, 9.0])
    assert float(_off_centre(_padded(parts, owner), views, 1)) == pytest.approx(0, abs=1e-6)
    for patch in (0, 4, 5):
        moved = parts.clone()
        moved[patch], moved[1] = 0.2, third - 0.2
        expected = -np.log((third - 0.2) / third) / 3
        assert float(_off_centre(_padded(moved, owner), views, 1)) == pytest.approx(expected, abs=1e-4)
    assert float(_off_centre(_padded(parts, owner), views, 0)) == 0  # nothing is counted


def test_a_whole_image_without_background_gives_finite_gradients():
    owner = torch.tensor([[0, 1]])
    looks = torch.ones(1, len(LOOKS), 2, 2, dtype=torch.bool)
    scores = torch.randn(1, 2, 2, requires_grad=True)
    _off_centre(scores, WholeViews(torch.arange(2)[None], owner, looks, torch.ones(1, 2)), 0).backward()
    assert torch.isfinite(scores.grad).all()


def test_centres_lie_where_the_objects_do(batch):
    """One centre for each object, in patches that show it, and their mean place is the object's."""
    whole = batch.whole
    for view in range(len(whole.patches)):
        rows, columns, _ = batch.grids[_view_of(batch, view)]
        owner, centre = whole.owner[view][: rows * columns], whole.centre[view][: rows * columns]
        assert (centre[owner < 0] == 0).all()
        for i in owner[owner >= 0].unique().tolist():
            own = owner == i
            assert float(centre[own].sum()) == pytest.approx(1, abs=1e-5)
            place = torch.stack([torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns], 1)
            wanted = place[own].float().mean(0)
            assert (centre[own] @ place[own].float() - wanted).norm() < 1.5


def _view_of(batch, view: int) -> int:
    """Number of a whole image among all views."""
    starts = np.cumsum([0, *(rows * columns for rows, columns, _ in batch.grids)])
    return int(np.searchsorted(starts, int(batch.whole.patches[view][0]), "right")) - 1


def test_the_attention_is_the_encoders_own(batch):
    """The scores of a watched head are those that the layer itself computes."""
    torch.manual_seed(0)
    encoder = VisionEncoder(VISION)
    with torch.no_grad():
        for layer in encoder.layers:
            layer.qkv.bias.normal_()
    watch = Watch(encoder)
    with watch.watching(), torch.no_grad():
        encoder(batch.patches, batch.grids)
    layer, head = HEADS["color"][0]
    normed, layout, rope = watch._seen[layer]
    from recipe.alike import _scores

    from pixelrefer_fast import ops

    block = encoder.layers[layer]
    qkv = (normed @ block.qkv.weight.T).view(len(normed), 3, block.heads, -1)
    ops.rope2d(qkv, block.qkv.bias.view(3, block.heads, -1), layout.row, layout.column, *rope)
    q, k, _ = qkv[:, :, head].unbind(1)
    own = batch.whole.patches[0][batch.whole.owner[0] != PADDING]
    with torch.no_grad():
        found = _scores(block, head, normed, layout, rope, batch.whole.patches)[0, : len(own), : len(own)]
    torch.testing.assert_close(found, q[own] @ k[own].T / q.shape[1] ** 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [VISION.num_layers, 6])
def test_its_loss_moves_the_heads_and_what_is_before_them(batch, layers):
    config = replace(VISION, num_layers=layers)
    model = PerceptionModel(VisionEncoder(config))
    with model.watch.watching():
        model.encoder(batch.patches, batch.grids)
    losses = model.watch.losses(batch.whole)
    watched = [head for kind in (HEADS, CENTRES) for own in heads_of(config, kind).values() for head in own]
    assert losses.shape == (len(watched),)
    assert (losses > 0).all()
    losses.sum().backward()
    size = VISION.hidden_size // VISION.num_heads
    for layer, head in watched:
        gradient = model.encoder.layers[layer].qkv.weight.grad
        assert gradient[head * size : (head + 1) * size].abs().sum() > 0
        # what the last of them looks at is what counts, not what it takes from there
        assert gradient[2 * VISION.hidden_size :].any() == (layer < max(n for n, _ in watched))
    assert model.encoder.patch_embedding.weight.grad.abs().sum() > 0


def test_images_without_views_give_no_loss():
    none = WholeViews.of([])
    model = PerceptionModel(VisionEncoder(VISION))
    batch = perception_batch([], CONFIGS, close=[make_scene(s, video=False) for s in range(4)])
    assert batch.whole.patches.shape == none.patches.shape == (0, 0)
    assert torch.isfinite(model(batch)["loss"])


def test_an_encoder_has_as_many_of_the_heads_as_its_layers_allow():
    assert heads_of(VISION, HEADS) == {look: HEADS[look][:1] for look in LOOKS}
    assert heads_of(VISION, CENTRES) == dict.fromkeys(LOOKS, ())
    deeper = replace(VISION, num_layers=6)
    assert heads_of(deeper, HEADS) == HEADS
    assert heads_of(deeper, CENTRES) == CENTRES


def test_a_small_encoder_is_told_so():
    with pytest.raises(ValueError, match="expected at least 4 layers of 5 heads"):
        Watch(VisionEncoder(replace(VISION, num_layers=2)))
