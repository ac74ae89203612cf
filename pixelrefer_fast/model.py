"""PixelRefer and PixelReferLite: from an image or a video, marked regions and a question to text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import nn
from typing_extensions import Unpack

from pixelrefer_fast.batching.asks import Answer, Ask, AskKeywords, BatchError
from pixelrefer_fast.batching.calls import BatchCalls, text_of
from pixelrefer_fast.batching.encoding import Prepared, embedded_prompt
from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO, Bound, MediaCache, made_of, prepare
from pixelrefer_fast.batching.rehearsal import rehearsal
from pixelrefer_fast.checkpoint import save_checkpoint
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import labelled
from pixelrefer_fast.decoding import Decoder, Event, Generation
from pixelrefer_fast.decoding.prompt import check_question
from pixelrefer_fast.decoding.sequence import texts
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.network import FullNetwork, LiteNetwork, Network
from pixelrefer_fast.planning.options import EncodeKeywords, EncodeOptions, read_options, split_options
from pixelrefer_fast.planning.request import REGION_TAG, Request
from pixelrefer_fast.regions import as_regions
from pixelrefer_fast.segmenting import Segmenter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Model(BatchCalls, nn.Module):
    """What both models share: the face over a network.

    Args:
        config: of a checkpoint of this kind.
        tokenizer: its tokenizer.
        generation: what its generation_config.json says.
        backend: who computes the operations: "auto" or one of `ops.BACKENDS`.

    Attributes:
        network: the weights, and the way from a plan to prompt embeddings.

    Raises:
        ValueError: the checkpoint is of the other kind, or the backend serves nothing here.
    """

    kind: ClassVar[str]
    _network_class: ClassVar[type[Network]]

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        generation: Mapping[str, object],
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise ValueError(f"{type(self).__name__}: expected a checkpoint of kind {self.kind!r}, got {config.kind!r}")
        self.network = self._network_class(config, tokenizer, generation, backend)
        self.eval()

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.network.tokenizer

    @property
    def decoder(self) -> Decoder:
        return self.network.decoder

    @property
    def backend(self) -> str:
        return self.network.backend

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def quantization(self) -> str | None:
        """Of the LLM's layers, as `load` was asked for."""
        return self.network.quantization

    @property
    def generation(self) -> dict[str, Any]:
        """What the checkpoint says of decoding."""
        return self.network.generation

    @property
    def fingerprint(self) -> str:
        """Tells models apart whose object tokens do not fit each other, in whatever dtype they were loaded."""
        return self.network.fingerprint

    @property
    def segmenter(self) -> Segmenter:
        """Makes the masks of regions that are given as points; `load_segmenter` loads another."""
        return self.network.segmenter

    @segmenter.setter
    def segmenter(self, segmenter: Segmenter) -> None:
        self.network.segmenter = segmenter

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        changed = f", {self.quantization}" if self.quantization else ""
        return f"<{type(self).__name__}: {weights:,} weights in {dtype}{changed} on {self.device}>"

    def warmup(self, graph_bytes: int | None = None) -> None:
        """Make and compile what requests use before the first of them; on a CUDA device `load` calls it.

        Some questions about a drawn picture go through the model, then the passes to object tokens, the prompts and the
        decoder's steps are captured as CUDA graphs. Again after weights were written to: what was captured with others
        is not used any more.

        Args:
            graph_bytes: of device memory that captures of passes to object tokens may keep, and as much that those of
                prompts and steps may; 0: none is captured; None: 1 GiB on a CUDA device, 0 elsewhere.

        Raises:
            ValueError: there are no CUDA graphs where this model is.
            RuntimeError: something is being decoded.
        """
        network = self.network
        kept, network.kept_features, network.captured = network.kept_features, None, None
        try:
            for answer in self.ask_batch(rehearsal(), progress=False):
                # a model of few tokens of context, or of weights that are no model's, answers not all of them
                if answer.exception is not None and not isinstance(answer.exception, (ValueError, FloatingPointError)):
                    raise answer.exception
        finally:
            network.kept_features = kept
        network.decoder.clear()
        network.capture(graph_bytes)

    def save(self, folder: str | Path) -> None:
        """Write one self-contained folder in the released layout that loads again bit-equal.

        Raises:
            ValueError: the folder exists and is not empty, or cannot be written; or the model's weights are quantised.
        """
        network = self.network
        if network.quantization is not None:
            raise ValueError(f"save: expected weights as they were loaded, got {network.quantization} ones")
        save_checkpoint(folder, network.checkpoint_slots(), network.config, network.tokenizer, network.generation)

    def encode(self, image_or_video: Any, regions: Any, **options: Unpack[EncodeKeywords]) -> Objects:
        """Object tokens of all regions of one image or video, encoded together.

        Args:
            image_or_video: anything `media.open_media` takes.
            regions: anything `regions.as_regions` takes; for a video each is bound to frames.
            options: fields of `EncodeOptions`.

        Returns:
            Objects, for any number of questions.

        Raises:
            ValueError: naming the region or the input, what was expected and what came.
        """
        encode = read_options(options, EncodeOptions)
        request = self._request(image_or_video, regions, encode)
        plan = self.network.plan(request)
        made = made_of(self.network, request, plan, image_or_video)
        prepared = Prepared("", Generation(), request=request, plan=plan, encode=encode, made_of=made)
        return self.requests.encode(prepared)

    def prompt_embeds(
        self, image_or_video: Any, question: str, regions: Any = None, **options: Unpack[EncodeKeywords]
    ) -> torch.Tensor:
        """The prompt of a question as a language model sees it, for a server that takes prompts as embeddings.

        Args:
            image_or_video, question, regions: as in `ask`.
            options: fields of `EncodeOptions`.

        Returns:
            (L, C) in host memory, in this model's dtype: text, object tokens, and in PixelRefer vision tokens. A plain
            language model of the same weights (`export_llm`) continues it as `ask` does.

        Raises:
            ValueError: naming the input, what was expected and what came.
        """
        read_options(options, EncodeOptions)
        ask = _ask(image_or_video, question, regions, options)
        prepared = prepare(self.network, ask, MediaCache(), MediaCache())
        objects = self.requests.encode(prepared)
        with self.requests.exclusive():
            return embedded_prompt(self.network, prepared.question, objects).embeds.cpu()

    @overload
    def ask(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        details: Literal[False] = False,
        **options: Unpack[AskKeywords],
    ) -> str: ...

    @overload
    def ask(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        details: Literal[True],
        **options: Unpack[AskKeywords],
    ) -> Answer: ...

    def ask(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        details: bool = False,
        **options: Unpack[AskKeywords],
    ) -> str | Answer:
        """Answer a question about marked objects.

        Args:
            image_or_video: an image, a video, or `Objects` from `encode`.
            question: with a `<region>` tag for each region, in order. About `Objects` it may have no tag at all:
                they are then named before it.
            regions: what is marked; None with `Objects`.
            details: return the whole `Answer`: besides its text how it ended, its tokens, log-probabilities and more.
            options: of decoding, as `Generation` says them all: `max_new_tokens` (tokens; 512), `min_new_tokens`
                (tokens; 0), `temperature` (0: greedy), `top_k` (tokens; as the checkpoint says), `top_p` (share of
                probability; 1), `min_p` (part of the likeliest one's probability; 0), `seed` (none),
                `repetition_penalty` (factor; as the checkpoint says), `presence_penalty` and `frequency_penalty` (of
                scores; 0), `logit_bias` (of scores, by token id; none), `stop` and `stop_token_ids` (none),
                `logprobs` (False), `top_logprobs` (tokens; 0); `n` goes with `ask_batch`. And of encoding, as
                `EncodeOptions` says: `kmeans_seed` and `kmeans_start` (evenly spaced), `fps` (frames a second that
                PixelRefer sees whole; 1), `max_frames` (768), `frames` (numbers of frames, instead of choosing).

        Raises:
            ValueError: naming the input, what was expected and what came; for an unknown option also the nearest one.
        """
        answer = self._answer_one(_ask(image_or_video, question, regions, options))
        return answer if details else answer.text or ""

    @overload
    def stream(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        events: Literal[False] = False,
        **options: Unpack[AskKeywords],
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        events: Literal[True],
        **options: Unpack[AskKeywords],
    ) -> Iterator[Event]: ...

    def stream(
        self,
        image_or_video: Any,
        question: str,
        regions: Any = None,
        *,
        events: bool = False,
        **options: Unpack[AskKeywords],
    ) -> Iterator[str] | Iterator[Event]:
        """`ask` in pieces of text that join to the same answer; bad input raises before the first piece.

        With `events` it gives an `Event` for each token instead, and one for the end that tells how the answer ended.
        """
        ask = _ask(image_or_video, question, regions, options)
        told = self._stream_one(prepare(self.network, ask, MediaCache(), MediaCache()))
        return told if events else texts(told)

    def describe(
        self,
        image_or_video: Any,
        regions: Any,
        question: str | None = None,
        *,
        details: bool = False,
        **options: Unpack[AskKeywords],
    ) -> list[Any]:
        """One text per region; each region is a request of its own, so its text does not depend on the others.

        Args:
            image_or_video: an image or a video; or a list of them, with a list of regions for each.
            regions: what is marked. With a list of images or videos: a list as long, of lists of regions. (A list of
                images without that is a video of these frames, as everywhere.)
            question: asked of each region, with one `<region>` tag; default: describe it in detail.
            details: return whole `Answer`s instead of texts.
            options: as in `ask`.

        Returns:
            A text per region; for a list of images and videos a list of texts for each.

        Raises:
            ValueError: naming the region, before anything is answered.
            BatchError: some requests of a list failed; its `answers` has what the others got.
        """
        _check_described(question)
        if _are_many(image_or_video, regions):
            marked = _marked(image_or_video, regions, question, options)
            return _by_media(self.ask_batch([ask for own in marked for ask in own], **options), marked, details)
        singles, count = self._singles(image_or_video, regions, question, options)
        found = self._answer_all(singles, None, count)
        return [answer if details else answer.text for answer in found]

    async def describe_async(
        self,
        image_or_video: Any,
        regions: Any,
        question: str | None = None,
        *,
        details: bool = False,
        **options: Unpack[AskKeywords],
    ) -> list[Any]:
        """`describe` that lets the event loop go on; concurrent calls share batches.

        Raises:
            ValueError, BatchError: as `describe`.
        """
        _check_described(question)
        if _are_many(image_or_video, regions):
            marked = _marked(image_or_video, regions, question, options)
            asks = [ask for own in marked for ask in own]
            answers = [answer async for answer in self.ask_iter_async(asks, ordered=True, **options)]
            return _by_media(answers, marked, details)
        singles, _ = await asyncio.to_thread(self._singles, image_or_video, regions, question, options)
        found = []
        async with contextlib.aclosing(self.ask_iter_async(singles, ordered=True)) as answered:
            async for answer in answered:  # the first failure ends it
                text = text_of(answer)
                found.append(answer if details else text)
        return found

    def _singles(
        self, media: Any, regions: Any, question: str | None, options: Mapping[str, object]
    ) -> tuple[Iterator[Bound], int]:
        """The requests of `describe`, one for each region of an image or video, and how many they are."""
        encode, generation = split_options(options, EncodeOptions, Generation)
        request = self._request(media, regions, encode)
        if question is None:
            question = DESCRIBE_VIDEO if request.source.video else DESCRIBE_IMAGE
        given = encode.kmeans_start
        if given is not None and len(given) != request.num_marks:
            raise ValueError(
                f"kmeans_start: expected an entry for each of the {request.num_marks} marks, got {len(given)}"
            )
        if len(request.regions) > 1:
            for _ in request.marks():
                pass  # draws every mask once, so that a bad region is told before the first batch is answered

        def singles() -> Iterator[Bound]:
            mark = 0
            for i in range(len(request.regions)):
                single = request.single(i)
                own = None if given is None else given[mark : mark + single.num_marks]
                mark += single.num_marks
                yield Bound(single, question, replace(encode, kmeans_start=own), generation)

        return singles(), len(request.regions)

    def _request(self, image_or_video: Any, regions: Any, options: EncodeOptions) -> Request:
        opened = MediaCache().open(image_or_video)
        return self.network.bind(opened.media, opened.source, regions, options)


