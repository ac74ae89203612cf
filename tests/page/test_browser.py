"""The page in a browser: marking in every way, questions, streams, requests that run, and what is wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam
from PIL import Image
from served import get, running
from visitor import Visitor

import pixelrefer_fast as pf
from pixelrefer_fast.segmenting import load_segmenter
from pixelrefer_fast.world import Scene, make_scene

Visit = Callable[..., Any]
LINES = """(code) => [...code.querySelectorAll(".cm-line")].map((line) => line.textContent).join("\\n")"""
"""Of an editor: what it holds."""


@pytest.fixture(scope="module")
def scene() -> Scene:
    """That of the first example."""
    return make_scene(102, "heldout", False)


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    found = Visitor(visit())
    found.example(0)
    return found


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def drag_box(visitor: Visitor, box: list[int]) -> None:
    x0, y0, x1, y1 = box
    visitor.drag((x0 - 0.4, y0 - 0.4), (x1 - 0.6, y1 - 0.6))  # corners are rounded to edges of pixels


def test_several_objects_are_marked_asked_about_and_described(
    visitor: Visitor, models: dict[str, Any], scene: Scene
) -> None:
    """A box, a click, a stroke, each with a number and a colour; both models answer as they do by `ask`."""
    boxes = [box_of(scene.masks[i, 0]) for i in (0, 3, 2)]
    visitor.tool("box")
    for box in boxes:
        drag_box(visitor, box)
    assert visitor.chips == ["0", "1", "2"]
    colours = visitor.page.locator(".dot").evaluate_all("(all) => all.map((dot) => dot.style.background)")
    assert len(set(colours)) == 3
    picture = scene.frames[0]
    visitor.page.locator("#question textarea").fill("Which of #1 and #0 is larger?")
    asked = {name: [model.ask(picture, "Which of <region> and <region> is larger?", boxes[1::-1])]
             for name, model in models.items()}  # fmt: skip
    assert visitor.answers("ask") == asked
    assert visitor.page.locator(".pr-asked").inner_text() == "Which of #1 and #0 is larger?"
    described = {name: model.describe(picture, boxes) for name, model in models.items()}
    assert visitor.answers("describe") == described
    for name in models:
        figures = visitor.page.locator(f"[data-model={name}] dd").all_inner_texts()
        assert len(figures) == 3
        assert " s" in figures[0]
        assert " + " in figures[1]
        assert "MB" in figures[2]
    visitor.page.get_by_label("full", exact=True).uncheck()
    assert list(visitor.answers("describe")) == ["lite"]


def test_a_click_is_cut_out_shown_and_corrected(visitor: Visitor) -> None:
    visitor.click(20, 70)
    assert visitor.chips == ["0"]
    assert "The outline of 0 is a guess" in visitor.message
    path = visitor.page.locator("#marker .line").first
    before = path.get_attribute("d")
    visitor.changed(lambda: visitor.page.locator("[data-number='0']").click())
    visitor.tool("beside")
    visitor.click(60, 40)
    assert visitor.chips == ["0"]
    assert visitor.page.locator("#marker circle").count() == 2
    visitor.changed(lambda: visitor.page.locator("[data-do=undo]").click())
    assert visitor.page.locator("#marker circle").count() == 1
    assert path.get_attribute("d") == before
    visitor.changed(lambda: visitor.page.get_by_label("Remove object 0").click())
    assert visitor.chips == []


def test_strokes_paint_and_erase(visitor: Visitor) -> None:
    visitor.tool("brush")
    visitor.drag((20, 70), (50, 70))
    visitor.drag((20, 90), (50, 90))
    assert visitor.chips == ["0"]  # a stroke goes on with the object that it began
    assert visitor.page.locator("#marker .line").get_attribute("d").count("M") == 2
    visitor.tool("eraser")
    visitor.drag((18, 90), (53, 90))
    assert visitor.page.locator("#marker .line").get_attribute("d").count("M") == 1
    visitor.changed(lambda: visitor.page.get_by_text("+ new").click())
    visitor.tool("brush")
    visitor.drag((120, 30), (140, 30))
    assert visitor.chips == ["0", "1"]


def test_a_file_and_its_mask_are_taken(visit: Visit, scene: Scene, models: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(scene.frames[0]).save(tmp_path / "own picture.png")
    Image.fromarray(scene.masks[2, 0]).save(tmp_path / "mask.png")
    Image.new("L", (5, 5), 255).save(tmp_path / "small.png")
    visitor = Visitor(visit())
    visitor.upload(tmp_path / "own picture.png")
    visitor.upload(tmp_path / "small.png", "mask")
    assert "expected a mask of" in visitor.message
    visitor.upload(tmp_path / "mask.png", "mask")
    assert visitor.chips == ["0"]
    expected = models["lite"].describe(scene.frames[0], [scene.masks[2, 0]])
    assert visitor.answers("describe")["lite"] == expected


def test_what_is_wrong_is_a_message(visit: Visit, tmp_path: Path) -> None:
    visitor = Visitor(visit())
    visitor.changed(lambda: visitor.page.locator("#ask").click())
    assert visitor.message == "picture: expected one to be opened first, got none"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    for name in ("broken.png", "empty.mp4", "notes.txt"):
        visitor.upload(tmp_path / name)
        assert visitor.message.startswith(f"{name}: "), visitor.message
        assert "expected" in visitor.message
        assert "Traceback" not in visitor.page.content()
        assert str(tmp_path) not in visitor.message
    visitor.example(0)
    for button, message in (("ask", "question: expected a marked object"), ("describe", "describe: expected a marked")):
        visitor.changed(lambda button=button: visitor.page.locator(f"#{button}").click())  # type: ignore[misc]
        assert message in visitor.message
    visitor.tool("box")
    visitor.drag((10, 10), (40, 40))
    visitor.page.locator("#question textarea").fill("What is #7?")
    visitor.changed(lambda: visitor.page.locator("#ask").click())
    assert visitor.message == "question: expected #0 to #0, got #7"


@pytest.fixture
def held(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Answers of Lite go no further than three tokens until it is set."""
    go_on, stream = threading.Event(), models["lite"].stream_async

    async def slowly(*arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(stream(*arguments, **options)) as events:
            count = 0
            async for event in events:
                yield event
                count += 1
                while count == 3 and not go_on.is_set():
                    await asyncio.sleep(0.01)

    monkeypatch.setattr(models["lite"], "stream_async", slowly)
    yield go_on
    go_on.set()


def test_text_comes_in_pieces(visitor: Visitor, scene: Scene, held: threading.Event, models: dict[str, Any]) -> None:
    visitor.tool("box")
    box = box_of(scene.masks[0, 0])
    drag_box(visitor, box)
    (whole,) = models["lite"].describe(scene.frames[0], [box])
    page = visitor.page
    page.locator("#describe").click()
    card = page.locator("[data-model=lite]")
    page.wait_for_function("() => document.querySelector('[data-model=lite] .pr-text > span:last-child')?.innerText")
    page.wait_for_timeout(300)
    part = card.locator(".pr-text > span:last-child").inner_text()
    assert part
    assert whole.startswith(part)
    assert part != whole
    assert card.get_attribute("data-state") == "growing"
    held.set()
    page.locator("[data-model=lite][data-state=done]").wait_for()
    assert card.locator(".pr-text > span:last-child").inner_text() == whole


def test_stop_ends_an_answer(visitor: Visitor, scene: Scene, held: threading.Event, address: str) -> None:
    visitor.tool("box")
    drag_box(visitor, box_of(scene.masks[0, 0]))
    page = visitor.page
    page.locator("#describe").click()
    page.wait_for_function("() => document.querySelector('[data-model=lite] .pr-text > span:last-child')?.innerText")
    assert "pixelrefer_open_requests 2.0" in get(address, "/metrics")[1]  # one for each model
    page.locator("#stop").click()
    for _ in range(500):
        if "pixelrefer_open_requests 0.0" in get(address, "/metrics")[1]:
            break
        page.wait_for_timeout(20)
    assert "pixelrefer_open_requests 0.0" in get(address, "/metrics")[1]
    held.set()
    assert list(visitor.answers("describe")) == ["lite", "full"]


def test_a_model_that_fails_is_a_message(
    visitor: Visitor, scene: Scene, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("/secret/path")

    visitor.tool("box")
    drag_box(visitor, box_of(scene.masks[0, 0]))
    with monkeypatch.context() as patched:
        patched.setattr(models["full"], "stream_async", failing)
        visitor.changed(lambda: visitor.page.locator("#describe").click())
    assert visitor.message == "server: RuntimeError; its log tells more"
    assert "/secret/path" not in visitor.page.content()
    assert list(visitor.answers("describe")) == ["lite", "full"]


def test_the_request_runs_as_shell_and_as_python(visitor: Visitor, scene: Scene, tmp_path: Path) -> None:
    """For a question with characters that shells and JSON treat in their own way, and for descriptions."""
    visitor.tool("box")
    drag_box(visitor, box_of(scene.masks[3, 0]))
    visitor.tool("brush")
    visitor.drag((20, 60), (40, 80))
    visitor.tool("click")
    visitor.changed(lambda: visitor.page.get_by_text("+ new").click())
    visitor.click(20, 70)
    visitor.page.locator("#request button").first.click()
    question = 'What color is #0? "$HOME" `ls` \\ $(ls) \'regions\': "regions": '
    visitor.page.locator("#question textarea").fill(question)
    for button in ("ask", "describe"):
        answers = visitor.answers(button)["lite"]
        shown = {}
        for name in ("curl", "Python"):
            visitor.page.get_by_role("tab", name=name).click()
            code = visitor.page.locator(f"#{name.lower()} .cm-content")
            code.wait_for()
            shown[name] = code.evaluate(LINES)
        folder = tmp_path / button
        folder.mkdir()
        found = subprocess.run(["bash", "-c", shown["curl"]], cwd=folder, capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stderr
        for answer in answers:
            assert f'"{answer}"' in found.stdout
        ran = subprocess.run(
            [sys.executable, "-c", shown["Python"]], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert ran.stdout.splitlines() == answers, ran.stderr


def test_a_video_is_looked_through_marked_in_frames_and_asked_about(visit: Visit, models: dict[str, Any]) -> None:
    visitor = Visitor(visit())
    visitor.example(2)
    moving = make_scene(294, "heldout", True)
    boxes = {}
    visitor.tool("box")
    for frame in (0, 3):
        boxes[frame] = box_of(moving.masks[0, frame])
        visitor.changed(lambda frame=frame: visitor.page.locator("[data-frame]").fill(str(frame)))  # type: ignore[misc]
        assert f"{frame} of 0 to 5 · {frame}.00 s" in visitor.page.locator(".video output").inner_text()
        if frame:
            assert visitor.chips == ["0 (elsewhere)"]
            visitor.changed(lambda: visitor.page.locator("[data-number='0']").click())
        drag_box(visitor, boxes[frame])
    assert visitor.chips == ["0 · 2 frames"]
    visitor.page.locator("#question textarea").fill("How does #0 move?")
    answers = visitor.answers("ask")
    video = pf.open_media(list(moving.frames), times=moving.times)
    assert answers["lite"] == [models["lite"].ask(video, "How does <region> move?", [boxes])]
    fullest = max(boxes, key=lambda frame: (boxes[frame][2] - boxes[frame][0]) * (boxes[frame][3] - boxes[frame][1]))
    expected = models["full"].ask(video, "How does <region> move?", [{fullest: boxes[fullest]}])
    assert answers["full"] == [expected]
    visitor.changed(lambda: visitor.page.locator("[data-do=track]").click())
    assert "expected a segmenter that follows objects (SAM 2, SAM 3, EdgeTAM), got grabcut" in visitor.message


def test_an_object_is_followed_where_the_segmenter_can(
    visit: Visit, models: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Given a SAM 2 (a tiny one with random weights): marked in one frame, asked about in all that it is seen in."""
    from pixelrefer_fast.page import create_page

    sam = load_segmenter(tiny_sam.save("sam2_video", tmp_path / "sam"))
    frames = [Image.fromarray(frame) for frame in tiny_sam.frames()]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    own = tmp_path / "page"
    own.mkdir()
    with running(create_page(models, own, segmenter=sam)) as address:
        visitor = Visitor(visit(address))
        visitor.upload(tmp_path / "clip.webp")
        visitor.changed(lambda: visitor.page.locator("[data-frame]").fill("2"))
        visitor.tool("box")
        drag_box(visitor, [3, 4, 40, 30])
        assert visitor.chips == ["0"]
        visitor.changed(lambda: visitor.page.locator("[data-do=track]").click())
        opened = sam.open(pf.open_media(list(tiny_sam.frames())))
        (found,) = opened.track(boxes=[[3, 4, 40, 30]], frame=2)
        assert found.region.frames is not None
        assert visitor.chips == [f"0 · {len({*found.region.frames, 2})} frames"]
        assert list(visitor.answers("describe")) == ["lite", "full"]


def test_the_picture_is_downloaded_with_outlines(visitor: Visitor, scene: Scene, tmp_path: Path) -> None:
    visitor.tool("box")
    drag_box(visitor, box_of(scene.masks[0, 0]))
    with visitor.page.expect_download() as downloading:
        visitor.page.locator("#picture").click()
    downloading.value.save_as(tmp_path / "marked.png")
    assert downloading.value.suggested_filename == "marked.png"
    with Image.open(tmp_path / "marked.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    (colour,) = visitor.page.locator(".dot").evaluate_all("(all) => all.map((dot) => dot.style.background)")
    wanted = [int(number) for number in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (np.abs(pixels.astype(int) - wanted).max(axis=1) == 0).sum() > 500


def test_keys_are_enough(visitor: Visitor) -> None:
    """A box, an object of clicks and its removal without a mouse."""
    visitor.page.locator("#marker .stage").focus()
    for key in ("b", "ArrowLeft", "ArrowUp", "Enter", *("ArrowRight",) * 6, *("ArrowDown",) * 6):
        visitor.page.keyboard.press(key)
    visitor.press("Enter")
    assert visitor.chips == ["0"]
    visitor.page.keyboard.press("c")
    visitor.press("Enter")
    assert visitor.chips == ["0", "1"]
    visitor.press("1")
    visitor.press("Delete")
    assert visitor.chips == ["0"]
    visitor.press("z")
    assert visitor.chips == ["0", "1"]


def test_a_phone_in_the_dark(visit: Visit) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    visitor = Visitor(visit(**phone))
    visitor.example(0)
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(number) for number in ground[4:-1].split(",")) < 60
    visitor.changed(lambda: page.touchscreen.tap(*visitor.place(20, 70)))
    assert visitor.chips == ["0"]
    assert list(visitor.answers("describe")) == ["lite", "full"]


def test_visitors_are_apart(visit: Visit) -> None:
    first, second = Visitor(visit()), Visitor(visit())
    first.example(0)
    second.example(1)
    first.tool("box")
    first.drag((10, 10), (50, 50))
    second.tool("box")
    assert second.chips == []
    assert first.chips == ["0"]
