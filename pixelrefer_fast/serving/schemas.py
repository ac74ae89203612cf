"""Requests as they come: OpenAI's, and the regions that they lack."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
Regions = Annotated[
    list[Json],
    Field(
        description='Marked objects: {"box": [x0, y0, x1, y1]}, {"bbox_2d": 0..1000}, {"rle": ...}, {"polygon": ...}, '
        '{"points": [[x, y]], "labels": [1]}, {"mask": base64 of a PNG} or, of a video, {"frames": {"0": ...}}.'
    ),
]


class _Strict(BaseModel):
    """A key that nobody reads is a typing error, and a wrong answer would follow."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Url(_Strict):
    url: str
    detail: str | None = None  # of OpenAI's; all pixels are read here
    regions: Regions | None = None


class TextPart(_Strict):
    type: Literal["text", "input_text"]
    text: str


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: Url
    regions: Regions | None = None


class InputImagePart(_Strict):
    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    regions: Regions | None = None


class VideoPart(_Strict):
    type: Literal["video_url"]
    video_url: Url
    regions: Regions | None = None


class RegionPart(_Strict):
    """Stands in the text for the object itself."""

    type: Literal["region"]
    region: Json


Part = Annotated[TextPart | ImagePart | InputImagePart | VideoPart | RegionPart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(_Strict):
    include_usage: bool = False


class ResponseFormat(_Strict):
    """What an answer must be, for models whose engine follows grammars."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Json | None = None

    def given(self) -> dict[str, Any] | None:
        """As `ask` of such an engine takes it; None: any text."""
        return None if self.type == "text" else self.model_dump(exclude_none=True)


class WritingFields(_Strict):
    """How an answer is written; what is left out is the library's default, so that answers are greedy."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class ChatRequest(WritingFields):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    regions: Regions | None = None
    objects: Annotated[str | None, Field(description="The id of what /v1/encode keeps, instead of an image.")] = None
    fps: float | None = None
    max_frames: int | None = None
    frames: list[int] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # of OpenAI's, without a meaning here
    user: str | None = None
    metadata: Json | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class MarkedFields(_Strict):
    """An image or a video, and what is marked in it."""

    image: str | None = None
    video: str | None = None


class RegionsRequest(MarkedFields, WritingFields):
    model: str
    regions: Annotated[Regions, Field(min_length=1)]
    question: Annotated[str | None, Field(description="With one <region>; without one each is described.")] = None


class EncodeRequest(MarkedFields):
    model: str
    regions: Annotated[Regions, Field(min_length=1)]
    fps: float | None = None
    max_frames: int | None = None
    frames: list[int] | None = None


class SegmentRequest(MarkedFields):
    frame: int | None = None
    points: list[list[float]] | None = None
    labels: list[int] | None = None
    boxes: list[list[float]] | None = None
    text: str | None = None
