"""What vLLM can do besides: beams, grammars, adapters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pixelrefer_fast as pf

QUESTION = "Describe <region>."


def test_beams_find_what_is_at_least_as_likely(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    greedy = engine.ask(picture, QUESTION, masks[:1], max_new_tokens=12, details=True)
    beams = engine.ask(picture, QUESTION, masks[:1], max_new_tokens=12, num_beams=3, n=3, details=True)
    texts = [beams.text, *(other.text for other in beams.others)]
    assert len(set(texts)) == 3
    assert greedy.text in texts
    with pytest.raises(ValueError, match="num_beams: expected max_new_tokens, temperature and n"):
        engine.ask(picture, QUESTION, masks[:1], num_beams=3, top_p=0.5)
    with pytest.raises(ValueError, match="vLLM and transformers search with beams"):
        own.ask(picture, QUESTION, masks[:1], num_beams=3)


def test_grammars_hold(engine: Any, picture: Any, masks: Any) -> None:
    question = "What color is <region>?"
    choice = {"type": "choice", "choice": ["red", "green"]}
    assert engine.ask(picture, question, masks[:1], response_format=choice) in ("red", "green")
    wanted = {"type": "json_schema", "json_schema": {"name": "color", "schema": {"enum": ["purple", "red"]}}}
    found = engine.ask(picture, question, masks[:1], response_format=wanted)
    assert json.loads(found) in ("purple", "red")
    regex = {"type": "regex", "regex": "[0-9]{3}"}
    assert engine.ask(picture, question, masks[:1], response_format=regex).isdigit()
    with pytest.raises(ValueError, match="response_format: expected a mapping with a type"):
        engine.ask(picture, question, masks[:1], response_format={"type": "prose"})


def test_an_adapter_is_what_its_merged_weights_are(
    engine: Any, own: Any, kind: str, picture: Any, masks: Any, tmp_path: Any
) -> None:
    sizes = own.config.llm
    width, rank, alpha = sizes["hidden_size"], 4, 8
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["o_proj"]}
    merged = pf.load(f"embedded:{kind}", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, layer in enumerate(merged.network.llm.model.layers):
        prefix = f"base_model.model.model.layers.{number}.self_attn.o_proj"
        down = weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        up = weights[f"{prefix}.lora_B.weight"] = 0.2 * torch.randn(width, rank, generator=generator)
        layer.self_attn.o_proj.weight += alpha / rank * up @ down
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    asks = [(picture, QUESTION, [mask], {"max_new_tokens": 12}) for mask in masks]
    expected = [answer.tokens for answer in merged.ask_batch(asks, progress=False)]
    plain = [answer.tokens for answer in own.ask_batch(asks, progress=False)]
    assert expected != plain
    for lora, tokens in ((str(tmp_path), expected), (None, plain)):  # a question without it as before
        found = engine.ask_batch(asks, lora=lora, progress=False)
        assert [answer.tokens for answer in found] == tokens
