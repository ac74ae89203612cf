"""Regions as users and their tools give them -> shapes: COCO, JSON, arrays, supervision, SAM 2 and 3."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pixelrefer_fast.checks.values import check_size, is_integer, is_number, labelled, numpy_of, shown
from pixelrefer_fast.regions.shapes import (
    MAX_POINTS,
    Bitmap,
    Box,
    Clicks,
    Polygons,
    Rle,
    Scribble,
    coordinates,
    image_size,
)
from pixelrefer_fast.regions.tensor_mask import MaskShape, Shape, TensorMask, stays, tensor_masks

FORMS = "a mask, a COCO RLE, polygons, a box [x0, y0, x1, y1], points, a region's JSON, or any of these by frame number"
MAX_FRAME_DIGITS = 9
MAX_BOXES = 2**14
"""Most boxes of one array; a list may hold more."""


def shape_of(value: Any) -> Shape:
    """The shape that a value of any supported form describes; mappings of frames are not handled here."""
    array = as_array(value)
    if array is not None:
        return bitmap_of(array) if array.ndim > 1 else shape_of(plain(array))
    if isinstance(value, Mapping):
        return shape_of_mapping(value)
    if is_detections(value):
        shapes = list(detection_shapes(value))
        if len(shapes) != 1:
            raise ValueError(f"detections: expected exactly one object here, got {len(shapes)}")
        return shapes[0]
    if isinstance(value, (list, tuple)) and value:
        if all(map(is_scalar, value)):
            return shape_of_scalars(value)
        return polygons_of(value)
    raise ValueError(f"expected {FORMS}; got {shown(value)}")


def shape_of_scalars(values: Sequence[Any]) -> Box | Polygons:
    """A box of four numbers, or a flat polygon."""
    if not all(map(is_coordinate, values)) or len(values) % 2 or len(values) < 4:
        raise ValueError(
            f"expected a box of four numbers or a polygon of at least three points (six numbers), got {shown(values)}"
        )
    return box_of(xyxy=values) if len(values) == 4 else polygons_of(values)


def shape_of_mapping(value: Mapping[Any, Any]) -> Shape:
    kind = value.get("type")
    if kind == "box":
        normalized = value.get("normalized", False)
        return box_of(xyxy=value.get("xyxy"), xywh=value.get("xywh"), normalized=normalized)
    if kind == "polygon":
        return polygons_of(value.get("polygons"), value.get("size"))
    if kind == "scribble":
        return scribble_of(value.get("points"), value.get("width"))
    if "points" in value:
        return clicks_of(value["points"], value.get("labels"))
    if "counts" in value:
        return Rle.of(value.get("size"), value["counts"])
    if "segmentation" in value:  # an annotation of COCO or VideoRefer
        segmentation = value["segmentation"]
        if isinstance(segmentation, Mapping):
            return Rle.of(segmentation.get("size"), segmentation.get("counts"))
        if (mask := as_array(segmentation)) is not None:  # SAM's own automatic mask generator
            return bitmap_of(mask)
        size = (value["height"], value["width"]) if "height" in value and "width" in value else None
        return polygons_of(segmentation, size)
    if "bbox" in value:
        return box_of(xywh=value["bbox"])
    if "mask" in value:  # of transformers' pipelines
        return masked(value["mask"])
    if isinstance(value.get("box"), Mapping):
        return box_of(xyxy=[value["box"].get(side) for side in ("xmin", "ymin", "xmax", "ymax")])
    raise ValueError(f"expected {FORMS}; got a mapping with the keys {shown(list(value)[:8])}")


def masked(value: Any) -> MaskShape:
    """The mask in one of the forms that tools give."""
    array = as_array(value)
    if array is None:
        raise ValueError(f"mask: expected an array, tensor or PIL image, got {shown(value)}")
    return bitmap_of(array)


def box_of(xyxy: Any = None, xywh: Any = None, normalized: Any = False) -> Box:
    """From the corners, or a corner and the extent; in pixels, or as shares of the image's width and height."""
    if not isinstance(normalized, bool):
        raise ValueError(f"box: normalized: expected True or False, got {shown(normalized)}")
    if (xyxy is None) == (xywh is None):
        raise ValueError("box: expected either xyxy or xywh")
    numbers = plain(xyxy if xywh is None else xywh)
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 4:
        raise ValueError(f"box: expected 4 numbers, got {shown(numbers)}")
    x, y, right, bottom = coordinates([plain(number) for number in numbers], "box")
    if xywh is not None:
        right, bottom = coordinates((x + right, y + bottom), "box")
    box = Box(x, y, right, bottom, normalized)
    if not normalized and look_normalized((x, y, right, bottom)):
        raise ValueError(
            f"box: expected pixels, got shares of an image's sides {shown((x, y, right, bottom))}; for those pass "
            "Region.from_box(..., normalized=True), or multiply by width and height"
        )
    return box


