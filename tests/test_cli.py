"""The command line: what goes where, with which exit code, on good and on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pixelrefer_fast
from pixelrefer_fast import Region, cli
from pixelrefer_fast.cli.output import progress_bar
from pixelrefer_fast.cli.verify import print_report

ASSETS = Path(pixelrefer_fast.__file__).parent / "assets"
HEIGHT, WIDTH = 60, 80
COMMANDS = ("describe", "ask", "encode", "convert", "verify", "doctor", "demo")


class FakeModel:
    """Answers at once and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def describe(self, media: Any, regions: list[Region], question: str | None = None, **options: Any) -> list[str]:
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        print("a library says hello")
        return [f"text {i}\x1b[31m" for i in range(len(regions))]

    def ask(self, media: Any, question: str, regions: Any = None, **options: Any) -> str:
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        return "an answer\x07"

    def stream(self, media: Any, question: str, regions: Any = None, **options: Any) -> Iterator[str]:
        self.calls.append({"media": media, "regions": regions, "question": question, "options": options})
        yield from ("an ", "ans", "wer\x07")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    loads: list[tuple[str, dict[str, str]]] = []

    def load(name: str, **where: str) -> FakeModel:
        loads.append((name, where))
        return fake

    monkeypatch.setattr(pixelrefer_fast, "load", load)
    monkeypatch.setenv("PIXELREFER_FAST_MODEL", "some/model")
    fake.loads = loads  # type: ignore[attr-defined]
    return fake


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 120, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def video(tmp_path: Path) -> str:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    def call(*arguments: str) -> SimpleNamespace:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


def mask_file(path: Path, x0: int, y0: int, x1: int, y1: int, mode: str = "L") -> str:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    if mode == "RGBA":  # a cut-out: colours everywhere, transparent outside
        Image.fromarray(np.dstack([pixels * 0 + 7] * 3 + [pixels])).save(path)
    elif mode == "P":
        labels = Image.fromarray((pixels > 0).astype(np.uint8), "P")
        labels.putpalette([0, 0, 0, 200, 10, 10])
        labels.save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    return str(path)


