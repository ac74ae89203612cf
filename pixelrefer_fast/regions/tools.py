"""What detectors and segmenters hand over, told by its parts: none of their packages need be installed.

Read here: Ultralytics results; torchvision detections and transformers' post-processed boxes, {"boxes": ...};
transformers' instance and panoptic segmentation, {"segmentation": ..., "segments_info": ...}. Outputs that are one
object each (SAM's records, transformers' pipelines, COCO annotations) are read by `formats.shape_of_mapping`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pixelrefer_fast.checks.values import is_integer, labelled, numpy_of, shown
from pixelrefer_fast.regions.formats import bitmap_of, box_of, box_shapes, plain, polygons_of, shape_text
from pixelrefer_fast.regions.tensor_mask import MaskShape, Shape, stays, tensor_labels

MAX_LABELS = 2**14
"""Most objects of one label map."""


def is_tool_output(value: Any) -> bool:
    """Whether the value is the output of a tool for one image, with any number of objects."""
    if isinstance(value, (list, tuple)):  # of a batch of one image
        return len(value) == 1 and (is_ultralytics(value[0]) or _is_of_image(value[0]))
    return is_ultralytics(value) or _is_of_image(value) or (isinstance(value, Mapping) and "annotations" in value)


def _is_of_image(value: Any) -> bool:
    """Boxes of one image without masks, or its segments."""
    return isinstance(value, Mapping) and (("boxes" in value and "masks" not in value) or "segments_info" in value)


def tool_shapes(value: Any) -> Iterator[Shape]:
    """Per object of such an output its shape: a mask where there is one, else a polygon or a box.

    Raises:
        ValueError: a part is missing or malformed; the message names it.
    """
    if isinstance(value, (list, tuple)):
        (value,) = value
    if is_ultralytics(value):
        yield from ultralytics_shapes(value)
    elif "annotations" in value:
        raise ValueError('COCO: expected the annotations of one image, a list out of "annotations", got a whole file')
    elif "segments_info" in value:
        yield from segment_shapes(value.get("segmentation"), value["segments_info"])
    else:
        yield from boxes_in("boxes", value["boxes"])


def is_ultralytics(value: Any) -> bool:
    """An `ultralytics.engine.results.Results`."""
    return type(value).__name__ == "Results" and hasattr(value, "orig_shape")


def ultralytics_shapes(results: Any) -> Iterator[Shape]:
    """Masks of the image's size where there are some; outlines where masks are of the network's input size."""
    for name in ("boxes", "masks", "obb"):
        if not hasattr(results, name):
            raise ValueError(f"Results: expected the field {name!r}, got an object without it")
    if results.masks is not None:
        size = plain(results.orig_shape)
        boxes = None if results.boxes is None else results.boxes.xyxy
        whole = _of_image_size(results.masks, size)
        for index, outline in enumerate(results.masks.xy):
            with labelled(f"region {index}"):
                if whole is not None and whole[index].any():
                    yield bitmap_of(
                        whole[index]
                    )  # an outline runs through the outermost pixels, and loses half of them
                elif len(outline) < 3 and boxes is not None:  # a mask too small for an outline
                    yield next(iter(boxes_in("boxes", boxes[index : index + 1])))
                else:
                    yield polygons_of([np.asarray(outline).reshape(-1).tolist()], size)
    elif results.obb is not None:
        for index, corners in enumerate(numpy_of(results.obb.xyxyxyxy)):
            with labelled(f"region {index}"):
                yield polygons_of([corners.reshape(-1).tolist()])
    elif results.boxes is not None:
        yield from boxes_in("boxes", results.boxes.xyxy)


def _of_image_size(masks: Any, size: Any) -> np.ndarray | None:
    """Ultralytics' masks (N, H, W) bool; None where they are of another size than the image, as they are by default."""
    data = getattr(masks, "data", None)
    if not isinstance(data, (np.ndarray, torch.Tensor)) or (len(masks.xy), *data.shape[-2:]) != (len(data), *size):
        return None
    return numpy_of(data) > 0


def boxes_in(name: str, boxes: Any) -> Iterator[Shape]:
    """Per row of an array or a list of rows its box xyxy."""
    if isinstance(boxes, (list, tuple)):
        for index, row in enumerate(boxes):
            with labelled(f"region {index}"):
                yield box_of(xyxy=row)
        return
    if not isinstance(boxes, (np.ndarray, torch.Tensor)) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected boxes x0, y0, x1, y1 of shape (N, 4), got {shape_text(boxes)}")
    yield from box_shapes(boxes)


def segment_shapes(labels: Any, infos: Any) -> Iterator[MaskShape]:
    """Per segment of a label map (H, W) its mask."""
    if not isinstance(labels, (np.ndarray, torch.Tensor)) or labels.ndim != 2:
        raise ValueError(f"segmentation: expected a label map of shape (H, W), got {shape_text(labels)}")
    listed = infos if isinstance(infos, (list, tuple)) else [None]
    ids = [info.get("id") if isinstance(info, Mapping) else None for info in listed]
    if not all(map(is_integer, ids)):
        raise ValueError(f"segments_info: expected a list of segments with an integer id, got {shown(infos)}")
    if isinstance(labels, torch.Tensor) and stays(labels):
        yield from tensor_labels(labels, [number for number in ids if number is not None])
        return
    values = numpy_of(labels)
    for number in ids:
        yield bitmap_of(values == number)


def label_shapes(labels: Any) -> dict[int, MaskShape]:
    """Per label but 0 of an integer map (H, W) its mask, in increasing order."""
    if isinstance(labels, torch.Tensor) and stays(labels):
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if labels.ndim == 2 and integers:
            numbers = _numbers(labels.unique().tolist())
            return dict(zip(numbers, tensor_labels(labels, numbers), strict=True))
    values = numpy_of(labels) if isinstance(labels, (np.ndarray, torch.Tensor)) else np.array(None)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise ValueError(f"labels: expected an array of integers of shape (H, W), got {shape_text(labels)}")
    return {label: bitmap_of(values == label) for label in _numbers(np.unique(values).tolist())}


def _numbers(found: list[int]) -> list[int]:
    """The labels of objects among those of a map."""
    if len(found) > MAX_LABELS:
        raise ValueError(f"labels: expected at most {MAX_LABELS} labels, got {len(found)}")
    return [label for label in found if label != 0]
