"""The tokenizer of a checkpoint."""

from __future__ import annotations

import json

import pytest
from checkpoints import ASSETS, PROMPT, PROMPT_IDS

from pixelrefer_fast.checkpoint import open_checkpoint


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_tokenizer_encodes_as_recorded_and_says_nothing(kind, capfd, recwarn):
    tokenizer = open_checkpoint(ASSETS / kind).tokenizer()
    assert tokenizer(PROMPT).input_ids == PROMPT_IDS
    assert tokenizer.decode([259, 84, 256], skip_special_tokens=True) == "u"
    assert tokenizer.eos_token_id == 256
    assert tuple(capfd.readouterr()) == ("", "")
    assert len(recwarn) == 0


@pytest.mark.parametrize("absent", [["<image>", "<|stream_start|>", "<|stream_end|>"], None])
def test_missing_special_tokens_are_added(folder, absent):
    ours = absent or ["<REGION>", "<image>", "<|stream_start|>", "<|stream_end|>"]
    (folder / "added_tokens.json").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in ours]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = settings["added_tokens_decoder"]
    settings["added_tokens_decoder"] = {i: token for i, token in decoder.items() if token["content"] not in ours}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = open_checkpoint(folder).tokenizer()
    assert made(PROMPT).input_ids == PROMPT_IDS
    assert made.convert_tokens_to_ids(["<image>", "<|stream_start|>", "<|stream_end|>"]) == [260, 261, 262]
    assert made.decode([260, 84], skip_special_tokens=True) == "u"


def test_tokenizer_from_vocabulary_and_merges_alone(folder):
    (folder / "tokenizer.json").unlink()
    assert open_checkpoint(folder).tokenizer()(PROMPT).input_ids == PROMPT_IDS


def test_tokenizer_ids_need_embeddings(folder):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 262}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="below the model's vocab_size 262, got ids up to 262"):
        open_checkpoint(folder).tokenizer()
