"""One model over two tensor-parallel ranks: the tokens of `ask`."""

from __future__ import annotations

from typing import Any

from vllm_requests import FOLDERS, SMALL, differing, params_of, prompts_of


def test_tokens_are_those_of_ask(kind: str, requests_of: Any) -> None:
    from vllm import LLM

    asks, answers = requests_of(kind)
    engine = LLM(str(FOLDERS[kind]), tensor_parallel_size=2, **SMALL)
    try:
        found = engine.generate(prompts_of(asks), params_of(asks), use_tqdm=False)
    finally:
        engine.llm_engine.engine_core.shutdown()
    assert differing(answers, found) == []
