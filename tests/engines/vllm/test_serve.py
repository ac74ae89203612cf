"""`vllm serve FOLDER` and the official client: the tokens of `ask`, whole and streamed; what is refused, and how."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from mixed_requests import mixed_requests
from vllm_requests import FOLDERS, SMALL
from vllm_server import content_of, marked_url, url_of, vllm_server

import pixelrefer_fast as pf

OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(SMALL["max_model_len"])),
    *("--max-num-seqs", "8", "--block-size", "32", "--api-key", "secret", "--served-model-name", "mini"),
)
REQUESTS = 100


@pytest.fixture(scope="module")
def address(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(FOLDERS[kind], tmp_path_factory.mktemp("serve") / "log", *OPTIONS) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=300)


def say(client: Any, url: str, question: str, video: bool = False, **options: Any) -> Any:
    name = "video_url" if video else "image_url"
    content = [{"type": name, name: {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="mini", messages=messages, temperature=0, **options)


def tokens_of(client: Any, number: int, ask: pf.Ask) -> tuple[int, ...]:
    """Of the answer; every third comes streamed."""
    options = {"max_tokens": ask.options["max_new_tokens"], "extra_body": {"return_token_ids": True}}
    video = isinstance(ask.media, tuple)
    content = ask.media[0] if video else ask.media
    url = marked_url(content, ask.regions, number)
    if number % 3:
        answer = say(client, url, ask.question or "", video, **options).choices[0]
        return tuple(answer.token_ids)
    events = say(client, url, ask.question or "", video, stream=True, **options)
    return tuple(
        token for event in events for choice in event.choices for token in getattr(choice, "token_ids", None) or ()
    )


def test_tokens_are_those_of_ask(client: Any, kind: str) -> None:
    asks = []
    for ask in mixed_requests(kind, REQUESTS, seed=7):
        content = content_of(ask.media)
        media = (content,) if isinstance(ask.media, list) else content  # a video, told apart for the client
        asks.append(pf.Ask(media, ask.question, ask.regions, max_new_tokens=ask.options["max_new_tokens"]))
    model = pf.load(f"embedded:{kind}", dtype="float32")
    own = [
        pf.Ask(a.media[0] if isinstance(a.media, tuple) else a.media, a.question, a.regions, **a.options) for a in asks
    ]
    expected = [answer.tokens for answer in model.ask_batch(own, progress=False)]
    with ThreadPoolExecutor(8) as workers:
        found = list(workers.map(lambda one: tokens_of(client, *one), enumerate(asks)))
    assert [i for i in range(REQUESTS) if found[i] != expected[i]] == []


def test_wrong_numbers_of_tags_are_a_400_that_names_both(client: Any) -> None:
    url = url_of(content_of(np.zeros((60, 60, 3), np.uint8)))
    with pytest.raises(openai.BadRequestError, match=r"a <region> tag for each of the 2 region\(s\), got 1"):
        say(client, f"{url}#xywh=2,2,30,30&xywh=4,4,40,40", "What is <region>?")
    with pytest.raises(openai.BadRequestError, match=r"a <region> tag for each of the 1 region\(s\), got 2"):
        say(client, f"{url}#xywh=2,2,30,30", "Is <region> larger than <region>?")


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ("", "regions: expected at least one, got none"),
        ("#xywh=1,2,3", "expected .*x,y,w,h, got '1,2,3'"),
        ("#box=1,2,3,4", "fragment: expected xywh=, region=, .* got 'box'"),
        ("#region=%7B%22size%22%3A", "fragment: expected JSON"),
        ("#xywh=200,200,10,10", "region 0: expected at least one marked pixel"),
    ],
)
def test_bad_regions_are_a_400(client: Any, fragment: str, message: str) -> None:
    url = url_of(content_of(np.zeros((60, 60, 3), np.uint8)))
    with pytest.raises(openai.BadRequestError, match=message):
        say(client, url + fragment, "What is <region>?")


def test_no_address_is_fetched(client: Any) -> None:
    """An address of this machine, which would have been reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/cat.png#xywh=1,1,9,9"
        for video in (False, True):
            with pytest.raises(openai.BadRequestError, match="--allowed-media-domains"):
                say(client, url, "What is <region>?", video)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_who_brings_no_key_gets_no_answer(address: str) -> None:
    other = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        other.models.list()
