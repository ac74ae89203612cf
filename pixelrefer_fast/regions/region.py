"""What the user marks in an image or a video: `Region`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pixelrefer_fast.checks.values import check_size, is_integer, labelled, shown
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.regions.formats import (
    are_mask_rows,
    as_array,
    bitmap_of,
    box_of,
    box_shapes,
    clicks_of,
    detection_shapes,
    frame_numbers,
    holds_objects,
    is_boxes,
    is_channels_last,
    is_detections,
    is_pair,
    is_scalar,
    polygons_of,
    sam_shapes,
    scribble_of,
    shape_of,
    stacked,
    tracks,
)
from pixelrefer_fast.regions.packed_mask import PackedMask
from pixelrefer_fast.regions.shapes import Clicks, Rle
from pixelrefer_fast.regions.tensor_mask import Shape, TensorMask, tensor_masks
from pixelrefer_fast.regions.tools import is_tool_output, label_shapes, tool_shapes


@dataclass(frozen=True)
class Region:
    """One marked object, in an image or in given frames of a video.

    A region is made by the `from_...` methods or by `Region.of`. It is immutable, a copy of what it was made from, and
    small compared to the image. Coordinates are pixels, x to the right and y down. A malformed region raises ValueError
    when it is made; errors that depend on the image's size are raised by `mask` and `boxed`.
    """

    marks: tuple[tuple[int | None, Shape], ...]

    @classmethod
    def from_mask(cls, mask: Any) -> Region:
        """Make a region from a mask.

        Args:
            mask: an array or tensor (H, W), (H, W, 1) or with leading axes of length 1, or a PIL image of one channel
                (modes "1", "L", "P": palette indices, ...). bool; integers, where non-zero is marked: of one value, or
                uint8 up to 255 (a label map goes to `from_labels`); or finite floats, where values above 0.5 are
                marked.
        """
        array = as_array(mask)
        if array is None:
            raise ValueError(f"mask: expected an array or tensor, got {type(mask).__name__}")
        return cls(((None, bitmap_of(array)),))

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any]) -> Region:
        """Make a region from COCO run lengths, {"size": [height, width], "counts": ...}.

        Args:
            rle: `counts` is compressed (text or bytes) or uncompressed (a list, tuple or array of integers).
        """
        if not isinstance(rle, Mapping) or "counts" not in rle:
            raise ValueError(f'RLE: expected a mapping with "size" and "counts", got {shown(rle)}')
        return cls(((None, Rle.of(rle.get("size"), rle["counts"])),))

    @classmethod
    def from_polygon(cls, polygons: Any, size: tuple[int, int] | None = None) -> Region:
        """Make a region from polygons, filled as pycocotools fills them (the reference's annToMask).

        Args:
            polygons: one polygon or a list of them (their union), each flat (x0, y0, x1, y1, ...) or a list of [x, y].
            size: (height, width) of the image that the polygons were made for; if given, it must be the image's size.
        """
        return cls(((None, polygons_of(polygons, size)),))

    @classmethod
    def from_box(cls, *, xyxy: Any = None, xywh: Any = None, normalized: bool = False) -> Region:
        """Make a region from a box, filled, as the reference's evaluation does with boxes.

        It covers columns floor(x0) to ceil(x1) - 1 and rows likewise, clipped to the image.

        Args:
            xyxy: the corners (x0, y0, x1, y1).
            xywh: a corner and the extent (x, y, width, height), instead of `xyxy`.
            normalized: whether the numbers are shares of the image's width and height (0 to 1) instead of pixels.
        """
        return cls(((None, box_of(xyxy, xywh, normalized)),))

    @classmethod
    def from_labels(cls, labels: Any) -> list[Region]:
        """Make a region from each label of a label map.

        Args:
            labels: an array or tensor (H, W) of integers, the number of the object that each pixel belongs to; 0 is
                none.

        Returns:
            One region per label that occurs, in increasing order.
        """
        return [cls(((None, shape),)) for shape in label_shapes(labels).values()]

    @classmethod
    def from_scribble(cls, points: Any, width: float) -> Region:
        """Make a region from a polyline: the pixels whose centres (whole numbers) are within width / 2 of it.

        Args:
            points: flat, or [x, y] pairs.
            width: in pixels; a stroke narrower than the diagonal of a pixel is widened to it.
        """
        return cls(((None, scribble_of(points, width)),))

    @classmethod
    def from_points(cls, points: Any, labels: Any = None) -> Region:
        """Make a region that a segmenter has yet to mark: a model does so with its own when it is asked about it.

        Args:
            points: x, y on the object or beside it, flat, or [x, y] pairs; at most 64.
            labels: 1 for each point on the object, 0 for each beside it; None: all are on it.
        """
        return cls(((None, clicks_of(points, labels)),))

    @classmethod
    def from_frames(cls, frames: Mapping[Any, Any]) -> Region:
        """Make a region of a video.

        Args:
            frames: {frame number: region}, each in any form that `of` takes. Frames with None or {"segmentation": None}
                are skipped: the object is not visible there.
        """
        numbered = frame_numbers(frames) if isinstance(frames, Mapping) else None
        if numbered is None:
            raise ValueError(f"frames: expected a mapping of frame numbers to regions, got {shown(frames)}")
        marks: list[tuple[int | None, Shape]] = []
        for frame, value in numbered.items():
            if isinstance(value, Mapping) and "segmentation" in value and value["segmentation"] is None:
                value = None
            if value is not None:
                with labelled(f"frame {frame}"):
                    marks.append((frame, _shape(value)))
        if not marks:
            raise ValueError("frames: expected the object to be marked in at least one frame, got none")
        return cls(tuple(marks))

    @classmethod
    def from_detections(cls, detections: Any) -> list[Region]:
        """Make a region from each object of `supervision.Detections`: its mask (dense or CompactMask), or its box if
        there are no masks.
        """
        return [cls(((None, shape),)) for shape in detection_shapes(detections)]

    @classmethod
    def from_sam(cls, output: Any, scores: Any = None) -> list[Region]:
        """Make a region from each object in the output of transformers' post-processing for SAM 2 and SAM 3.

        Negative floats are taken as logits and cut at 0.

        Args:
            output: for an image, masks (N, H, W) or (N, K, H, W), a list of masks, a dict with "masks", or a list that
                holds one of these. For a video, {frame: output of that frame}, where an output is a dict with "masks"
                and "object_ids", {object id: mask}, or masks (N, 1, H, W) whose N objects have the same order in all
                frames. Frames where an object's mask is empty are left out.
            scores: (N, K), the model's iou_scores; required if there are K > 1 candidates per object.

        Returns:
            One region per object; in a video, in order of first appearance.
        """
        frames = frame_numbers(output) if isinstance(output, Mapping) else None
        if frames is None:
            return [cls(((None, shape),)) for shape in sam_shapes(output, scores)]
        regions = []
        for index, marks in enumerate(tracks(frames)):
            if not marks:
                raise ValueError(f"region {index}: expected a mask in at least one frame, got only empty ones")
            regions.append(cls(tuple(marks.items())))
        return regions

    @classmethod
    def of(cls, value: Any) -> Region:
        """Make a region from any supported form.

        Args:
            value: a `Region`; a mask (array, tensor or PIL image of two dimensions); COCO RLE; polygons; four numbers
                x0, y0, x1, y1; an annotation with "segmentation" or "bbox" (x, y, width, height), which may be a record
                of SAM's automatic mask generator; an entry of transformers' pipelines with "mask" or "box"; a region's
                JSON; {"points": ..., "labels": ...} as `from_points` takes them; or a mapping of frame numbers to any
                of these.
        """
        if isinstance(value, Region):
            return value
        if isinstance(value, Mapping):
            if value.get("type") == "frames":
                return cls.from_frames(value.get("frames"))  # type: ignore[arg-type]  # checked there
            if frame_numbers(value) is not None:
                return cls.from_frames(value)
        return cls(((None, shape_of(value)),))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Region:
        """Make a region from the result of `to_json`, or from any other form that `of` takes and a JSON object can
        hold.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"region: expected a JSON object, got {shown(value)}")
        return cls.of(value)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types that `from_json` reads. Boxes, polygons, scribbles and RLE are kept as given;
        masks become compressed COCO RLE.
        """
        if self.frames is None:
            return self.marks[0][1].to_json()
        return {"type": "frames", "frames": {str(frame): shape.to_json() for frame, shape in self.marks}}

    def written(self) -> Mapping[str, Any]:
        """As `to_json`, for a record that may never be read: a mask on a device is brought to the host by who reads."""
        on_device = any(isinstance(shape, TensorMask) for _, shape in self.marks)
        return _Unread(self) if on_device else self.to_json()

    @property
    def kind(self) -> str:
        """How it was marked: "box", "polygon", "scribble", "rle", "mask", "points" or "frames"."""
        return self.marks[0][1].kind if self.frames is None else "frames"

    @property
    def frames(self) -> tuple[int, ...] | None:
        """Numbers of the frames in which the object is marked, increasing; None for a region of an image."""
        return None if self.marks[0][0] is None else tuple(frame for frame, _ in self.marks if frame is not None)

    @property
    def has_points(self) -> bool:
        """Whether a segmenter has yet to make a mask of points, in any frame."""
        return any(isinstance(shape, Clicks) for _, shape in self.marks)

    def mask(self, height: int, width: int, frame: int | None = None, *, name: str = "region") -> np.ndarray:
        """The marked pixels as a new (height, width) uint8 array of 0 and 1; arguments and errors of `boxed`."""
        return self.boxed(height, width, frame, name=name).full()

    def boxed(self, height: int, width: int, frame: int | None = None, *, name: str = "region") -> BoxedMask:
        """The marked pixels in their bounding box.

        Args:
            height, width: size of the image.
            frame: frame number, one of `frames`; a region of an image is the same in every frame.
            name: name of the region in messages.

        Raises:
            ValueError: the mask has another size, the frame is not marked, or no pixel is inside the image.
        """
        boxed = self._shape_of_size(height, width, frame, name).boxed(int(height), int(width), name)
        self._check_marked(boxed.bounds, height, width, name)
        return boxed

    def drawn(
        self, height: int, width: int, frame: int | None = None, *, name: str = "region"
    ) -> BoxedMask | PackedMask:
        """The marked pixels where they lie: as `boxed`, or as bits on the device where the mask was given; arguments
        and errors of `boxed`.
        """
        shape = self._shape_of_size(height, width, frame, name)
        size = int(height), int(width)
        drawn = shape.packed(*size, name) if isinstance(shape, TensorMask) else shape.boxed(*size, name)
        self._check_marked(drawn.bounds, height, width, name)
        return drawn

    def _shape_of_size(self, height: int, width: int, frame: int | None, name: str) -> Shape:
        if not is_integer(height) or not is_integer(width):
            raise ValueError(f"{name}: expected a size in pixels, got {shown(height)}x{shown(width)}")
        check_size(height, width, name)
        return self._shape_in(frame, name)

    def _check_marked(self, bounds: tuple[int, ...] | None, height: int, width: int, name: str) -> None:
        if bounds is None:
            raise ValueError(
                f"{name}: expected at least one marked pixel inside the image of {height}x{width} (height x width), "
                f"got none from {self!r}"
            )

    def _shape_in(self, frame: int | None, name: str) -> Shape:
        if self.frames is None:
            return self.marks[0][1]
        for number, shape in self.marks:
            if frame is not None and number == frame:
                return shape
        asked = "an image" if frame is None else f"frame {shown(frame)}"
        raise ValueError(f"{name}: expected one of the frames it is marked in, {shown(list(self.frames))}, got {asked}")

    def __repr__(self) -> str:
        if isinstance(self.marks[0][1], TensorMask) and self.frames is None:
            marked = self.marks[0][1].marked
            return f"<Region mask: height={marked.height}, width={marked.width}, on {marked.device}>"
        if self.frames is not None:
            return f"<Region in {len(self.marks)} frames: {shown(list(self.frames))}>"
        described = {
            key: value
            for key, value in self.marks[0][1].__dict__.items()
            if key not in ("kind", "bits") and value is not False
        }
        return f"<Region {self.kind}: {', '.join(f'{key}={shown(value)}' for key, value in described.items())}>"


class _Unread(Mapping[str, Any]):
    """A region's JSON, made when it is first looked at; a plain dict in another process or a file."""

    def __init__(self, region: Region) -> None:
        self._region: Region | None = region
        self._made: dict[str, Any] = {}

    def _read(self) -> dict[str, Any]:
        if self._region is not None:
            self._made, self._region = self._region.to_json(), None
        return self._made

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._read(),)