class PixelReferLite(_Model):
    """Object-Only: the LLM sees text and object tokens, into which context has been infused."""

    kind = "lite"
    _network_class = LiteNetwork


class PixelRefer(_Model):
    """Vision-Object: the LLM sees text, the vision tokens of whole images or frames, and object tokens."""

    kind = "full"
    _network_class = FullNetwork


def _ask(media: Any, question: str, regions: Any, options: Mapping[str, object]) -> Ask:
    check_question(question)
    ask = Ask(media, question, regions)
    ask.options = dict(options)
    return ask


def _are_many(media: Any, regions: Any) -> bool:
    """Whether `describe` is asked about a list of images and videos: regions of a video's frames are no lists."""
    if not isinstance(media, (list, tuple)) or not isinstance(regions, (list, tuple)) or len(media) != len(regions):
        return False
    return all(isinstance(own, (list, tuple)) for own in regions)


def _check_described(question: str | None) -> None:
    if question is not None:
        check_question(question)
        if question.count(REGION_TAG) != 1:
            raise ValueError(f"question: expected one {REGION_TAG} tag, got {question.count(REGION_TAG)}")


def _marked(
    media: Sequence[object], regions: Sequence[object], question: str | None, options: Mapping[str, object]
) -> list[list[Ask]]:
    """The requests of `describe` about each of a list of images and videos."""
    split_options(options, EncodeOptions, Generation)
    every = []
    for i, (one, own) in enumerate(zip(media, regions, strict=True)):
        with labelled(f"image or video {i}"):
            marked = as_regions(own)
        asks = [Ask(one, question, [region]) for region in marked]
        for number, ask in enumerate(asks):
            ask.first_region = number
        every.append(asks)
    return every


def _by_media(answers: Sequence[Answer], marked: Sequence[Sequence[Ask]], details: bool) -> list[list[Any]]:
    """Texts or whole answers of each image and video.

    Raises:
        BatchError: a request failed.
    """
    if not all(answer.ok for answer in answers):
        raise BatchError(list(answers))
    given = iter([answer if details else answer.text for answer in answers])
    return [[next(given) for _ in own] for own in marked]
