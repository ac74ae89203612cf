"""object_tokens: what its parts give one after the other, as one operation."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_memory import plain_memory
from pool_cases import oracle, random_case

from pixelrefer_fast.bench.run.cases import check, expected, tensors
from pixelrefer_fast.device import stages
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import BackendError, infuse, object_pool, object_tokens
from pixelrefer_fast.ops._registry import Op, listen
from pixelrefer_fast.ops.infuse import plan_groups

N, WIDTH, LLM_WIDTH, HEADS = 4, 32, 20, 8
COUNTS = [9, 0, 3, 12]
CONTEXT = (0, 11), (4, 13)  # first row and rows of the local and of the global view


def _arguments(lite: bool, spare: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Those of a call by name; the features' rows beyond the context are an object's patches."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int, scale: float = 0.1) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    pooling = vars(random_case(COUNTS, N, WIDTH, 3, separate=True, spare=spare).to(dtype=dtype))
    steps: list[torch.Tensor] = []
    sizes: list[int] = []
    for context, projected in zip(CONTEXT, (1, 0), strict=True):
        plan = plan_groups(torch.tensor([context] * len(COUNTS)))
        steps += [plan.order, plan.groups, random(WIDTH) + 1, random(WIDTH), random(3 * WIDTH, WIDTH), random(WIDTH)]
        steps += [random(WIDTH, WIDTH), random(WIDTH)]
        sizes += [plan.max_members, plan.max_rows, plan.first_row, plan.span, projected]
    return {
        **pooling,
        "steps": steps if lite else [],
        "step_sizes": sizes if lite else [],
        "projection": [
            random(LLM_WIDTH, WIDTH),
            random(LLM_WIDTH),
            random(LLM_WIDTH, LLM_WIDTH),
            random(LLM_WIDTH),
        ],
        "heads": HEADS,
        "tokens": None if lite else sum(min(count, N) for count in COUNTS),
    }


def _on(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in arguments.items()}


@pytest.mark.parametrize("lite", [True, False])
def test_formula(lite: bool) -> None:
    """In float64, from the paper's: k-means in plain Python, attention as PyTorch's module has it, two layers."""
    given = _arguments(lite, spare=2, dtype=torch.float64)
    pool = random_case(COUNTS, N, WIDTH, 3, separate=True).to(dtype=torch.float64)
    tokens = oracle(pool)
    for step, (first, rows) in enumerate(CONTEXT if lite else ()):
        _, _, gain, shift, in_weight, query_bias, out_weight, out_bias = given["steps"][8 * step : 8 * step + 8]
        attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            attention.in_proj_weight.copy_(in_weight)
            attention.in_proj_bias.copy_(torch.cat([query_bias, torch.zeros(2 * WIDTH)]))
            attention.out_proj.weight.copy_(out_weight)
            attention.out_proj.bias.copy_(out_bias)
            shared = given["features"][first : first + rows].expand(len(COUNTS), -1, -1)
            normed = F.layer_norm(tokens, (WIDTH,), gain, shift)
            tokens = tokens + attention(normed, shared, shared, need_weights=False)[0]
    if not lite:
        tokens = torch.cat([own[: min(count, N)] for own, count in zip(tokens, COUNTS, strict=True)])
    into, into_bias, out, out_bias = given["projection"]
    wanted = (F.gelu(tokens.reshape(-1, WIDTH) @ into.T + into_bias)) @ out.T + out_bias
    # the folded form of a step has its softmax in float32
    torch.testing.assert_close(object_tokens(**given), wanted, rtol=1e-6 if lite else 1e-9, atol=1e-6 if lite else 1e-9)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lite", [True, False])
def test_kernels(lite: bool, dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Within the bar that every provider is held to: twice the definition's own error and the floor."""
    given = tuple(_on(_arguments(lite, dtype=dtype), kernel_device).values())
    names = list(object_tokens.signature.parameters)
    given = tuple(dict(zip(_arguments(lite), given, strict=True))[name] for name in names)
    with torch.inference_mode():
        found = check(object_tokens, expected(object_tokens, given), tensors(object_tokens(*given, backend="triton")))
    assert found.ok, found
    assert found.error > 0


@pytest.mark.kernel
@pytest.mark.parametrize(("lite", "inside"), [(True, 11), (False, 3)])
def test_launches(lite: bool, inside: int, kernel_device: torch.device) -> None:
    """Those of the parts, and three of the projection; Full packs its tokens besides."""
    given = _on(_arguments(lite), kernel_device)
    parts: list[int] = []

    @contextmanager
    def keep(call: stages.StageCall) -> Any:
        with counting(kernel_device.type, dry=True) as found:
            yield
        if call.stage != "projector":
            parts.append(found.launches.total())

    with plain_memory(), torch.inference_mode():
        with counting(kernel_device.type, dry=True) as whole:
            object_tokens(**given, backend="triton")
        with stages.listen(keep):
            object_tokens(**given, backend="triton")
    assert whole.waits == {}
    assert sum(parts) <= inside
    if lite:
        assert whole.launches.total() == sum(parts) + 3 <= 14
    assert {name.split(".")[0] for name in whole.launches} >= {"object_pool", *(("infuse",) if lite else ())}


