"""Pictures of answers: everything marked, numbered and legible, at any size and with any text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelrefer_fast.checks.printable import one_line, safe_text
from pixelrefer_fast.pictures import answers, badges, captions


def box(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == colour).all(axis=2).mean())


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (1, 1), (20, 600), (600, 20), (300, 451), (1500, 300), (3000, 4000)]
)
def test_any_size_gives_an_upright_picture_with_every_number_and_a_panel_of_its_own(height: int, width: int) -> None:
    masks = [
        box(height, width, 0, 0, -(-width // 2), -(-height // 2)),
        box(height, width, width - 1, height - 1, width, height),
    ]
    picture = answers.picture(grey(height, width), masks, ["a large one", "one pixel"])
    assert max(picture.size) >= answers.SMALLEST
    assert max(picture.size) <= 2 * answers.LARGEST
    for number in (0, 1):
        assert share(picture, answers.colour(number)) > 0
    # the photograph's part is as large as promised, and the paper of the panel lies outside it
    longest = max(height, width)
    factor = -(-answers.SMALLEST // longest) if longest < answers.SMALLEST else 1
    pixels = np.asarray(picture)[: height * factor, : width * factor]
    assert pixels.shape[:2] == (height * factor, width * factor)
    assert not (pixels == captions.PAPER).all(axis=2).any()
    outside = picture.width * picture.height - height * width * factor**2
    assert share(picture, captions.PAPER) * picture.width * picture.height > 0.5 * outside


def test_a_large_picture_is_reduced_and_a_single_pixel_of_it_stays_marked() -> None:
    picture = answers.picture(grey(100, 9000), [box(100, 9000, 4501, 51, 4502, 52)], [""])
    assert picture.width == answers.LARGEST
    assert share(picture, answers.colour(0)) > 0


def test_the_fill_tints_the_region_and_leaves_the_rest_of_the_image_alone() -> None:
    image = grey(700, 900)
    picture = np.asarray(answers.picture(image, [box(700, 900, 100, 100, 400, 500)], ["x"]))
    expected = np.round(90 * 0.8 + 0.2 * np.array(answers.colour(0)))
    assert np.abs(picture[450, 150] - expected).max() <= 1
    assert (picture[:700, 450:900] == 90).all()
    assert (image == 90).all()


def placed(masks: list[np.ndarray], size: int = 16, gap: int = 3) -> list[badges.Badge]:
    shapes = []
    for number, mask in enumerate(masks):
        contours, _ = answers.cv2.findContours(mask, answers.cv2.RETR_CCOMP, answers.cv2.CHAIN_APPROX_SIMPLE)
        ys, xs = np.nonzero(mask)
        area = np.s_[int(ys.min()) : int(ys.max()) + 1, int(xs.min()) : int(xs.max()) + 1]
        shapes.append(badges.Shape(number, answers.colour(number), area, contours))
    covered = np.minimum(sum(m.astype(int) for m in masks), 2).astype(np.uint8)
    return badges.place(shapes, covered, size, gap)


def spot(badge: badges.Badge, size: int = 16) -> tuple[slice, slice]:
    wide, tall = captions.badge_size(badge.shape.number, size)
    return np.s_[badge.top : badge.top + tall, badge.left : badge.left + wide]


def most_on_one_pixel(found: list[badges.Badge], height: int, width: int, around: int = 1) -> int:
    count = np.zeros((height, width), int)
    for badge in found:
        rows, columns = spot(badge)
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        count[
            max(0, rows.start - around) : rows.stop + around, max(0, columns.start - around) : columns.stop + around
        ] += 1
    return int(count.max())


def test_number_badges_lie_inside_their_regions_and_never_on_each_other() -> None:
    height, width = 600, 900
    masks = [
        box(height, width, 50, 50, 850, 550),
        box(height, width, 300, 200, 600, 400),
        box(height, width, 50, 50, 850, 550),
    ]
    found = placed(masks)
    for badge, mask in zip(found, masks, strict=True):
        assert badge.pointer is None
        assert mask[spot(badge)].all()
    assert most_on_one_pixel(found, height, width) == 1


@pytest.mark.parametrize("spread", [0, 1, 4, 12])
@pytest.mark.parametrize(("wide", "tall"), [(70, 50), (160, 120), (300, 240)])
def test_badges_of_crowded_boxes_never_hide_each_other(spread: int, wide: int, tall: int) -> None:
    height, width = 480, 640
    masks = []
    for i in range(20):
        x, y = 100 + spread * i, 60 + spread * (i * 7 % 20) // 2
        masks.append(box(height, width, x, y, x + wide, y + tall))
    found = placed(masks)
    assert most_on_one_pixel(found, height, width) == 1
    for badge, mask in zip(found, masks, strict=True):
        if badge.pointer is None:  # then its middle is in its region
            rows, columns = spot(badge)
            assert mask[(rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2]
        else:
            assert mask[badge.pointer[1], badge.pointer[0]]


def test_badges_of_a_crowd_of_tiny_regions_in_a_corner_stand_apart() -> None:
    masks = [box(480, 640, 3 * i, 2 * i, 3 * i + 5, 2 * i + 5) for i in range(20)]
    found = placed(masks)
    assert most_on_one_pixel(found, 480, 640) == 1
    assert all(badge.pointer for badge in found)


def test_badges_without_any_room_are_still_placed() -> None:
    found = placed([box(30, 40, 0, 0, 40, 30) for _ in range(9)])
    assert len(found) == 9
    (badge,) = placed([box(5, 300, 100, 0, 200, 5)])
    assert badge.top == 0


def test_the_badge_of_a_tiny_region_stands_beside_it() -> None:
    mask = box(600, 900, 2, 2, 6, 6)
    (badge,) = placed([mask])
    assert badge.pointer is not None
    assert mask[badge.pointer[1], badge.pointer[0]]
    assert not mask[spot(badge)].any()


def test_captions_end_inside_their_rectangles_whatever_the_text() -> None:
    nasty = [
        "W" * 5000,
        "\x00\x07\x1b[2J" * 300,
        "a̷̢̛̫" * 200,
        "猫" * 900,
        "قطة صغيرة " * 50,
        "\u202eabc",
        "\ud800",
        "",
        "\n" * 50,
        "👩‍👩‍👧 " * 40,
    ]
    sheet = captions.panel(
        [captions.Caption(i, answers.colour(i), text) for i, text in enumerate(nasty)], 900, 18, tallest=2000
    )
    pixels = np.asarray(sheet)
    assert (pixels[:, :10] == captions.PAPER).all()
    assert (pixels[:, -10:] == captions.PAPER).all()
    assert (pixels[:8] == captions.PAPER).all()
    assert (pixels[-8:] == captions.PAPER).all()
    for i in range(len(nasty)):
        assert share(sheet, answers.colour(i)) > 0
    answers.picture(grey(40, 40), [box(40, 40, 0, 0, 20, 20)] * len(nasty), nasty)


def test_many_regions_share_a_panel_of_bounded_height() -> None:
    masks = (box(300, 450, (i % 20) * 22, (i // 20) * 14, (i % 20) * 22 + 18, (i // 20) * 14 + 11) for i in range(300))
    picture = answers.picture(grey(300, 450), masks, ["A long description of a small thing. " * 9] * 300)
    assert picture.height < 4 * 600
    whole = captions.panel([captions.Caption(0, (1, 2, 3), "x")], 900, 16, tallest=900)
    some = captions.panel([captions.Caption(i, (1, 2, 3), "x") for i in range(300)], 900, 16, tallest=900)
    assert whole.height < 100
    assert 700 < some.height < 1100


def test_few_captions_keep_every_line_and_many_are_shortened() -> None:
    text = "one two three four five six seven eight nine ten " * 8
    font = captions.default_font(16)
    lines = captions._wrap(text, font, 400, 12)
    assert " ".join(lines).split() == text.split()
    assert all(font.getlength(line) <= 400 for line in lines)
    short = captions._wrap(text, font, 400, 2)
    assert len(short) == 2
    assert short[1].endswith("…")
    assert all(font.getlength(line) <= 400 for line in short)


def test_escapes_are_not_broken_across_lines() -> None:
    lines = captions._wrap(safe_text("\x00\x01\u202e" * 60), captions.default_font(16), 300, 99)
    assert len(lines) > 5
    assert "".join(lines) == "\\x00\\x01\\u202e" * 60
    for line in lines:
        assert line.replace("\\x00", "").replace("\\x01", "").replace("\\u202e", "") == ""


def test_text_without_a_font_falls_back_to_plain_letters_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "_system_fonts", lambda extra: ())
    assert captions._fitted("a café – naïve", 16)[0] == "a cafe - naive"
    assert captions.FONT_VARIABLE in captions._fitted("猫の鼻", 16)[0]
    assert captions._fitted("what? why?", 16)[0] == "what? why?"


def test_a_font_of_the_users_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(captions, "_system_fonts", lambda extra: asked.append(extra) or ())
    monkeypatch.setenv(captions.FONT_VARIABLE, "/fonts/mine.ttf")
    captions._fitted("é", 16)
    assert asked == ["/fonts/mine.ttf"]


def test_safe_text() -> None:
    assert safe_text("a\tb\r\nc\x00\x1b[31m\u202e\ud800\ue000\xa0\U000e0001") == (
        "a    b\nc\\x00\\x1b[31m\\u202e\\ud800\\ue000 \\U000e0001"
    )
    assert safe_text("قطة\u200cها 猫 é 👩\u200d👧") == "قطة\u200cها 猫 é 👩\u200d👧"
    assert safe_text("e" + "\u0301" * 9).count("\u0301") == 4
    assert one_line("a\n b\x07") == "a b\\x07"


def test_colours_of_many_regions_differ() -> None:
    assert len({answers.colour(i) for i in range(60)}) == 60
    assert all(0 <= c <= 255 for i in range(200) for c in answers.colour(i))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"region 1: expected a mask of 30x40 .*got 40x30"):
        answers.picture(grey(30, 40), [box(30, 40, 0, 0, 9, 9), box(40, 30, 0, 0, 9, 9)], ["", ""])


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_contact_sheet_shows_every_frame_and_its_regions(count: int) -> None:
    frames = [
        answers.Frame(grey(180, 320), f"frame {i} · {i / 25:.2f} s", {i % 3: box(180, 320, 40, 40, 200, 150)})
        for i in range(count)
    ]
    sheet = answers.contact_sheet(frames, ["first", "second", "third"], title="7 of 9 marked frames")
    assert sheet.width == 1600
    assert sheet.height < 4000
    for number in range(min(count, 3)):
        assert share(sheet, answers.colour(number)) > 0
    with pytest.raises(ValueError, match="at least one frame"):
        answers.contact_sheet([], [])


def test_sheet_frames_prefers_a_frame_of_every_region() -> None:
    assert answers.sheet_frames([(3,), (5, 6)]) == [3, 5, 6]
    long = [tuple(range(100)), (500,), (70,)]
    chosen = answers.sheet_frames(long, limit=8)
    assert len(chosen) == 8
    assert chosen == sorted(set(chosen))
    assert all(set(region) & set(chosen) for region in long)
    assert answers.sheet_frames([(i,) for i in range(50)], limit=8) == list(range(8))
    assert answers.sheet_frames([()]) == []


def test_check_writable_says_why_not_and_leaves_nothing(tmp_path: Path) -> None:
    assert answers.check_writable(tmp_path / "a.PNG") == tmp_path / "a.PNG"
    for path, why in (
        (tmp_path / "a.gif", "ending in .png"),
        (tmp_path / "a", "ending in .png"),
        (tmp_path / "none" / "a.png", "does not exist"),
        (Path("/proc/a.png"), "cannot write"),
    ):
        with pytest.raises(ValueError, match=why):
            answers.check_writable(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="got a folder"):
        answers.check_writable(tmp_path / "folder.png")
    assert answers.check_writable(tmp_path / "a.safetensors", (".safetensors",))
    assert os.listdir(tmp_path) == ["folder.png"]


@pytest.mark.parametrize("suffix", answers.SUFFIXES)
def test_save_is_all_or_nothing(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = answers.picture(grey(40, 60), [box(40, 60, 5, 5, 30, 30)], ["a box"])
    target = answers.save(picture, tmp_path / f"out{suffix}")
    with Image.open(target) as saved:
        assert saved.size == picture.size
    before = target.read_bytes()

    def fails(*_: object, **__: object) -> None:
        next(p for p in tmp_path.iterdir() if p != target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", lambda self, path, **_: Path(path).write_bytes(b"half") and fails())
    with pytest.raises(OSError, match="disk full"):
        answers.save(picture, target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