def look_normalized(numbers: Sequence[float]) -> bool:
    """Whether the numbers of a box lie in 0..1 and are not all whole."""
    return all(0 <= number <= 1 for number in numbers) and not all(number == int(number) for number in numbers)


def polygons_of(value: Any, size: Any = None) -> Polygons:
    """From a polygon or a list of them, each flat (x0, y0, x1, y1, ...) or a list of [x, y] pairs."""
    value = plain(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"polygon: expected a list of polygons, got {shown(value)}")
    if value and (all(map(is_coordinate, value)) or all(map(is_pair, value))):
        value = [value]
    return Polygons(
        tuple(coordinates(flat(polygon, "polygon"), "polygon") for polygon in value),
        None if size is None else image_size(size, "polygon size"),
    )


def scribble_of(points: Any, width: Any) -> Scribble:
    numbers = coordinates(flat(points, "scribble"), "scribble")
    return Scribble(
        tuple(zip(numbers[::2], numbers[1::2], strict=True)), *coordinates((plain(width),), "scribble width")
    )


def clicks_of(points: Any, labels: Any = None) -> Clicks:
    """From points as x0, y0, x1, y1, ... or [x, y] pairs, and a label 1 (on the object) or 0 for each; None: all 1."""
    numbers = coordinates(flat(points, "points"), "points")
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if labels is None:
        return Clicks(pairs, (True,) * len(pairs))
    listed = plain(labels)
    if not isinstance(listed, (list, tuple)) or not all(label in (0, 1) for label in listed):
        raise ValueError(f"labels: expected 1 (on the object) or 0 for each point, got {shown(labels)}")
    return Clicks(pairs, tuple(map(bool, listed)))


def flat(points: Any, what: str) -> list[Any]:
    """Coordinates x0, y0, x1, y1, ... of points given so or as [x, y] pairs."""
    points = plain(points)
    if isinstance(points, (list, tuple)):
        points = [plain(point) for point in points]
        if points and all(map(is_pair, points)):
            return [plain(number) for pair in points for number in pair]
        if len(points) % 2 == 0 and not any(isinstance(number, (list, tuple)) for number in points):
            return points
    raise ValueError(f"{what}: expected points as x0, y0, x1, y1, ... or [x, y] pairs, got {shown(points)}")


def is_pair(value: Any) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return tuple(value.shape) == (2,) and is_pair(plain(value))
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_coordinate, value))


def is_coordinate(value: Any) -> bool:
    """Whether the value is a number, or an array or tensor without axes that holds one."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 0 and is_number(plain(value))
    return is_number(value)


def is_scalar(value: Any) -> bool:
    """Whether the value is a number, or what may be given in place of one by mistake: text, a boolean."""
    return isinstance(value, (str, bool, np.bool_)) or is_coordinate(value)


def plain(value: Any) -> Any:
    """Lists and numbers for arrays and tensors; anything else as it is."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        if math.prod(value.shape) > 2 * MAX_POINTS:
            raise ValueError(f"expected at most {2 * MAX_POINTS} numbers, got an array of shape {shape_text(value)}")
        return numpy_of(value).tolist()
    return value.item() if isinstance(value, np.generic) else value


