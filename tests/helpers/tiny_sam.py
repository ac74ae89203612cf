"""Tiny models of transformers' real classes of SAM's family, with seeded random weights, saved as folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

CASES = (
    {"size": (64, 64), "points": [[20, 30]]},
    {"size": (40, 70), "points": [[20, 30], [60, 10], [5, 5]], "labels": [1, 1, 0]},
    {"size": (90, 37), "boxes": [[3, 4, 30, 80]]},
    {"size": (130, 200), "boxes": [[3, 4, 100, 90], [60, 20, 190, 120]]},
    {"size": (50, 80), "points": [[20, 30]], "labels": [1], "boxes": [[3, 4, 60, 40]]},
)
"""Prompts, and (height, width) of the pictures that they are about; their masks are recorded."""
FOLLOWED = {"size": (40, 70), "frames": 6, "frame": 2, "boxes": [[3, 4, 40, 30], [30, 10, 69, 39]]}
"""Objects marked in a frame of a video; their masks in every frame are recorded."""

SIDE = 64
"""Of the square that each sees."""
WIDTH = 128
"""Of features."""
MEMORY = 64
"""Of what trackers remember: a fixed number in transformers' code, and less than `WIDTH` in all released models."""
_PROMPTS = {"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 4}
_MASKS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "iou_head_hidden_dim": 32,
    "iou_head_depth": 2,
}
_MEMORY = {
    "image_size": SIDE,
    "num_maskmem": 3,
    "memory_attention_hidden_size": WIDTH,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [SIDE // 16, SIDE // 16],
    "memory_encoder_hidden_size": WIDTH,
    "memory_encoder_output_channels": MEMORY,
    "mask_downsampler_embed_dim": WIDTH,
    "memory_fuser_embed_dim": WIDTH,
    "memory_fuser_intermediate_dim": 32,
}


def sam() -> PreTrainedModel:
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 16,
        "output_channels": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": WIDTH // 2,
        "mlp_dim": 32,
    }
    prompts = _PROMPTS | {"patch_size": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_MASKS)
    return SamModel(config)


def sam2_video() -> PreTrainedModel:
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=_sizes(4),
        fpn_hidden_size=WIDTH,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=_PROMPTS | {"patch_size": 16},
        mask_decoder_config=Sam2VideoMaskDecoderConfig(**_MASKS),  # of a dict transformers 5.19 makes another class
        memory_attention_feed_forward_hidden_size=32,
        **_MEMORY,
    )
    return Sam2VideoModel(config)


def edgetam_video() -> PreTrainedModel:
    """Within `repvit`."""
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel, EdgeTamVisionConfig

    vision = EdgeTamVisionConfig(
        backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=_sizes(4), fpn_hidden_size=WIDTH
    )
    config = EdgeTamVideoConfig(
        vision_config=vision,
        prompt_encoder_config=_PROMPTS | {"patch_size": 16},
        mask_decoder_config=_MASKS,
        memory_attention_rope_k_sizes=[2, 2],
        memory_attention_mlp_hidden_size=32,
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        perceiver_resampler_hidden_size=MEMORY,
        perceiver_resampler_mlp_intermediate_size=32,
        perceiver_resampler_attention_head_dim=MEMORY,
        **_MEMORY,
    )
    return EdgeTamVideoModel(config)


def sam3_video() -> PreTrainedModel:
    from transformers import Sam3VideoConfig, Sam3VideoModel

    backbone = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 32,
    }
    vision = {
        "backbone_config": backbone | {"model_type": "sam3_vit_model"},
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": _sizes(4),
    }
    part = {"hidden_size": WIDTH, "num_attention_heads": 2}
    layers = part | {"num_layers": 1, "intermediate_size": 32}
    text = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    detector = {
        "vision_config": vision,
        "text_config": text | {"num_attention_heads": 2, "projection_dim": 16, "max_position_embeddings": 32},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": layers | {"num_queries": 6},
        "mask_decoder_config": part,
    }
    tracker = {
        "vision_config": vision,
        "prompt_encoder_config": _PROMPTS | {"patch_size": 16},
        "mask_decoder_config": _MASKS,
        "memory_attention_feed_forward_hidden_size": 32,
    } | _MEMORY
    return Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=tracker))


def _sizes(finest: int) -> list[list[int]]:
    return [[SIDE // stride, SIDE // stride] for stride in (finest, 2 * finest, 4 * finest)]


class _Stages(nn.Module):
    """Four maps, of strides 4 to 32, as timm's RepViT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(*channels, stride, stride)
            for *channels, stride in ((3, 8, 4), (8, 16, 2), (16, 32, 2), (32, 64, 2))
        )

    def forward(self, pixels: torch.Tensor, **_: object) -> object:
        from transformers.modeling_outputs import BaseModelOutput

        maps = []
        for stage in self.stages:
            pixels = stage(pixels).tanh()
            maps.append(pixels)
        return BaseModelOutput(last_hidden_state=maps)


@contextmanager
def repvit() -> Iterator[None]:
    """EdgeTAM's classes with a stand-in for their backbone, which only timm has (and timm wants torchvision)."""
    from transformers import AutoModel
    from transformers.models.edgetam import modeling_edgetam

    with mock.patch.object(modeling_edgetam, "AutoModel") as auto:
        auto.from_config.side_effect = lambda own: (
            _Stages() if own.model_type == "timm_wrapper" else AutoModel.from_config(own)
        )
        yield


def tokenizer(folder: Path) -> None:
    """A CLIP tokenizer of single bytes, in a folder."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[]).save_pretrained(folder)


def picture(height: int, width: int, at: int = 0) -> np.ndarray:
    """A smooth picture (H, W, 3) uint8; it changes with `at`."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(3 * rows + 5 * columns + channel + at / 3) for channel in range(3)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def frames() -> np.ndarray:
    """Those of `FOLLOWED`, (T, H, W, 3) uint8."""
    return np.stack([picture(*FOLLOWED["size"], at) for at in range(FOLLOWED["frames"])])


@torch.no_grad()
def _draw(model: PreTrainedModel) -> None:
    """Weights large enough that masks have shapes, and objects that are mostly seen."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
        elif name.endswith("pred_obj_score_head.proj_out.bias"):
            weight.fill_(4.0)


MODELS = {"sam": sam, "sam2_video": sam2_video, "edgetam_video": edgetam_video, "sam3_video": sam3_video}


def save(kind: str, folder: Path) -> Path:
    """A released checkpoint in small, of one of `MODELS`.

    The weights have the model's own names, as released ones do: `save_pretrained` renames some of SAM 3's.
    """
    with repvit(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = MODELS[kind]()
        _draw(model)
    if kind == "sam3_video":
        tokenizer(folder)
    return write(model, folder)


def write(model: PreTrainedModel, folder: Path) -> Path:
    """Config and weights, under the model's own names, in a folder."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
