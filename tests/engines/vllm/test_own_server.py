"""This package's server with a model of vLLM, and the official client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from served import png_url, running

import pixelrefer_fast as pf

QUESTION = "Describe <region>."


@pytest.fixture(scope="module")
def client(engine: Any) -> Iterator[Any]:
    from pixelrefer_fast.serving import create_app

    with running(create_app({"mini": engine})) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def say(client: Any, picture: np.ndarray, masks: Any) -> Callable[..., Any]:
    region = pf.Region.from_mask(masks[0]).to_json()
    part = {"type": "image_url", "image_url": {"url": png_url(picture)}, "regions": [region]}

    def ask(question: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
        return client.chat.completions.create(model="mini", messages=messages, **options)

    return ask


def joined(pieces: Any) -> str:
    return "".join(event.choices[0].delta.content or "" for event in pieces)


def test_answers_are_those_of_ask(client: Any, say: Any, own: Any, picture: np.ndarray, masks: Any) -> None:
    expected = own.ask(picture, QUESTION, masks[:1])
    assert say(QUESTION).choices[0].message.content == expected
    assert joined(say(QUESTION, stream=True)) == expected
    region = pf.Region.from_mask(masks[0]).to_json()
    body = {"model": "mini", "image": png_url(picture), "regions": [region]}
    found = client.post("/regions", body=body, cast_to=object)["data"][0]["text"]
    assert found == own.describe(picture, masks[:1])[0]
    with pytest.raises(openai.BadRequestError, match="expected a model of this package's own engine"):
        client.post("/encode", body=body, cast_to=object)


def test_answers_have_the_format_that_is_asked_for(say: Any) -> None:
    color = {"enum": ["purple", "chartreuse"]}
    schema = {"type": "object", "properties": {"color": color}, "required": ["color"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    question = "What color is <region>?"
    text = say(question, response_format=wanted).choices[0].message.content
    assert json.loads(text)["color"] in color["enum"]
    assert joined(say(question, response_format=wanted, stream=True)) == text
    found = say(question, response_format={"type": "json_object"}, max_tokens=8).choices[0].message.content
    assert found.startswith("{")
    for format_, message in (
        ({"type": "yaml"}, "response_format"),
        ({"type": "json_schema"}, "response_format: expected a schema in json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}, "thing"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=message):
                say(question, response_format=format_, stream=stream)