def as_array(value: Any) -> np.ndarray | torch.Tensor | None:
    """The array in an array, tensor or PIL image."""
    if isinstance(value, np.ndarray):
        return numpy_of(value)
    if isinstance(value, torch.Tensor):
        return value
    pil = sys.modules.get("PIL.Image")  # not imported: then it cannot be a PIL image
    if pil is None or not isinstance(value, pil.Image):
        return None
    check_size(value.height, value.width, "mask")
    if len(value.getbands()) != 1:
        raise ValueError(
            f"mask: expected a PIL image of one channel, got one of mode {value.mode}; "
            f'convert it with image.convert("L"), or pass an array of shape (H, W)'
        )
    try:
        return np.asarray(value)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow decodes now, and its decoders raise many kinds
        raise ValueError(f"mask: expected a complete image, it cannot be decoded: {error}") from None


def bitmap_of(array: np.ndarray | torch.Tensor, logits: bool = False) -> MaskShape:
    """From an array of shape (H, W), (H, W, 1), or (H, W) behind leading axes of length 1; on a device it stays there.

    `logits`: floats of which one is negative are marked above 0.
    """
    shape = tuple(array.shape)
    if is_channels_last(array):
        shape = shape[:-1]
    if len(shape) < 2 or any(length != 1 for length in shape[:-2]):
        raise ValueError(f"mask: expected an array of shape (H, W), got {shape}")
    if isinstance(array, torch.Tensor) and stays(array):
        return tensor_masks(array.reshape(1, *shape[-2:]), logits)[0]
    values = numpy_of(array).reshape(shape[-2:])
    return Bitmap.of(without_logits(values) if logits else values)


def is_channels_last(array: np.ndarray | torch.Tensor) -> bool:
    """Whether the array is one mask (H, W, 1), rather than masks (N, H, W); (1, H, 1) is (1, H, W)."""
    return array.ndim == 3 and array.shape[0] != 1 and array.shape[2] == 1


def is_boxes(value: Any) -> bool:
    """Whether an array or tensor by itself is boxes (N, 4) rather than a mask of four columns.

    Masks are what has a dtype or values that masks have: bool, unsigned integers, nothing but 0..1 and 255, or more
    rows than there are boxes. (0, 4) is what a detector returns that found nothing.
    """
    if not isinstance(value, (np.ndarray, torch.Tensor)) or value.ndim != 2 or value.shape[1] != 4:
        return False
    if not 0 < len(value) <= MAX_BOXES:
        return len(value) == 0
    values = numpy_of(value)
    if values.dtype.kind not in "if":
        return False
    shares = (values >= 0) & (values <= 1)
    if shares.all() and not (values == values.round()).all():
        raise ValueError(
            "expected boxes in pixels or a mask of bool, got an array of four columns with values in 0..1; for boxes "
            "pass Region.from_box(xyxy=row, normalized=True) of each row, for a mask array > 0.5"
        )
    return not (shares | (values == 255)).all()


def box_shapes(boxes: np.ndarray | torch.Tensor) -> Iterator[Box]:
    """Per row of an array (N, 4) its box xyxy."""
    for index, row in enumerate(numpy_of(boxes)):
        with labelled(f"region {index}"):
            try:
                yield box_of(xyxy=row)
            except ValueError as error:
                raise ValueError(
                    f"{error}; an array of shape (N, 4) is N boxes x0, y0, x1, y1 (a mask of four columns: pass bool)"
                ) from None


def is_detections(value: Any) -> bool:
    """A `supervision.Detections`, told by its name: supervision need not be installed."""
    return type(value).__name__ == "Detections"


def detection_shapes(detections: Any) -> Iterator[Shape]:
    """Per detection its mask (dense, or one at a time from a CompactMask), or its box if there are no masks."""
    if not is_detections(detections):
        raise ValueError(f"detections: expected supervision.Detections, got {shown(detections)}")
    for name in ("xyxy", "mask", "tracker_id"):
        if not hasattr(detections, name):
            raise ValueError(f"detections: expected the field {name!r}, got an object without it")
    for index in range(len(plain_rows(detections.xyxy))):
        with labelled(f"region {index}"):
            if detections.mask is None:
                yield box_of(xyxy=detections.xyxy[index])
            else:
                yield bitmap_of(detections.mask[index])


def plain_rows(boxes: Any) -> np.ndarray:
    """Boxes (N, 4) of detections."""
    if not isinstance(boxes, (np.ndarray, torch.Tensor)) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"detections: xyxy: expected boxes of shape (N, 4), got {shape_text(boxes)}")
    return numpy_of(boxes)


