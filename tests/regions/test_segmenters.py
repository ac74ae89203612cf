"""What segmenters and pipelines hand over, as it is; and what looks like another thing is refused with the way out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from square import HEIGHT, SQUARE, WIDTH

from pixelrefer_fast.regions import Region, as_regions

BOX = [5, 3, 11, 7]  # x0, y0, x1, y1 of the square
MASK = SQUARE.astype(bool)
OTHER = np.roll(MASK, 2, axis=1)


class Results(SimpleNamespace):
    """Named as Ultralytics' class."""


class Detections(SimpleNamespace):
    """Named as supervision's class."""


OUTLINE = np.array([[5, 3], [11, 3], [11, 7], [5, 7]], np.float32)
_boxes = SimpleNamespace(xyxy=torch.tensor([[5.0, 3, 11, 7], [0, 0, 2, 1]]))
_labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int32)
_labels[torch.from_numpy(MASK)] = 7
_labels[0, 0] = 2
OUTPUTS: dict[str, tuple[Any, int]] = {
    "SAM's automatic masks": (
        [
            {"segmentation": MASK, "bbox": [5, 3, 6, 4], "area": 24, "predicted_iou": 0.9, "crop_box": [0, 0, 1, 1]},
            {"segmentation": OTHER, "bbox": [7, 3, 6, 4], "area": 24, "predicted_iou": 0.9, "crop_box": [0, 0, 1, 1]},
        ],
        2,
    ),
    "image-segmentation": ([{"score": None, "label": "cat", "mask": Image.fromarray(SQUARE * np.uint8(255))}], 1),
    "object-detection": (
        [{"score": 0.9, "label": "cat", "box": {"xmin": 5, "ymin": 3, "xmax": 11, "ymax": 7}}] * 2,
        2,
    ),
    "mask-generation": ({"masks": [MASK, OTHER], "scores": torch.tensor([0.9, 0.8])}, 2),
    "torchvision with masks": (
        {
            "boxes": torch.tensor([[5.0, 3, 11, 7]]),
            "labels": torch.tensor([1]),
            "scores": torch.tensor([0.9]),
            "masks": torch.from_numpy(MASK)[None, None] * 0.9,
        },
        1,
    ),
    "torchvision": ({"boxes": torch.tensor([[5.0, 3, 11, 7], [1, 1, 2, 2]]), "labels": [1, 2], "scores": [1, 1]}, 2),
    "boxes in lists": ({"scores": [0.3], "labels": ["cat"], "boxes": [BOX]}, 1),
    "instance segmentation": (
        {"segmentation": _labels, "segments_info": [{"id": 7, "label_id": 1}, {"id": 2, "label_id": 1}]},
        2,
    ),
    "Ultralytics boxes": (Results(orig_shape=(HEIGHT, WIDTH), boxes=_boxes, masks=None, obb=None), 2),
    "Ultralytics list": ([Results(orig_shape=(HEIGHT, WIDTH), boxes=_boxes, masks=None, obb=None)], 2),
    "Ultralytics masks": (
        Results(
            orig_shape=(HEIGHT, WIDTH),
            boxes=_boxes,
            masks=SimpleNamespace(xy=[OUTLINE, np.zeros((0, 2), np.float32)]),
            obb=None,
        ),
        2,
    ),
    "Ultralytics masks of the image's size": (
        Results(
            orig_shape=(HEIGHT, WIDTH),
            boxes=_boxes,
            masks=SimpleNamespace(xy=[OUTLINE, OUTLINE[:0]], data=torch.from_numpy(np.stack([MASK, OTHER & False]))),
            obb=None,
        ),
        2,
    ),
    "Ultralytics turned boxes": (
        Results(orig_shape=(9, 9), boxes=None, masks=None, obb=SimpleNamespace(xyxyxyxy=torch.tensor(OUTLINE)[None])),
        1,
    ),
    "COCO annotations": (
        [
            {"id": 1, "image_id": 3, "category_id": 1, "iscrowd": 0, "segmentation": [OUTLINE.ravel().tolist()]},
            {"id": 2, "image_id": 3, "category_id": 1, "bbox": [5, 3, 6, 4], "area": 24.0},
        ],
        2,
    ),
}
OF_BATCHES = ("torchvision", "torchvision with masks", "instance segmentation", "boxes in lists")
"""What comes in a list with an entry for each image of a batch."""


