"""The language model by itself continues `prompt_embeds` as `ask` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf

PICTURE = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
QUESTION = "Which of <region> and <region> is larger?"
BOXES = [[5, 5, 50, 60], [40, 20, 110, 80]]


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_a_plain_language_model_continues_a_prompt(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pf.export_llm(f"embedded:{kind}", tmp_path / "llm")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32)
    assert type(plain).__name__ == "Qwen2ForCausalLM"
    model = pf.load(f"embedded:{kind}", dtype="float32")
    prompt = model.prompt_embeds(PICTURE, QUESTION, BOXES)
    expected = model.ask(PICTURE, QUESTION, BOXES, details=True, max_new_tokens=8)
    assert len(prompt) == expected.prompt_tokens
    found = plain.generate(inputs_embeds=prompt[None], max_new_tokens=8, do_sample=False)
    assert tuple(found[0].tolist()) == expected.tokens


def test_what_cannot_be_exported_or_asked_is_told(lite: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="empty"):
        pf.export_llm("embedded:lite", tmp_path)
    with pytest.raises(ValueError, match=r"a <region> tag for each of the 1 region\(s\), got 2"):
        lite.prompt_embeds(PICTURE, QUESTION, BOXES[:1])
    with pytest.raises(ValueError, match="options"):
        lite.prompt_embeds(PICTURE, QUESTION, BOXES, max_new_tokens=3)


def test_an_engine_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match=r"engine: expected one of .*, got 'sglang'"):
        pf.load("embedded:lite", engine="sglang")
    with pytest.raises(ValueError, match="expected dtype and engine_options alone"):
        pf.load("embedded:lite", engine="vllm", feature_bytes=0)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="engine_options: expected an engine with them"):
        pf.load("embedded:lite", engine_options={})  # type: ignore[call-overload]
