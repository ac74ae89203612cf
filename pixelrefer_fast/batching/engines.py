"""What a model of another engine offers: the methods of `PixelRefer` and `PixelReferLite` that answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, overload

import torch
from typing_extensions import Unpack

from pixelrefer_fast.batching.asks import Answer, AskKeywords
from pixelrefer_fast.decoding import Event
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.planning.options import EncodeKeywords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EngineKeywords(AskKeywords, total=False):
    """The options of a question to another engine, for type checkers: ours, and those that vLLM has besides."""

    num_beams: int
    length_penalty: float
    response_format: Mapping[str, object] | None
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int] | None
    lora: str | None


class Counting(Protocol):
    """Tells how many sequences are decoded ("running") and wait ("waiting")."""

    def counts(self) -> dict[str, int]: ...


class EngineModel(Protocol):
    """A checkpoint for which another engine answers. Arguments, answers and errors are those of `PixelRefer`."""

    @property
    def kind(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def quantization(self) -> str | None: ...

    @property
    def generation(self) -> Mapping[str, object]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def decoder(self) -> Counting: ...

    def encode(self, image_or_video: object, regions: object, **options: Unpack[EncodeKeywords]) -> Objects: ...

    @overload
    def ask(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[False] = False,
        **options: Unpack[EngineKeywords],
    ) -> str: ...

    @overload
    def ask(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[True],
        **options: Unpack[EngineKeywords],
    ) -> Answer: ...

    @overload
    def stream(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[False] = False,
        **options: Unpack[EngineKeywords],
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[True],
        **options: Unpack[EngineKeywords],
    ) -> Iterator[Event]: ...

    @overload
    def describe(
        self,
        image_or_video: object,
        regions: object,
        question: str | None = None,
        *,
        details: Literal[False] = False,
        **options: Unpack[EngineKeywords],
    ) -> list[str]: ...

    @overload
    def describe(
        self,
        image_or_video: object,
        regions: object,
        question: str | None = None,
        *,
        details: Literal[True],
        **options: Unpack[EngineKeywords],
    ) -> list[Answer]: ...

    def ask_iter(
        self,
        requests: Iterable[object],
        *,
        ordered: bool = False,
        batch_size: int | None = None,
        **options: Unpack[EngineKeywords],
    ) -> Generator[Answer, None, None]: ...

    def ask_batch(
        self,
        requests: Iterable[object],
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        **options: Unpack[EngineKeywords],
    ) -> list[Answer]: ...

    @overload
    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[False] = False,
        **options: Unpack[EngineKeywords],
    ) -> str: ...

    @overload
    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[True],
        **options: Unpack[EngineKeywords],
    ) -> Answer: ...

    @overload
    def stream_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[False] = False,
        **options: Unpack[EngineKeywords],
    ) -> AsyncGenerator[str, None]: ...

    @overload
    def stream_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[True],
        **options: Unpack[EngineKeywords],
    ) -> AsyncGenerator[Event, None]: ...

    def ask_iter_async(
        self,
        requests: Iterable[object],
        *,
        ordered: bool = False,
        batch_size: int | None = None,
        **options: Unpack[EngineKeywords],
    ) -> AsyncGenerator[Answer, None]: ...

    def close(self) -> None: ...


class EngineLoader(Protocol):
    """Loads a checkpoint into an engine."""

    def __call__(
        self, path_or_hub_id: str, dtype: torch.dtype, engine_options: Mapping[str, object] | None = None, /
    ) -> EngineModel: ...
