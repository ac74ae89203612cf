"""`pf.load(..., engine="vllm")`: the methods of `PixelRefer` and `PixelReferLite`, answered by an engine of vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from pixelrefer_fast.batching.asks import Answer, Ask, BatchError, as_ask
from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO, MediaCache
from pixelrefer_fast.batching.progress import batch_progress
from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.digests import model_fingerprint
from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.decoding import Event, Generation
from pixelrefer_fast.decoding.options import Usage
from pixelrefer_fast.decoding.prompt import check_question, check_tags
from pixelrefer_fast.decoding.text import Detokenizer, TextStream
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.engines.prompts import chat_prompt
from pixelrefer_fast.engines.vllm import outputs, writing
from pixelrefer_fast.engines.vllm.marked import Marked
from pixelrefer_fast.engines.vllm.writing import VllmOptions
from pixelrefer_fast.media import Video
from pixelrefer_fast.regions import as_regions

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

OPEN_REQUESTS = 256
"""Of one call that the engine is handed before it has answered others; it decides itself what runs together."""
OWN = ("model", "dtype")  # what `engine_options` may not set
T = TypeVar("T")


class VllmModel:
    """A checkpoint that vLLM answers for. For any number of threads.

    Args:
        path_or_hub_id: as `pixelrefer_fast.load` takes it.
        dtype: of the weights.
        engine_options: arguments of vLLM's `AsyncEngineArgs`, such as tensor_parallel_size or max_model_len.

    Attributes:
        config, tokenizer: of the checkpoint.
        generation: what the checkpoint says of decoding.
        dtype: of the weights.
        quantization: what `engine_options` ask for.

    Raises:
        ValueError: the checkpoint or an option cannot be used.
    """

    def __init__(
        self, path_or_hub_id: str, dtype: torch.dtype, engine_options: Mapping[str, object] | None = None
    ) -> None:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ValueError(f"engine: expected pip install 'pixelrefer-fast[vllm]', but {error}") from None

        checkpoint = open_checkpoint(path_or_hub_id)
        options = dict(engine_options or {})
        if taken := [name for name in OWN if name in options]:
            raise ValueError(f"engine_options: expected none of {', '.join(OWN)}, which load has, got {taken[0]!r}")
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer()
        self.generation = checkpoint.generation
        self.dtype = dtype
        self.quantization = None if options.get("quantization") is None else str(options["quantization"])
        self._checkpoint = checkpoint
        self._penalty = float(checkpoint.generation.get("repetition_penalty") or 1.0)
        self._top_k = int(checkpoint.generation.get("top_k") or 0)
        self._detokenizer = Detokenizer(self.tokenizer)
        self._numbers = itertools.count()
        self._open = 0
        try:
            name = str(dtype).removeprefix("torch.")
            args = AsyncEngineArgs(model=str(checkpoint.folder), dtype=name, **options)
        except TypeError as error:  # of a dataclass
            raise ValueError(f"engine_options: expected arguments of AsyncEngineArgs: {error}") from None
        self._reader = ThreadPoolExecutor(1, "pixelrefer_fast vllm")  # opens media: one cache, one thread
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="pixelrefer_fast vllm", daemon=True)
        thread.start()

        async def start() -> AsyncLLM:
            return AsyncLLM.from_engine_args(args)

        try:
            engine = self._run(start())
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        self._held = [engine]  # the end empties it: an engine must not outlive vLLM's modules
        del engine
        self._end = weakref.finalize(self, _end, self._held, self._loop, thread, self._reader)

    @property
    def _engine(self) -> AsyncLLM:
        if not self._held:
            raise _closed_engine()
        return self._held[0]

    @property
    def kind(self) -> str:
        """ "lite" or "full"."""
        return self.config.kind

    @property
    def device(self) -> torch.device:
        """Of the workers."""
        return torch.device(self._engine.vllm_config.device_config.device_type)

    @cached_property
    def fingerprint(self) -> str:
        """As `PixelRefer.fingerprint`; reads every weight when it is first asked for."""
        return model_fingerprint(self.config, self._checkpoint.digests())

    @property
    def decoder(self) -> VllmModel:
        """Who tells how much is being decoded."""
        return self

    def counts(self) -> dict[str, int]:
        """Requests that are open."""
        return {"running": self._open, "waiting": 0}

    def __repr__(self) -> str:
        return f"<VllmModel: {self.kind}, by vLLM>"

    def close(self) -> None:
        """Stop the engine; what is open must have ended."""
        self._end()

    def encode(self, image_or_video: object, regions: object, **options: object) -> Objects:
        """Not with this engine.

        Raises:
            ValueError: always. vLLM encodes with each question, and keeps what it has seen before.
        """
        raise ValueError(
            "encode: expected a model of this package's own engine, got one of vLLM, which keeps what it sees"
        )

    def ask(
        self, image_or_video: object, question: str, regions: object = None, *, details: bool = False, **options: object
    ) -> str | Answer:
        """Answer a question about marked objects; as `PixelRefer.ask`, but for encoded `Objects`.

        Args:
            image_or_video: an image or a video.
            question: with a `<region>` tag for each region, in order.
            regions: what is marked.
            details: return the whole `Answer`.
            options: as there, and fields of `writing.VllmOptions`: beams, grammars, adapters.

        Raises:
            ValueError: naming the input, what was expected and what came.
        """
        answer = self._run(self._answer(0, _ask(image_or_video, question, regions, options), MediaCache()))
        text = _text(answer)
        return answer if details else text

    def stream(
        self, image_or_video: object, question: str, regions: object = None, *, events: bool = False, **options: object
    ) -> Iterator[str] | Iterator[Event]:
        """`ask` in pieces of text that join to the same answer; with `events` an `Event` for each token and the end."""
        told = self._iterated(self._events(_ask(image_or_video, question, regions, options)))
        return told if events else (event.text for event in told if event.text)

    def describe(
        self,
        image_or_video: object,
        regions: object,
        question: str | None = None,
        *,
        details: bool = False,
        **options: object,
    ) -> list[str] | list[Answer]:
        """One text per region of an image or video; as `PixelRefer.describe`."""
        answers = list(self._iterated(self._answers(_singles(image_or_video, regions, question, options), {}, True)))
        texts = [_text(answer) for answer in answers]
        return answers if details else texts

    def ask_iter(
        self, requests: Iterable[object], *, ordered: bool = False, batch_size: int | None = None, **options: object
    ) -> Generator[Answer, None, None]:
        """Answers as they are finished; as `PixelRefer.ask_iter`, and closing it cancels what is open."""
        return self._iterated(self._answers(requests, options, ordered, batch_size))

    def ask_batch(
        self,
        requests: Iterable[object],
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        **options: object,
    ) -> list[Answer]:
        """`ask_iter` as a list, in the order of the requests."""
        total = len(requests) if isinstance(requests, Sequence) else None
        answers: list[Answer] = []
        with batch_progress("requests", progress) as tick:
            for answer in self.ask_iter(requests, ordered=True, batch_size=batch_size, **options):
                answers.append(answer)
                tick(len(answers), total)
        return answers

    async def ask_async(
        self, media: object, question: str, regions: object = None, *, details: bool = False, **options: object
    ) -> str | Answer:
        """`ask` that lets the event loop go on."""
        ask = _ask(media, question, regions, options)
        answer = await self._elsewhere(self._answer(0, ask, MediaCache()))
        text = _text(answer)
        return answer if details else text

    async def stream_async(
        self, media: object, question: str, regions: object = None, *, events: bool = False, **options: object
    ) -> AsyncGenerator[str | Event, None]:
        """`stream` that lets the event loop go on. Closing it cancels."""
        told = self._events(_ask(media, question, regions, options))
        async with contextlib.aclosing(self._passed_on(told)) as own:
            async for event in own:
                if events:
                    yield event
                elif event.text:
                    yield event.text

    async def ask_iter_async(
        self, requests: Iterable[object], *, ordered: bool = False, batch_size: int | None = None, **options: object
    ) -> AsyncGenerator[Answer, None]:
        """`ask_iter` for coroutines. Closing it cancels what is open."""
        async with contextlib.aclosing(self._passed_on(self._answers(requests, options, ordered, batch_size))) as own:
            async for answer in own:
                yield answer

    async def describe_async(
        self,
        image_or_video: object,
        regions: object,
        question: str | None = None,
        *,
        details: bool = False,
        **options: object,
    ) -> list[str] | list[Answer]:
        """`describe` that lets the event loop go on."""
        singles = _singles(image_or_video, regions, question, options)
        answers = [answer async for answer in self.ask_iter_async(singles, ordered=True)]
        texts = [_text(answer) for answer in answers]
        return answers if details else texts

    # On the engine's own event loop

    async def _answers(
        self, requests: Iterable[object], options: Mapping[str, object], ordered: bool, limit: int | None = None
    ) -> AsyncGenerator[Answer, None]:
        cache = MediaCache()
        waiting: dict[int, asyncio.Task[Answer]] = {}
        numbered = enumerate(requests)
        exhausted = False
        failed: Exception | None = None
        try:
            while True:
                while not exhausted and len(waiting) < (limit or OPEN_REQUESTS):
                    try:
                        found = next(numbered, None)
                    except Exception as error:  # told when what came before it is answered
                        found, failed = None, error
                    exhausted = found is None
                    if found is not None:
                        waiting[found[0]] = asyncio.ensure_future(self._answer(*found, cache, options))
                if not waiting:
                    if failed is not None:
                        raise failed
                    return
                if ordered:
                    number = next(iter(waiting))
                    await waiting[number]
                else:
                    await asyncio.wait(waiting.values(), return_when="FIRST_COMPLETED")
                    number = next(n for n, task in waiting.items() if task.done())
                yield waiting.pop(number).result()
        finally:
            for task in waiting.values():
                task.cancel()

    async def _answer(
        self, index: int, value: object, cache: MediaCache, defaults: Mapping[str, object] | None = None
    ) -> Answer:
        self._open += 1
        try:
            ask = as_ask(value, defaults)
            prompt, generation, own = await self._loop.run_in_executor(self._reader, self._prepare, ask, cache)
            with outputs.refusals():
                found = await self._found(prompt, generation, own)
            return outputs.answer_of(index, found, generation)
        except Exception as error:  # by the number of the request: the others go on
            return Answer(index, error=outputs.reason(error), exception=error)
        finally:
            self._open -= 1

    async def _found(self, prompt: dict[str, object], generation: Generation, own: VllmOptions) -> RequestOutput:
        """What vLLM gives for a whole answer."""
        name, lora = self._name(), writing.lora_of(own)
        (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        if own.num_beams > 1:
            return await outputs.beam_search(self._engine, rendered, name, writing.beams(generation, own), lora)
        params = writing.sampling(generation, own, self._penalty, self._top_k)
        return await outputs.last_of(self._engine.generate(rendered, params, name, lora_request=lora))

    async def _events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        prompt, generation, own = await self._loop.run_in_executor(self._reader, self._prepare, ask, MediaCache())
        if generation.n > 1 or own.num_beams > 1:
            raise ValueError("stream: expected one answer and no beams, which are known at the end")
        params = writing.sampling(generation, own, self._penalty, self._top_k, streamed=True)
        text = TextStream(self._detokenizer, generation.stop)
        tokens = 0
        self._open += 1
        try:
            with outputs.refusals():
                (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
                lora = writing.lora_of(own)
                async for output in self._engine.generate(rendered, params, self._name(), lora_request=lora):
                    (new,) = output.outputs
                    for event in outputs.events_of(new, text, generation, tokens):
                        tokens += 1
                        yield event
                    if output.finished:
                        usage = Usage(len(output.prompt_token_ids), output.num_cached_tokens or 0, tokens)
                        yield Event(text.finish(), finish_reason=outputs.finish_of(new), usage=usage)
        finally:
            self._open -= 1

    def _prepare(self, ask: Ask, cache: MediaCache) -> tuple[dict[str, object], Generation, VllmOptions]:
        """A request as vLLM takes it."""
        if isinstance(ask.media, Objects):
            raise ValueError("objects: expected an image or a video, which vLLM encodes itself, got encoded objects")
        encode, generation, own = writing.split(ask.options)
        media = cache.open(ask.media).media
        video = isinstance(media, Video)
        marked = Marked(media, ask.regions)
        marked.encode, marked.first_region = encode, ask.first_region
        question = ask.question
        if question is None:
            if len(marked.regions) != 1:
                raise ValueError(f"question: expected one where {len(marked.regions)} regions are marked, got None")
            question = DESCRIBE_VIDEO if video else DESCRIBE_IMAGE
        check_question(question)
        check_tags(question, len(marked.regions))
        data = {"video" if video else "image": marked}
        return {"prompt": chat_prompt(question), "multi_modal_data": data}, generation, own

    def _name(self) -> str:
        return f"ask-{next(self._numbers)}"

    # From other threads and loops

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise _closed_engine()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of the caller's interrupt; nothing else is left to cancel
            raise

    async def _elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _iterated(self, source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        first = self._run(_next(source))  # what is wrong is told before anything is iterated over

        def rest() -> Generator[T, None, None]:
            found = first
            try:
                while found:
                    yield found[0]
                    found = self._run(_next(source))
            finally:
                self._run(_closed(source))

        return rest()

    async def _passed_on(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        try:
            while found := await self._elsewhere(_next(source)):
                yield found[0]
        finally:
            await self._elsewhere(_closed(source))


def load_model(
    path_or_hub_id: str, dtype: torch.dtype, engine_options: Mapping[str, object] | None = None
) -> VllmModel:
    """What `pixelrefer_fast.load(..., engine="vllm")` returns (the entry point `pixelrefer_fast.engines`)."""
    return VllmModel(path_or_hub_id, dtype, engine_options)


def _closed_engine() -> ValueError:
    return ValueError("engine: expected one that runs, got one that was closed")


async def _next(source: AsyncIterator[T]) -> tuple[T] | None:
    try:
        return (await source.__anext__(),)
    except StopAsyncIteration:
        return None


async def _closed(source: AsyncGenerator[T, None]) -> None:
    await source.aclose()


async def _shut_down(engine: AsyncLLM) -> None:
    """End the engine and what else runs on its loop."""
    engine.shutdown()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=5)


def _end(
    held: list[AsyncLLM], loop: asyncio.AbstractEventLoop, thread: threading.Thread, reader: ThreadPoolExecutor
) -> None:
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(_shut_down(held.pop()), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    if not thread.is_alive():
        loop.close()
    reader.shutdown(wait=False)


def _ask(media: object, question: str, regions: object, options: Mapping[str, object]) -> Ask:
    check_question(question)
    ask = Ask(media, question, regions)
    ask.options = dict(options)
    return ask


def _singles(media: object, regions: object, question: str | None, options: Mapping[str, object]) -> list[Ask]:
    """A request for each region."""
    if question is not None:
        check_question(question)
        check_tags(question, 1)
    writing.split(options)
    asks = [Ask(media, question, [region]) for region in as_regions(regions)]
    if not asks:
        raise ValueError(f"regions: expected at least one, got {shown(regions)}")
    for number, ask in enumerate(asks):
        ask.options = dict(options)
        ask.first_region = number
    return asks


def _text(answer: Answer) -> str:
    if answer.exception is not None:
        raise answer.exception
    if answer.text is None:
        raise BatchError([answer])
    return answer.text
