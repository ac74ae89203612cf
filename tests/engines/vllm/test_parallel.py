"""One model over two ranks or two stages, and two engines for one model: the tokens of `ask`; and engines that die."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import psutil
import pytest
from served import get, png_url, running
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


@pytest.fixture(scope="module")
def twins() -> Iterator[tuple[Any, list[psutil.Process]]]:
    """Two data-parallel engines, and their processes."""
    before = psutil.Process().children(recursive=True)
    options = {name: value for name, value in SMALL.items() if name != "dtype"}
    model = pf.load(
        "embedded:full", engine="vllm", dtype="float32", engine_options={**options, "data_parallel_size": 2}
    )
    started = [one for one in psutil.Process().children(recursive=True) if one not in before]
    yield model, [one for one in started if "EngineCore" in one.name()]
    model.close()


def test_two_engines_share_the_requests(twins: Any, requests_of: Any) -> None:
    model, processes = twins
    assert len(processes) == 2
    asks, answers = requests_of("full")
    worked = [sum(own.cpu_times()[:2]) for own in processes]
    found = model.ask_batch(asks, progress=False)
    assert [own.tokens for own in found] == [own.tokens for own in answers]
    assert all(sum(own.cpu_times()[:2]) > before + 0.2 for own, before in zip(processes, worked, strict=True))


def test_engines_that_die_are_an_error_of_each_request(twins: Any, requests_of: Any, picture: np.ndarray) -> None:
    from pixelrefer_fast.serving import create_app

    model, processes = twins
    asks, answers = requests_of("full")
    found = []
    for answer in model.ask_iter(asks):
        found.append(answer)
        if len(found) == 1:
            for own in processes:
                own.kill()
    assert sorted(own.index for own in found) == list(range(len(asks)))
    assert any(not own.ok for own in found)
    assert all(own.error or own.tokens == answers[own.index].tokens for own in found)
    image = {"type": "image_url", "image_url": {"url": png_url(picture)}, "regions": [{"box": [2, 2, 30, 30]}]}
    with running(create_app({"mini": model})) as address:  # a server lives on, and says so to each
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="server"):
                client.chat.completions.create(model="mini", messages=[{"role": "user", "content": [image]}])
        assert get(address, "/health")[0] == 200
