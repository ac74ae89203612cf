"""A plain language-model server, which sees no image, continues prompts of `model.prompt_embeds` as `ask` does."""

from __future__ import annotations

from pathlib import Path

import openai
from mixed_requests import mixed_requests
from vllm_requests import SMALL
from vllm_server import vllm_server

import pixelrefer_fast as pf
from pixelrefer_fast.engines.vllm import embeds_text


def test_tokens_are_those_of_ask(tmp_path: Path) -> None:
    kind = "full"  # with vision tokens, of which a video drops some
    report = pf.export_llm(f"embedded:{kind}", tmp_path / "llm")
    assert report["tensors"] > 10
    model = pf.load(f"embedded:{kind}", dtype="float32")
    asks = mixed_requests(kind, 24, seed=11)
    options = ("--dtype", "float32", "--enforce-eager", "--enable-prompt-embeds", "--served-model-name", "llm")
    length = ("--max-model-len", str(SMALL["max_model_len"]), "--max-num-seqs", "8")
    with vllm_server(tmp_path / "llm", tmp_path / "log", *options, *length) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
        for ask in asks:
            encode = {name: value for name, value in ask.options.items() if name != "max_new_tokens"}
            prompt = model.prompt_embeds(ask.media, ask.question, ask.regions, **encode)
            most = ask.options["max_new_tokens"]
            body = {"prompt_embeds": embeds_text(prompt), "return_token_ids": True}
            found = client.completions.create(model="llm", prompt=None, max_tokens=most, temperature=0, extra_body=body)
            expected = model.ask(ask.media, ask.question, ask.regions, details=True, **ask.options)
            assert tuple(found.choices[0].token_ids) == expected.tokens
