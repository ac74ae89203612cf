"""vLLM's multi-modal processor: a prompt with its marked media -> token ids and items, planned and never encoded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.inputs.engine import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
)

from pixelrefer_fast.checkpoint import Checkpoint, open_checkpoint
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.engines.items import Tensors, digest_of
from pixelrefer_fast.engines.prompts import Placed, chat_prompt
from pixelrefer_fast.engines.vllm import links
from pixelrefer_fast.engines.vllm.marked import Marked, read_items
from pixelrefer_fast.engines.writer import PromptWriter
from pixelrefer_fast.planning.request import REGION_TAG
from pixelrefer_fast.planning.views import CELL

if TYPE_CHECKING:
    from vllm.config.multimodal import MultiModalDummyOptions
    from vllm.multimodal.processing import TimingContext

MODALITY = "image"
"""Of all items: those of images and videos go through one pass, and vLLM keeps modalities apart."""
_ON_HOST = MultiModalBatchedField(keep_on_cpu=True)


class MarkedItems(ProcessorBatchItems[object]):
    """The items of a prompt as they were given."""


class MarkedParser(MultiModalDataParser):
    """Leaves items as they are: vLLM's own drops the alpha channel, and decodes a few frames of a video."""

    def _parse_image_data(self, data: object) -> ModalityDataItems | None:
        return self._listed(data, "image")

    def _parse_video_data(self, data: object) -> ModalityDataItems | None:
        return self._listed(data, "video")

    def _listed(self, data: object, modality: str) -> ModalityDataItems | None:
        if data is None:
            return None
        return MarkedItems(list(data) if isinstance(data, (list, tuple)) else [data], modality)


class RegionInfo(BaseProcessingInfo):
    """What the checkpoint says, without its weights."""

    def __init__(self, ctx: object) -> None:
        super().__init__(ctx)
        links.use_for_this_process()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.ctx.model_config.model)

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def get_data_parser(self) -> MultiModalDataParser:
        return MarkedParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        most = self.config.mask_num
        if self.config.kind == "full":
            most = max(most, self.config.mm_max_length)  # of a scene
        return {MODALITY: min(most, seq_len)}


class RegionDummies(BaseDummyInputsBuilder[RegionInfo]):
    """The largest request: one image of as many patches as the model takes, and one object."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return chat_prompt(f"What is {REGION_TAG}?")

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> dict[str, object]:
        config = self.info.config
        cells = min(config.mm_max_length, self.info.ctx.model_config.max_model_len - 64)
        side = int(np.sqrt(max(cells, 16) * CELL)) // 14 * 14
        return {MODALITY: Marked(np.zeros((side, side, 3), np.uint8), [[side // 4, side // 4, side // 2, side // 2]])}


class RegionProcessor(BaseMultiModalProcessor[RegionInfo]):
    """Plans a request, which says how many tokens each item has, and writes its prompt as `model.ask` does.

    vLLM's own steps take items one by one; here those of a prompt depend on each other: on how many there are, and in
    Lite on the first. So all of a prompt is planned at once.
    """

    @cached_property
    def _writer(self) -> PromptWriter:
        info = self.info
        return PromptWriter(info.config, info.checkpoint.tokenizer(), info.ctx.model_config.max_model_len)

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        with timing_ctx.record("apply_hf_processor"):
            given = [item for items in inputs.mm_data_items.values() for item in items.data]
            media = read_items(given)
            text = self.info.get_tokenizer().decode(inputs.prompt, skip_special_tokens=False)
            placed, items = self._writer.write(text, media.media, media.regions, media.encode, media.first_region)
            tensors = [item.to_tensors() for item in items]
        with timing_ctx.record("get_mm_hashes"):
            digests = [digest_of(own) for own in tensors]
        return mm_input(
            prompt_token_ids=placed.ids,
            mm_kwargs=MultiModalKwargsItems({MODALITY: self._sent(inputs, tensors, digests)}),
            mm_hashes={MODALITY: digests},
            mm_placeholders={MODALITY: _ranges(placed)},
        )

    def _sent(
        self, inputs: ProcessorInputs, tensors: list[Tensors], digests: list[str]
    ) -> list[MultiModalKwargsItem | None]:
        """The items for the engine; None for what its cache has."""
        items = [
            MultiModalKwargsItem({name: MultiModalFieldElem(value, _ON_HOST) for name, value in own.items()})
            for own in tensors
        ]
        cache = inputs.cache
        if cache is None:
            return list(items)
        for digest in digests:
            cache.touch_sender_cache_item(digest)
        try:
            return [
                cache.get_and_update_item((item, []), digest)[0] for item, digest in zip(items, digests, strict=True)
            ]
        finally:
            cache.release_sender_touches()

    def _get_mm_fields_config(self, hf_inputs: object, hf_processor_mm_kwargs: Mapping[str, object]) -> dict:
        raise NotImplementedError("apply does without")

    def _get_prompt_updates(self, mm_items: object, hf_processor_mm_kwargs: object, out_mm_kwargs: object) -> list:
        raise NotImplementedError("apply does without")


def _ranges(placed: Placed) -> list[PlaceholderRange]:
    ranges = []
    if len(placed.vision):
        first, length = int(placed.vision[0]), int(placed.vision[-1] - placed.vision[0]) + 1
        embedded = torch.zeros(length, dtype=torch.bool)
        embedded[placed.vision - first] = True
        ranges.append(PlaceholderRange(first, length, None if embedded.all() else embedded))
    return ranges + [PlaceholderRange(int(own[0]), len(own)) for own in placed.marks if len(own)]
