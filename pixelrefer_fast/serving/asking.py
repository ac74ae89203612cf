"""A request as it came -> what the model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO, named_objects
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.planning.request import REGION_TAG
from pixelrefer_fast.regions import Region
from pixelrefer_fast.segmenting import marked_by
from pixelrefer_fast.serving.media import Fetched
from pixelrefer_fast.serving.regions import read_regions
from pixelrefer_fast.serving.schemas import (
    ChatRequest,
    ImagePart,
    InputImagePart,
    Json,
    MarkedFields,
    Message,
    RegionPart,
    TextPart,
    VideoPart,
    WritingFields,
)
from pixelrefer_fast.serving.state import State

_SAME_NAME = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "stop",
)  # fmt: skip


@dataclass(frozen=True)
class ChatAsk:
    """The arguments of a model's `ask`."""

    media: Media | Objects
    question: str
    regions: list[Region] | None
    options: dict[str, Any]


def read_options(writing: WritingFields, most_tokens: int) -> dict[str, Any]:
    """Options of the library's `Generation`, those that were given.

    Raises:
        ValueError: more tokens are wanted than an answer may have.
    """
    options = {name: value for name in _SAME_NAME if (value := getattr(writing, name)) is not None}
    if writing.logit_bias:
        options["logit_bias"] = {_token(key): bias for key, bias in writing.logit_bias.items()}
    if writing.stop_token_ids:
        options["stop_token_ids"] = tuple(writing.stop_token_ids)
    if isinstance(writing.stop, list):
        options["stop"] = tuple(writing.stop)
    given = writing.max_tokens if writing.max_completion_tokens is None else writing.max_completion_tokens
    if given is not None and given > most_tokens:
        raise ValueError(f"max_completion_tokens: expected at most {most_tokens}, got {given}")
    options["max_new_tokens"] = min(512, most_tokens) if given is None else given
    return options


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise ValueError(f"logit_bias: expected token ids as keys, got {key[:40]!r}")
    return int(key)


def read_marked(state: State, marked: MarkedFields, given: Sequence[Json]) -> tuple[Media, list[Region]]:
    """The image or video of a request, and its regions.

    Raises:
        ValueError: naming the part of the request, what was expected and what came.
    """
    opened = read_media(state, marked)
    return opened.media, _regions(state, opened.media, given)


def read_media(state: State, marked: MarkedFields) -> Fetched:
    """The image or video of a request; ValueError as `read_marked`."""
    if (marked.image is None) == (marked.video is None):
        raise ValueError("image: expected either an image or a video, got both or none")
    if marked.image is not None:
        return state.reader.image(marked.image, "image")
    assert marked.video is not None
    return state.reader.video(marked.video, "video")


def _regions(state: State, media: Media, given: Sequence[Json]) -> list[Region]:
    most = state.limits.regions
    if len(given) > most:
        raise ValueError(f"regions: expected at most {most}, got {len(given)}")
    return marked_by(state.segmenter, media, read_regions(given, media))


def read_chat(state: State, chat: ChatRequest) -> ChatAsk:
    """What a chat completion asks.

    Raises:
        ValueError: naming the part of the request, what was expected and what came.
        ApiError: no such encoded objects.
    """
    options = read_options(chat, state.limits.tokens)
    for name in ("fps", "max_frames", "frames", "top_logprobs"):
        if (value := getattr(chat, name)) is not None:
            options[name] = value
    if chat.logprobs:
        options["logprobs"] = True
    if chat.response_format is not None and (wanted := chat.response_format.given()) is not None:
        options["response_format"] = wanted  # this package's own engine says that it has none
    text, opened, given = _read_messages(state, chat)
    if chat.objects is not None:
        if opened is not None or given:
            raise ValueError("objects: expected no image, video or regions with them, which have theirs")
        if not text:
            raise ValueError("messages: expected a question about the objects, got none")
        return ChatAsk(state.encoded.get(chat.objects, chat.model), text, None, options)
    if opened is None:
        raise ValueError("messages: expected an image_url or a video_url, got none")
    regions = _regions(state, opened.media, given) if given else list(opened.marked)
    video = isinstance(opened.media, Video)
    if not text:
        if len(regions) != 1:
            raise ValueError(f"messages: expected a question where {len(regions)} regions are marked, got none")
        text = DESCRIBE_VIDEO if video else DESCRIBE_IMAGE
    elif regions and REGION_TAG not in text:
        text = named_objects(text, len(regions), video)
    return ChatAsk(opened.media, text, regions, options)


def _read_messages(state: State, chat: ChatRequest) -> tuple[str, Fetched | None, list[Json]]:
    """Text, media and regions of all messages."""
    users = [message for message in chat.messages if message.role == "user"]
    if len(users) != 1 or any(message.role == "assistant" for message in chat.messages):
        raise ValueError("messages: expected one of a user, none of an assistant: each question stands by itself")
    opened: Fetched | None = None
    texts: list[str] = []
    sources: list[list[Json]] = [chat.regions or []]
    inline: list[Json] = []
    for message in chat.messages:
        text = ""
        after_text = False
        for part in _parts(message):
            if isinstance(part, TextPart):
                text += "\n" * after_text + part.text
            elif isinstance(part, RegionPart):
                text += REGION_TAG
                inline.append(part.region)
            else:
                if opened is not None:
                    raise ValueError("messages: expected one image or video, got several")
                opened, own = _read_part(state, part)
                sources += own
            after_text = isinstance(part, TextPart)
        texts.append(text)
    given = [source for source in [*sources, inline] if source]
    if len(given) > 1:
        raise ValueError("regions: expected them in one place of the request, got them in several")
    return "\n".join(text for text in texts if text), opened, given[0] if given else []


def _parts(message: Message) -> list[TextPart | ImagePart | InputImagePart | VideoPart | RegionPart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return list(message.content)


def _read_part(state: State, part: ImagePart | InputImagePart | VideoPart) -> tuple[Fetched, list[list[Json]]]:
    regions = [part.regions or []]
    if isinstance(part, InputImagePart):
        return state.reader.image(part.image_url, "image_url"), regions
    if isinstance(part, ImagePart):
        return state.reader.image(part.image_url.url, "image_url"), [*regions, part.image_url.regions or []]
    return state.reader.video(part.video_url.url, "video_url"), [*regions, part.video_url.regions or []]
