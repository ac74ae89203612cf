"""What is measured on: models of the released sizes with random weights, pictures, videos, masks, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

WIDTH, LLM_WIDTH, TOKENS = 1152, 1536, 32  # D, C and n of the released 2B models
LAYERS = 27  # of the vision encoder
VISION = {"hidden_size": WIDTH, "num_attention_heads": 16, "intermediate_size": 4304}
REGION_PREFIX = "model.region_encoder."
VISION_PREFIX = "model.vision_encoder.vision_encoder."
COMMON = {
    "mm_projector_type": "mlp2x_gelu",
    "use_token_compression": True,
    "spatial_merge_size": 2,
    "mask_num": TOKENS,
    "mm_max_length": 16384,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
}
# Qwen2.5-1.5B-Instruct and Qwen2.5-7B-Instruct
LLMS = {
    "2b": {
        "hidden_size": LLM_WIDTH,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
KINDS = {"lite": "pixelreferlite_qwen2", "full": "pixelrefer_qwen2"}
NAMES = tuple(f"{kind}-{size}" for kind in KINDS for size in LLMS)


def model_config(name: str) -> Any:
    """The `ModelConfig` of one of NAMES.

    Raises:
        ValueError: it is none of them.
    """
    from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig

    if name not in NAMES:
        raise ValueError(f"model: expected one of {', '.join(NAMES)}, got {name!r}")
    kind, size = name.split("-")
    vision = VisionConfig.from_dict({**VISION, "num_hidden_layers": LAYERS}, "benchmarks")
    return ModelConfig.from_dict({**COMMON, **LLMS[size], "model_type": KINDS[kind]}, vision)


def load_model(name: str, device: str | torch.device, dtype: torch.dtype) -> Any:
    """One of NAMES with random weights, or whatever `pixelrefer_fast.load` takes.

    The tokenizer of a random model is the embedded model's: its few ids lie within the large embedding table.
    """
    import pixelrefer_fast as pf

    if name not in NAMES:
        return pf.load(name, device=device, dtype=dtype, feature_bytes=0, warmup=False)  # every call encodes
    return random_model(model_config(name), device, dtype)


def random_model(config: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """A model of this `ModelConfig` with weights from a seed, made on the device."""
    import pixelrefer_fast as pf
    from pixelrefer_fast.checkpoint import open_checkpoint
    from pixelrefer_fast.checkpoint.embedded import embedded_folder
    from pixelrefer_fast.loading import restore_buffers

    tokenizer = open_checkpoint(embedded_folder()).tokenizer()
    with torch.device("meta"):
        model = (pf.PixelReferLite if config.kind == "lite" else pf.PixelRefer)(config, tokenizer, {})
    model.to(dtype).to_empty(device=device)
    restore_buffers(model, torch.device(device))
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0).add_(0.1 * torch.randn(parameter.shape, generator=generator, device=device))
            else:
                parameter.normal_(0, 0.02, generator=generator)
    return model.eval()


def weight_bytes(model: Any) -> tuple[int, int]:
    """(of the whole model, of what a decode step reads: the LLM without the rows of its embedding table)."""
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    llm = sum(p.numel() * p.element_size() for p in model.network.llm.parameters())
    table = model.network.llm.get_input_embeddings().weight
    tied = model.network.llm.lm_head.weight is table
    return everything, llm - (0 if tied else table.numel() * table.element_size())


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


def video(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """(frames, H, W, 3) uint8: a window that moves over one large picture, four pixels a frame each way."""
    step = 4
    scene = picture(height + step * (frames - 1), width + step * (frames - 1), seed)
    return np.stack([scene[step * i : step * i + height, step * i : step * i + width] for i in range(frames)])


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


def boxes(count: int, height: int, width: int, seed: int = 1) -> list[list[int]]:
    """As many boxes (x0, y0, x1, y1), of about a hundredth of the picture each, from a seed."""
    random = np.random.default_rng(seed)
    tall, wide = max(1, height // 9), max(1, width // 12)
    tops = random.integers(0, height - tall, count)
    lefts = random.integers(0, width - wide, count)
    return [[int(x), int(y), int(x) + wide, int(y) + tall] for x, y in zip(lefts, tops, strict=True)]
