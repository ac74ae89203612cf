"""The command line: what marks an object, in every form, good and bad."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, FakeModel, marked, mask_file, one_error_line
from PIL import Image

from pixelrefer_fast import Region


def test_regions_keep_the_order_of_the_command_line(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path
) -> None:
    mask = mask_file(tmp_path / "mask.png", 10, 20, 30, 40)
    rle, several = tmp_path / "rle.json", tmp_path / "regions.json"
    rle.write_text(
        json.dumps({"size": [HEIGHT, WIDTH], "counts": [2 * HEIGHT + 3, 5, (WIDTH - 3) * HEIGHT + HEIGHT - 8]})
    )
    several.write_text(
        json.dumps([Region.from_box(xyxy=(50, 1, 60, 9)).to_json(), json.loads(rle.read_text()), [70, 50, 80, 60]])
    )
    result = run(
        *("describe", "--box", "1,2,3,4", f"--mask={mask}", image, "--box=5,6,7,8", "--rle", str(rle)),
        *("--regions", str(several), "--xywh", "10,10,5,6", "--polygon", "0,0 20,0 20,20 0,20"),
        *("--mask", mask, "--scribble", "30,30 50,30:5", "--box", "-3,0,2,2", "--json"),
    )
    assert result.code == 0, result.err
    boxes = [marked(region) for region in model.calls[0]["regions"]]
    assert boxes[:7] == [
        (1, 2, 3, 4), (10, 20, 30, 40), (5, 6, 7, 8), (2, 3, 3, 8), (50, 1, 60, 9), (2, 3, 3, 8), (70, 50, 80, 60),
    ]  # fmt: skip
    assert boxes[7] == (10, 10, 15, 16)
    assert boxes[8][:2] == (0, 0)
    assert boxes[9] == (10, 20, 30, 40)
    assert boxes[10][0] <= 30 < 50 <= boxes[10][2]
    assert boxes[11] == (0, 0, 2, 2)
    given = [entry["given"] for entry in json.loads(result.out)["regions"]]
    assert given[0] == "--box 1,2,3,4"
    assert given[4:7] == [f"--regions {several} [{i}]" for i in range(3)]
    assert [entry["region"] for entry in json.loads(result.out)["regions"]] == list(range(12))


def test_points_become_masks_that_are_told_before_they_are_used(
    run: Callable[..., SimpleNamespace], model: FakeModel, tmp_path: Path
) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), (30, 140, 40), np.uint8)
    pixels[20:40, 10:30] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    points = tmp_path / "points.json"
    points.write_text(json.dumps({"points": [[15, 30]]}))
    result = run(
        *("describe", str(tmp_path / "red.png"), "--box", "1,1,9,9", "--point", "20,25 60,50:0"),
        *("--regions", str(points)),
    )
    assert result.code == 0, result.err
    assert [marked(region) for region in model.calls[0]["regions"]] == [(1, 1, 9, 9), *[(10, 20, 30, 40)] * 2]
    assert "--point 20,25 60,50:0: grabcut marks 400 pixels from 10,20 to 29,39" in result.err
    failed = run("describe", str(tmp_path / "red.png"), "--point", "20,25", "--segmenter", str(tmp_path))
    one_error_line(failed, "a SAM in transformers' format")


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
def test_masks_of_any_kind_of_png(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path, mode: str
) -> None:
    assert run("describe", image, "--mask", mask_file(tmp_path / "m.png", 3, 4, 50, 44, mode)).code == 0
    assert marked(model.calls[0]["regions"][0]) == (3, 4, 50, 44)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--box", "1,2,3", "expected X0,Y0,X1,Y1"),
        ("--box", "a,b,c,d", "expected X0,Y0,X1,Y1"),
        ("--box", "nan,0,5,5", "--box nan,0,5,5"),
        ("--box", "5,5,5,9", "--box 5,5,5,9"),
        ("--box", "900,900,950,950", "60x80"),
        ("--xywh", "1,1,-4,4", "--xywh 1,1,-4,4"),
        ("--polygon", "1,1 2,2", "at least 3 corners"),
        ("--polygon", "1,1 2,2 x", "numbers with commas"),
        ("--scribble", "1,1 2,2", 'no ":WIDTH"'),
        ("--scribble", "1,1 2,2:x", "WIDTH"),
        ("--point", "1,1,2", 'expected "X,Y X,Y:0"'),
        ("--point", "1,1 2,2:2", "with :0 for a point beside the object, got :2"),
        ("--point", "1,1:0", "at least one point on the object"),
        ("--point", "90,1", "expected x below 80 and y below 60"),
        ("--mask", "missing.png", "missing.png"),
        ("--rle", "missing.json", "missing.json"),
        ("--regions", "missing.json", "missing.json"),
        ("--frame", "1", "expected a video"),
        ("--fps", "2", "expected a video"),
        ("--bx", "1,2,3,4", "--bx"),
        ("--max-new-tokens", "0", "--max-new-tokens"),
        ("--save", "nowhere/out.png", "nowhere"),
        ("--save", "out.txt", ".png"),
    ],
)
def test_bad_options_are_one_line_that_names_them_and_no_model_is_loaded(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, option: str, value: str, why: str
) -> None:
    one_error_line(run("describe", image, "--box", "1,1,9,9", option, value), option, why)
    assert model.loads == []  # type: ignore[attr-defined]


def test_bad_files_are_bad_input(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path
) -> None:
    def file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    Image.new("L", (5, 7), 255).save(tmp_path / "small.png")
    Image.new("L", (WIDTH, HEIGHT), 0).save(tmp_path / "empty.png")
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "mask.jpg")
    whole = Path(mask_file(tmp_path / "whole.png", 0, 0, 40, 40)).read_bytes()
    for option, path, why in (
        ("--mask", str(tmp_path / "small.png"), "60x80"),
        ("--mask", str(tmp_path / "empty.png"), "empty.png"),
        ("--mask", str(tmp_path / "mask.jpg"), "PNG"),
        ("--mask", file("cut.png", whole[:60]), "cut.png"),
        ("--mask", str(tmp_path), "folder"),
        ("--rle", file("list.json", "[]"), "--regions"),
        ("--rle", file("no.json", "{"), "expected JSON"),
        ("--rle", file("binary.json", b"\xff\xfe\x00"), "expected JSON"),
        ("--rle", file("deep.json", "[" * 100000), "JSON"),
        ("--rle", file("huge.json", '{"size": [100000, 100000], "counts": [10000000000]}'), "huge.json"),
        ("--regions", file("empty.json", "[]"), "at least one"),
        ("--regions", file("bad.json", '[[0,0,5,5], "x"]'), "region 1"),
    ):
        one_error_line(run("describe", image, option, path), option, why)
    one_error_line(run("describe", file("not.png", "text"), "--box", "0,0,5,5"), "not.png")
    one_error_line(run("describe", str(tmp_path / "gone.png"), "--box", "0,0,5,5"), "gone.png")
    one_error_line(run("describe", image), "at least one region")
    assert model.loads == []  # type: ignore[attr-defined]


def test_files_of_one_region_in_every_form(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path
) -> None:
    rle = Region.from_box(xyxy=(3, 4, 50, 44)).mask(HEIGHT, WIDTH)
    counts = Region.from_mask(rle).to_json()
    annotation = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts["counts"]}, "image_id": 7}
    cases = [
        ("--rle", annotation, ""),
        ("--rle", annotation, "\ufeff"),
        ("--regions", annotation, ""),
        ("--regions", [3, 4, 50, 44], ""),
        ("--regions", [[3, 4, 50, 44]], "\ufeff"),
        ("--regions", Region.from_box(xyxy=(3, 4, 50, 44)).to_json(), ""),
        ("--regions", counts, ""),
    ]
    for option, content, start in cases:
        path = tmp_path / "region.json"
        path.write_text(start + json.dumps(content), encoding="utf-8")
        result = run("describe", image, option, str(path))
        assert result.code == 0, (option, content, result.err)
        (region,) = model.calls.pop()["regions"]
        assert marked(region) == (3, 4, 50, 44)


def test_what_is_written_never_replaces_what_is_read(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, video: str, tmp_path: Path
) -> None:
    mask = mask_file(tmp_path / "mask.png", 3, 4, 50, 44)
    (tmp_path / "link.png").symlink_to(image)
    os.link(mask, tmp_path / "hard.png")
    (tmp_path / "here").symlink_to(tmp_path)
    regions, rle = tmp_path / "regions.png", tmp_path / "rle.webp"  # whatever their names say, they are JSON
    regions.write_text("[[1, 1, 9, 9]]")
    rle.write_text(json.dumps(Region.from_mask(np.ones((HEIGHT, WIDTH), bool)).to_json()))
    marks = ("--mask", mask, "--regions", str(regions), "--rle", str(rle))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    targets = [image, "link.png", "here/image.png", "../" + tmp_path.name + "/image.png"]
    targets += ["mask.png", "hard.png", "regions.png", "rle.webp"]
    for target in targets:
        one_error_line(run("describe", image, *marks, "--save", str(tmp_path / target)), "--save", "input")
    frame = os.path.join(video, "2.png")
    one_error_line(run("describe", video, "--frame", "0", *marks, "--save", frame), "--save", "input")
    for source in (image, video):
        weights = tmp_path / "checkpoint" / "model.safetensors"
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(b"weights")
        out = ("--out", str(weights), "--model", str(weights.parent))
        one_error_line(run("encode", source, *marks, *out), "--out", "input")
        named = tmp_path / "picture.safetensors"
        named.write_bytes(Path(image).read_bytes())
        one_error_line(run("encode", str(named), *marks, "--out", str(named)), "--out", "input")
    assert model.loads == []  # type: ignore[attr-defined]
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "old.png").write_bytes(b"an earlier picture")
    assert run("describe", image, *marks, "--save", str(tmp_path / "old.png")).code == 0


def test_a_video_needs_a_frame_that_exists(run: Callable[..., SimpleNamespace], model: FakeModel, video: str) -> None:
    one_error_line(run("describe", video, "--box", "1,1,9,9"), "--box 1,1,9,9", "--frame N")
    one_error_line(run("describe", video, "--box", "1,1,9,9", "--frame", "4"), "from 0 to 3", "got 4")
    one_error_line(run("describe", video, "--box", "1,1,9,9", "--frame", "-1"), "--frame")
    assert run("describe", video, "--box", "1,1,9,9", "--frame", "3", "--fps", "2", "--max-frames", "5").code == 0
    assert model.calls[0]["regions"][0].frames == (3,)
    assert model.calls[0]["options"] == {"fps": 2.0, "max_frames": 5}


def test_frame_leaves_regions_that_are_bound_already(
    run: Callable[..., SimpleNamespace], model: FakeModel, video: str, image: str, tmp_path: Path
) -> None:
    bound = tmp_path / "bound.json"
    bound.write_text(json.dumps([Region.from_frames({0: [0, 0, 5, 5], 2: [1, 1, 6, 6]}).to_json()]))
    result = run("describe", video, "--regions", str(bound), "--box", "1,1,9,9", "--frame", "1", "--json")
    assert result.code == 0, result.err
    assert [region.frames for region in model.calls[0]["regions"]] == [(0, 2), (1,)]
    assert [entry["frames"] for entry in json.loads(result.out)["regions"]] == [[0, 2], [1]]
    one_error_line(run("describe", image, "--regions", str(bound)), "bound to frames")
