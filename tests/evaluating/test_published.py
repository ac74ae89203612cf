"""Published files -> items: what is marked and asked, for Lite and Full, as the authors' scripts do it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_files import HEIGHT, WIDTH, texts

from pixelrefer_fast.batching.preparing import REGION_TAG
from pixelrefer_fast.cli.batch.lines import RequestLine, parse_line
from pixelrefer_fast.evaluating.benchmark import Reading
from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS
from pixelrefer_fast.evaluating.corrections import CORRECTIONS, chosen_corrections
from pixelrefer_fast.evaluating.items import BenchmarkItem
from pixelrefer_fast.evaluating.layout import check_media, check_sources
from pixelrefer_fast.regions import Region

COUNTS = {"lvis": 7, "paco": 7, "vg": 6, "refl4": 5, "refl4-clair": 5, "hcstvg": 6}
COUNTS |= {"videorefer-q": 7, "videorefer-d": 4, "dlc": 4, "ferret": 5}


def items(
    name: str, data: Path, kind: Any = "lite", *, split: str | None = None, correct: tuple[str, ...] = ()
) -> list[BenchmarkItem]:
    benchmark = BENCHMARKS[name]
    return list(benchmark.items(Reading(data, kind, split or benchmark.splits[0], frozenset(correct))))


def filled(item: BenchmarkItem, frame: int | None = None, index: int = 0) -> tuple[int, int, int, int]:
    """The box of what is marked, all of which has to be marked: x0, y0, x1, y1."""
    mask = Region.from_json(item.regions[index]).mask(HEIGHT, WIDTH, frame)
    rows, columns = np.nonzero(mask)
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_items_are_whole(name: str, kind: Any, published: Path) -> None:
    found = items(name, published, kind)
    assert len(found) == COUNTS[name]
    assert len({item.id for item in found}) == len(found)
    check_media(published, found, "")
    for item in found:
        assert item.question.count(REGION_TAG) == len(item.regions)
        json.dumps(item.gold)
        line = parse_line(1, json.dumps(item.request(2048)).encode())
        assert isinstance(line, RequestLine)
        (ask,) = line.asks
        assert ask.options == {"max_new_tokens": 2048}


def test_all_that_the_command_names_is_here() -> None:
    assert list(BENCHMARKS) == [
        "lvis", "paco", "vg", "refl4", "hcstvg", "videorefer-q", "videorefer-d", "dlc", "refl4-clair", "ferret",
    ]  # fmt: skip
    assert {name for benchmark in BENCHMARKS.values() for name in benchmark.corrections} == set(CORRECTIONS)


def test_categories(published: Path) -> None:
    found = items("lvis", published)
    assert [item.gold["category"] for item in found] == [pair["Answer"] for pair in texts("categories")]
    assert filled(found[0]) == (5, 6, 25, 21)  # a polygon
    assert filled(found[1]) == (30, 10, 55, 40)  # run lengths
    assert found[0].media == published / "data/COCO/val2017/000000000000.jpg"
    assert found[2].media == published / "data/COCO/train2017/000000000002.jpg"
    questions = {item.question for name in ("lvis", "paco") for item in items(name, published)}
    assert len(questions) == 2
    assert any("category:subcategory" in question for question in questions)


def test_boxes_are_filled_and_cut(published: Path) -> None:
    found = items("vg", published)
    assert filled(found[0]) == (10, 12, 40, 32)
    assert filled(items("vg", published, correct=("vg-mask",))[0]) == (12, 14, 22, 24)
    boxed = items("refl4", published)[0]
    assert filled(boxed) == (0, 4, 37, 60)  # -3.5, 4.2, 40.9, 70: each number cut, then all to the image


def test_ref_l4_takes_one_source_and_counts_in_it(published: Path) -> None:
    found = items("refl4", published)
    captions = [pair["Answer"] for pair in texts("captions")]
    assert [item.gold["phrases"] for item in found] == [[c] for i, c in enumerate(captions) if i != 1]
    assert [item.id for item in found] == ["0", "1", "2", "3", "4"]
    assert [item.gold["caption"] for item in items("refl4-clair", published, split="all")] == captions
    brief, detailed = found[0].question, items("refl4-clair", published)[0].question
    assert (brief, detailed) == ("Please describe <region> in brief.", "Please describe <region> in detail.")


def test_videos_show_full_one_frame_and_lite_all(published: Path) -> None:
    full, lite = (items("hcstvg", published, kind)[0] for kind in ("full", "lite"))
    assert Region.from_json(full.regions[0]).frames == (2,)
    assert Region.from_json(lite.regions[0]).frames == (0, 4)  # frame 3 marks nothing
    assert filled(lite, 4) == (12, 8, 32, 28)
    assert full.question != lite.question
    assert full.media == published / "data/HC-STVG/video_parts/clip0"
    assert full.gold == lite.gold == {"caption": texts("captions")[0]["Answer"]}
    described = items("videorefer-d", published, "full")[0]
    assert described.question.startswith("<video>\n")
    assert Region.from_json(described.regions[0]).frames == (2,)
    assert Region.from_json(items("videorefer-d", published)[0].regions[0]).frames == (0, 2, 5)


def test_a_frame_without_a_mask_gets_the_last_one_as_recorded(published: Path) -> None:
    recorded = items("videorefer-q", published)[0]
    assert Region.from_json(recorded.regions[1]).frames == (1, 4)
    assert filled(recorded, 4, 1) == filled(recorded, 1, 1) == (40, 30, 60, 50)
    meant = items("videorefer-q", published, correct=("missing-masks",))[0]
    assert Region.from_json(meant.regions[1]).frames == (1,)
    assert meant.regions[0] == recorded.regions[0]
    asked = items("videorefer-q", published, "full")[0]
    assert [Region.from_json(region).frames for region in asked.regions] == [(1,), (1,)]
    options = " ".join(texts("choices")[0]["options"])
    assert f"? {options}. Answer" in asked.question


def test_ferret_names_the_region_for_lite_alone(published: Path) -> None:
    full, lite = (items("ferret", published, kind)[0] for kind in ("full", "lite"))
    assert full.question == "Why is <region> here?"
    assert lite.question == "There is 1 region in the image: <region> Why is  here?"
    assert full.gold["role"] == "Assistant"
    assert full.gold["answer"] == texts("reviews")[0]["answer"]
    assert filled(full) == (5, 5, 25, 25)


def test_dlc_asks_what_its_questions_are_of(published: Path, tmp_path: Path) -> None:
    found = items("dlc", published)
    assert [item.id for item in found] == list(texts("dlc"))
    assert filled(found[0]) == (5, 5, 35, 35)  # counts as a list
    data = shutil.copytree(published, tmp_path / "data")
    path = data / "benchmarks/DLC-Bench/qa.json"
    asked = json.loads(path.read_text())
    path.write_text(json.dumps({"101": asked["101"]}))
    assert [item.id for item in items("dlc", data)] == ["101"]
    path.write_text(json.dumps(asked | {"999": asked["101"]}))
    with pytest.raises(ValueError, match=r"annotation for each of qa.json, got none for 999"):
        items("dlc", data)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_files_are_named_with_where_they_come_from(name: str, tmp_path: Path) -> None:
    sources = BENCHMARKS[name].sources("lite")
    with pytest.raises(ValueError, match="missing") as error:
        check_sources(tmp_path, sources)
    for source in sources:
        assert source.paths[0] in str(error.value)
        assert "https://" in source.origin
        assert source.origin in str(error.value)


def test_missing_images_are_counted(published: Path, tmp_path: Path) -> None:
    data = shutil.copytree(published, tmp_path / "data")
    (data / "data/VG/3.jpg").unlink()
    with pytest.raises(ValueError, match=r"missing 1 of 6 images or videos, such as data/VG/3.jpg \(from somewhere\)"):
        check_media(data, items("vg", data), "somewhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "list of objects"),
        ("{}", "list of objects"),
        ("nothing", "JSON"),
        ('[{"image": ["a"]}]', "entry 0: expected the key 'height'"),
    ],
)
def test_files_of_another_format(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "vg_val_5000.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        items("vg", tmp_path)


def test_masks_of_another_format(published: Path, tmp_path: Path) -> None:
    data = shutil.copytree(published, tmp_path / "data")
    path = data / "benchmarks/lvis_val_1k_category.json"
    images = json.loads(path.read_text())
    for bad in ({"size": [4, 4]}, "mask", None, [["a"]], {"size": [4, 4], "counts": None}):
        images[0]["annotations"][0]["segmentation"] = bad
        path.write_text(json.dumps(images))
        with pytest.raises(ValueError, match="segmentation: expected polygons or run lengths"):
            items("lvis", data)


def test_corrections_are_those_of_the_benchmark() -> None:
    offered = BENCHMARKS["ferret"].corrections
    assert chosen_corrections(["all"], offered) == {"review-line", "review-boxes"}
    assert chosen_corrections([], offered) == frozenset()
    with pytest.raises(ValueError, match=r"--correct: expected some of review-line, review-boxes, all, got 'vg-mask'"):
        chosen_corrections(["vg-mask"], offered)
