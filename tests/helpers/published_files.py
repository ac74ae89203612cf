"""A folder of --data with a few items of every benchmark, in the published formats: pictures of noise, made-up texts.

The texts are those whose scores `tests/data/evaluating/recorded.json` has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 60, 80
TEXTS = Path(__file__).parents[1] / "data" / "evaluating"


def texts(name: str) -> Any:
    """One of the committed files of texts."""
    return json.loads((TEXTS / f"{name}.json").read_text(encoding="utf-8"))


def box_polygon(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def run_lengths(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """Compressed run lengths of a box."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def plain_counts(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """Run lengths as a list, column by column."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts if not flat[0] else [0, *counts]}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def frames(folder: Path, count: int = 6) -> None:
    for number in range(count):
        picture(folder / f"{number:05}.jpg", number)


def write(path: Path, value: Any, *, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def make_published(data: Path) -> Path:
    """All benchmarks' files below `data`."""
    _categories(data)
    _captions(data)
    _videos(data)
    _dlc(data)
    _ferret(data)
    return data


def _categories(data: Path) -> None:
    for name in ("lvis", "paco"):
        pairs: Sequence[dict[str, str]] = texts("categories")
        images = []
        for number in range(0, len(pairs), 2):
            own = pairs[number : number + 2]
            file = f"{number:012}.jpg"
            picture(data / "data" / "COCO" / ("train2017" if number else "val2017") / file, number)
            segmentations = (box_polygon(5, 6, 20, 15), run_lengths(30, 10, 25, 30))
            annotations = [{"segmentation": one} for one in segmentations[: len(own)]]
            image = {"file_name": file, "height": HEIGHT, "width": WIDTH, "annotations": annotations}
            images.append(image | {"categories": [pair["Answer"] for pair in own]})
        write(data / "benchmarks" / f"{name}_val_1k_category.json", images)


def _captions(data: Path) -> None:
    pairs = texts("captions")
    regions = []
    for number, pair in enumerate(pairs):
        file = f"VG/{number}.jpg"
        picture(data / "data" / file, number)
        boxes = [[10, 12, 30, 20]]
        mask = run_lengths(12, 14, 10, 10)
        region = {"image": [file], "height": HEIGHT, "width": WIDTH, "caption": pair["Answer"]}
        regions.append(region | {"boxes": boxes, "mask": mask})
    write(data / "benchmarks" / "vg_val_5000.json", regions)
    folder = data / "benchmarks" / "Ref-L4"
    lines = []
    for number, pair in enumerate(pairs):
        source = "coco" if number == 1 else "objects365"
        file = f"{source}_{number}.jpg"
        picture(folder / "images" / file, number)
        line = {"file_name": file, "height": HEIGHT, "width": WIDTH, "caption": pair["Answer"]}
        lines.append(line | {"bbox": [-3.5, 4.2, 40.9, 70.0]})
    write(folder / "ref-l4-val.json", lines, lines=True)
    phrases = [pair["Answer"] for number, pair in enumerate(pairs) if number != 1]
    annotations = [{"image_id": str(i), "id": str(i), "caption": text} for i, text in enumerate(phrases)]
    write(
        folder / "refl4_gt.json", {"images": [{"id": str(i)} for i in range(len(phrases))], "annotations": annotations}
    )


def _videos(data: Path) -> None:
    pairs = texts("captions")
    full, lite = [], []
    for number, pair in enumerate(pairs):
        name = f"clip{number}"
        frames(data / "data" / "HC-STVG" / "video_parts" / name)
        full.append({"video": name, "frame_idx": 2, "mask": run_lengths(10, 10, 30, 30), "caption": pair["Answer"]})
        masks = {"0": run_lengths(8, 8, 20, 20), "3": run_lengths(0, 0, 0, 0), "4": run_lengths(12, 8, 20, 20)}
        said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": pair["Answer"]}]
        lite.append({"video": [name], "masks": [masks], "conversations": said})
    write(data / "benchmarks" / "hc_stvg_val.json", full)
    write(data / "benchmarks" / "hc-stvg-val-allframe.json", lite)
    questions = []
    for number, choice in enumerate(texts("choices")):
        folder = f"MeViS/{number}"
        frames(data / "data" / folder)
        first = {str(f): {"segmentation": run_lengths(4 + f, 6, 20, 20)} for f in (1, 4)}
        second: dict[str, Any] = {"1": {"segmentation": run_lengths(40, 30, 20, 20)}, "4": {"segmentation": None}}
        row = {"id": number, "video": folder, "type": choice["type"], "options": choice["options"]}
        row |= {"Question": "What is <object0><region> to <object1><region>?", "Answer": choice["Answer"]}
        questions.append(row | {"frame_idx": "1", "annotation": [first, second]})
    bench = data / "benchmarks" / "VideoRefer-Bench"
    write(bench / "VideoRefer-Bench-Q.json", questions)
    write(data / "benchmarks" / "VideoRefer-Bench-Q-allframe.json", questions)
    descriptions = []
    for number, row in enumerate(texts("ratings")):
        frames(bench / "Panda-70M-part" / f"clip{number}")
        marks = {str(f): {"segmentation": run_lengths(4 + f, 6, 20, 20)} for f in (0, 2, 5)}
        entry = {"id": number, "video": f"clip{number}", "caption": row["Answer"], "frame_idx": "2"}
        descriptions.append(entry | {"annotation": [marks]})
    write(bench / "VideoRefer-Bench-D.json", descriptions)


def _dlc(data: Path) -> None:
    folder = data / "benchmarks" / "DLC-Bench"
    rows = texts("dlc")
    images, annotations = [], []
    for number, (own, row) in enumerate(rows.items()):
        picture(folder / "images" / f"{own}.jpg", number)
        images.append({"id": number, "file_name": f"{own}.jpg", "height": HEIGHT, "width": WIDTH})
        segmentation = plain_counts(5, 5, 30, 30)
        annotations.append({"id": int(own), "image_id": number, "category_id": 1, "segmentation": segmentation})
        annotations[-1] |= {"area": 900, "iscrowd": 0, "bbox": [5, 5, 30, 30]}
        assert row["questions"]
    categories = [{"id": 1, "name": "thing"}]
    write(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    write(folder / "qa.json", {own: row["questions"] for own, row in rows.items()})
    write(folder / "class_names.json", {own: row["name"] for own, row in rows.items()})


def _ferret(data: Path) -> None:
    folder = data / "benchmarks" / "ferret-bench"
    rows = texts("reviews")
    regions: list[dict[str, Any]] = []
    questions, contexts, answers = [], [], []
    for number, row in enumerate(rows):
        image = f"{100 + number:012}.jpg"
        picture(data / "data" / "COCO" / "train2017" / image, number)
        entry = {"question_id": number, "image": image}
        annotation = {"bbox": [5, 5, 20, 20], "segmentation": box_polygon(5, 5, 20, 20)}
        regions.append(entry | {"category": "reason", "text": "Why is <region> here?", "annotation": annotation})
        named = entry | {"category": "refer_reason"}
        questions.append(named | {"text": "Why is [0.1, 0.1, 0.3, 0.4] here?"})
        contexts.append(named | {"text": f"Objects:\nObject 0 : thing {number} at [0.1, 0.1, 0.3, 0.4]."})
        answers.append(named | {"text": row["answer"]})
    write(folder / "box_refer_reason.json", regions)
    for name, entries in (("question", questions), ("context", contexts), ("answer", answers)):
        write(folder / "refer_reason" / f"{name}.jsonl", entries, lines=True)
    rule = {"role": "Assistant", "prompt": "Rate both answers from 1 to 10: two numbers in the first line."}
    write(folder / "rule.json", {"refer_reason": rule})
