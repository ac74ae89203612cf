"""The vision encoder: each view as if alone, and equal to transformers' model of the same architecture."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from plain_memory import plain_memory

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import VisionConfig
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.encoding import encoder as module
from pixelrefer_fast.encoding.encoder import Grid, PassLayout, VisionEncoder
from pixelrefer_fast.ops.linear_gelu import _found

CONFIG = VisionConfig(hidden_size=48, num_layers=3, num_heads=3, intermediate_size=80)
GRIDS: list[Grid] = [(3, 5, 1), (4, 6, 2), (1, 1, 1), (4, 6, 1), (2, 2, 2), (3, 5, 1)]


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    generator = torch.Generator().manual_seed(1)
    model = VisionEncoder(CONFIG).requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model


def _patches(grids: list[Grid], seed: int = 0) -> torch.Tensor:
    count = sum(h * w for h, w, _ in grids)
    return torch.rand(count, 588, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _views(rows: torch.Tensor, grids: list[Grid]) -> Iterator[torch.Tensor]:
    start = 0
    for height, width, _ in grids:
        yield rows[start : start + height * width]
        start += height * width


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernel)])
def test_equal_to_transformers(encoder: VisionEncoder, backend: str, kernel_device: torch.device) -> None:
    from transformers import VideoLlama3VisionConfig, VideoLlama3VisionModel

    theirs = VideoLlama3VisionModel(
        VideoLlama3VisionConfig(
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            patch_size=14,
        )
    ).eval()
    slots = encoder.checkpoint_slots()
    assert all(key.startswith(VisionEncoder.PREFIX) for key in slots)
    theirs.load_state_dict({k.removeprefix(VisionEncoder.PREFIX): v for k, v in slots.items()}, strict=True)

    patches = _patches(GRIDS)
    with torch.no_grad():
        expected = theirs(
            pixel_values=patches,
            grid_thw=torch.tensor([(1, h, w) for h, w, _ in GRIDS]),
            merge_sizes=torch.tensor([m for _, _, m in GRIDS]),
        ).last_hidden_state
    device = kernel_device if backend == "triton" else torch.device("cpu")
    features = copy.deepcopy(encoder).to(device)(patches.to(device), GRIDS, backend=backend).cpu()
    assert features.shape == (len(patches), CONFIG.hidden_size)
    # theirs are downsampled where patches are merged: each four in merged order to their mean
    merged = zip(_views(features, GRIDS), GRIDS, strict=True)
    ours = torch.cat([view.unflatten(0, (-1, m * m)).mean(1) for view, (_, _, m) in merged])
    assert ours.std() > 0.3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)


def test_views_encoded_together_equal_views_encoded_alone(encoder: VisionEncoder) -> None:
    patches = _patches(GRIDS)
    together = _views(encoder(patches, GRIDS), GRIDS)
    for own, grid, expected in zip(_views(patches, GRIDS), GRIDS, together, strict=True):
        torch.testing.assert_close(encoder(own, [grid]), expected, rtol=0, atol=2e-5)


def test_the_order_of_views_does_not_matter(encoder: VisionEncoder) -> None:
    patches = _patches(GRIDS)
    forwards = list(_views(encoder(patches, GRIDS), GRIDS))
    turned = torch.cat(list(_views(patches, GRIDS))[::-1])
    backwards = list(_views(encoder(turned, GRIDS[::-1]), GRIDS[::-1]))[::-1]
    for a, b in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("poisoned", range(len(GRIDS)))
def test_a_poisoned_view_does_not_reach_the_others(encoder: VisionEncoder, poisoned: int) -> None:
    patches = _patches(GRIDS)
    clean = list(_views(encoder(patches, GRIDS), GRIDS))
    list(_views(patches, GRIDS))[poisoned].fill_(torch.nan)
    for i, view in enumerate(_views(encoder(patches, GRIDS), GRIDS)):
        assert torch.isnan(view).all() if i == poisoned else torch.equal(view, clean[i])


@pytest.mark.parametrize("limit", [1, 24, 40, 10_000])
def test_passes_in_parts_equal_one_pass(encoder: VisionEncoder, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = _patches(GRIDS)
    whole = encoder(patches, GRIDS)
    sizes: list[list[int]] = []
    run = VisionEncoder.run

    def spy(self: VisionEncoder, own: torch.Tensor, layout: PassLayout, backend: str) -> torch.Tensor:
        sizes.append(layout.cu_seqlens.diff().tolist())
        assert sum(sizes[-1]) == len(own)
        return run(self, own, layout, backend)

    monkeypatch.setattr(VisionEncoder, "run", spy)
    monkeypatch.setattr(module, "PASS_PATCHES", limit)
    torch.testing.assert_close(encoder(patches, GRIDS), whole, rtol=0, atol=2e-5)
    assert [s for part in sizes for s in part] == [h * w for h, w, _ in GRIDS]
    assert all(sum(part) <= limit or len(part) == 1 for part in sizes)
    # 15, 24, 1, 24, 4 and 15 patches; a part may be as large as the limit
    assert [len(part) for part in sizes] == {1: [1] * 6, 24: [1, 1, 1, 1, 2], 40: [3, 2, 1], 10_000: [6]}[limit]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("limit", [24, 10_000])
def test_only_what_is_read(encoder: VisionEncoder, share: float, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features that are read are those of a pass over everything, with what else a view holds still in sight."""
    patches = _patches(GRIDS)
    whole = encoder(patches, GRIDS)
    monkeypatch.setattr(module, "PASS_PATCHES", limit)
    reads = torch.rand(len(patches), generator=torch.Generator().manual_seed(3)) < share
    reads[15:39] = False  # nothing of the second view
    features = encoder(patches, GRIDS, reads)
    torch.testing.assert_close(features, whole[reads], rtol=0, atol=2e-5)


