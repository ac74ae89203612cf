"""Records the masks that transformers' own processors make with the tiny models of tests/helpers/tiny_sam.py.

    PYTHONPATH=tests/helpers:WITH_TORCHVISION python tools/record_sam.py > tests/segmenting/recorded_sam.json

They want torchvision, which the package and its tests do without.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tiny_sam
import torch
import transformers
from pycocotools import mask as coco

PROCESSORS = {
    "sam": ("SamModel", "SamProcessor", "SamImageProcessor"),
    "sam2_video": ("Sam2Model", "Sam2Processor", "Sam2ImageProcessor"),
    "edgetam_video": ("EdgeTamModel", "Sam2Processor", "Sam2ImageProcessor"),
    "sam3_video": ("Sam3TrackerModel", "Sam3TrackerProcessor", "Sam3ImageProcessor"),
}
VIDEO_PROCESSORS = {
    "sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor", "Sam2VideoVideoProcessor"),
    "edgetam_video": ("EdgeTamVideoModel", "Sam2VideoProcessor", "Sam2VideoVideoProcessor"),
    "sam3_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor", "Sam2VideoVideoProcessor"),
}


def rle(mask: Any) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(np.asarray(mask).astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def image_processor(kind: str, name: str) -> Any:
    side = tiny_sam.SIDE
    if kind == "sam":
        return getattr(transformers, name)(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    return getattr(transformers, name)(size={"height": side, "width": side})


def of_pictures(kind: str, folder: str) -> list[dict[str, Any]]:
    model_name, processor_name, image_name = PROCESSORS[kind]
    model = getattr(transformers, model_name).from_pretrained(folder).eval()
    own = image_processor(kind, image_name)
    processor = getattr(transformers, processor_name)(own)
    recorded = []
    for case in tiny_sam.CASES:
        points, labels, boxes = case.get("points"), case.get("labels"), case.get("boxes")
        labels = [1] * len(points) if points and not labels else labels
        inputs = processor(
            images=tiny_sam.picture(*case["size"]),
            input_points=[[points]] if points else None,
            input_labels=[[labels]] if labels else None,
            input_boxes=[boxes] if boxes else None,
            return_tensors="pt",
        )
        shapes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        alone = bool(points) and len(points) == 1 and not boxes
        with torch.inference_mode():
            found = model(**inputs, multimask_output=alone)
        masks = own.post_process_masks([found.pred_masks[0]], *shapes)[0]
        best = found.iou_scores[0].argmax(-1).tolist()
        recorded.append(
            {
                "masks": [rle(own[at]) for own, at in zip(masks, best, strict=True)],
                "scores": [float(score) for score in found.iou_scores[0].max(-1).values.clamp(0, 1)],
            }
        )
    return recorded


def followed(kind: str, folder: str) -> list[list[dict[str, Any] | None]]:
    model_name, processor_name, video_name = VIDEO_PROCESSORS[kind]
    model = getattr(transformers, model_name).from_pretrained(folder).eval()
    size = {"height": tiny_sam.SIDE, "width": tiny_sam.SIDE}
    own = image_processor(kind, PROCESSORS[kind][2])
    of_video = getattr(transformers, video_name)(size=size, image_mean=own.image_mean, image_std=own.image_std)
    processor = getattr(transformers, processor_name)(own, of_video)
    session = processor.init_video_session(video=list(tiny_sam.frames()))
    asked = tiny_sam.FOLLOWED
    numbers = list(range(len(asked["boxes"])))
    processor.add_inputs_to_inference_session(session, asked["frame"], numbers, input_boxes=[asked["boxes"]])
    recorded: list[list[dict[str, Any] | None]] = [[None] * asked["frames"] for _ in numbers]
    for backwards in (False, True):
        for found in model.propagate_in_video_iterator(session, asked["frame"], reverse=backwards):
            masks = processor.post_process_masks([found.pred_masks], original_sizes=[asked["size"]])[0]
            for number, mask in zip(found.object_ids, masks, strict=True):
                if mask.any():
                    recorded[number][found.frame_idx] = rle(mask[0])
    return recorded


def main() -> None:
    import tempfile
    from pathlib import Path

    recorded: dict[str, Any] = {}
    with tiny_sam.repvit():
        for kind in tiny_sam.MODELS:
            with tempfile.TemporaryDirectory() as folder:
                tiny_sam.save(kind, Path(folder))
                recorded[kind] = of_pictures(kind, folder)
                if kind in VIDEO_PROCESSORS:
                    recorded[f"{kind}_followed"] = followed(kind, folder)
    json.dump(recorded, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
