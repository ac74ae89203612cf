"""The tokenizer of a checkpoint, with the special tokens that the prompts need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.safe_files import brief, file_in, read_json

IMAGE_TOKEN = "<image>"
REGION_TOKEN = "<REGION>"
SPECIAL_TOKENS = (IMAGE_TOKEN, "<|stream_start|>", "<|stream_end|>", REGION_TOKEN)
MAX_TOKENIZER_BYTES = 32 << 20
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# classes that transformers builds from these files alone; what every released model names is the first
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files in the resolved `folder`.

    Raises:
        ValueError: there is neither a tokenizer.json nor a vocab.json with a merges.txt; or a file is too large, is a
            link out of the folder, or names an unsupported tokenizer class.
    """
    paths = {name: path for name in TOKENIZER_FILES if (path := file_in(folder, name)) is not None}
    if "tokenizer.json" not in paths and not {"vocab.json", "merges.txt"} <= paths.keys():
        raise ValueError(f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither")
    for path in paths.values():
        if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path}: expected at most {MAX_TOKENIZER_BYTES} bytes, got {size}")
    if "tokenizer_config.json" in paths:
        path = paths["tokenizer_config.json"]
        values = read_json(path)
        given = values.get("tokenizer_class", _CLASSES[0])
        if given not in _CLASSES:
            raise ValueError(f"{path}: tokenizer_class: expected one of {', '.join(_CLASSES)}, got {brief(given)}")
        length = values.get("model_max_length")
        if length is not None and (type(length) not in (int, float) or length < 1):
            raise ValueError(f"{path}: model_max_length: expected a number of tokens, 1 or more, got {brief(length)}")
    return list(paths.values())


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Load the transformers tokenizer in the resolved `folder`, adding special tokens that are missing.

    Nothing is downloaded and no code in the folder is run.

    Raises:
        ValueError: the files are missing or damaged, name no end token, or have ids without an embedding in the model.
    """
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer_files(folder)
    try:
        # with a config of its own transformers does not wonder about our model_type
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), config=Qwen2Config(), local_files_only=True, trust_remote_code=False
        )
        _add_special_tokens(tokenizer, config)
        largest = max(tokenizer.get_vocab().values())
        end = tokenizer.eos_token_id
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises PanicException, which is no Exception
        raise ValueError(f"{folder}: the tokenizer cannot be read: {brief(str(error))}") from error
    if end is None:
        raise ValueError(f"{folder}: expected a tokenizer with an end token (eos_token), got none")
    if largest >= config.llm["vocab_size"]:
        raise ValueError(
            f"{folder}: expected a tokenizer with ids below the model's vocab_size {config.llm['vocab_size']}, "
            f"got ids up to {largest}"
        )
    return tokenizer


def _add_special_tokens(tokenizer: Any, config: ModelConfig) -> None:
    # The order is that of the reference's training, unless the config remembers that <REGION> came first. Which id a
    # placeholder has does not matter to the model, as its embedding is replaced; it does to recorded input_ids.
    tokens = list(SPECIAL_TOKENS)
    if config.raw.get("region_token_index") == len(tokenizer):
        tokens.sort(key=lambda token: token != REGION_TOKEN)
    tokenizer.add_tokens(tokens, special_tokens=True)
