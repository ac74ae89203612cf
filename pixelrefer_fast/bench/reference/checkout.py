"""The reference's own code, imported at run time from a checkout; nothing of it is in this repository.

What keeps it from being imported and run here, and what is done about it, no more:

* packages that are not installed (video readers, torchvision, timm, einops, pycocotools) and a module and a few names
  that current transformers has no longer are stood in for while it is imported; nothing of them is used on the measured
  paths;
* it registers its models with transformers under names that a second import would find taken: it registers nothing;
* its own attention for machines without flash-attention fails (it reads names that do not exist), so that attention is
  `packed_attention` where flash-attention is not installed;
* in float32, which it does not foresee, its casts to bfloat16 (`.bfloat16()`, CUDA autocast) are switched off; on a CPU
  its `.cuda()` returns the tensor itself;
* current transformers makes a PIL image of every array that is asked to be RGB, which the reference does with every
  crop and view, and which did nothing in its time: it does nothing again;
* what it prints and what it is warned of is not printed, which would cost it time.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._attention_libraries import LIBRARIES, accepts, run

TORCH_VARLEN = next(library for library in LIBRARIES if library.backend == "torch_varlen")
PACKAGES = {"lite": "pixelreferlite", "full": "pixelrefer"}
OPTIONAL = (
    "decord",
    "einops",
    "ffmpeg",
    "imageio",
    "pycocotools",
    "timm",
    "timm.models",
    "timm.models.layers",
    "timm.models.regnet",
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)
# Of transformers itself: newer ones have it no longer, and a tower that the released models do not use imports it.
FORMER = ("transformers.modeling_attn_mask_utils",)
# Vision towers that the released models do not use; transformers warns when they are looked up without torchvision.
OTHER_TOWERS = tuple(
    family + part for family in ("CLIP", "Siglip") for part in ("ImageProcessor", "VisionConfig", "VisionModel")
)


def find_package(folder: str | Path, kind: str) -> Path:
    """The folder that holds the reference's package for models of `kind`.

    Args:
        folder: that folder, or the root of the reference's repository.
        kind: "lite" or "full".

    Raises:
        FileNotFoundError: neither holds it.
    """
    package, folder = PACKAGES[kind], Path(folder)
    for parent in (folder, folder / "PixelRefer"):
        if (parent / package / "model" / "region_encoder.py").is_file():
            return parent
    raise FileNotFoundError(f"{folder}: expected {package}/ or PixelRefer/{package}/ with the reference's code in it")


def import_reference(folder: str | Path, kind: str) -> dict[str, types.ModuleType]:
    """The reference's modules by their names within its package ("" is the package itself).

    They are taken out of `sys.modules` again, as are the stand-ins.

    Args:
        folder: a checkout of the reference.
        kind: "lite" or "full".

    Raises:
        FileNotFoundError: no reference is there.
        ValueError: it is there and cannot be imported.
    """
    import transformers.image_utils
    import transformers.processing_utils  # loads transformers a second time, as another module object

    parent, package = find_package(folder, kind), PACKAGES[kind]
    top_level = sys.modules["transformers"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_standing_in(package))
        # the reference appends to it as well
        stack.enter_context(mock.patch.object(sys, "path", [str(parent), *sys.path]))
        stack.enter_context(_names(top_level, TRANSFORMERS_CACHE="", **dict.fromkeys(OTHER_TOWERS, object)))
        stack.enter_context(_names(transformers.image_utils, VideoInput=Any))
        for registry in (transformers.AutoConfig, transformers.AutoModelForCausalLM):
            stack.enter_context(mock.patch.object(registry, "register", return_value=None))
        stack.enter_context(unwarned())
        try:
            importlib.import_module(package)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{parent / package}: the reference's code cannot be imported ({reason})") from error
        modules = {n[len(package) + 1 :]: m for n, m in sys.modules.items() if f"{n}.".startswith(f"{package}.")}
    tower = modules["model.damovl_encoder.modeling_damovl_encoder"]
    if tower.flash_attn_varlen_func is None:
        tower.flash_attn_varlen_func = packed_attention  # type: ignore[attr-defined]
    # transformers refuses to build a module that asks for flash-attention where it is not installed
    tower.DAMOVL_VISION_ATTENTION_CLASSES["eager"] = tower.VisionFlashAttention2
    images = modules["model.damovl_encoder.image_processing"]
    convert = images.convert_to_rgb
    vars(images)["convert_to_rgb"] = lambda image: image if isinstance(image, np.ndarray) else convert(image)
    for module in modules.values():
        vars(module)["print"] = lambda *args, **kwargs: None
    return modules


def packed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int, max_k: int
) -> torch.Tensor:
    """What the reference asks of flash-attention, (P, heads, head_dim): softmax attention within each packed sequence.

    A fair stand-in, not a straw man: on a GPU in 16 bits the flash-attention inside PyTorch, one call for all
    sequences; else PyTorch's fused attention for each sequence alone, so that no mask over the whole packing is built
    and no score outside the blocks is computed. Ours attends in the same ways.
    """
    if accepts(TORCH_VARLEN, q, k, v, cu_q, max_q, max_k, causal=False) is None:
        return run(TORCH_VARLEN, q, k, v, cu_q, cu_k, max_q, max_k)
    out = torch.empty_like(q)
    for start, stop in itertools.pairwise(cu_q.tolist()):
        query, key, value = (x[start:stop].transpose(0, 1)[None] for x in (q, k, v))
        out[start:stop] = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    return out


@contextlib.contextmanager
def running_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it the reference's code stays on a CPU, and in float32, where that is wanted; it warns of nothing."""
    with contextlib.ExitStack() as stack:
        if dtype == torch.float32:
            stack.enter_context(mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float))
            stack.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
        if device.type == "cpu":
            stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(unwarned())
        yield


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Within it nothing is warned of, by Python or by transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def recorded_permutations() -> Iterator[list[torch.Tensor]]:
    """Collect every permutation that is drawn: the reference starts each clustering from the first n of one."""
    drawn: list[torch.Tensor] = []
    draw = torch.randperm

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    with mock.patch.object(torch, "randperm", record):
        yield drawn


class _Absent(types.ModuleType):
    """Stands in for a module that is not installed: every public name in it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


@contextlib.contextmanager
def _standing_in(package: str) -> Iterator[None]:
    """Modules in place of those that are not installed; afterwards neither they nor `package` can be imported."""
    absent = {name: _Absent(name) for name in OPTIONAL if not _installed(name)}
    absent |= {name: _Absent(name) for name in FORMER if importlib.util.find_spec(name) is None}
    for name, module in absent.items():
        outer, _, own = name.rpartition(".")
        if outer in absent:
            setattr(absent[outer], own, module)
    # an import of the package by somebody else stays theirs
    kept = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{package}.")}
    for name in kept:
        del sys.modules[name]
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n in absent or f"{n}.".startswith(f"{package}.")]:
            del sys.modules[name]
        sys.modules.update(kept)


@contextlib.contextmanager
def _names(module: types.ModuleType, **values: Any) -> Iterator[None]:
    """Names that a module shall have for a while, set without looking them up (the lookup may be a lazy import)."""
    missing = {name: value for name, value in values.items() if name not in vars(module)}
    vars(module).update(missing)
    try:
        yield
    finally:
        for name in missing:
            vars(module).pop(name, None)
