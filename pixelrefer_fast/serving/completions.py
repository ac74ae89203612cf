"""Answers in the form of OpenAI's chat completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pixelrefer_fast.batching import Answer
from pixelrefer_fast.serving.metrics import Metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Alternatives = Sequence[tuple[int, float]]
FINISH = {"stop": "stop", "stop_string": "stop", "length": "length"}
DONE = b"data: [DONE]\n\n"


def usage(prompt: int, answer: int, cached: int) -> dict[str, object]:
    """Numbers of tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def count(metrics: Metrics, prompt: int, answer: int, cached: int) -> None:
    metrics.prompt_tokens.inc(prompt)
    metrics.answer_tokens.inc(answer)
    metrics.cached_tokens.inc(cached)


def completion(model: str, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Of the answers to one prompt."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "finish_reason": FINISH[answer.finish],
            "logprobs": None
            if answer.logprobs is None
            else {
                "content": [
                    logprob(tokenizer, token, value, () if answer.top_logprobs is None else answer.top_logprobs[at])
                    for at, (token, value) in enumerate(zip(answer.tokens, answer.logprobs, strict=True))
                ]
            },
        }
        for index, answer in enumerate(answers)
    ]
    tokens = sum(len(answer.tokens) for answer in answers)
    first = answers[0]
    head = {"id": new_id(), "object": "chat.completion", "created": int(time.time()), "model": model}
    return head | {"choices": choices, "usage": usage(first.prompt_tokens, tokens, first.cached_tokens)}


def logprob(
    tokenizer: PreTrainedTokenizerBase, token: int, value: float, alternatives: Alternatives
) -> dict[str, object]:
    """Of one token, and of the most likely ones at its place."""
    return _named(tokenizer, token, value) | {"top_logprobs": [_named(tokenizer, *one) for one in alternatives]}


def _named(tokenizer: PreTrainedTokenizerBase, token: int, value: float) -> dict[str, object]:
    text = str(tokenizer.decode([token]))
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def new_id() -> str:
    return "chatcmpl-" + secrets.token_hex(16)


def event(document: dict[str, object]) -> bytes:
    """Of a stream of server-sent events."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"
