"""An engine whose process is killed: an error of each request that it had, and no request is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import psutil
import pytest
from served import get, png_url, running
from vllm_requests import SMALL

import pixelrefer_fast as pf


def test_an_engine_that_dies_is_an_error_of_each_request(requests_of: Any, picture: np.ndarray) -> None:
    from pixelrefer_fast.serving import create_app

    before = psutil.Process().children(recursive=True)
    options = {name: value for name, value in SMALL.items() if name != "dtype"}
    model = pf.load("embedded:lite", engine="vllm", dtype="float32", engine_options=options)
    started = [one for one in psutil.Process().children(recursive=True) if one not in before]
    (process,) = [one for one in started if "EngineCore" in one.name()]
    asks, answers = requests_of("lite")
    found = []
    for answer in model.ask_iter(asks):
        found.append(answer)
        if len(found) == 1:
            process.kill()
    assert sorted(own.index for own in found) == list(range(len(asks)))
    assert found[0].ok
    assert sum(not own.ok for own in found) > len(asks) / 2
    assert all(own.error or own.tokens == answers[own.index].tokens for own in found)
    image = {"type": "image_url", "image_url": {"url": png_url(picture)}, "regions": [{"box": [2, 2, 30, 30]}]}
    with running(create_app({"mini": model})) as address:  # a server lives on, and says so to each
        for _ in range(2):
            # of its own: an error that nobody expected ends a connection
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            with client, pytest.raises(openai.InternalServerError, match="server: EngineDeadError"):
                client.chat.completions.create(model="mini", messages=[{"role": "user", "content": [image]}])
        assert get(address, "/health")[0] == 200
    model.close()
