"""A product and the tanh form of GELU after it: the wide half of the encoder's MLP."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

EPILOGUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# by (device, dtype): what the epilogue of the installed library has computed wrongly, or None
_found: dict[tuple[torch.device, torch.dtype], Reason] = {}


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for rows, width, out in ((5, 48, 40), (1, 1, 1), (17, 72, 33), (1, 8, 5), (3, 16, 1), (0, 16, 8)):
        x = 2 * torch.randn(rows, width, generator=generator)
        weight = torch.randn(out, width, generator=generator) * width**-0.5
        yield x.to(dtype), weight.to(dtype), torch.randn(out, generator=generator).to(dtype)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py DAMOVLVisionMLP, gelu_pytorch_tanh",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
)
def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x weightᵀ + bias), with the tanh approximation of GELU.

    Args:
        x: (R, C), any float dtype.
        weight: (O, C) same dtype.
        bias: (O,) same dtype.

    Returns:
        (R, O).

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


@linear_gelu.check
def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    check_shape("linear_gelu", "x", x, None, None)
    check_shape("linear_gelu", "weight", weight, None, x.shape[1])
    check_shape("linear_gelu", "bias", bias, len(weight))
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_dtype("linear_gelu", name, tensor, x.dtype)
    check_device("linear_gelu", x.device, weight=weight, bias=bias)


@linear_gelu.fake
def _fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


def epilogue_is_right(device: torch.device, dtype: torch.dtype) -> Reason:
    """What the epilogue on a device computes wrongly, or None; asked once, with launches and a wait of the host.

    Its form of GELU is nowhere promised: on a CPU the same function is the erf form. Each output is one element of x,
    so that the product is exact and nothing but GELU is rounded, which tells both forms apart in 16 bit too.
    """
    if (device, dtype) not in _found:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "it was not tried before a capture"
        rows, width, out = 64, 48, 96
        x = torch.linspace(-6, 6, rows * width).view(rows, width).to(device, dtype)
        taken = torch.arange(out, device=device) * 7 % width
        weight = torch.zeros(out, width, device=device, dtype=dtype)
        weight[torch.arange(out, device=device), taken] = 1
        bias = torch.zeros(out, device=device, dtype=dtype)
        bias[::2] = 0.25
        wanted = F.gelu(x.double()[:, taken] + bias.double(), approximate="tanh")
        # a rounding of the result, and in float32 what tanh itself is off by
        bound = wanted.abs() * torch.finfo(dtype).eps + 2e-6
        furthest = ((_epilogue(x, weight, bias).double() - wanted).abs() / bound).max()
        right = bool(furthest <= 1)
        _found[device, dtype] = None if right else f"its GELU is off by {float(furthest):.1f} times what it may be"
    return _found[device, dtype]


def _accepts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Reason:
    if x.dtype not in EPILOGUE_DTYPES:
        return f"it computes float32, float16 and bfloat16, not {x.dtype}"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast chooses the dtype of a product, which it does not know of"
    if not all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in (x, weight, bias)):
        return "an argument is no plain tensor"
    return epilogue_is_right(x.device, x.dtype)


def _epilogue(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch._addmm_activation(bias, x, weight.T, use_gelu=True)


def _available() -> Reason:
    return None if torch.cuda.is_available() else "there is no CUDA device"


linear_gelu.provider("cublaslt", available=_available, accepts=_accepts)(_epilogue)
