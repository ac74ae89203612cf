"""`pf.load(..., engine="vllm")`: the answers of `ask` by every method, and what vLLM can do besides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from safetensors.torch import save_file
from served import png_url, running
from vllm_requests import SMALL

import pixelrefer_fast as pf
from pixelrefer_fast.world import make_scene

QUESTION = "Describe <region>."


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    options = {name: value for name, value in SMALL.items() if name != "dtype"}
    model = pf.load("embedded:lite", engine="vllm", dtype="float32", engine_options={**options, "enable_lora": True})
    yield model
    model.close()


@pytest.fixture(scope="module")
def own() -> Any:
    return pf.load("embedded:lite", dtype="float32")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.asarray(make_scene(102, "heldout", False).frames[0])


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    return [mask[0] for mask in make_scene(102, "heldout", False).masks]


def test_a_batch_has_the_answers_of_ask(engine: Any, requests_of: Any) -> None:
    asks, answers = requests_of("lite")
    found = engine.ask_batch(asks, progress=False)
    same = [(own.tokens, own.text, own.finish, own.prompt_tokens) for own in found]
    assert same == [(own.tokens, own.text, own.finish, own.prompt_tokens) for own in answers]


def test_one_question_many_regions_and_streams(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    assert engine.ask(picture, QUESTION, masks[:1]) == own.ask(picture, QUESTION, masks[:1])
    assert engine.describe(picture, masks) == own.describe(picture, masks)
    assert "".join(engine.stream(picture, QUESTION, masks[:1])) == own.ask(picture, QUESTION, masks[:1])
    told, expected = (list(m.stream(picture, QUESTION, masks[:1], events=True)) for m in (engine, own))
    assert [(e.text, e.token, e.finish_reason) for e in told] == [(e.text, e.token, e.finish_reason) for e in expected]
    assert (told[-1].usage.prompt_tokens, told[-1].usage.tokens) == (
        expected[-1].usage.prompt_tokens,
        expected[-1].usage.tokens,
    )

    async def together() -> list[Any]:
        return await asyncio.gather(*(engine.ask_async(picture, QUESTION, [mask]) for mask in masks))

    assert asyncio.run(together()) == [own.ask(picture, QUESTION, [mask]) for mask in masks]


def test_options_mean_what_they_mean(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    whole = own.ask(picture, QUESTION, masks[:1])
    word = whole.split()[2]
    for options in ({"stop": word}, {"max_new_tokens": 3}, {"logit_bias": {5: 100.0}, "max_new_tokens": 2}):
        found, expected = (m.ask(picture, QUESTION, masks[:1], details=True, **options) for m in (engine, own))
        assert (found.text, found.finish) == (expected.text, expected.finish)
    found, expected = (
        m.ask(picture, QUESTION, masks[:1], details=True, logprobs=True, top_logprobs=2) for m in (engine, own)
    )
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert [[t for t, _ in at] for at in found.top_logprobs] == [[t for t, _ in at] for at in expected.top_logprobs]
    assert len(engine.ask(picture, QUESTION, masks[:1], details=True, temperature=1.5, seed=1, n=3).others) == 2


def test_beams_find_what_is_at_least_as_likely(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    greedy = engine.ask(picture, QUESTION, masks[:1], details=True)
    beams = engine.ask(picture, QUESTION, masks[:1], num_beams=3, n=3, details=True)
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


def test_an_adapter_changes_the_language_model(engine: Any, own: Any, picture: Any, masks: Any, tmp_path: Any) -> None:
    """One whose weights are large answers differently; one of zeros as before."""

    sizes = own.config.llm
    width, rank = sizes["hidden_size"], 4
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["o_proj"], "task_type": "CAUSAL_LM"}
    for name, scale in (("zeros", 0.0), ("large", 3.0)):
        generator = torch.Generator().manual_seed(0)
        weights = {}
        for layer in range(sizes["num_hidden_layers"]):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
            weights[f"{prefix}.lora_B.weight"] = scale * torch.randn(width, rank, generator=generator)
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    plain = engine.ask(picture, QUESTION, masks[:1])
    assert engine.ask(picture, QUESTION, masks[:1], lora=str(tmp_path / "zeros")) == plain
    assert engine.ask(picture, QUESTION, masks[:1], lora=str(tmp_path / "large")) != plain


def test_the_server_of_this_package_asks_it(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    from pixelrefer_fast.serving import create_app

    region = pf.Region.from_mask(masks[0]).to_json()
    part = {"type": "image_url", "image_url": {"url": png_url(picture)}, "regions": [region]}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
    expected = own.ask(picture, QUESTION, masks[:1])
    with running(create_app({"lite": engine})) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        whole = client.chat.completions.create(model="lite", messages=messages)
        pieces = client.chat.completions.create(model="lite", messages=messages, stream=True)
        assert whole.choices[0].message.content == expected
        assert "".join(event.choices[0].delta.content or "" for event in pieces) == expected
        body = {"model": "lite", "image": png_url(picture), "regions": [region]}
        assert (
            client.post("/regions", body=body, cast_to=object)["data"][0]["text"] == own.describe(picture, masks[:1])[0]
        )
        with pytest.raises(openai.BadRequestError, match="expected a model of this package's own engine"):
            client.post("/encode", body=body, cast_to=object)


def test_what_is_wrong_is_told_and_disturbs_nothing(engine: Any, picture: Any, masks: Any) -> None:
    outside = [500, 500, 600, 600]
    with pytest.raises(ValueError, match="region 0: expected at least one marked pixel"):
        engine.ask(picture, QUESTION, [outside])
    with pytest.raises(ValueError, match="region 1: expected at least one marked pixel"):
        engine.describe(picture, [masks[0], outside])
    found = engine.ask_batch([(picture, "What is it?", masks[:1]), (picture, QUESTION, masks[:1])], progress=False)
    assert [answer.ok for answer in found] == [False, True]
    assert "got 0" in found[0].error
    with pytest.raises(ValueError, match="expected a model of this package's own engine"):
        engine.encode(picture, masks)
    with pytest.raises(ValueError, match="options: expected some of"):
        engine.ask(picture, QUESTION, masks[:1], beams=3)
    assert engine.counts()["running"] == 0
