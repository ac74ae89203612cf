"""The counter counts what is known by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting

M, K, N = 3, 5, 7


def counted(run: Callable[[], object]):
    with torch.inference_mode(), plain_memory(), counting() as counts:
        run()
    return counts


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_linear_layer_is_one_launch(mode: Callable) -> None:
    x, weight, bias = torch.ones(M, K), torch.ones(N, K), torch.ones(N)
    with mode(), counting() as counts:
        F.linear(x, weight, bias)
    assert counts.launches == {"aten.addmm": 1}
    assert counts.waits == {}
    assert counts.flops == 2 * M * K * N
    assert counts.moved == 4 * (M * K + K * N + N + M * N)


def test_products_are_counted_by_their_sizes() -> None:
    a, b = torch.ones(2, M, K), torch.ones(2, K, N)
    counts = counted(lambda: (a @ b, torch.baddbmm(torch.ones(2, M, N), a, b)))
    assert counts.launches == {"aten.bmm": 1, "aten.baddbmm": 1, "aten.ones": 1}
    assert counts.flops == 2 * (2 * 2 * M * K * N)
    q = torch.ones(1, 2, 4, 8)
    counts = counted(lambda: F.scaled_dot_product_attention(q, q, q))
    assert sum(counts.launches.values()) == 1
    assert counts.flops == 2 * (2 * 4 * 4 * 8 * 2)


def test_views_allocations_and_empty_results_launch_nothing() -> None:
    x = torch.ones(M, K)

    def run() -> None:
        x.reshape(K, M).transpose(0, 1)[None].expand(2, M, K).unbind(1)
        torch.empty_like(x).view(-1).detach()
        x.new_empty(4).split(2)
        x.shape, x.stride(), x.is_contiguous()
        x[:0] * 2
        x.to(x.dtype)
        x.contiguous()

    counts = counted(run)
    assert counts.launches == {}
    assert counts.waits == {}
    assert counts.moved == 0
    assert counted(lambda: x.t().contiguous()).launches == {"aten.clone": 1}


def test_a_gather_moves_what_it_gives() -> None:
    table, rows = torch.ones(100, 8), torch.tensor([1, 5])
    for run in (lambda: table[rows], lambda: table.index_select(0, rows), lambda: F.embedding(rows, table)):
        counts = counted(run)
        assert sum(counts.launches.values()) == 1
        assert counts.waits == {}
        assert counts.moved == 2 * 8 * 4 * 2 + 2 * 8


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum().item(),
        lambda x: int(x[0]),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: torch.nonzero(x),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.repeat_interleave(x.long()),
        lambda x: torch.tensor([1, 2]),
        lambda x: torch.as_tensor([1, 2]),
        lambda x: range(x.max().int()),
    ],
)
def test_what_the_host_waits_for_is_flagged(run: Callable) -> None:
    x = torch.ones(4)
    assert sum(counted(lambda: run(x)).waits.values()) == 1


def test_what_the_host_need_not_know_is_not_flagged() -> None:
    x, places = torch.ones(4), torch.tensor([0, 2])

    def run() -> None:
        x[places], x.cumsum(0), x.argmax(), torch.where(x > 0, x, 0)
        torch.repeat_interleave(x.long(), output_size=4)
        x.index_put_((places,), torch.zeros(2))
        torch.as_tensor(x), x.to(torch.float16)

    assert counted(run).waits == {}


def test_nothing_is_counted_outside() -> None:
    x = torch.ones(4)
    with counting() as counts:
        pass
    x.sum().item()
    assert counts.launches == counts.waits == {}


def test_other_devices_are_not_counted() -> None:
    with counting("cuda") as counts:
        torch.ones(4).sum()
    assert counts.launches == {}


@pytest.mark.kernel
def test_a_kernel_is_one_launch_with_its_own_numbers(kernel_device: torch.device) -> None:
    import triton
    import triton.language as tl

    from pixelrefer_fast.kernels._launch import launch

    @triton.jit
    def double(x, out, BLOCK: tl.constexpr):
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + place, 2 * tl.load(x + place))

    x = torch.arange(32.0, device=kernel_device)
    out = torch.empty_like(x)
    with counting(kernel_device.type) as counts:
        launch(double, "scratch.double", (2,), x, out, BLOCK=16, flops=32, moved=256)
        launch(double, "scratch.double", (0,), x, out, BLOCK=16, flops=32, moved=256)
        out + 1
    assert torch.equal(out, 2 * x)
    assert counts.launches == {"scratch.double": 1, "aten.add": 1}
    assert counts.waits == {}
    assert (counts.flops, counts.moved) == (32, 512)
    with counting(kernel_device.type, dry=True) as dry:
        launch(double, "scratch.double", (2,), out, out, BLOCK=16, flops=32, moved=256)
    assert torch.equal(out, 2 * x)
    assert dry.launches == {"scratch.double": 1}
    assert (dry.flops, dry.moved) == (32, 256)


def test_a_scatter_moves_what_it_puts() -> None:
    table, rows, values, zero = torch.ones(100, 8), torch.tensor([1, 5]), torch.ones(2, 8), torch.zeros(())
    whole = rows[:, None].repeat(1, 8)
    put = 2 * 2 * 8 * 4  # values read and written
    assert counted(lambda: table.index_copy_(0, rows, values)).moved == put + 8 * 2
    assert counted(lambda: table.index_put_((rows,), values)).moved == put + 8 * 2
    assert counted(lambda: table.scatter_(0, whole, values)).moved == put + 8 * 16
    assert counted(lambda: table.index_fill_(0, rows, 3.0)).moved == 2 * 8 * 4 + 8 * 2
    assert counted(lambda: table.index_put_((rows,), zero)).moved == 2 * 8 * 4 + 4 + 8 * 2


def test_what_is_overwritten_or_only_measured_is_not_read() -> None:
    table, other = torch.ones(100, 8), torch.ones(100, 8)
    assert counted(lambda: table.copy_(other)).moved == 2 * 3200
    assert counted(lambda: table.zero_()).moved == 3200
    assert counted(lambda: table.new_zeros(4)).moved == 16
    assert counted(lambda: torch.zeros_like(table)).moved == 3200


def test_names_add_up() -> None:
    x = torch.ones(4, 4)
    counts = counted(lambda: (x @ x, x + x))
    assert counts.flops_by == {"aten.mm": 128, "aten.add": 0}
    assert sum(counts.moved_by.values()) == counts.moved
    assert set(counts.moved_by) == set(counts.launches)


def test_what_the_host_reads_of_its_own_is_no_wait_for_another_device() -> None:
    with counting("meta") as counts:
        torch.tensor([1, 2]).tolist()
        torch.ones(3, device="meta") + 1
    assert counts.waits == {}
    assert counts.launches == {"aten.ones": 1, "aten.add": 1}
