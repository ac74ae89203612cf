"""Configs and tokenizers made to hurt: a ValueError that names the folder, bounded memory."""

from __future__ import annotations

import json
import os

import pytest

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.loading import convert, load


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (
            {"hidden_size": 1 << 17, "intermediate_size": 1 << 18, "num_attention_heads": 1 << 10},
            r"model\.embed_tokens\.weight: expected \(267, 131072\), got \(267, 48\)",
        ),
        ({"vocab_size": 1 << 24, "num_hidden_layers": 64}, r"missing \(\d+\): model\.layers\.2\."),
    ],
)
def test_a_config_larger_than_the_weights_costs_nothing(folder, claims, reason):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | claims))
    with pytest.raises(ValueError, match=reason) as caught:
        load(folder, device="cpu")
    assert str(caught.value).startswith(f"{folder}: the weights do not fit the model: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 10**6),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 99999999}, "merges": []}}'),
        ("tokenizer_config.json", "[" * 10**5),
        ("tokenizer_config.json", '{"tokenizer_class": "MyTokenizer"}'),
        ("tokenizer_config.json", '{"model_max_length": "4096"}'),
        ("tokenizer_config.json", '{"model_max_length": [4096]}'),
        ("tokenizer_config.json", '{"model_max_length": true}'),
        ("tokenizer_config.json", '{"model_max_length": 0}'),
        ("tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}'),
        ("tokenizer_config.json", '{"tokenizer_class": ["Qwen2Tokenizer"]}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": [1]}'),
    ],
)
def test_hostile_tokenizers(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        open_checkpoint(folder).tokenizer()
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=str(folder)):
        convert(folder, folder.parent / "converted")
    assert not (folder.parent / "converted").exists()


@pytest.mark.parametrize("end", [None, 3, ["x"], {"a": 1}, "<|nowhere|>"])
def test_tokenizers_without_an_end_token_of_their_own(folder, end):
    (folder / "special_tokens_map.json").unlink()  # it would decide
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": end}))
    try:
        tokenizer = open_checkpoint(folder).tokenizer()
    except ValueError as error:
        message = str(error)
    else:
        message = str(folder)
        assert 0 <= tokenizer.eos_token_id < 267
    assert str(folder) in message


def test_huge_tokenizers_are_refused_unread(folder):
    os.truncate(folder / "merges.txt", 1 << 40)
    with pytest.raises(ValueError, match=r"merges\.txt: expected at most 33554432 bytes, got 1099511627776"):
        open_checkpoint(folder).tokenizer()
