"""The reference's own PixelRefer-Lite code, imported at run time from a checkout, as a rival to measure against.

Nothing of it is in this repository. What is done here so that it runs on any device with current libraries, no more:

* modules that are not installed (video readers, torchvision, timm, einops) and a few names of transformers are stood in
  for while it is imported; none of them is used on the measured paths;
* measured in float32, its automatic bfloat16 (`.bfloat16()`, CUDA autocast) is switched off; measured on a CPU,
  `.cuda()` returns the tensor itself;
* its flash-attention call becomes `packed_attention` below;
* its vision tower is filled from given weights instead of from the hub.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

PACKAGE = "pixelreferlite"
REGION_ID = 0
OPTIONAL = (
    "decord",
    "einops",
    "ffmpeg",
    "imageio",
    "timm",
    "timm.models",
    "timm.models.layers",
    "timm.models.regnet",
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)

# Vision towers that the released models do not use; transformers warns when they are looked up without torchvision.
OTHER_TOWERS = tuple(
    family + part for family in ("CLIP", "Siglip") for part in ("ImageProcessor", "VisionConfig", "VisionModel")
)


def packed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int, max_k: int
) -> torch.Tensor:
    """What the reference asks of flash-attention, (P, heads, head_dim): one fused call per packed sequence.

    This is a fair stand-in, not a straw man: PyTorch's own CPU flash kernel runs on each sequence alone, so no mask
    over the whole packing is built and no score outside the blocks is computed. Ours attends in the same way.
    """
    out = torch.empty_like(q)
    bounds = cu_q.tolist()
    for start, stop in itertools.pairwise(bounds):
        query, key, value = (x[start:stop].transpose(0, 1)[None] for x in (q, k, v))
        out[start:stop] = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    return out


class _Absent(types.ModuleType):
    """Stands in for a module that is not installed: every public name in it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def find_package(folder: Path) -> Path:
    """The folder that holds `pixelreferlite/`, given that folder or the root of the reference's repository.

    Raises:
        FileNotFoundError: neither holds it.
    """
    for parent in (folder, folder / "PixelRefer"):
        if (parent / PACKAGE / "model" / "region_encoder.py").is_file():
            return parent
    raise FileNotFoundError(f"{folder}: expected {PACKAGE}/ or PixelRefer/{PACKAGE}/ with the reference's code in it")


@contextlib.contextmanager
def _stand_ins(module: types.ModuleType, **values: Any) -> Iterator[None]:
    """Names that a module shall have for a while, set without looking them up (the lookup may be a lazy import)."""
    missing = {name: value for name, value in values.items() if name not in vars(module)}
    vars(module).update(missing)
    try:
        yield
    finally:
        for name in missing:
            del vars(module)[name]


def _import(parent: Path, names: Sequence[str]) -> list[Any]:
    """Import modules of the reference without running its packages' own `__init__`, which load everything."""
    import transformers.image_utils
    import transformers.processing_utils  # loads transformers a second time, as another module object

    top_level = sys.modules["transformers"]
    modules: dict[str, types.ModuleType] = {name: _Absent(name) for name in OPTIONAL if not _installed(name)}
    for name in (PACKAGE, f"{PACKAGE}.model"):
        modules[name] = types.ModuleType(name)
        modules[name].__path__ = [str(parent.joinpath(*name.split(".")))]
    for name, module in modules.items():
        outer, _, own = name.rpartition(".")
        if outer:
            setattr(modules[outer], own, module)
    sys.modules.update(modules)
    try:
        with (
            mock.patch.object(sys, "path", list(sys.path)),
            _stand_ins(top_level, TRANSFORMERS_CACHE="", **dict.fromkeys(OTHER_TOWERS, object)),
            _stand_ins(transformers.image_utils, VideoInput=Any),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]
    finally:
        for name in [n for n in sys.modules if n in modules or n.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]


@contextlib.contextmanager
def running_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it the reference's code stays on a CPU, and in float32, where that is wanted."""
    with contextlib.ExitStack() as stack:
        if dtype == torch.float32:
            stack.enter_context(mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float))
            stack.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
        if device.type == "cpu":
            stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor))
        stack.enter_context(torch.inference_mode())
        yield


