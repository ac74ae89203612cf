"""Media, what is marked in it, and the text about it -> a written prompt and its items; nothing is encoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.engines.items import VisionItem, items_of
from pixelrefer_fast.engines.prompts import Placed, place_tokens, vision_of
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.planning.binding import bind_request, plan_within
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.segmenting import Segmenter
from pixelrefer_fast.segmenting.grabcut import GrabCut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptWriter:
    """Writes the prompts of one checkpoint, as `model.ask` does.

    Attributes:
        config: the checkpoint's.
        tokenizer: the checkpoint's, with its placeholders.
        context: tokens that a prompt may have.
        segmenter: makes the masks of regions that are given as points.
    """

    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    context: int
    segmenter: Segmenter = field(default_factory=GrabCut)

    def write(
        self, text: str, media: Media, regions: object, encode: EncodeOptions, first_region: int = 0
    ) -> tuple[Placed, list[VisionItem]]:
        """The token ids of a prompt, and the items at its placeholders, in their order.

        Args:
            text: as `place_tokens` takes it.
            media: what `media.open_media` returned.
            regions: anything `regions.as_regions` takes.
            encode: how media and objects become tokens.
            first_region: number of the first region in the caller's own list, for messages.

        Raises:
            ValueError: naming the region or the text, what was expected and what came.
        """
        config = self.config
        source = FrameSource.of(media)
        request = bind_request(config.kind, self.segmenter, media, source, regions, encode, first_region)
        plan = plan_within(config, request, self.context)
        selected = [int(mark.mask_grid.count_nonzero()) for mark in plan.marks]
        starts = kmeans_starts(selected, config.mask_num, encode.kmeans_start, encode.kmeans_seed)
        items = items_of(request, plan, starts, "auto")
        vision = vision_of(request, plan, items, isinstance(media, Video))
        objects = request.object_tokens([mark.tokens for mark in plan.marks])
        return place_tokens(self.tokenizer, text, objects, vision), items
