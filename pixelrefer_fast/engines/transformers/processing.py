"""The processor behind AutoProcessor: media, regions and text -> token ids and what stands at their placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchFeature, ProcessorMixin
from typing_extensions import Self

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import labelled, shown
from pixelrefer_fast.engines.items import PlannedItems, VisionItem
from pixelrefer_fast.engines.prompts import Placed, chat_prompt
from pixelrefer_fast.engines.writer import PromptWriter
from pixelrefer_fast.media import Media, Video, open_media
from pixelrefer_fast.planning.options import EncodeOptions, read_options
from pixelrefer_fast.planning.request import REGION_TAG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TURN = "<|im_start|>"
_TEXT_OPTIONS = ("add_special_tokens", "common_kwargs", "return_attention_mask")  # of other processors; as it is here
_MEDIA = ("image", "video")
_PLACES = ("image", "video", "url", "path")  # where a part of a chat may hold its medium


class PixelReferProcessor(ProcessorMixin):
    """Plans what is marked; it never runs the encoder, and needs no weights.

    Args:
        tokenizer: the checkpoint's, with its placeholders.
        config: the checkpoint's.
        context: tokens that a prompt may have.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, context: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.context = context
        self.chat_template = None  # `apply_chat_template` writes the models' own format
        self._writer = PromptWriter(config, tokenizer, context)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no options
        cls, pretrained_model_name_or_path: str | Path, **_: Any
    ) -> Self:
        """Of a checkpoint's folder or hub id.

        Raises:
            ValueError: it is no checkpoint of these models.
        """
        checkpoint = open_checkpoint(pretrained_model_name_or_path)
        return cls(checkpoint.tokenizer(), checkpoint.config, int(checkpoint.config.llm["max_position_embeddings"]))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]  # no options
        """Write the tokenizer, which is all that is not in the model's own folder."""
        self.tokenizer.save_pretrained(save_directory)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ({self.config.kind}): prompts of up to {self.context} tokens>"

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "items"]

    def __call__(  # regions, and no audio
        self,
        images: object = None,
        text: str | Sequence[str] | None = None,
        videos: object = None,
        regions: object = None,
        *,
        return_tensors: str | None = None,
        padding: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Prompts about marked objects.

        Args:
            images: an image, in any form that `pixelrefer_fast.open_media` takes; for a list of texts one for each.
            text: a question with a `<region>` tag for each region, or a whole chat as `apply_chat_template` writes it;
                or a list of them.
            videos: likewise, instead of images.
            regions: what is marked, in any form that `ask` takes; for a list of texts a list for each.
            return_tensors: "pt", or None for lists.
            padding: True: shorter prompts are padded on the left.
            options: fields of `EncodeOptions`: kmeans_seed, fps, max_frames, frames, ...

        Returns:
            input_ids and attention_mask, (B, L) int64, and items: what `generate` puts at the placeholders.

        Raises:
            ValueError: naming the prompt, the region or the option.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors: expected 'pt' or None, got {shown(return_tensors)}")
        encode = read_options({k: v for k, v in options.items() if k not in _TEXT_OPTIONS}, EncodeOptions)
        if images is not None and videos is not None:
            raise ValueError("videos: expected either images or videos, got both")
        media = images if videos is None else videos
        if text is None:
            raise ValueError("text: expected a question or a list of them, got none")
        if isinstance(text, str):
            prompts = [(text, _unwrapped(media), regions)]
        else:
            prompts = [*zip(text, _rows("images", media, len(text)), _rows("regions", regions, len(text)), strict=True)]
        placed, rows = [], []
        for number, (question, own, marked) in enumerate(prompts):
            with labelled(f"prompt {number}") if len(prompts) > 1 else nullcontext():
                ids, items = self._written(question, own, () if marked is None else marked, encode)
            placed.append(ids)
            rows.append(tuple(items))
        longest = max(len(own.ids) for own in placed)
        if not padding and any(len(own.ids) != longest for own in placed):
            raise ValueError("padding: expected True for prompts of several lengths, got False")
        filler = self.tokenizer.pad_token_id
        filler = self.tokenizer.eos_token_id if filler is None else filler
        missing = [longest - len(own.ids) for own in placed]
        data: dict[str, Any] = {
            "input_ids": [[filler or 0] * m + own.ids for m, own in zip(missing, placed, strict=True)],
            "attention_mask": [[0] * m + [1] * len(own.ids) for m, own in zip(missing, placed, strict=True)],
        }
        if return_tensors == "pt":
            data = {name: torch.tensor(values, dtype=torch.int64) for name, values in data.items()}
        return BatchFeature(data | {"items": PlannedItems(tuple(rows))})

    def apply_chat_template(  # type: ignore[override]  # of the models' own format alone
        self,
        conversation: Sequence[Any],
        *_: object,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """A chat as text, or as the inputs of `generate`.

        Args:
            conversation: messages of role and content; or a list of such lists. Content is a text or parts: text,
                image, video (by "image", "video", "path" or "url", which is a path), and region (by "region", in any
                form that `ask` takes), which writes its `<region>` where it stands. Regions that belong to `<region>`
                tags of the text itself go into "regions" of the image.
            tokenize: return inputs instead of text; with `return_dict` all of them, else token ids.
            processor_kwargs, options: for the processor.

        Raises:
            ValueError: a part is not what it should be.
        """
        many = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = [_read_chat(chat) for chat in (conversation if many else [conversation])]
        ends = "<|im_end|>\n"
        texts = []
        for chat in chats:
            written = "".join(f"{_TURN}{role}\n{text}{ends}" for role, text in chat.turns)
            if continue_final_message:
                written = written.removesuffix(ends)
            texts.append(written + (f"{_TURN}assistant\n" if add_generation_prompt else ""))
        if not tokenize:
            return texts if many else texts[0]
        found = self(
            images=[chat.media for chat in chats] if many else chats[0].media,
            text=texts if many else texts[0],
            regions=[chat.regions for chat in chats] if many else chats[0].regions,
            return_tensors=return_tensors,
            **{**(processor_kwargs or {}), **options},
        )
        return found if return_dict else found["input_ids"]

    def _written(
        self, text: str, media: object, regions: object, encode: EncodeOptions
    ) -> tuple[Placed, Sequence[VisionItem]]:
        opened: Media = media if isinstance(media, Video) else open_media(media)
        return self._writer.write(text if _TURN in text else chat_prompt(text), opened, regions, encode)


@dataclass
class _Chat:
    """What the messages of a chat hold: (role, text) of each, its one image or video, and its regions in order."""

    turns: list[tuple[str, str]]
    media: object
    regions: list[object]


def _read_chat(messages: Sequence[Any]) -> _Chat:
    chat = _Chat([], None, [])
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"message {number}: expected a mapping with role and content, got {shown(message)}")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        with labelled(f"message {number}"):
            chat.turns.append((message["role"], "".join(_read_part(part, chat) for part in parts)))
    return chat


def _read_part(part: Any, chat: _Chat) -> str:
    """The text of a part; its medium and regions go to the chat."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _MEDIA:
        medium = next((part[place] for place in _PLACES if part.get(place) is not None), None)
        if medium is None:
            raise ValueError(f"content: expected {kind}, path or url in a part of type {kind}, got {sorted(part)}")
        if isinstance(medium, str) and "://" in medium:
            raise ValueError(f"content: expected a path or pixels, since nothing is fetched, got {shown(medium)}")
        if chat.media is not None:
            raise ValueError("content: expected one image or video in a chat, got a second")
        chat.media = medium
        chat.regions += part.get("regions") or ()
        return ""
    if kind == "region" and part.get("region") is not None:
        chat.regions.append(part["region"])
        return REGION_TAG
    raise ValueError(f"content: expected parts of text, image, video and region, got {shown(part)}")


def _unwrapped(media: object) -> object:
    """The image of one prompt, which transformers' processors take as a list of one as well."""
    return media[0] if isinstance(media, (list, tuple)) and len(media) == 1 else media


def _rows(name: str, given: Any, count: int) -> Sequence[Any]:
    if not isinstance(given, (list, tuple)) or len(given) != count:
        got = f"{len(given)}" if isinstance(given, (list, tuple)) else shown(given)
        raise ValueError(f"{name}: expected a list with an entry for each of {count} texts, got {got}")
    return [_unwrapped(own) for own in given] if name == "images" else given
