"""Models of the released sizes with random weights, for benchmarks where the released ones are not at hand."""

from __future__ import annotations

from typing import Any

import torch
from _inputs import VISION

LAYERS = 27  # of the vision encoder
COMMON = {
    "mm_projector_type": "mlp2x_gelu",
    "use_token_compression": True,
    "spatial_merge_size": 2,
    "mask_num": 32,
    "mm_max_length": 16384,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
}
# Qwen2.5-1.5B-Instruct and Qwen2.5-7B-Instruct
LLMS = {
    "2b": {
        "hidden_size": 1536,
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


def load_model(name: str, device: str, dtype: torch.dtype) -> Any:
    """One of NAMES with random weights, or whatever `pixelrefer_fast.load` takes.

    The tokenizer of a random model is the embedded model's: its few ids lie within the large embedding table.
    """
    import pixelrefer_fast as pf
    from pixelrefer_fast.checkpoint import open_checkpoint
    from pixelrefer_fast.config import ModelConfig, VisionConfig
    from pixelrefer_fast.embedded import embedded_folder
    from pixelrefer_fast.loading import restore_buffers

    if name not in NAMES:
        return pf.load(name, device=device, dtype=dtype)
    kind, size = name.split("-")
    vision = VisionConfig.from_dict({**VISION, "num_hidden_layers": LAYERS}, "benchmarks")
    config = ModelConfig.from_dict({**COMMON, **LLMS[size], "model_type": KINDS[kind]}, vision)
    tokenizer = open_checkpoint(embedded_folder()).tokenizer()
    with torch.device("meta"):
        model = (pf.PixelReferLite if kind == "lite" else pf.PixelRefer)(config, tokenizer, {})
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
    llm = sum(p.numel() * p.element_size() for p in model.llm.parameters())
    table = model.llm.get_input_embeddings().weight
    tied = model.llm.lm_head.weight is table
    return everything, llm - (0 if tied else table.numel() * table.element_size())