def sam_shapes(output: Any, scores: Any = None) -> Iterator[MaskShape]:
    """Per object its mask, from what transformers' SAM 2 and 3 post-processing returns for one image or frame.

    output: an array or tensor (H, W), (N, H, W) or (N, K, H, W), a list of N masks, or a mapping with such under
        "masks"; or a list that holds one of these, as post-processing a batch of one image gives.
    scores: (N, K) or (1, N, K), where K > 1 candidates per object compete; also taken from "iou_scores".
    """
    if isinstance(output, (list, tuple)) and len(output) == 1:
        first = output[0]
        if isinstance(first, Mapping) or (isinstance(first, (np.ndarray, torch.Tensor)) and first.ndim > 2):
            output = first
    if isinstance(output, Mapping):
        scores = output.get("iou_scores") if scores is None else scores
        masks = output.get("masks", output.get("out_binary_masks"))
        if masks is None:
            raise ValueError(
                f'SAM output: expected "masks" of the image\'s size (after post-processing), got the keys '
                f"{shown(list(output)[:8])}"
            )
    else:
        masks = output
    if isinstance(masks, (list, tuple)):
        if not all(isinstance(mask, (np.ndarray, torch.Tensor)) for mask in masks):
            raise ValueError("SAM output: expected arrays or tensors as masks")
        if len(masks) > 1 and any(mask.ndim > 3 for mask in masks):
            raise ValueError(f"SAM output: expected the masks of one image, got those of {len(masks)}")
    elif not isinstance(masks, (np.ndarray, torch.Tensor)) or masks.ndim not in (2, 3, 4):
        raise ValueError(f"SAM output: expected masks of shape (N, H, W) or (N, K, H, W), got {shape_text(masks)}")
    elif masks.ndim == 2:
        masks = masks[None]
    elif masks.ndim == 4:
        masks = best_candidates(masks, scores)
    together = stacked(masks)
    if together is not None:
        yield from tensor_masks(together, logits=True, numbered=True)
        return
    for index in range(len(masks)):
        with labelled(f"region {index}"):
            yield object_mask(masks[index])


def stacked(masks: Any) -> torch.Tensor | None:
    """Masks that lie on one device, of one size and dtype, as (N, H, W); None where there are none such."""
    if isinstance(masks, torch.Tensor):
        return masks if stays(masks) and masks.ndim == 3 else None
    if not isinstance(masks, (list, tuple)) or not masks or not all(map(stays, masks)):
        return None
    if len({(mask.shape, mask.dtype, mask.device) for mask in masks}) > 1:
        return None
    shape = masks[0].shape
    if len(shape) < 2 or shape[:-2].numel() != 1 or is_channels_last(masks[0]):
        return None
    return torch.stack([mask.reshape(shape[-2:]) for mask in masks])


def best_candidates(masks: Any, scores: Any) -> Sequence[Any]:
    """(N, K, H, W) -> per object the candidate with the best score."""
    count, candidates = masks.shape[:2]
    if candidates == 1:
        return masks[:, 0]
    if scores is None:
        raise ValueError(
            f"SAM output: expected one mask per object, or scores (the model's iou_scores) to choose by, got "
            f"{candidates} candidates per object"
        )
    values = numpy_of(scores) if isinstance(scores, (np.ndarray, torch.Tensor)) else np.array(None)
    if values.size != count * candidates or values.shape[-2:] != (count, candidates) or values.dtype.kind != "f":
        raise ValueError(f"SAM scores: expected float scores of shape {count, candidates}, got {shape_text(scores)}")
    best = values.reshape(count, candidates).argmax(axis=1)
    return [masks[index, int(choice)] for index, choice in enumerate(best)]


def without_logits(mask: np.ndarray) -> np.ndarray:
    """Probabilities are never negative, so floats that are come from `binarize=False`: logits, cut at 0 as SAM does."""
    return mask > 0 if mask.dtype.kind == "f" and np.isfinite(mask).all() and (mask < 0).any() else mask


