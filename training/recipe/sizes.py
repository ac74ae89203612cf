"""The two embedded models: their sizes, their tokenizer, and models of these sizes with fresh weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.model import PixelRefer, PixelReferLite

NAMES = {"lite": "PixelRefer-Lite-mini", "full": "PixelRefer-mini"}
VISION = VisionConfig(hidden_size=160, num_layers=4, num_heads=5, intermediate_size=512)
VOCABULARY = 1024
PLACE_GAIN = 6.0
# in the order of the released tokenizers: text, then these
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<|stream_start|>", "<|stream_end|>", "<REGION>")
MODEL_TYPES = {"lite": "pixelreferlite_qwen2", "full": "pixelrefer_qwen2"}
# how Qwen2's tokenizers part text before byte pairs are merged
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def mini_config(kind: str, **changes: Any) -> ModelConfig:
    """The config of an embedded model; `changes` are keys of its config.json."""
    raw = {
        "architectures": ["PixelreferliteQwen2ForCausalLM" if kind == "lite" else "PixelreferQwen2ForCausalLM"],
        "model_type": MODEL_TYPES[kind],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_encoder": NAMES[kind],
        "mm_max_length": 2048,
        "mask_num": 4,
        "global_view_size": 168,
        "local_view_size": 112,
        "spatial_merge_size": 2,
        "use_token_compression": True,
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **changes,
    }
    return ModelConfig.from_dict(raw, VISION)


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer like Qwen2's, whose merges are learnt from `texts`: at most VOCABULARY ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        clean_up_tokenization_spaces=False,
    )


def world_texts(scenes: int, first_seed: int = 0) -> Iterable[str]:
    """Prompts and answers about training scenes, as a model of either kind reads them."""
    from pixelrefer_fast.world import ask_about, make_scene

    for seed in range(first_seed, first_seed + scenes):
        scene = make_scene(seed)
        for question in ask_about(scene, seed):
            yield f"user\n{question.text.replace('<region>', '[]')}\nassistant\n"
            yield question.answer
        if scene.times is not None:
            yield "".join(f"Time {round(t, 1)}s:,[Time {round(t, 1)}:" for t in scene.times)


def fresh_model(config: ModelConfig, tokenizer: Any, seed: int) -> PixelRefer | PixelReferLite:
    """A model of these sizes with weights to start a training from, float32.

    The position term begins as large as the features that it is added to: smaller, it is learnt last.
    """
    torch.manual_seed(seed)
    model_class = PixelReferLite if config.kind == "lite" else PixelRefer
    model = model_class(config, tokenizer, {"eos_token_id": tokenizer.eos_token_id})
    with torch.no_grad():
        model.network.object_tokenizer.pos_linear.weight *= PLACE_GAIN
        model.network.object_tokenizer.pos_linear.bias.zero_()
    return model