def test_the_last_layer_leaves_out_what_nobody_reads(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    gelu = torch.nn.functional.gelu

    def spy(x: torch.Tensor, approximate: str) -> torch.Tensor:
        seen.append(len(x))
        return gelu(x, approximate=approximate)

    monkeypatch.setattr(torch.nn.functional, "gelu", spy)
    reads = torch.zeros(15, dtype=torch.bool)
    reads[[2, 7]] = True
    encoder(_patches(GRIDS[:1]), GRIDS[:1], reads)
    assert seen == [15, 15, 2]


@pytest.mark.kernel
def test_a_layer_is_eight_launches(
    encoder: VisionEncoder, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: four products, one of them with GELU at its end, rotation, attention and twice residual and norm."""
    for op in (ops.add_norm, ops.linear_gelu, ops.rope2d, ops.varlen_attention):
        for provider in op._providers:
            monkeypatch.setattr(provider, "devices", ("cpu", "cuda"))
            monkeypatch.setattr(provider, "available", lambda: None)
    if kernel_device.type == "cpu":  # where the same function is the erf form, which counting does not mind
        monkeypatch.setitem(_found, (kernel_device, torch.float32), None)
    launches = []
    for layers in (2, 3):
        model = copy.deepcopy(encoder).to(kernel_device)
        model.layers = model.layers[-layers:]
        patches = _patches(GRIDS).to(kernel_device)
        layout = PassLayout.of(GRIDS, None, kernel_device)
        with plain_memory(), torch.inference_mode(), counting(kernel_device.type, dry=True) as counts:
            model.run(patches, layout)
        launches.append(counts.launches)
    assert launches[1] - launches[0] == {
        "add_norm.rows": 2,
        "aten._addmm_activation": 1,
        "aten.addmm": 2,
        "aten.mm": 1,
        "rope2d.rope2d": 1,
        "varlen_attention.attention_float32": 1,
    }


@pytest.mark.parametrize("reads", [torch.zeros(14, dtype=torch.bool), torch.zeros(15)], ids=["length", "dtype"])
def test_wrong_reads(encoder: VisionEncoder, reads: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^encoder: expected 15 bool reads, got \(1[45],\) of torch\."):
        encoder(torch.zeros(15, 588), [(3, 5, 1)], reads)


def test_merged_order_is_raster_order_rearranged(encoder: VisionEncoder) -> None:
    """A patch has the same features wherever it stands in the packing."""
    patches = _patches([(4, 6, 1)])
    places = ops.pack_views(torch.tensor([[4, 6, 2]]), 24)
    place = places.row * 6 + places.column
    assert place.tolist() != sorted(place.tolist())
    torch.testing.assert_close(
        encoder(patches[place], [(4, 6, 2)]), encoder(patches, [(4, 6, 1)])[place], rtol=0, atol=2e-5
    )


def test_patches_know_their_place(encoder: VisionEncoder) -> None:
    patches = _patches([(4, 6, 1)])
    assert (encoder(patches, [(4, 6, 1)]) - encoder(patches, [(6, 4, 1)])).abs().max() > 0.1
    # but only relative to each other: a single patch is the same anywhere, and equal patches stay equal
    same = patches[:1].expand(24, -1)
    features = encoder(same, [(4, 6, 1)])
    torch.testing.assert_close(features, features[:1].expand(24, -1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_features_have_the_weights_dtype(encoder: VisionEncoder, dtype: torch.dtype) -> None:
    other = VisionEncoder(CONFIG)
    other.load_state_dict(encoder.state_dict())
    patches = _patches(GRIDS)
    features = other.to(dtype)(patches, GRIDS)
    assert features.dtype == dtype
    relative = (features.double() - encoder(patches, GRIDS).double()).norm() / features.double().norm()
    assert relative < {torch.bfloat16: 0.05, torch.float16: 0.005, torch.float64: 1e-5}[dtype]


def test_nothing(encoder: VisionEncoder) -> None:
    assert encoder(torch.zeros(0, 588), []).shape == (0, CONFIG.hidden_size)


@pytest.mark.parametrize("count", [0, 14, 16])
def test_wrong_number_of_patches(encoder: VisionEncoder, count: int) -> None:
    with pytest.raises(ValueError, match=f"^encoder: expected 15 patches for these grids, got {count}$"):
        encoder(torch.zeros(count, 588), [(3, 5, 1)])


def test_checkpoint_slots_are_the_parameters_own_memory(encoder: VisionEncoder) -> None:
    other = VisionEncoder(CONFIG).requires_grad_(False)
    slots = other.checkpoint_slots()
    assert sum(s.numel() for s in slots.values()) == sum(p.numel() for p in other.parameters())
    assert slots[f"{VisionEncoder.PREFIX}embeddings.patch_embedding.weight"].shape == (48, 3, 14, 14)
    for key, value in encoder.checkpoint_slots().items():
        slots[key].copy_(value)
    patches = _patches(GRIDS)
    assert torch.equal(other(patches, GRIDS), encoder(patches, GRIDS))


def test_every_layer_runs(encoder: VisionEncoder) -> None:
    shorter = VisionEncoder(dataclasses.replace(CONFIG, num_layers=2)).requires_grad_(False)
    own = shorter.state_dict()
    shorter.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in own})
    patches = _patches(GRIDS)
    assert (shorter(patches, GRIDS) - encoder(patches, GRIDS)).abs().max() > 0.1
