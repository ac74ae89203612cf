"""The text of a prompt with `<region>` tags -> token ids, and where the object and vision tokens go."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast.decoding.prompt import check_tags, expand_question, tokenize_prompt
from pixelrefer_fast.engines.items import VisionItem
from pixelrefer_fast.planning.request import REGION_TAG, ObjectTokens, Request
from pixelrefer_fast.planning.views import ViewPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER_TURN = re.compile(r"(?<=<\|im_start\|>user\n).*?(?=<\|im_end\|>)", re.DOTALL)


def chat_prompt(question: str) -> str:
    """The prompt that asks one question, as the models were trained: for `LLM.generate`, which adds nothing."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def embeds_text(prompt: torch.Tensor) -> str:
    """What `model.prompt_embeds` returns as the text that a server takes in `prompt_embeds`: base64 of `torch.save`."""
    file = io.BytesIO()
    torch.save(prompt.clone(), file)
    return base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Vision:
    """What a prompt shows of whole images or frames (PixelRefer).

    Attributes:
        counts: vision tokens of each.
        times: seconds of each frame of a video; None for an image.
        kept: (Z,) bool, which of the tokens stay in the prompt.
    """

    counts: Sequence[int]
    times: Sequence[float] | None
    kept: torch.Tensor


def vision_of(request: Request, plan: ViewPlan, items: Sequence[VisionItem], video: bool) -> Vision | None:
    """What a planned request's prompt shows of whole images or frames; `items` are the request's."""
    if not plan.scene:
        return None
    counts = [plan.views[v].patches // plan.views[v].merge ** 2 for v in plan.scene]
    times = request.source.times
    return Vision(counts, [times[f] for f in request.scene] if video and times is not None else None, items[0].kept)


@dataclass(frozen=True)
class Placed:
    """A prompt as engines take it.

    Attributes:
        ids: with a placeholder for each object and vision token.
        vision: places of the vision tokens, (Z',) int64.
        marks: places of each mark's object tokens, (t,) int64 each.
    """

    ids: list[int]
    vision: torch.Tensor
    marks: list[torch.Tensor]


def place_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, objects: Sequence[ObjectTokens], vision: Vision | None
) -> Placed:
    """Token ids of a prompt, the same as `model.ask` makes of the same question.

    Args:
        tokenizer: the checkpoint's.
        text: of a whole chat, whose user turns hold the tags; or text without turns.
        objects: in the order of the tags.
        vision: goes before the first user turn's text, or where that says <image> or <video>; None: PixelRefer-Lite.

    Raises:
        ValueError: the tags do not match what was marked.
    """
    prompt = tokenize_prompt(
        tokenizer,
        _expand(text, objects, vision),
        sum(sum(own.counts) for own in objects),
        0 if vision is None else sum(vision.counts),
    )
    keep = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    if vision is not None:
        keep[prompt.image_slots] = vision.kept
    place = keep.cumsum(0) - 1
    counts = [count for own in objects for count in own.counts]
    marks = place[prompt.region_slots].split(counts) if counts else ()
    shown = prompt.image_slots if vision is None else prompt.image_slots[vision.kept]
    return Placed(prompt.input_ids[keep].tolist(), place[shown], list(marks))


def _expand(text: str, objects: Sequence[ObjectTokens], vision: Vision | None) -> str:
    """The text with placeholders for its tags."""
    turns = [(found.start(), found.end()) for found in _USER_TURN.finditer(text)] or [(0, len(text))]
    asked = [text[start:stop] for start, stop in turns]
    check_tags("\n".join(asked), len(objects))
    tags = [0, *accumulate(turn.count(REGION_TAG) for turn in asked)]
    pieces, done = [], 0
    for number, (start, stop) in enumerate(turns):
        own = objects[tags[number] : tags[number + 1]]
        seen = vision if number == 0 else None
        filled = expand_question(
            asked[number], own, None if seen is None else seen.counts, None if seen is None else seen.times
        )
        pieces += [text[done:start], filled]
        done = stop
    return "".join([*pieces, text[done:]])
