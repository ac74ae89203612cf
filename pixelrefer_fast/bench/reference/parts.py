"""Parts of the reference on given weights: its vision tower, and its region encoder with the way from pixels to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from pixelrefer_fast.bench.reference.checkout import import_reference, running_on
from pixelrefer_fast.checkpoint.config import VISION_PREFIX, VisionConfig

REGION_PREFIX = "model.region_encoder."
REGION_ID = 0


def vision_tower(modules: Mapping[str, ModuleType], vision: VisionConfig) -> nn.Module:
    """The reference's vision tower of these sizes, its weights not set."""
    sizes = {name: value for name, value in vision.to_dict().items() if name != "model_type"}
    settings = modules["model.damovl_encoder.configuration_damovl_encoder"].DAMOVLVisionConfig(
        **sizes, attn_implementation="eager"
    )
    return modules["model.damovl_encoder.modeling_damovl_encoder"].DAMOVLVisionModel(settings).eval()


def image_processor(modules: Mapping[str, ModuleType]) -> Any:
    """The reference's image processor with the values of the released preprocessor_config.json."""
    half = [0.5] * 3
    module = modules["model.damovl_encoder.image_processing"]
    return module.DAMOVLImageProcessor(image_mean=half, image_std=half)


def fill(module: nn.Module, weights: Mapping[str, torch.Tensor], optional: Sequence[str] = ()) -> None:
    """Make `weights` the parameters of a module, in their own memory where they are contiguous.

    Args:
        module: of the reference, on any device.
        weights: by the names of its parameters.
        optional: parameters that may be missing.

    Raises:
        ValueError: the module has other parameters.
    """
    given = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    missing, unknown = module.load_state_dict(given, strict=False, assign=True)
    missing = [name for name in missing if name not in optional]
    if missing or unknown:
        raise ValueError(f"weights: expected those of the reference's module, missing {missing}, unknown {unknown}")


def restore_rotary(tower: Any, vision: VisionConfig, device: torch.device) -> None:
    """The rotary frequencies of a vision tower, which no checkpoint holds; float32 in any dtype."""
    kind = type(tower.encoder.rotary_pos_emb)
    with device:
        tower.encoder.rotary_pos_emb = kind(vision.head_dim // 2)


class RegionStage:
    """The region encoder of the reference's Lite, and its path from pixels to object tokens, without its LLM.

    Args:
        folder: a checkout of the reference (its root, or the folder that holds `pixelreferlite/`).
        weights: tensors by the names of a released checkpoint (`model.region_encoder.*`,
            `model.vision_encoder.vision_encoder.*`).
        vision: sizes of its vision encoder.
        mask_num: tokens an object (n).
        mm_max_length: as in a released config: the pixel budget of a processor call.
        device, dtype: where its modules are and in what.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: Mapping[str, torch.Tensor],
        vision: VisionConfig,
        mask_num: int,
        mm_max_length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        modules = import_reference(folder, "lite")
        self._mm_utils = modules["mm_utils"]
        self.mask_num = mask_num
        there = {name: weight.to(device, dtype) for name, weight in weights.items()}
        out = weights[f"{REGION_PREFIX}feat_linear.0.weight"].shape[0]
        with torch.device("meta"):
            extractor = modules["model.region_encoder"].MaskExtractor(
                SimpleNamespace(hidden_size=out), vision.hidden_size
            )
            tower = vision_tower(modules, vision)
        self.region_encoder = extractor.eval()
        fill(self.region_encoder, _part(there, REGION_PREFIX))
        fill(tower, _part(there, VISION_PREFIX))
        restore_rotary(tower, vision, device)
        encoder = modules["model.encoder"].DAMOVLVisionEncoder
        wrapper = encoder.__new__(encoder)
        nn.Module.__init__(wrapper)
        wrapper.vision_encoder, wrapper.is_loaded = tower, True

        # as its load_model sets the processor up
        processor = modules["model.processor"].PixelreferliteProcessor
        self._processor = processor.__new__(processor)
        self._processor.image_processor = image_processor(modules)
        self._processor.image_processor.merge_size = 2
        self._processor.image_processor.max_pixels = mm_max_length * 2**2 * 14**2

        class Model(modules["model.pixelreferlite_arch"].PixelreferliteMetaForCausalLM):  # type: ignore[misc]
            """Its multimodal mixin without the LLM around it."""

            def __init__(self, parts: SimpleNamespace) -> None:
                self.model = parts
                self.config = SimpleNamespace(
                    use_token_compression=True, image_token_index=-1, region_token_index=REGION_ID, mask_num=mask_num
                )

            def get_model(self) -> SimpleNamespace:
                return self.model

        self._model = Model(
            SimpleNamespace(
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
