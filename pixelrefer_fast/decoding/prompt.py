"""Question and regions -> token ids with placeholders (spec: the reference's chat template and `mm_infer`)."""

from __future__ import annotations

import re
from collections import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.planning.request import REGION_TAG, REGION_TOKEN, ObjectTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"
VIDEO_TAG = "<video>"
MAX_QUESTION = 1 << 18  # characters; more than any context holds


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt and the places of what is not text."""

    input_ids: torch.Tensor  # (L,) int64, placeholders included
    region_slots: torch.Tensor  # (T,) int64: where the object tokens go
    image_slots: torch.Tensor  # (Z,) int64: where the vision tokens go


def scene_text(counts: abc.Sequence[int], times: abc.Sequence[float] | None) -> str:
    """Full: the placeholders of whole images or frames.

    Args:
        counts: vision tokens of each image or frame.
        times: seconds of each frame of a video, None for images.
    """
    if times is None:
        return "".join(f"{IMAGE_TOKEN * count}\n" for count in counts)
    frames = (f"Time {round(t, 1)}s:{IMAGE_TOKEN * count}" for t, count in zip(times, counts, strict=True))
    return ",".join(frames) + "\n"


def check_question(question: object) -> None:
    """Raise a ValueError unless `question` is a text that can be asked."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question: expected a text that is not empty, got {shown(question)}")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"question: expected at most {MAX_QUESTION} characters, got {len(question)}")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"question: expected text, got half a character at position {error.start}") from None


def check_tags(question: str, regions: int) -> None:
    """Raise a ValueError unless `question` has a tag for each of so many regions."""
    tags = question.count(REGION_TAG)
    if tags != regions:
        raise ValueError(
            f"question: expected a {REGION_TAG} tag for each of the {regions} region(s), "
            f"got {tags} in {shown(question)}"
        )


def expand_question(
    question: str,
    objects: abc.Sequence[ObjectTokens],
    scene: abc.Sequence[int] | None,
    times: abc.Sequence[float] | None,
) -> str:
    """The user's turn with every tag replaced by its placeholders.

    Args:
        question: with a `<region>` for each object, in order.
        objects: in the order of the question's tags.
        scene: Full: vision tokens of each whole image or frame; Lite: None.
        times: seconds of each frame of a video, None for images.

    Raises:
        ValueError: the tags do not match what was marked, or a reserved token stands in the question.
    """
    check_question(question)
    if REGION_TOKEN in question:
        raise ValueError(f"question: {REGION_TOKEN} is reserved for object tokens; write {REGION_TAG} for each region")
    check_tags(question, len(objects))
    scene_tag, other = (IMAGE_TOKEN, VIDEO_TAG) if times is None else (VIDEO_TAG, IMAGE_TOKEN)
    if scene is None:
        for tag in (IMAGE_TOKEN, VIDEO_TAG):
            if tag in question:
                raise ValueError(f"question: PixelRefer-Lite sees marked objects only and takes no {tag} tag")
    elif other in question:
        raise ValueError(f"question: expected {scene_tag} for this input, got {other}")
    elif scene_tag not in question:
        question = scene_tag + question
    chunks = [chunk.strip() for chunk in question.split(scene_tag)]
    if scene is None:
        return _with_regions(chunks, objects)[0]
    blocks = [scene_text(scene, times)] if times is not None else [scene_text([count], None) for count in scene]
    if len(chunks) - 1 != len(blocks):
        raise ValueError(
            f"question: expected {len(blocks)} {scene_tag} tag(s), got {len(chunks) - 1} in {shown(question)}"
        )
    filled = _with_regions(chunks, objects)
    return filled[0] + "".join(block + chunk for block, chunk in zip(blocks, filled[1:], strict=True))


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    objects: abc.Sequence[ObjectTokens],
    scene: abc.Sequence[int] | None = None,
    times: abc.Sequence[float] | None = None,
    room: int | None = None,
) -> Prompt:
    """Token ids of a question; arguments as in `expand_question`.

    Args:
        room: most tokens that the prompt may have.

    Raises:
        ValueError: as `expand_question`, or a prompt that is too long.
    """
    content = expand_question(question, objects, scene, times)
    text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    return tokenize_prompt(tokenizer, text, sum(sum(o.counts) for o in objects), sum(scene or ()), room)


def continue_prompt(tokenizer: PreTrainedTokenizerBase, question: str, objects: abc.Sequence[ObjectTokens]) -> Prompt:
    """Token ids of a further question of a conversation, from the line break after the last answer's end token on.

    Args:
        question: with a `<region>` for each of `objects`; vision tags belong to the first question.

    Raises:
        ValueError: as `expand_question`.
    """
    content = expand_question(question, objects, None, None)
    text = f"\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    return tokenize_prompt(tokenizer, text, sum(sum(o.counts) for o in objects), 0)


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, objects: int, vision: int, room: int | None = None
) -> Prompt:
    """Token ids of a whole prompt's text, which has so many placeholders of objects and of vision tokens.

    Raises:
        ValueError: it has others, or more than `room` tokens.
    """
    input_ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
    if room is not None and len(input_ids) > room:
        raise ValueError(f"prompt: expected at most {room} tokens, got {len(input_ids)}")
    placeholders = tokenizer.convert_tokens_to_ids([REGION_TOKEN, IMAGE_TOKEN])
    assert isinstance(placeholders, list)  # a single id is for a single token
    region_slots, image_slots = (torch.nonzero(input_ids == own).flatten() for own in placeholders)
    if (len(region_slots), len(image_slots)) != (objects, vision):
        raise ValueError(
            f"question: expected {objects} object and {vision} vision tokens in the prompt, "
            f"got {len(region_slots)} and {len(image_slots)}"
        )
    return Prompt(input_ids, region_slots, image_slots)


def _with_regions(chunks: abc.Sequence[str], objects: abc.Sequence[ObjectTokens]) -> list[str]:
    texts = iter(objects)
    return [re.sub(re.escape(REGION_TAG), lambda _: next(texts).text(), chunk) for chunk in chunks]
