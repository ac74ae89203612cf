"""A file of samples as a source of training items."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import labelled
from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.media.images import load_image
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.planning.views import PATCH
from pixelrefer_fast.train.batch import Sample
from pixelrefer_fast.train.config import Records
from pixelrefer_fast.train.malformed import Malformed, MalformedLog
from pixelrefer_fast.train.record_files import read_sample, scan
from pixelrefer_fast.train.records import Record, parse_record

CHARACTERS = 3.5  # of a token of text, about
TURN_TOKENS = 10  # of the chat template
FRAMES = 16  # of a video whose length nobody has looked up, about
TOLD = 3  # malformed samples that are told at once; all of them are in the log


class RecordsSource:
    """The well-formed samples of one file.

    The file is read once, sample by sample: everything but the pixels is checked, and only the sample's position is
    kept (32 bytes per sample). Errors that only the media show are found when the sample is used.
    """

    def __init__(
        self,
        records: Records,
        model: ModelConfig,
        malformed: MalformedLog,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            records: the file, its media, and the frames that are seen of videos.
            model: configuration of the model to train.
            malformed: log for samples that are left out.
            say: called with a line on how many samples were read and left out, and with the first reasons.

        Raises:
            ValueError: the file cannot be read; or a sample is malformed and `malformed` is strict.
        """
        say = say or (lambda line: None)
        self._records, self._kind = records, model.kind
        self._mask_num, self._budget = model.mask_num, model.mm_max_length
        self._merge = model.spatial_merge_size
        numbers, offsets, lengths, costs = array("q"), array("q"), array("l"), array("q")
        total, dropped = -1, 0
        say(f"{records.records}: reading")
        told = 0
        for total, found in enumerate(scan(records.records)):
            try:
                if found.error is not None:
                    raise ValueError(found.error)
                record = parse_record(found.value, records.media_root, model.kind)
            except (ValueError, RecursionError) as error:
                entry = self._entry(total, str(error))
                malformed.add(entry)
                if told < TOLD:
                    say(str(entry))
                told += 1
                continue
            numbers.append(total)
            offsets.append(found.offset)
            lengths.append(found.length)
            costs.append(self._cost(record))
            dropped += record.dropped > 0
        self._numbers, self._offsets, self._lengths = (np.array(a, np.int64) for a in (numbers, offsets, lengths))
        self.costs = np.array(costs, np.int64)
        self.total, self.malformed_count = total + 1, told
        say(f"{records.records}: {len(numbers)} samples, {told} malformed ones left out")
        if dropped:
            say(
                f"{records.records}: {dropped} samples mark objects in several frames, of which PixelRefer takes the "
                "first"
            )

    def __len__(self) -> int:
        return len(self.costs)

    def __getitem__(self, index: int) -> list[Sample]:
        return [read_record(self.record(index), self._kind, self._records.fps, self._records.max_frames)]

    def record(self, index: int) -> Record:
        """A sample without its pixels."""
        value = read_sample(self._records.records, int(self._offsets[index]), int(self._lengths[index]))
        return parse_record(value, self._records.media_root, self._kind)

    def malformed(self, index: int, reason: str) -> Malformed:
        return self._entry(int(self._numbers[index]), reason)

    def _entry(self, number: int, reason: str) -> Malformed:
        return Malformed(str(self._records.records), number, reason)

    def _cost(self, record: Record) -> int:
        """Approximate number of tokens that the LLM reads."""
        text = sum(len(question) + len(answer) for question, answer in record.turns) / CHARACTERS
        marks = sum(len(region.marks) for region in record.objects)
        tokens = text + TURN_TOKENS * len(record.turns) + marks * self._mask_num
        if self._kind == "full":
            side = PATCH * (self._merge if record.video else 1)
            cells = self._budget if record.size is None else record.size[0] * record.size[1] / side**2
            tokens += min(self._budget, cells) * (FRAMES if record.video else 1)
        return int(tokens)


def read_record(record: Record, kind: str, fps: float | None = 1.0, max_frames: int = 768) -> Sample:
    """Open the media of a record and make a sample.

    Args:
        record: from `records.parse_record` for the same kind of model.
        kind: "lite" or "full".
        fps, max_frames: choose the frames of a video that Full sees whole, as in `EncodeOptions`.

    Raises:
        ValueError: the media cannot be read or have another size than the sample or its masks, or the video does not
            have a marked frame.
    """
    scene: list[int] = []
    media: np.ndarray | Video
    if record.video:
        with labelled("video"):
            media = open_media(record.media)
            if not isinstance(media, Video):
                raise ValueError(f"expected a video, got the image {record.media}")
        if kind == "full":
            scene = media.sample(fps, max_frames)
    else:
        with labelled("image"):
            media = load_image(record.media)
        if kind == "full":
            scene = [0]
    source = FrameSource.of(media, str(record.media))
    if record.size is not None and record.size != tuple(source.sizes[0]):
        height, width = source.sizes[0]
        raise ValueError(
            f"expected masks and size of {height}x{width} (the media's height x width), got {record.size[0]}x"
            f"{record.size[1]}"
        )
    frames = bind_regions(source, record.objects) if record.objects else []
    return Sample(Request(source, record.objects, frames, scene), record.turns)
