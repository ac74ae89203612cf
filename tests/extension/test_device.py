"""What only a GPU shows of the extension: streams, graphs, no wait, scratch that is checked."""

from __future__ import annotations

import pytest
import torch

from pixelrefer_fast.ops import pack_objects, pack_views, scatter_tokens

pytestmark = pytest.mark.gpu
SHAPES = [(16, 16), (1, 1), (0, 3), (27, 40), (256, 256)] * 40


def _case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(SHAPES)
    mask = torch.rand(int(shapes.prod(1).sum()), generator=generator) - 0.5
    tokens = torch.randn(700, 1152, generator=generator).bfloat16()
    slots = torch.randperm(1000, generator=generator)[:700]
    return mask, shapes, tokens, slots


def _run(mask: torch.Tensor, shapes: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor, backend: str) -> list:
    embeds = torch.zeros(1000, 1152, dtype=torch.bfloat16, device=tokens.device)
    scatter_tokens(embeds, tokens, slots, backend=backend)
    grids = torch.cat([shapes, torch.ones_like(shapes[:, :1])], dim=1)
    packed = pack_objects(mask, shapes, 1 << 21, backend=backend)
    return [embeds, *packed, *pack_views(grids, 1 << 22, backend=backend)]


def test_nothing_waits_for_the_device() -> None:
    arguments = [t.cuda() for t in _case()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = _run(*arguments, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(results, _run(*_case(), backend="torch"), strict=True))


def test_a_graph_replays_with_new_values() -> None:
    arguments = [t.cuda() for t in _case()]
    _run(*arguments, backend="cuda")  # loads the module
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = _run(*arguments, backend="cuda")
    for sign in (1, -1):
        arguments[0].mul_(sign)
        graph.replay()
        wanted = _run(_case()[0] * sign, *_case()[1:], backend="torch")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(results, wanted, strict=True))


def test_work_goes_to_the_current_stream() -> None:
    mask, shapes, *_ = _case()
    shapes = shapes.cuda()
    late = torch.zeros_like(mask, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(mask.pin_memory(), non_blocking=True)
        packed = pack_objects(late, shapes, 1 << 21, backend="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    wanted = pack_objects(mask, shapes.cpu(), 1 << 21, backend="torch")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(packed, wanted, strict=True))


def test_the_tensors_device_is_the_one_that_works() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    arguments = [t.to("cuda:1") for t in _case()]
    with torch.cuda.device(0):
        results = _run(*arguments, backend="cuda")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(results, _run(*_case(), backend="torch"), strict=True))


def test_devices_and_scratch_are_checked() -> None:
    mask, shapes, tokens, slots = _case()
    with pytest.raises(RuntimeError, match=r"^pack_objects_out: expected grid_shapes on cuda:0, got cpu"):
        pack_objects(mask.cuda(), shapes, 8, backend="cuda")
    with pytest.raises(RuntimeError, match=r"^scatter_tokens_: expected slots on cuda:0, got cpu"):
        scatter_tokens(torch.zeros(1000, 1152).bfloat16().cuda(), tokens.cuda(), slots, backend="cuda")
    outputs = [torch.zeros(n, dtype=torch.int32, device="cuda") for n in (8, 8, 8, 2, 1)]
    arguments = (torch.tensor([[2, 4, 2]], device="cuda"), *outputs, torch.zeros(3, dtype=torch.int64, device="cuda"))
    with pytest.raises(RuntimeError, match=r"^pack_views_out: expected scratch of shape \(4,\) or more, got \(3,\)"):
        torch.ops.pixelrefer_fast.pack_views_out(*arguments)


def test_no_two_runs_differ() -> None:
    mask, shapes, *_ = (t.cuda() for t in _case())
    first = pack_objects(mask, shapes, 1 << 21, backend="cuda")
    for _ in range(50):
        assert all(
            torch.equal(a, b) for a, b in zip(first, pack_objects(mask, shapes, 1 << 21, backend="cuda"), strict=True)
        )