@pytest.mark.parametrize(
    ("name", "listed"), [*((name, False) for name in OUTPUTS), *((name, True) for name in OF_BATCHES)]
)
def test_outputs_are_read_as_they_are(name: str, listed: bool) -> None:
    value, count = OUTPUTS[name]
    value = [value] if listed else value
    regions = as_regions(value)
    assert len(regions) == count
    assert np.array_equal(regions[0].mask(HEIGHT, WIDTH), SQUARE)
    again = [Region.from_json(region.to_json()) for region in regions]
    assert [r.mask(HEIGHT, WIDTH).tolist() for r in again] == [r.mask(HEIGHT, WIDTH).tolist() for r in regions]


def test_ultralytics_itself(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # an import of it writes settings
    results = pytest.importorskip("ultralytics.engine.results").Results
    picture, names = np.zeros((HEIGHT, WIDTH, 3), np.uint8), {0: "cat", 1: "dog"}
    boxes = torch.tensor([[*BOX, 0.9, 0], [0, 0, 2, 1, 0.8, 1]])
    masks = torch.from_numpy(np.stack([MASK, OTHER])).float()
    turned = torch.tensor([[8.0, 5, 6, 4, 0, 0.9, 0]])
    of_input = torch.nn.functional.interpolate(masks[None], scale_factor=16.0)[0]  # no letters: the shape is kept
    for given in (
        {"boxes": boxes},
        {"boxes": boxes, "masks": masks},  # retina_masks=True
        {"boxes": boxes, "masks": of_input},
        {"obb": turned},
    ):
        regions = as_regions([results(picture, "a.jpg", names, **given)])
        assert len(regions) == len(next(iter(given.values())))
        assert np.array_equal(regions[0].mask(HEIGHT, WIDTH), SQUARE)


def test_supervision_itself() -> None:
    supervision = pytest.importorskip("supervision")
    made = supervision.Detections(xyxy=np.array([BOX, [0, 0, 2, 1]], float), mask=np.stack([MASK, OTHER]))
    assert np.array_equal(as_regions(made)[0].mask(HEIGHT, WIDTH), SQUARE)
    made.tracker_id = np.array([4, 4])
    with pytest.raises(ValueError, match=r"frame 3: expected each object id once, got \[4, 4\]"):
        as_regions({3: made})


def test_coco_itself(tmp_path: Any) -> None:
    import json

    from pycocotools.coco import COCO

    images = [{"id": 3, "height": HEIGHT, "width": WIDTH, "file_name": "a.jpg"}]
    document = {"images": images, "annotations": OUTPUTS["COCO annotations"][0], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    coco = COCO(str(tmp_path / "coco.json"))
    regions = as_regions(coco.loadAnns(coco.getAnnIds(imgIds=[3])))
    assert np.array_equal(regions[1].mask(HEIGHT, WIDTH), SQUARE)
    assert np.array_equal(regions[0].mask(HEIGHT, WIDTH), coco.annToMask(coco.loadAnns([1])[0]))
    with pytest.raises(ValueError, match="expected the annotations of one image"):
        as_regions(document)


def test_label_maps() -> None:
    labels = _labels.numpy()
    first, second = Region.from_labels(labels)
    assert np.array_equal(first.mask(HEIGHT, WIDTH), labels == 2)
    assert np.array_equal(second.mask(HEIGHT, WIDTH), labels == 7)
    for form in (labels, _labels, labels.astype(np.uint8), labels.astype(np.int64), {0: labels}):
        with pytest.raises(ValueError, match=r"Region\.from_labels\(array\) .* or array == label"):
            as_regions(form)
    for one in ((labels == 7) * np.int64(7), (labels == 7) * np.int16(-1), (labels == 7) * np.uint8(255)):
        assert np.array_equal(as_regions(one)[0].mask(HEIGHT, WIDTH), SQUARE)
    soft = SQUARE * np.uint8(255)
    soft[0, 0] = 3  # what JPEG leaves
    assert as_regions(soft)[0].mask(HEIGHT, WIDTH).sum() == SQUARE.sum() + 1
    for wrong in (labels.astype(float), labels[None], "x", None):
        with pytest.raises(ValueError, match=r"labels: expected an array of integers of shape \(H, W\)"):
            Region.from_labels(wrong)
    with pytest.raises(ValueError, match="at most 16384 labels"):
        Region.from_labels(np.arange(40000).reshape(200, 200))


def test_boxes_that_are_shares() -> None:
    shares = [5 / WIDTH, 3 / HEIGHT, 11 / WIDTH, 7 / HEIGHT]
    region = Region.from_box(xyxy=shares, normalized=True)
    assert region.mask(40 * HEIGHT, 40 * WIDTH).sum() == pytest.approx(1600 * SQUARE.sum(), rel=0.02)
    assert Region.from_json(region.to_json()) == region
    assert "normalized=True" in repr(region)
    wide = Region.from_box(xywh=[0.25, 0.0, 0.5, 1.0], normalized=True)
    assert wide.mask(10, 8)[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    for form in (shares, [shares], np.array(shares), torch.tensor(shares), {"bbox": shares}, {"boxes": [shares]}):
        with pytest.raises(ValueError, match=r"normalized=True\), or multiply by width and height"):
            as_regions(form)
    with pytest.raises(ValueError, match=r"normalized=True\) of each row, for a mask array > 0\.5"):
        as_regions(np.array([shares, shares]))
    assert as_regions([0, 0, 1, 1])[0].mask(HEIGHT, WIDTH).sum() == 1
    with pytest.raises(ValueError, match="normalized: expected True or False"):
        Region.from_box(xyxy=BOX, normalized="no")  # type: ignore[arg-type]


def test_arrays_of_other_classes() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(SQUARE)
    assert np.array_equal(as_regions(matrix)[0].mask(HEIGHT, WIDTH), SQUARE)
    assert np.array_equal(Region.from_mask(matrix).mask(HEIGHT, WIDTH), SQUARE)
    whole = np.ma.MaskedArray(SQUARE)
    assert np.array_equal(as_regions(whole)[0].mask(HEIGHT, WIDTH), SQUARE)
    with pytest.raises(ValueError, match=r"got a masked array; pass array\.filled\(0\)"):
        as_regions(np.ma.MaskedArray(SQUARE, SQUARE == 0))
    for rows in (SQUARE.tolist(), MASK.tolist(), [row.tolist() for row in SQUARE[:, :6]]):
        with pytest.raises(ValueError, match=r"like the rows of a mask; pass np\.asarray\(mask\)"):
            as_regions(rows)


@pytest.mark.parametrize("missing", ["xyxy", "mask", "tracker_id"])
def test_detections_without_a_field(missing: str) -> None:
    fields: dict[str, Any] = {"xyxy": np.array([BOX], float), "mask": None, "tracker_id": None}
    del fields[missing]
    made = Detections(**fields)
    with pytest.raises(
        ValueError, match=f"detections: expected the field '{missing}', got an object without it|xyxy: exp"
    ):
        as_regions(made)
    with pytest.raises(ValueError, match=r"detections|Detections"):
        as_regions({0: made})


@pytest.mark.parametrize("missing", ["boxes", "masks", "obb"])
def test_results_without_a_field(missing: str) -> None:
    fields: dict[str, Any] = {"orig_shape": (9, 9), "boxes": None, "masks": None, "obb": None}
    del fields[missing]
    with pytest.raises(ValueError, match=f"Results: expected the field '{missing}', got an object without it"):
        as_regions(Results(**fields))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"boxes": torch.zeros(3)}, r"boxes: expected boxes x0, y0, x1, y1 of shape \(N, 4\)"),
        ({"boxes": None}, "boxes: expected boxes"),
        ({"segmentation": None, "segments_info": []}, "segmentation: expected a label map"),
        ({"segmentation": _labels, "segments_info": [{}]}, "segments_info: expected a list of segments"),
        ([{"box": {"xmin": 1}}], "region 0: box: expected numbers"),
        ([{"mask": "cat.png"}], "region 0: mask: expected an array, tensor or PIL image"),
        ({0: {"object_ids": [3, 3], "masks": np.stack([MASK, OTHER])}}, "frame 0: expected each object id once"),
    ],
)
def test_malformed_outputs(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_regions(value)
