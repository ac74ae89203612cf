"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, closing

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from pixelrefer_fast.batching import Answer
from pixelrefer_fast.decoding import Event
from pixelrefer_fast.serving import completions
from pixelrefer_fast.serving.admission import Room
from pixelrefer_fast.serving.asking import ChatAsk, read_chat
from pixelrefer_fast.serving.errors import ApiError
from pixelrefer_fast.serving.schemas import ChatRequest
from pixelrefer_fast.serving.state import Model, State, state_of

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, chat: ChatRequest) -> dict[str, object] | Response:
    """Answers a question about marked objects of an image or a video."""
    state = state_of(request)
    model, count = state.model(chat.model), chat.n or 1
    with ExitStack() as held:
        room = held.enter_context(state.gate.admitted(count))
        if chat.stream:
            pieces = _stream(state, model, chat, count, room)
            first = await state.answered(request, anext(pieces))  # what is wrong is told before a stream begins
            held_on = held.pop_all()
            return StreamingResponse(_all(first, pieces, held_on), media_type="text/event-stream")
        answer = await state.answered(request, _answer(state, model, chat, count, room))
    answers = (answer, *answer.others)
    tokens = sum(len(own.tokens) for own in answers)
    completions.count(state.metrics, answer.prompt_tokens, tokens, answer.cached_tokens)
    return completions.completion(chat.model, answers, model.tokenizer)


async def _answer(state: State, model: Model, chat: ChatRequest, count: int, room: Room) -> Answer:
    asked = await state.work(room, lambda: read_chat(state, chat))
    return await model.ask_async(asked.media, asked.question, asked.regions, details=True, n=count, **asked.options)


async def _all(first: bytes, pieces: AsyncGenerator[bytes, None], held: ExitStack) -> AsyncGenerator[bytes, None]:
    with held:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece


async def _stream(state: State, model: Model, chat: ChatRequest, count: int, room: Room) -> AsyncGenerator[bytes, None]:
    """Server-sent events of `count` answers, in the order in which their tokens come."""
    head = {
        "id": completions.new_id(),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": chat.model,
    }
    wanted = chat.stream_options is not None and chat.stream_options.include_usage
    begin, begun = time.monotonic(), [False] * count
    prompt = tokens = cached = 0
    asked = await state.work(room, lambda: read_chat(state, chat))
    with closing(_Events(model, asked, count)) as events:
        while True:
            left = state.limits.seconds - (time.monotonic() - begin)
            try:
                found = await events.next(max(left, 0.001))
            except asyncio.TimeoutError:
                yield completions.event(state.late().body())
                return
            except Exception as error:
                if not any(begun):
                    raise
                yield completions.event(_told(error).body())
                return
            if found is None:
                break
            index, told = found
            if not any(begun):
                state.metrics.first_token.observe(time.monotonic() - begin)
            delta: dict[str, object] = {} if begun[index] else {"role": "assistant"}
            begun[index] = True
            if told.text:
                delta["content"] = told.text
            values = None
            if told.token is not None and told.logprob is not None:
                one = completions.logprob(model.tokenizer, told.token, told.logprob, told.top_logprobs or ())
                values = {"content": [one]}
            finish = None if told.finish_reason is None else completions.FINISH[told.finish_reason]
            if told.usage is not None:
                prompt, cached = told.usage.prompt_tokens, told.usage.cached_tokens
                tokens += told.usage.tokens
            if delta or values or finish:
                choice = {"index": index, "delta": delta, "logprobs": values, "finish_reason": finish}
                yield completions.event({**head, "choices": [choice]} | ({"usage": None} if wanted else {}))
    if wanted:
        yield completions.event({**head, "choices": [], "usage": completions.usage(prompt, tokens, cached)})
    completions.count(state.metrics, prompt, tokens, cached)
    state.gate.took(time.monotonic() - begin)
    yield completions.DONE


def _told(error: Exception) -> ApiError:
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, f"server: {type(error).__name__} while it answered")


class _Events:
    """Events of several answers as they come, each with its answer's index.

    Every answer is followed in a task of its own, so that cancelling whoever reads them leaves no generator half-way.
    """

    def __init__(self, model: Model, asked: ChatAsk, count: int) -> None:
        self._told: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue()
        self._tasks = [asyncio.ensure_future(self._follow(model, asked, index)) for index in range(count)]
        self._left = count

    async def next(self, seconds: float) -> tuple[int, Event] | None:
        """None when all answers have ended.

        Raises:
            asyncio.TimeoutError: nothing came for so long.
            Exception: as the model raised it.
        """
        while self._left:
            index, told = await asyncio.wait_for(self._told.get(), seconds)
            if isinstance(told, Exception):
                raise told
            if told is not None:
                return index, told
            self._left -= 1
        return None

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _follow(self, model: Model, asked: ChatAsk, index: int) -> None:
        options = dict(asked.options)
        if options.get("seed") is not None:
            options["seed"] += index  # as the library's own `n`
        try:
            stream = model.stream_async(asked.media, asked.question, asked.regions, events=True, **options)
            async with aclosing(stream) as events:
                async for event in events:
                    self._told.put_nowait((index, event))
            self._told.put_nowait((index, None))
        except Exception as error:
            self._told.put_nowait((index, error))