def frame_numbers(value: Mapping[Any, Any]) -> dict[int, Any] | None:
    """The mapping with frame numbers as keys in increasing order; None if its keys are no frame numbers."""
    frames: dict[int, Any] = {}
    for key, item in value.items():
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= MAX_FRAME_DIGITS:
            key = int(key)
        elif not is_integer(key):
            return None
        if not 0 <= key < 10**MAX_FRAME_DIGITS:
            raise ValueError(f"frames: expected frame numbers from 0 on, got {shown(key)}")
        if int(key) in frames:
            raise ValueError(f"frames: expected each frame once, got {key} twice")
        frames[int(key)] = item
    return dict(sorted(frames.items())) if frames else None


def are_mask_rows(value: Any) -> bool:
    """Whether lists of numbers are the rows of a mask rather than boxes or polygons: of one length, all 0 and 1."""
    if not isinstance(value, (list, tuple)) or len(value) < 2 or not isinstance(value[0], (list, tuple)):
        return False
    width = len(value[0])
    if width < 4 or not all(isinstance(row, (list, tuple)) and len(row) == width for row in value):
        return False
    return all(isinstance(number, (bool, int)) and number in (0, 1) for row in value for number in row)


def holds_objects(value: Any) -> bool:
    """Whether one frame's value is a set of objects (a tracker's or segmenter's output) rather than one region."""
    if isinstance(value, Mapping):
        return "masks" in value or "out_binary_masks" in value or frame_numbers(value) is not None
    if is_detections(value):
        return getattr(value, "tracker_id", None) is not None or len(plain_rows(getattr(value, "xyxy", None))) != 1
    if not isinstance(value, (np.ndarray, torch.Tensor)) or is_channels_last(value):
        return False
    return any(length != 1 for length in value.shape[:-2])


def tracks(frames: Mapping[int, Any]) -> list[dict[int, Shape]]:
    """Per object, in order of first appearance, its shape in each frame where it is visible.

    frames: per frame the output for it: what SAM 3 video post-processing returns, {object id: mask}, masks (N, 1, H, W)
        or detections with tracker ids. Without ids the position is the object, and every frame must have as many.
    """
    objects: dict[Any, dict[int, Shape]] = {}
    counts: set[int | None] = set()
    for frame, value in frames.items():
        with labelled(f"frame {frame}"):
            ids, shapes = frame_objects(value)
            if ids is not None and len(ids) != len(shapes):
                raise ValueError(f"expected an id per object, got {len(ids)} ids for {len(shapes)} objects")
            if ids is not None and len(set(ids)) != len(ids):
                raise ValueError(f"expected each object id once, got {shown(ids)}")
        if shapes:
            counts.add(len(shapes) if ids is None else None)
        for object_id, shape in zip(range(len(shapes)) if ids is None else ids, shapes, strict=True):
            found = objects.setdefault(object_id, {})
            if not (isinstance(shape, (Bitmap, TensorMask)) and shape.is_empty):
                found[frame] = shape
    if len(counts) > 1:
        raise ValueError(
            "frames: expected object ids, or as many objects in every frame; got differing numbers of objects"
        )
    return list(objects.values())


def frame_objects(value: Any) -> tuple[Sequence[Any] | None, Sequence[Shape]]:
    """The objects of one frame and their ids, if it has any."""
    if is_detections(value):
        shapes = list(detection_shapes(value))
        return object_ids(value.tracker_id, "detections: tracker_id"), shapes
    if isinstance(value, Mapping) and (masks := frame_numbers(value)) is not None:
        return list(masks), [object_mask(mask) for mask in masks.values()]
    ids = value.get("object_ids", value.get("out_obj_ids")) if isinstance(value, Mapping) else None
    return object_ids(ids, "SAM output"), list(sam_shapes(value))


def object_ids(value: Any, what: str) -> list[int] | None:
    """Ids of the objects of a frame; None where there are none."""
    ids = plain(value)
    if ids is None:
        return None
    if not isinstance(ids, (list, tuple)) or not all(map(is_integer, ids)):
        raise ValueError(f"{what}: expected integers as object ids, got {shown(ids)}")
    return list(ids)


def object_mask(mask: Any) -> MaskShape:
    if not isinstance(mask, (np.ndarray, torch.Tensor)):
        raise ValueError(f"SAM output: expected an array or tensor as mask of an object, got {shown(mask)}")
    return bitmap_of(mask, logits=True)


def shape_text(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, (np.ndarray, torch.Tensor)) else shown(value)