@pytest.mark.parametrize("lite", [True, False])
def test_padding_reaches_no_token(lite: bool) -> None:
    """Selected patches beyond the last object's, an object without any, and room for more tokens."""
    plain, padded = _arguments(lite), _arguments(lite, spare=3)
    padded["offsets"] = torch.cat([padded["offsets"], padded["offsets"][-1:]])
    padded["starts"] = torch.cat([padded["starts"], padded["starts"][:1]])
    if lite:
        for step in range(2):
            order, groups = padded["steps"][8 * step : 8 * step + 2]
            padded["steps"][8 * step] = torch.cat([order, order.new_tensor([len(COUNTS)])])
            padded["steps"][8 * step + 1] = torch.cat([groups, groups.new_tensor([[len(COUNTS), 1, 0, 0]])])
    else:
        padded["tokens"] = plain["tokens"] + N
    wanted = object_tokens(**plain)
    torch.testing.assert_close(object_tokens(**padded)[: len(wanted)], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lite", [True, False])
def test_its_parts_are_heard_and_it_is_not(lite: bool) -> None:
    calls: list[str] = []

    def take(op: Op[Any, Any], args: tuple[Any, ...]) -> None:
        calls.append(op.name)

    with listen(take):
        object_tokens(**_arguments(lite))
    assert calls == ["object_pool", *(["infuse"] * 2 if lite else [])]


def test_stages_run_again_by_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were called, and by another: what a stage's results are judged by."""
    heard: list[stages.StageCall] = []

    @contextmanager
    def keep(call: stages.StageCall) -> Any:
        yield
        heard.append(call)

    asked: list[str] = []
    dispatch = Op.dispatch

    def told(self: Op[Any, Any], *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        asked.append(backend)
        return dispatch(self, *args, backend=backend, **kwargs)

    with stages.listen(keep):
        whole = object_tokens(**_arguments(True))
    assert [call.stage for call in heard] == ["pooling", "infusion", "projector"]
    assert heard[-1].result is whole
    monkeypatch.setattr(Op, "dispatch", told)
    for call in heard:
        assert torch.equal(call.run_by("torch"), call.result)  # type: ignore[arg-type]
    assert asked == ["torch"] * 3
    assert torch.equal(heard[0].run(), heard[0].result)  # type: ignore[arg-type]
    assert asked[3:] == ["auto"]


@pytest.mark.kernel
def test_a_part_that_declines_falls_back_alone(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    given = _on(_arguments(True), kernel_device)
    for part in (object_pool, infuse):
        (provider,) = part._providers
        monkeypatch.setattr(provider, "devices", (kernel_device.type,))
        monkeypatch.setattr(part, "_passed_over", type(part._passed_over)())
    given["max_patches"] = 2000
    with torch.inference_mode():
        object_tokens(**given)
        assert list(object_pool.fallbacks().values()) == [1]
        assert infuse.fallbacks() == object_tokens.fallbacks() == {}
        with pytest.raises(BackendError, match=r"^op object_pool: backend 'triton' was asked for but declines: "):
            object_tokens(**given, backend="triton")


def test_who_serves_its_parts_serves_it() -> None:
    assert object_tokens.parts == (object_pool, infuse)
    assert object_tokens.providers() == object_pool.providers() == infuse.providers()
    assert object_tokens._providers == []


def test_gradients() -> None:
    given = _arguments(True, dtype=torch.float64)
    inputs = [given["features"], given["steps"][4], given["projection"][0]]
    for tensor in inputs:
        tensor.requires_grad_(True)
    object_tokens(**given).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any() for tensor in inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "expected 8 steps and 5 step_sizes for each step of infusion, got 0 and 10"),
        ({"step_sizes": [1, 2]}, "expected 8 steps and 5 step_sizes for each step of infusion, got 16 and 2"),
        ({"projection": [torch.zeros(3)]}, "expected projection, 4 tensors, got 1"),
        ({"tokens": 17}, "expected tokens, an integer from 0 to 16, got 17"),
        ({"tokens": -1}, "expected tokens, an integer from 0 to 16, got -1"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^object_tokens: {message}$"):
        object_tokens(**_arguments(True) | change)


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (0, torch.zeros(LLM_WIDTH, 3), r"expected projection\[0\] of shape \(any, 32\), got \(20, 3\)"),
        (1, torch.zeros(3), r"expected projection\[1\] of shape \(20\), got \(3,\)"),
        (2, torch.zeros(5, 3), r"expected projection\[2\] of shape \(any, 20\), got \(5, 3\)"),
        (3, torch.zeros(5), r"expected projection\[3\] of shape \(20\), got \(5,\)"),
        (3, torch.zeros(LLM_WIDTH).double(), r"expected projection\[3\] of torch.float32, got torch.float64"),
        (1, torch.zeros(LLM_WIDTH, device="meta"), r"expected projection\[1\] on cpu, got meta"),
        (2, None, r"expected projection\[2\], a tensor, got NoneType"),
    ],
)
def test_errors_of_the_projection(place: int, tensor: Any, message: str) -> None:
    given = _arguments(False)
    given["projection"][place] = tensor
    with pytest.raises(ValueError, match=f"^object_tokens: {message}$"):
        object_tokens(**given)
