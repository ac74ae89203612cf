"""What the two parts of VideoRefer-Bench share: objects with masks by frame, of which Full is shown one."""

from __future__ import annotations

from typing import Any

from pixelrefer_fast.evaluating.benchmark import Reading
from pixelrefer_fast.evaluating.items import Json
from pixelrefer_fast.evaluating.layout import HUB
from pixelrefer_fast.evaluating.marks import marks_something, on_frames, run_lengths

ORIGIN = f"{HUB}/DAMO-NLP-SG/VideoRefer-Bench"


def marked_objects(row: dict[str, Any], reading: Reading) -> tuple[Json, ...]:
    """The regions of a row's `annotation`: for each object its mask at `frame_idx`, or for Lite all that mark anything.

    Where an object lacks its mask in a frame that another object is marked in, the authors' script of Lite takes the
    mask that it read last, be it of another object, unless `missing-masks` is corrected.

    Raises:
        ValueError: a mask is no mask, or Full's frame has none.
    """
    objects: list[dict[str, Any]] = row["annotation"]
    if reading.kind == "full":
        frame = row["frame_idx"]
        return tuple(on_frames({int(frame): run_lengths(own[str(frame)]["segmentation"])}) for own in objects)
    seen = {frame for own in objects for frame, mark in own.items() if mark["segmentation"] is not None}
    keep_last = "missing-masks" not in reading.corrections
    regions = []
    last: Json | None = None
    for own in objects:
        marked: dict[int, Json] = {}
        for frame, mark in own.items():
            given = mark["segmentation"] is not None
            mask = run_lengths(mark["segmentation"]) if given else last if keep_last and frame in seen else None
            if given:
                last = mask
            if mask is not None and marks_something(mask):
                marked[int(frame)] = mask
        regions.append(on_frames(marked))
    return tuple(regions)
