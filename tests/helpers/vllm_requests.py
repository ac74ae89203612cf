"""Requests as vLLM takes them, and what its answers must equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pixelrefer_fast as pf
from pixelrefer_fast.engines.vllm import Marked, chat_prompt

ASSETS = Path(pf.__file__).parent / "assets"
FOLDERS = {"lite": ASSETS / "PixelRefer-Lite-mini", "full": ASSETS / "PixelRefer-mini"}
SMALL = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 8, "block_size": 32}
"""Of an engine that shares a small machine."""


def marked_of(ask: pf.Ask) -> Marked:
    return Marked(ask.media, ask.regions, **{k: v for k, v in ask.options.items() if k != "max_new_tokens"})


def prompts_of(asks: Sequence[pf.Ask]) -> list[dict[str, Any]]:
    """For `LLM.generate`."""
    return [
        {
            "prompt": chat_prompt(ask.question or ""),
            "multi_modal_data": {"video" if isinstance(ask.media, list) else "image": marked_of(ask)},
        }
        for ask in asks
    ]


def params_of(asks: Sequence[pf.Ask]) -> list[Any]:
    """Greedy, as long as each request asks for."""
    from vllm import SamplingParams

    return [SamplingParams(temperature=0, max_tokens=ask.options["max_new_tokens"]) for ask in asks]


def differing(answers: Sequence[pf.Answer], outputs: Sequence[Any]) -> list[str]:
    """The answers whose tokens or length of prompt are not the same."""
    assert len(answers) == len(outputs)
    return [
        f"{answer.index}: {answer.tokens} of {answer.prompt_tokens}, "
        f"got {tuple(output.outputs[0].token_ids)} of {len(output.prompt_token_ids)}"
        for answer, output in zip(answers, outputs, strict=True)
        if answer.tokens != tuple(output.outputs[0].token_ids) or answer.prompt_tokens != len(output.prompt_token_ids)
    ]
