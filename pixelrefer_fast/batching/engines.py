"""What a model of another engine offers: the methods of `PixelRefer` and `PixelReferLite` that answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, overload

import torch

from pixelrefer_fast.batching.asks import Answer
from pixelrefer_fast.decoding import Event
from pixelrefer_fast.encoding.objects import Objects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Counting(Protocol):
    """Tells how many sequences are decoded ("running") and wait ("waiting")."""

    def counts(self) -> dict[str, int]: ...


class EngineModel(Protocol):
    """A checkpoint for which another engine answers. Arguments, answers and errors are those of `PixelRefer`."""

    @property
    def kind(self) -> str: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def decoder(self) -> Counting: ...

    def encode(self, image_or_video: object, regions: object, **options: object) -> Objects: ...

    @overload
    def ask(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[False] = False,
        **options: object,
    ) -> str: ...

    @overload
    def ask(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[True],
        **options: object,
    ) -> Answer: ...

    @overload
    def stream(
        self,
        image_or_video: object,
        question: str,
        regions: object = None,
        *,
        events: Literal[False] = False,
        **options: object,
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self, image_or_video: object, question: str, regions: object = None, *, events: Literal[True], **options: object
    ) -> Iterator[Event]: ...

    def describe(
        self,
        image_or_video: object,
        regions: object,
        question: str | None = None,
        *,
        details: bool = False,
        **options: object,
    ) -> list[str] | list[Answer]: ...

    def ask_batch(
        self,
        requests: Iterable[object],
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        **options: object,
    ) -> list[Answer]: ...

    @overload
    async def ask_async(
        self,
        media: object,
        question: str,
        regions: object = None,
        *,
        details: Literal[False] = False,
        **options: object,
    ) -> str: ...

    @overload
    async def ask_async(
        self, media: object, question: str, regions: object = None, *, details: Literal[True], **options: object
    ) -> Answer: ...

    @overload
    def stream_async(
        self, media: object, question: str, regions: object = None, *, events: Literal[False] = False, **options: object
    ) -> AsyncGenerator[str, None]: ...

    @overload
    def stream_async(
        self, media: object, question: str, regions: object = None, *, events: Literal[True], **options: object
    ) -> AsyncGenerator[Event, None]: ...

    def ask_iter_async(
        self, requests: Iterable[object], *, ordered: bool = False, batch_size: int | None = None, **options: object
    ) -> AsyncGenerator[Answer, None]: ...

    def close(self) -> None: ...


class EngineLoader(Protocol):
    """Loads a checkpoint into an engine."""

    def __call__(
        self, path_or_hub_id: str, dtype: torch.dtype, engine_options: Mapping[str, object] | None = None, /
    ) -> EngineModel: ...
