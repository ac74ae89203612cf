"""One model over two ranks or two stages, and two engines for one model: the tokens of `ask`."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from vllm_requests import FOLDERS, SMALL, differing, params_of, prompts_of

import pixelrefer_fast as pf

# What passes between stages is allocated in a dry run, which vLLM leaves out on a CPU where nothing is compiled; with
# this backend Dynamo traces the model, and PyTorch runs it as it is.
STAGES = {"pipeline_parallel_size": 2, "enforce_eager": False, "compilation_config": {"mode": 1, "backend": "eager"}}


@pytest.mark.parametrize("split", [{"tensor_parallel_size": 2}, STAGES], ids=["ranks", "stages"])
def test_tokens_are_those_of_ask(kind: str, requests_of: Any, split: dict[str, Any]) -> None:
    from vllm import LLM

    asks, answers = requests_of(kind)
    engine = LLM(str(FOLDERS[kind]), **{**SMALL, **split})
    try:
        found = engine.generate(prompts_of(asks), params_of(asks), use_tqdm=False)
    finally:
        engine.llm_engine.engine_core.shutdown()
    assert differing(answers, found) == []


def test_two_engines_share_the_requests(requests_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    before = psutil.Process().children(recursive=True)
    chosen: list[bytes] = []
    choose = DPLBAsyncMPClient.get_core_engine_for_request

    def noted(client: DPLBAsyncMPClient, request: Any) -> bytes:
        engine = choose(client, request)
        chosen.append(engine)
        return engine

    monkeypatch.setattr(DPLBAsyncMPClient, "get_core_engine_for_request", noted)
    options = {name: value for name, value in SMALL.items() if name != "dtype"} | {"data_parallel_size": 2}
    model = pf.load("embedded:full", engine="vllm", dtype="float32", engine_options=options)
    try:
        started = [one for one in psutil.Process().children(recursive=True) if one not in before]
        assert sum("EngineCore" in one.name() for one in started) == 2
        asks, answers = requests_of("full")
        found = model.ask_batch(asks, progress=False)
        assert [own.tokens for own in found] == [own.tokens for own in answers]
        assert len(chosen) == len(asks)
        assert min(chosen.count(engine) for engine in set(chosen)) > len(asks) / 4
        assert len(set(chosen)) == 2
    finally:
        model.close()