def marked(region: Region, frame: int | None = None) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(region.mask(HEIGHT, WIDTH, frame))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def one_error_line(result: SimpleNamespace, *parts: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


# --- help, versions, start-up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run: Callable[..., SimpleNamespace], command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"$ pixelrefer-fast {command}" in " ".join(result.out.split())
    assert "--json" in result.out
    assert result.err == ""


def test_help_version_and_no_command(run: Callable[..., SimpleNamespace]) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert run("--version").out == f"pixelrefer-fast {pixelrefer_fast.__version__}\n"
    nothing = run()
    assert nothing.code == 2
    assert "describe" in nothing.out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pixelrefer_fast import cli; assert cli.main(['describe', '--help']) == 0; "
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'PIL', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_installed_command_runs(image: str) -> None:
    command = str(Path(sys.executable).with_name("pixelrefer-fast"))
    assert subprocess.run([command, "--version"], capture_output=True, check=True).stdout.startswith(b"pixelrefer-fast")
    ran = subprocess.run([command, "describe", image, "--model", "m"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


# --- regions --------------------------------------------------------------------------------------------------------


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


# --- answers --------------------------------------------------------------------------------------------------------


def test_describe_prints_a_text_per_region_and_nothing_else_on_stdout(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str
) -> None:
    arguments = ("describe", image, "--box", "1,1,9,9", "--box", "2,2,9,9", "--question", "What is <region>?")
    options = ("--max-new-tokens", "7", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3")
    result = run(
        *arguments, *options, "--model", "my/model", "--device", "cpu", "--dtype", "float32", "--backend", "torch"
    )
    assert result.code == 0, result.err
    assert result.out == "0: text 0\\x1b[31m\n1: text 1\\x1b[31m\n"
    assert "a library says hello" in result.err
    assert model.loads == [("my/model", {"device": "cpu", "dtype": "float32", "backend": "torch"})]  # type: ignore[attr-defined]
    call = model.calls[0]
    assert call["question"] == "What is <region>?"
    assert call["options"] == {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    assert call["media"].shape == (HEIGHT, WIDTH, 3)


def test_json_is_one_document(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.png"
    result = run("describe", image, "--box", "1,1,9,9", "--json", "--save", str(target))
    document = json.loads(result.out)
    assert document["regions"] == [{"region": 0, "given": "--box 1,1,9,9", "frames": None, "text": "text 0\x1b[31m"}]
    assert document["model"] == "some/model"
    assert document["random_weights"] is False
    assert document["saved"] == str(target)
    assert set(document["seconds"]) == {"load", "describe"}
    with Image.open(target) as picture:
        assert picture.width >= 640


def test_saved_sheet_of_a_video(
    run: Callable[..., SimpleNamespace], model: FakeModel, video: str, tmp_path: Path
) -> None:
    target = tmp_path / "sheet.png"
    assert run("describe", video, "--box", "1,1,40,40", "--frame", "2", "--save", str(target)).code == 0
    with Image.open(target) as picture:
        assert picture.width == 1600


def test_ask_and_stream(run: Callable[..., SimpleNamespace], model: FakeModel, image: str) -> None:
    arguments = ("ask", image, "Is <region> near <region>?", "--box", "1,1,9,9", "--xywh", "2,2,9,9")
    assert run(*arguments).out == "an answer\\x07\n"
    assert run(*arguments, "--stream").out == "an answer\\x07\n"
    assert [len(call["regions"]) for call in model.calls] == [2, 2]
    document = json.loads(run(*arguments, "--json").out)
    assert document["answer"] == "an answer\x07"
    assert (document["model"], document["random_weights"]) == ("some/model", False)
    assert len(document["regions"]) == 2
    one_error_line(run(*arguments, "--stream", "--json"), "--stream")
    one_error_line(run("ask", image), "QUESTION")


def test_objects_bring_their_own_regions(
    run: Callable[..., SimpleNamespace], model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "o.safetensors")
    one_error_line(run("ask", path, "What?", "--box", "0,0,5,5"), "own regions")
    one_error_line(run("ask", path, "What?", "--frame", "0"), "--frame")
    one_error_line(run("ask", path, "What?"), "o.safetensors")
    Path(path).write_bytes(b"\xff" * 64)
    one_error_line(run("ask", path, "What?"), "o.safetensors")
    one_error_line(run("encode", path, "--box", "0,0,5,5", "--out", str(tmp_path / "x.txt")), ".safetensors")


def test_without_a_model_the_bundled_one_says_that_its_words_mean_nothing(
    run: Callable[..., SimpleNamespace], image: str, monkeypatch: pytest.MonkeyPatch, model: FakeModel
) -> None:
    monkeypatch.delenv("PIXELREFER_FAST_MODEL", raising=False)
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.code == 0
    ((name, _),) = model.loads  # type: ignore[attr-defined]
    assert Path(name).parts[-2:] == ("assets", "lite")
    for words in ("random", "mean nothing", "PixelRefer-Lite-2B", "PixelRefer-7B", "PIXELREFER_FAST_MODEL"):
        assert words in result.err
    for arguments in (("describe", image), ("ask", image, "What is <region>?")):
        document = json.loads(run(*arguments, "--box", "1,1,9,9", "--json").out)
        assert document["random_weights"] is True
        assert document["model"] == name


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ValueError("region 0: expected\nsomething \x1b[2J else"),
            2,
            "error: region 0: expected something \\x1b[2J else",
        ),
        (FileNotFoundError(2, "No such file", "w.bin"), 2, "w.bin"),
        (RuntimeError("out of memory"), 1, "failed: RuntimeError: out of memory (set PIXELREFER_FAST_TRACEBACK=1"),
        (KeyError("x"), 1, "failed: KeyError: 'x'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_the_model(
    run: Callable[..., SimpleNamespace],
    model: FakeModel,
    image: str,
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(model, "describe", fails)
    result = run("describe", image, "--box", "1,1,9,9", "--json")
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    assert said in result.err
    assert len(result.err.splitlines()) == (1 if said else 0)


def test_traceback_on_request(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "describe", lambda *_, **__: 1 / 0)
    assert "Traceback" not in run("describe", image, "--box", "1,1,9,9").err
    monkeypatch.setenv("PIXELREFER_FAST_TRACEBACK", "1")
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.code == 1
    assert "Traceback" in result.err


def test_a_reader_that_has_gone_is_no_error() -> None:
    script = "import sys; from pixelrefer_fast import cli; sys.exit(cli.main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.returncode == 1
    assert ran.stderr == ""


CLOSED = """
import os, sys
import pixelrefer_fast
from pixelrefer_fast import cli
class Model:
    def describe(self, media, regions, question=None, **options):
        print("a library says hello"); print("and complains", file=sys.stderr); os.write(2, b"from C")
        return ["x"]
pixelrefer_fast.load = lambda name, **where: Model()
sys.exit(cli.main(sys.argv[1:]))
"""


def closed(which: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that starts with standard streams closed, as `2>&-` in a shell does."""
    command = ["sh", "-c", f'exec "$@" {which}', "sh", sys.executable, "-c", CLOSED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_closed_standard_streams(image: str, tmp_path: Path) -> None:
    good = ("describe", image, "--box", "1,1,9,9", "--model", "m")
    saved = tmp_path / "saved.png"
    for which in ("2>&-", "<&- 2>&-"):
        ran = closed(which, *good, "--save", str(saved))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "0: x\n", "")
        with Image.open(saved) as picture:
            picture.load()
    bad = closed("2>&-", "describe", str(tmp_path / "gone.png"), "--box", "1,1,9,9", "--model", "m")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "")
    ran = closed(">&-", *good)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "failed: standard output is closed: there is nowhere to write an answer to\n"
    assert closed(">&- 2>&-", *good).returncode == 1
    assert closed("<&-", *good).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full, a disk without room, is Linux's")
def test_standard_output_without_room(image: str) -> None:
    ran = closed(">/dev/full", "describe", image, "--box", "1,1,9,9", "--model", "m")
    assert ran.returncode == 1
    assert ran.stderr.count("failed: ") == 1
    assert "No space left" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_arguments_that_are_not_text(run: Callable[..., SimpleNamespace], image: str, tmp_path: Path) -> None:
    rest = ("--box", "1,1,9,9", "--max-new-tokens", "2", "--model", str(ASSETS / "lite"))
    cases = (  # Python puts \udcff in the place of a byte FF that is no UTF-8
        ("ask", image, "What is <region>\udcff?", *rest),
        ("describe", image, "--question", "\udcff <region>", *rest),
        ("describe", f"{tmp_path}/caf\udce9.png", *rest),
        ("describe", image, "--box", "\udcff", *rest),
        ("describe", image, "--\udcff", *rest),
        ("doctor", "--\udcff\x1b"),
    )
    for arguments in cases:
        result = run(*arguments)
        one_error_line(result)
        assert result.err[:-1].isprintable()
    command = [sys.executable, "-m", "pixelrefer_fast.cli", *map(os.fsencode, cases[2])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_warnings_are_lines_on_stderr(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "describe", lambda *_, **__: warnings.warn("region 0: tiny", stacklevel=1) or ["x"])
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.out == "0: x\n"
    assert result.err == "warning: region 0: tiny\n"


# --- verify, doctor -------------------------------------------------------------------------------------------------


def verified(ok: bool) -> dict[str, Any]:
    good = {"error": 3e-7, "limit": 1e-4, "ok": True}
    bad = {"error": None, "limit": 0.0, "ok": ok, "note": "call 0: expected grids"}
    cases = [
        {"name": "case_a", "ok": True, "stages": {"features": good, "text": {"error": 0.0, "limit": 0.0, "ok": True}}},
        {"name": "case_b", "ok": ok, "stages": {"features": {**good, "limit": 1e-3}, "text": bad}},
    ]
    return {"ok": ok, "backend": "auto", "device": "cpu", "cases": cases}


@pytest.mark.parametrize("ok", [True, False])
def test_verify_exit_code_table_and_json(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def replay(folder: str, **options: Any) -> dict[str, Any]:
        asked.append({"folder": folder, **options})
        return verified(ok)

    monkeypatch.setattr(pixelrefer_fast.verify, "verify", replay)
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
    result = run("verify", str(tmp_path), *options, "--json")
    assert result.code == (0 if ok else 1)
    assert json.loads(result.out) == verified(ok)
    assert asked[0] | {"progress": None} == {
        "folder": str(tmp_path), "backend": "torch", "device": "cpu", "dtype": "float32", "progress": None,
    }  # fmt: skip
    table = run("verify", str(tmp_path))
    assert table.code == result.code
    for part in ("case_a", "case_b", "features", "3e-07", "≤ 0.0001", "call 0: expected grids"):
        assert part in table.out
    assert ("FAIL" in table.out) is not ok


def test_verify_of_a_folder_without_cases_is_bad_input(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    one_error_line(run("verify", str(tmp_path)), str(tmp_path))
    one_error_line(run("verify", str(tmp_path / "gone"), "--json"), "gone")


def test_verify_table_with_many_stages_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("crops", "patches", "features", "object_tokens", "input_ids", "inputs_embeds", "logits", "text")
    stages = {name: {"error": 1.234e-7, "limit": 1e-4, "ok": True} for name in names}
    cases = [{"name": "case_image_two_objects_tall", "ok": True, "stages": stages}]
    print_report({"ok": True, "backend": "auto", "device": "cpu", "cases": cases}, sys.stdout)
    out = capsys.readouterr().out
    assert out.count("1.2e-07") == 8
    assert "case_image_two_objects_tall" in out
    assert "…" not in out


def test_doctor_json(run: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast import doctor

    monkeypatch.setattr(doctor, "report", lambda: {"problems": [], "value": float("nan")})
    assert json.loads(run("doctor", "--json").out) == {"problems": [], "value": None}


SLOW = """
import sys, time
from pixelrefer_fast import cli
from pixelrefer_fast.checkpoint import folder
def write(path, tensors):
    path.write_bytes(b"half of the weights")
    print("writing", flush=True, file=sys.stderr)
    time.sleep(60)
folder.write_safetensors = write
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("there", "number", "code"), [(False, signal.SIGTERM, 143), (True, signal.SIGHUP, 129), (True, signal.SIGINT, 130)]
)
def test_a_convert_that_is_ended_leaves_nothing(tmp_path: Path, there: bool, number: int, code: int) -> None:
    target = tmp_path / "new"
    if there:
        target.mkdir()
    command = [sys.executable, "-c", SLOW, "convert", str(ASSETS / "lite"), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "writing\n"
        assert list(tmp_path.rglob("*.partial"))
        child.send_signal(number)
        assert child.wait(30) == code
        assert child.stderr.read() == ""
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_progress_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar("verify", 3) as moved:
        assert moved is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("verify", 3) as moved:
        assert moved is not None
        moved("case_a")


# --- the real thing on the bundled checkpoints ----------------------------------------------------------------------


def test_demo(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path / "new"))
    assert result.code == 0, result.err
    assert "weights of these two small checkpoints are random: the words mean nothing" in result.out
    assert result.out.count("\n0: ") == 2
    assert result.out.count("\n1: ") == 2
    for kind in ("lite", "full"):
        with Image.open(tmp_path / "new" / f"demo-{kind}.png") as picture:
            assert picture.width == 902
    (tmp_path / "file").write_text("")
    one_error_line(run("demo", "--out", str(tmp_path / "file")), "--out")


def test_demo_as_json(run: Callable[..., SimpleNamespace], model: FakeModel, tmp_path: Path) -> None:
    report = json.loads(run("demo", "--out", str(tmp_path), "--json").out)
    assert report["random_weights"] is True
    assert [entry["model"] for entry in report["models"]] == ["PixelRefer-Lite", "PixelRefer"]
    for entry in report["models"]:
        assert [r["region"] for r in entry["regions"]] == [0, 1]
        assert all(r["seconds"] > 0 and r["text"] for r in entry["regions"])
        assert Path(entry["saved"]).is_file()
    assert [str(Path(name).name) for name, _ in model.loads] == ["lite", "full"]  # type: ignore[attr-defined]


def test_encode_then_ask_is_ask(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    photograph, model = str(ASSETS / "cat.jpg"), str(ASSETS / "lite")
    question, box = "What is <region>?", ("--box", "60,50,360,275")
    objects = str(tmp_path / "cat.safetensors")
    short = ("--model", model, "--max-new-tokens", "6", "--json")
    asked = json.loads(run("ask", photograph, question, *box, *short).out)
    encoded = json.loads(run("encode", photograph, *box, "--out", objects, "--model", model, "--json").out)
    assert encoded["tokens"] > 0
    assert (encoded["model"], encoded["random_weights"]) == (model, False)
    assert encoded["bytes"] == Path(objects).stat().st_size
    again = json.loads(run("ask", objects, question, *short).out)
    assert again["answer"] == asked["answer"]
    assert again["regions"] is None
    assert os.listdir(tmp_path) == ["cat.safetensors"]
    one_error_line(run("ask", photograph, "What?", *box, "--model", model), "<region>")
    one_error_line(run("ask", objects, question, "--model", str(ASSETS / "full")), "objects")


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize(("option", "value"), [("--fps", "0"), ("--fps", "nan"), ("--max-frames", "0")])
def test_options_of_videos_are_checked_whatever_the_model(
    run: Callable[..., SimpleNamespace], video: str, kind: str, option: str, value: str
) -> None:
    marks = ("--frame", "0", "--box", "1,1,9,9", "--model", str(ASSETS / kind))
    one_error_line(run("describe", video, *marks, option, value), option.strip("-").replace("max-frames", "max"))


def test_convert_writes_a_checkpoint_that_answers_alike(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("convert", str(ASSETS / "lite"), str(tmp_path / "new"), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["tensors"] > 0
    arguments = ("describe", str(ASSETS / "cat.jpg"), "--box", "60,50,360,275", "--max-new-tokens", "4", "--model")
    assert run(*arguments, str(tmp_path / "new")).out == run(*arguments, str(ASSETS / "lite")).out
    one_error_line(run("convert", str(ASSETS / "lite"), str(tmp_path / "new")), "new")
    one_error_line(run("convert", str(tmp_path / "gone"), str(tmp_path / "other")), "gone")
    one_error_line(run(*arguments, str(tmp_path / "gone")), "gone")