def as_regions(regions: Any) -> list[Region]:
    """Make a list of regions from one region or from a collection of them.

    A list or tuple is a list of regions, each in any form that `Region.of` takes, unless it holds numbers (a box of
    four, or a flat polygon) or [x, y] pairs (a polygon). Arrays of three or four dimensions are masks (N, H, W) or (N,
    1, H, W), except that (H, W, 1) is one mask. `supervision.Detections` and outputs of SAM are read as by
    `Region.from_detections` and `Region.from_sam`; results of Ultralytics and torchvision, and what transformers'
    post-processing gives, by their masks where they have some, else by their boxes. An empty list or an array (0, 4)
    gives an empty list.

    An array or tensor (N, 4) of floats or signed integers, by itself, is N boxes x0, y0, x1, y1, as detectors return
    them. It is one mask of an image four pixels wide if it is bool or unsigned, if all its values are in 0..1 or 255,
    or if N > 16384. As an element of a list or mapping it is always a mask.

    Raises:
        ValueError: a region is malformed; the message names its index.
    """
    if is_detections(regions):
        return Region.from_detections(regions)
    if is_tool_output(regions):
        return [Region(((None, shape),)) for shape in tool_shapes(regions)]
    if are_mask_rows(regions):
        raise ValueError(
            "regions: expected boxes, polygons or masks as arrays, got lists of 0 and 1 like the rows of a mask; pass "
            "np.asarray(mask)"
        )
    with labelled("region 0"):
        holds_boxes, holds_many = is_boxes(regions), is_sam_output(regions)
    if holds_boxes:
        return [Region(((None, shape),)) for shape in box_shapes(regions)]
    if holds_many:
        return Region.from_sam(regions)
    if is_list_of_regions(regions):
        together = stacked(regions)
        if together is not None:
            return [Region(((None, shape),)) for shape in tensor_masks(together, numbered=True)]
        return list(_numbered(regions))
    return list(_numbered([regions]))


def is_list_of_regions(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return not value or not (all(map(is_scalar, value)) or all(map(is_pair, value)))


def is_sam_output(value: Any) -> bool:
    """Whether the value holds objects rather than one region."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim > 2 and not is_channels_last(value)
    if isinstance(value, Mapping):
        frames = frame_numbers(value)
        return "masks" in value if frames is None else any(map(holds_objects, frames.values()))
    # Post-processing of a batch of one image; {number: region} would be a region in frames
    batch_of_one = isinstance(value, (list, tuple)) and len(value) == 1
    return batch_of_one and holds_objects(value[0]) and not (isinstance(value[0], Mapping) and "masks" not in value[0])


def _numbered(values: Iterable[Any]) -> Iterable[Region]:
    for index, value in enumerate(values):
        with labelled(f"region {index}"):
            yield Region.of(value)


def _shape(value: Any) -> Shape:
    if isinstance(value, Region):
        value = value.marks[0][1] if value.frames is None else value
    if isinstance(value, Region) or (isinstance(value, Mapping) and frame_numbers(value) is not None):
        raise ValueError("expected a region of one frame, got a mapping of frames")
    return value if isinstance(value, Shape) else shape_of(value)
