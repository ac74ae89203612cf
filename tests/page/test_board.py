"""Boards: marks, numbers, undoing, following; and what a visitor could send that no page does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam

import pixelrefer_fast as pf
from pixelrefer_fast.page.asked import PageFile, as_curl, as_python, describing, read_question
from pixelrefer_fast.page.board import MOST_OBJECTS, MOST_UNDONE, Board
from pixelrefer_fast.page.visit import Desk, Visit, plain_name
from pixelrefer_fast.segmenting import load_segmenter
from pixelrefer_fast.serving import Limits
from pixelrefer_fast.serving.media import MediaReader

PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[10:20, 10:30] = (220, 30, 30)


def board_of(media: Any, segmenter: Any = None) -> Board:
    opened = pf.open_media(media)
    video = not isinstance(opened, np.ndarray)
    return Board(opened, (segmenter or load_segmenter()).open(opened), 0 if video else None)


def test_marks_become_the_regions_of_requests() -> None:
    board = board_of(PICTURE).boxed([10, 10, 30, 20], False).clicked(15, 12, 1)
    boxed, clicked = board.given("lite")
    assert boxed == {"box": [10, 10, 30, 20]}
    assert clicked == {"points": [[15, 12]], "labels": [1]}
    found = load_segmenter().open(PICTURE).masks([[15, 12]])[0].region.mask(40, 60)
    assert np.array_equal(board.regions("lite")[1].mask(40, 60), found)
    painted = board_of(PICTURE).painted([[5, 5], [9, 5]], 3, erase=False)
    (rle,) = painted.given("lite")
    assert np.array_equal(pf.Region.of(rle["rle"]).mask(40, 60), painted.regions("lite")[0].mask(40, 60))
    cut = board_of(PICTURE).boxed([5, 5, 40, 30], True).regions("lite")[0].mask(40, 60)
    assert cut.sum() == 200


def test_numbers_follow_and_steps_go_back() -> None:
    board = board_of(PICTURE)
    for at in range(3):
        board = board.boxed([at, at, at + 5, at + 5], False)
    assert [one["box"][0] for one in board.removed(1).given("lite")] == [0, 2]
    assert board.removed(1).undone().given("lite") == board.given("lite")
    assert board.undone().undone().undone().undone().objects == ()
    changed = board.choosing(0).boxed([7, 7, 9, 9], False)
    assert [one["box"][0] for one in changed.given("lite")] == [7, 1, 2]
    for _ in range(MOST_UNDONE + 5):
        changed = changed.painted([[3, 3]], 2, erase=False)
    for _ in range(MOST_UNDONE + 5):
        changed = changed.undone()
    assert changed.given("lite")[0].keys() == {"rle"}  # what was long ago is forgotten
    while len(board.objects) < MOST_OBJECTS:
        board = board.boxed([1, 1, 4, 4], False)
    with pytest.raises(ValueError, match=f"at most {MOST_OBJECTS}"):
        board.boxed([1, 1, 4, 4], False)


def test_erasing_all_of_an_object_removes_it() -> None:
    board = board_of(PICTURE).painted([[5, 5]], 3, erase=False)
    assert board.painted([[5, 5]], 9, erase=True).objects == ()
    with pytest.raises(ValueError, match="eraser: expected an object that is marked here"):
        board_of(PICTURE).painted([[5, 5]], 9, erase=True)


@pytest.mark.parametrize("how", ["click", "box"])
def test_objects_are_followed_by_a_tracker(tmp_path: Path, how: str) -> None:
    """As the segmenter itself does; the full model gets the fullest frame alone."""
    sam = load_segmenter(tiny_sam.save("sam2_video", tmp_path))
    video, box, point = list(tiny_sam.frames()), [3, 4, 40, 30], [20.0, 15.0]
    board = board_of(video, sam).at(2)
    board = board.clicked(*point, 1) if how == "click" else board.boxed(box, False)
    height, width = board.size
    own = board.objects[0][2].mask
    followed = board.tracked()
    opened = sam.open(pf.open_media(video))
    given: dict[str, Any] = {"points": [point], "labels": [1]} if how == "click" else {"boxes": [box]}
    (expected,) = (found.region for found in opened.track(**given, frame=2))
    (region,) = followed.regions("lite")
    assert len(expected.frames or ()) > 1
    assert set(region.frames or ()) == {*(expected.frames or ()), 2}
    assert np.array_equal(region.mask(height, width, frame=2) > 0, own)  # what the person has seen stays
    for frame in set(expected.frames or ()) - {2}:
        assert np.array_equal(region.mask(height, width, frame=frame), expected.mask(height, width, frame=frame))
    (single,) = followed.regions("full")
    assert len(single.frames or ()) == 1
    assert followed.undone().objects[0].keys() == {2}
    with pytest.raises(ValueError, match="marked in frame 0"):
        board.at(0).tracked()


def test_questions_name_objects_by_number() -> None:
    board = board_of(PICTURE).boxed([1, 1, 5, 5], False).boxed([2, 2, 6, 6], False)
    ask = read_question("Is #1 left of #0 or #1?", board)
    assert (ask.text, ask.objects) == ("Is <region> left of <region> or <region>?", (1, 0, 1))
    assert read_question("What is <region>?", board).objects == (0,)
    assert read_question("How many?", board).objects == (0, 1)
    ((question, regions),) = read_question("How many?", board).questions(board, "lite")
    assert question.startswith("There are 2 objects in the image: <object0><region>, <object1><region>.")
    assert len(regions) == 2
    assert [len(own) for _, own in describing(board).questions(board, "lite")] == [1, 1]
    for text, message in (("", "got none"), ("#2", "#0 to #1, got #2"), ("#0 <region>", "got both"),
                          ("<region>" * 3, "at most 2"), ("x" * 3000, "at most 2000")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_question(text, board)


def test_names_of_files_stay_names() -> None:
    board = board_of(PICTURE).boxed([1, 1, 5, 5], False)
    source = PageFile(plain_name('../a/it\'s $(touch x) `b` "c"\n.png'))
    assert "/" not in source.name
    assert "\n" not in source.name
    arguments = (describing(board), board, source, "http://127.0.0.1:1", "lite", "lite")
    compile(as_python(*arguments), "shown", "exec")
    assert "'\"'\"'" in as_curl(*arguments)  # quoted for the shell


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "uploads" / "pictures").mkdir(parents=True)
    reader = MediaReader(Limits(pixels=5000, frames=2))
    return Desk(load_segmenter(), reader, tmp_path / "uploads", tmp_path / "uploads" / "pictures")


def test_only_uploaded_files_are_opened(desk: Desk, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "other.png")
    Image.fromarray(PICTURE).save(tmp_path / "uploads" / "own.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "other.png")
    visit = Visit()
    for path in (str(tmp_path / "other.png"), str(tmp_path / "uploads" / ".." / "other.png"), "/etc/passwd", None, 5,
                 str(tmp_path / "uploads" / "link.png"), "a\0b", str(tmp_path / "uploads"), ["x"]):  # fmt: skip
        told = desk.open_file(visit, path, "name.png")
        assert told["bad"], path
        assert told["message"] == "file: expected one that was uploaded, got another"
    assert not desk.open_file(visit, str(tmp_path / "uploads" / "own.png"), "own.png")["bad"]


def test_limits_hold_for_files(desk: Desk, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (200, 200)).save(tmp_path / "uploads" / "large.png")
    frames = [Image.new("RGB", (20, 20), (at, 0, 0)) for at in (0, 90, 200)]
    frames[0].save(tmp_path / "uploads" / "long.gif", save_all=True, append_images=frames[1:], duration=100)
    visit = Visit()
    for name, message in (("large.png", "at most 5000 pixels"), ("long.gif", "at most 2 frames")):
        told = desk.open_file(visit, str(tmp_path / "uploads" / name), name)
        assert told["bad"]
        assert message in told["message"]
        assert told["message"].startswith(name)


def test_odd_actions_are_told(desk: Desk, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "uploads" / "own.png")
    visit = Visit()
    assert desk.step(visit, "undo", {})["message"] == "picture: expected one to be opened first, got none"
    desk.open_file(visit, str(tmp_path / "uploads" / "own.png"), "own.png")
    odd: list[tuple[str, dict[str, Any]]] = [
        ("click", {"x": "1", "y": 2, "label": 1}), ("click", {"x": float("nan"), "y": 2, "label": 1}),
        ("click", {"x": 1e9, "y": 2, "label": 1}), ("click", {"x": 1, "y": 2, "label": 2}),
        ("click", {"x": 1, "y": 2, "label": 0}), ("click", {"x": 1, "y": 2, "label": [1]}), ("box", {}),
        ("box", {"corners": [1, 2]}), ("box", {"corners": [900, 900, 901, 901]}), ("box", {"corners": ["a"] * 4}),
        ("paint", {"points": [], "width": 3}), ("paint", {"points": [[1]], "width": 3}),
        ("paint", {"points": [[1, 1]], "width": -3}), ("paint", {"points": [[1, 1]]}),
        ("choose", {"number": 9}), ("choose", {"number": "1"}), ("remove", {}), ("remove", {"number": 4}),
        ("look", {"number": 1}), ("track", {}), ("mask", {"path": "/etc/passwd"}), ("nothing", {}), ("None", {}),
    ]  # fmt: skip
    for what, given in odd:
        told = desk.step(visit, what, given)
        assert told["bad"], (what, given)
        assert "expected" in told["message"], (what, given, told["message"])
        assert len(told["message"]) <= 200
        assert told["view"]["objects"] == []
