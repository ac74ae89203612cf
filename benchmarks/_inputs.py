"""Weights and pictures of the CPU benchmarks: full width, random, from seeds."""

from __future__ import annotations

import numpy as np
import torch

WIDTH, LLM_WIDTH, TOKENS = 1152, 1536, 32  # D, C and n of the released 2B models
VISION = {"hidden_size": WIDTH, "num_attention_heads": 16, "intermediate_size": 4304}
REGION_PREFIX = "model.region_encoder."
VISION_PREFIX = "model.vision_encoder.vision_encoder."


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal float32 from a seed of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def region_weights() -> dict[str, torch.Tensor]:
    """Lite's region encoder as ../shared/golden/README.md builds it for `region_encoder_lite.safetensors`."""
    square = (WIDTH, WIDTH)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_linear.weight": (WIDTH, 2),
        "pos_linear.bias": (WIDTH,),
        "feat_linear.0.weight": (LLM_WIDTH, WIDTH),
        "feat_linear.0.bias": (LLM_WIDTH,),
        "feat_linear.2.weight": (LLM_WIDTH, LLM_WIDTH),
        "feat_linear.2.bias": (LLM_WIDTH,),
        "mask_embedding.weight": (WIDTH, 1, 1, 1),
        "mask_embedding.bias": (WIDTH,),
    }
    for view in ("local", "global"):
        shapes[f"ln_{view}.weight"] = shapes[f"ln_{view}.bias"] = (WIDTH,)
        attention = f"fusion_attention_{view}"
        shapes[f"{attention}.in_proj_weight"], shapes[f"{attention}.in_proj_bias"] = (3 * WIDTH, WIDTH), (3 * WIDTH,)
        shapes[f"{attention}.out_proj.weight"], shapes[f"{attention}.out_proj.bias"] = square, (WIDTH,)
    return _fill(REGION_PREFIX, shapes, 1000)


def vision_weights(layers: int) -> dict[str, torch.Tensor]:
    """A vision encoder of full width and `layers` layers."""
    wide = VISION["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embedding.bias": (WIDTH,),
        "post_layernorm.weight": (WIDTH,),
        "post_layernorm.bias": (WIDTH,),
    }
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (WIDTH,)
        for name, out, into in [(f"self_attn.{x}_proj", WIDTH, WIDTH) for x in ("q", "k", "v", "out")] + [
            ("mlp.fc1", wide, WIDTH),
            ("mlp.fc2", WIDTH, wide),
        ]:
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = (out, into), (out,)
    return _fill(VISION_PREFIX, shapes, 2000)


def _fill(prefix: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """In sorted order, each from the next seed: matrices r·fan_in^-0.5, vectors r·0.1, plus 1 for LayerNorm weights."""
    weights = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        values = normal(shape, seed + i)
        if len(shape) == 1:
            values *= 0.1
            if name.endswith("weight"):  # the only vectors called so are LayerNorms'
                values += 1
        else:
            # fan_in by the last dimension, as the recorded weights have it; a patch convolution by all it sums over
            fan_in = shape[-1] if shape[1] == 1 else int(np.prod(shape[1:]))
            values *= fan_in**-0.5
        weights[prefix + name] = values
    return weights


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth random colours under fine noise, so that neither patches nor tokens are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 40 + 2, width // 40 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    noise = torch.rand(3, height, width, generator=generator) - 0.5
    pixels = (smooth + 0.15 * noise).clamp(0, 1) * 255
    return pixels.permute(1, 2, 0).round().to(torch.uint8).contiguous().numpy()


def blobs(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """(count, H, W) uint8 of 0 and 1: wavy ellipses of varied size, each wholly inside the picture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.empty((count, height, width), np.uint8)
    for i in range(count):
        # at least the 196·n pixels from which a crop is no longer enlarged: 100 to 200 patches each
        radius_y, radius_x = np.linspace(48, 130, count)[i] * random.uniform(0.95, 1.2, 2)
        centre_y = random.uniform(1.3 * radius_y, height - 1.3 * radius_y)
        centre_x = random.uniform(1.3 * radius_x, width - 1.3 * radius_x)
        angle = np.arctan2(y - centre_y, x - centre_x)
        edge = 1 + sum(random.uniform(-0.08, 0.08) * np.sin(k * angle + random.uniform(0, 6)) for k in range(2, 6))
        masks[i] = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= edge**2
    return masks