class Reference:
    """The reference's region encoder, and its path from pixels to object tokens, on given weights.

    Args:
        folder: a checkout of the reference (its root, or the folder that holds `pixelreferlite/`).
        weights: tensors by the names of a released checkpoint (`model.region_encoder.*`,
            `model.vision_encoder.vision_encoder.*`).
        vision: fields of its vision config (`hidden_size`, `num_hidden_layers`, ...).
        mask_num: tokens an object (n).
        mm_max_length: as in a released config: the pixel budget of a processor call.
        device, dtype: where its modules are and in what.
    """

    def __init__(
        self,
        folder: Path,
        weights: Mapping[str, torch.Tensor],
        vision: Mapping[str, int],
        mask_num: int,
        mm_max_length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        arch, encoder, region, tower, config, images, processor, self._mm_utils = _import(
            find_package(folder),
            (
                "model.pixelreferlite_arch",
                "model.encoder",
                "model.region_encoder",
                "model.damovl_encoder.modeling_damovl_encoder",
                "model.damovl_encoder.configuration_damovl_encoder",
                "model.damovl_encoder.image_processing",
                "model.processor",
                "mm_utils",
            ),
        )
        self.mask_num = mask_num
        width = vision["hidden_size"]
        out = weights["model.region_encoder.feat_linear.0.weight"].shape[0]
        region.print = lambda *args: None  # it reports every padding on stdout, which would cost it time
        self.region_encoder = region.MaskExtractor(types.SimpleNamespace(hidden_size=out), width).eval()
        self.region_encoder.load_state_dict(_part(weights, "model.region_encoder."))
        self.region_encoder.to(device, dtype)

        tower.flash_attn_varlen_func = packed_attention
        tower.DAMOVL_VISION_ATTENTION_CLASSES["eager"] = tower.VisionFlashAttention2
        settings = config.DAMOVLVisionConfig(**vision, patch_size=14, attn_implementation="eager")
        wrapper = encoder.DAMOVLVisionEncoder.__new__(encoder.DAMOVLVisionEncoder)
        nn.Module.__init__(wrapper)
        wrapper.vision_encoder = tower.DAMOVLVisionModel(settings).eval()
        wrapper.vision_encoder.load_state_dict(_part(weights, "model.vision_encoder.vision_encoder."))
        wrapper.to(device, dtype)
        wrapper.is_loaded = True

        # as its load_model sets the processor up, with the values of the released preprocessor_config.json
        self._processor = processor.PixelreferliteProcessor.__new__(processor.PixelreferliteProcessor)
        half = [0.5] * 3
        self._processor.image_processor = images.DAMOVLImageProcessor(image_mean=half, image_std=half)
        self._processor.image_processor.merge_size = 2
        self._processor.image_processor.max_pixels = mm_max_length * 2**2 * 14**2

        class Model(arch.PixelreferliteMetaForCausalLM):  # type: ignore[name-defined]
            """Its multimodal mixin without the LLM around it."""

            def __init__(self, parts: types.SimpleNamespace) -> None:
                self.model = parts
                self.config = types.SimpleNamespace(
                    use_token_compression=True, image_token_index=-1, region_token_index=REGION_ID, mask_num=mask_num
                )

            def get_model(self) -> types.SimpleNamespace:
                return self.model

        self._model = Model(
            types.SimpleNamespace(
                region_encoder=self.region_encoder,
                get_vision_encoder=lambda: wrapper,
                embed_tokens=nn.Embedding(1, out).to(device, dtype),
            )
        )

    def region_stage(
        self,
        crops: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        local: Sequence[torch.Tensor],
        context: Sequence[torch.Tensor],
        boxes: Sequence[tuple[tuple[int, int, int, int], int, int]],
    ) -> torch.Tensor:
        """Features to object tokens by its MaskExtractor.

        Args:
            crops, local, context: (h, w, D) per object: crop, local-view and global-view features.
            masks: (h, w) per object, at patch resolution.
            boxes: per object (box, image height, image width).

        Returns:
            (M * n, C).
        """
        with running_on(self.device, self.dtype):
            return self.region_encoder(
                list(crops), [list(masks)], list(context), list(local), [list(masks)], [list(boxes)], self.mask_num
            )

    def pixels_to_tokens(self, image: np.ndarray, masks: torch.Tensor) -> torch.Tensor:
        """Pixels to object tokens in the steps of its `mm_infer`, without the text and the LLM.

        Args:
            image: (H, W, 3) uint8.
            masks: (M, H, W) uint8 of 0 and 1.

        Returns:
            (M * n, C).
        """
        with running_on(self.device, self.dtype):
            crops, grids, whole, counts, boxes, local = self._mm_utils.resize_image_mask(
                [image], masks, [0] * len(masks), mask_token_num=self.mask_num
            )
            calls = []
            for views in (crops, whole, local):
                patches = self._processor._process_image(
                    views, num_images=len(views), image_downsampling=1, return_tensors="pt"
                )
                views = [image.to(self.device, self.dtype) for image in patches["images"]]
                calls.append([(views, patches["grid_thws"])])
            embeds = self._model.prepare_inputs_labels_for_multimodal(
                input_ids=torch.full((1, sum(counts)), REGION_ID),
                attention_mask=None,
                past_key_values=None,
                labels=None,
                images=[],
                masks=[grids],
                masks_raw=[list(masks)],
                additional_images=calls[0],
                additional_images_raw=calls[1],
                local_images_raw=calls[2],
                box_params=[boxes],
            )[3]
            return embeds[0]


def _part(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


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
