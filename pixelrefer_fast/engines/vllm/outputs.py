"""What vLLM gives back -> `Answer`s and `Event`s."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pixelrefer_fast.batching.asks import Answer
from pixelrefer_fast.checks.values import shortened
from pixelrefer_fast.decoding import Event, Generation
from pixelrefer_fast.decoding.options import FinishReason
from pixelrefer_fast.decoding.text import TextStream

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput
    from vllm.inputs import EngineInput
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import BeamSearchParams
    from vllm.v1.engine.async_llm import AsyncLLM


def reason(error: BaseException) -> str:
    """One line."""
    return shortened(str(error).splitlines()[0]) if str(error) else type(error).__name__


@contextmanager
def refusals() -> Iterator[None]:
    """What vLLM refuses for what a request says becomes a ValueError, as all bad input is here."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except VLLMClientError as error:
        raise ValueError(shortened(f"vLLM: {reason(error)}")) from None


def finish_of(output: CompletionOutput) -> FinishReason:
    if output.finish_reason == "length":
        return "length"
    if output.finish_reason == "stop":
        return "stop_string" if isinstance(output.stop_reason, str) else "stop"
    return "cancelled"


def answer_of(index: int, output: RequestOutput, generation: Generation) -> Answer:
    """The first of the answers to a request, which has the others.

    Raises:
        RuntimeError: the engine ended it with an error.
    """
    first, *others = output.outputs[: generation.n]
    if first.finish_reason == "error":
        raise RuntimeError("vLLM: the engine ended the request with an error; its log tells more")
    rest = tuple(_answer(index, own, output, generation, ()) for own in others)
    return _answer(index, first, output, generation, rest)


def _answer(
    index: int, own: CompletionOutput, output: RequestOutput, generation: Generation, others: tuple[Answer, ...]
) -> Answer:
    tokens = tuple(own.token_ids)
    told = own.logprobs if generation.logprobs else None
    logprobs = None if told is None else tuple(at[token].logprob for at, token in zip(told, tokens, strict=True))
    top = None
    if told is not None and generation.top_logprobs:
        top = tuple(_most_likely(at, generation.top_logprobs) for at in told)
    return Answer(
        index,
        own.text.strip(),
        finish=finish_of(own),
        tokens=tokens,
        logprobs=logprobs,
        top_logprobs=top,
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=getattr(output, "num_cached_tokens", None) or 0,
        others=others,
    )


def events_of(new: CompletionOutput, text: TextStream, generation: Generation, before: int) -> Iterator[Event]:
    """An event for each new token, so many having been before."""
    told: Sequence[Mapping[int, Logprob]] = new.logprobs or () if generation.logprobs else ()
    for number, token in enumerate(new.token_ids):
        ends = token in generation.stop_token_ids
        piece = "" if ends else text.feed(token, before + number + 1 > generation.min_new_tokens)
        if not told:
            yield Event(piece, token)
            continue
        at = told[number]
        top = _most_likely(at, generation.top_logprobs) if generation.top_logprobs else None
        yield Event(piece, token, at[token].logprob, top)


def _most_likely(at: Mapping[int, Logprob], count: int) -> tuple[tuple[int, float], ...]:
    ranked = sorted(at.items(), key=lambda item: -item[1].logprob)
    return tuple((token, own.logprob) for token, own in ranked[:count])


async def last_of(found: AsyncIterable[RequestOutput]) -> RequestOutput:
    """The whole output of a request.

    Raises:
        RuntimeError: the engine ended it without one.
    """
    last = None
    async for output in found:
        last = output
    if last is None:
        raise RuntimeError("vLLM: the engine ended the request without an answer")
    return last


async def beam_search(
    engine: AsyncLLM, prompt: EngineInput, name: str, params: BeamSearchParams, lora: LoRARequest | None
) -> RequestOutput:
    """vLLM's own search, which its server does, over an engine of ours."""
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    class Search(BeamSearchOnlineMixin):
        renderer = engine.renderer
        engine_client = engine

    return await last_of(Search().beam_search(prompt, name, params, lora))
