"""view_patches against OpenCV's and Pillow's own results and images whose pixels say where they are."""

from __future__ import annotations

import re
from itertools import accumulate

import cv2
import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image

from pixelrefer_fast.ops import view_patches
from pixelrefer_fast.ops.view_patches import check_plan, pack_pixels

LINEAR, AREA = 0, 1
BLACK = -1


def _row(
    crop: tuple[int, int, int, int],
    size: tuple[int, int] | None = None,
    final: tuple[int, int] | None = None,
    image: int = 0,
    resize: int = LINEAR,
    merge: int = 1,
) -> list[int]:
    size = size or (crop[2] - crop[0], crop[3] - crop[1])
    return [image, *crop, *size, resize, *(final or size), merge]


def _arguments(images: list[np.ndarray], *rows: list[int]) -> tuple[torch.Tensor, ...]:
    first = list(accumulate((max(row[8] * row[9], 0) // 196 for row in rows), initial=0))
    return (*pack_pixels(images), torch.tensor(rows, dtype=torch.int64).reshape(-1, 11), torch.tensor(first), first[-1])


def _patches(images: list[np.ndarray], *rows: list[int]) -> torch.Tensor:
    return view_patches(*_arguments(images, *rows))


def _random(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _levels(patches: torch.Tensor) -> np.ndarray:
    """Back to grey levels, which must be met exactly: nothing lies between them."""
    levels = (patches.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    return levels.round().to(torch.uint8).numpy()


def _picture(patches: torch.Tensor, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 from patches in raster order, patch by patch."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for i, patch in enumerate(_levels(patches)):
        top, left = divmod(i, width // 14)
        for channel in range(3):
            place = patch[196 * channel : 196 * (channel + 1)].reshape(14, 14)
            picture[14 * top : 14 * top + 14, 14 * left : 14 * left + 14, channel] = place
    return picture


def _labelled(rows: int, columns: int) -> np.ndarray:
    """Red is the patch's row, green its column, blue the pixel's place in its patch (0 to 195)."""
    y, x = np.mgrid[: 14 * rows, : 14 * columns]
    return np.stack([y // 14, x // 14, y % 14 * 14 + x % 14], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (2, 2), (6, 4), (8, 2)])
def test_order_of_patches_and_of_their_values(rows: int, columns: int, merge: int) -> None:
    image = _labelled(rows, columns)
    patches = _patches([image], _row((0, 0, 14 * rows, 14 * columns), merge=merge))
    assert patches.dtype == torch.float32
    assert patches.shape == (rows * columns, 588)
    expected = [
        (cell_row * merge + i, cell_column * merge + j)
        for cell_row in range(rows // merge)
        for cell_column in range(columns // merge)
        for i in range(merge)
        for j in range(merge)
    ]
    for patch, place in zip(_levels(patches).reshape(-1, 3, 196), expected, strict=True):
        red, green, blue = patch
        assert {*red.tolist()} == {place[0]}
        assert {*green.tolist()} == {place[1]}
        assert blue.tolist() == list(range(196))


def test_every_grey_level() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)[:, :252].repeat(14, axis=0)
    image[0, :4] = np.arange(252, 256)[:, None]
    patches = _patches([image], _row((0, 0, 14, 252)))
    assert {*_levels(patches).flatten().tolist()} == set(range(256))
    values = np.sort(np.unique(patches.numpy()))
    # x / 127.5 - 1 within the rounding of float32
    assert np.abs(values - (np.arange(256) / 127.5 - 1)).max() < 1.5e-7
    assert values[0] == -1
    assert values[-1] == 1


@given(data=st.data())
def test_without_a_resize_the_pixels_are_exact(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(14, 60)), data.draw(st.integers(14, 60))
    rows, columns = data.draw(st.integers(1, height // 14)), data.draw(st.integers(1, width // 14))
    top = data.draw(st.integers(0, height - 14 * rows))
    left = data.draw(st.integers(0, width - 14 * columns))
    image = _random(height, width)
    crop = (top, left, top + 14 * rows, left + 14 * columns)
    for resize in (LINEAR, AREA):
        picture = _picture(_patches([image], _row(crop, resize=resize)), 14 * rows, 14 * columns)
        assert np.array_equal(picture, image[crop[0] : crop[2], crop[1] : crop[3]])


SIZES = [((37, 53), (42, 56)), ((37, 53), (14, 14)), ((1, 1), (28, 14)), ((5, 90), (14, 84)), ((90, 5), (70, 14))]


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize(("resize", "interpolation"), [(LINEAR, cv2.INTER_LINEAR), (AREA, cv2.INTER_AREA)])
def test_first_resize_is_opencvs(
    source: tuple[int, int], size: tuple[int, int], resize: int, interpolation: int
) -> None:
    image = _random(source[0] + 6, source[1] + 4)
    crop = (3, 2, 3 + source[0], 2 + source[1])
    picture = _picture(_patches([image], _row(crop, size, resize=resize)), *size)
    cut = np.ascontiguousarray(image[3 : 3 + source[0], 2 : 2 + source[1]])
    assert np.array_equal(picture, cv2.resize(cut, size[::-1], interpolation=interpolation))


def test_the_two_filters_differ() -> None:
    image = _random(60, 60)
    linear, area = (_patches([image], _row((0, 0, 60, 60), (28, 28), resize=f)) for f in (LINEAR, AREA))
    assert not torch.equal(linear, area)


def _pillow_13(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow 13's bicubic resize to (height, width), made of single passes where an older Pillow is installed."""
    picture = Image.fromarray(image)
    if Version(PIL.__version__) < Version("13"):
        shrinks = (picture.height - size[0], picture.width - size[1])
        if shrinks[0] > max(0, 2 * shrinks[1]):
            picture = picture.resize((picture.width, size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_second_resize_is_pillows_bicubic(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = _random(*source)
    picture = _picture(_patches([image], _row((0, 0, *source), source, size)), *size)
    assert np.array_equal(picture, _pillow_13(image, size))


@pytest.mark.parametrize(
    ("source", "size", "vertical_first"),
    [
        ((98, 70), (42, 56), True),  # the height shrinks by 56, the width by 14
        ((70, 98), (56, 42), False),
        ((84, 84), (28, 56), False),  # 56 is not more than twice 28
        ((85, 84), (28, 56), True),
        ((56, 28), (42, 56), True),
        ((42, 28), (56, 14), False),
    ],
)
def test_order_of_the_two_passes(source: tuple[int, int], size: tuple[int, int], vertical_first: bool) -> None:
    """One axis at a time is the same in every Pillow; which comes first is part of what was recorded."""
    image = _random(*source)
    picture = _picture(_patches([image], _row((0, 0, *source), source, size)), *size)
    start = Image.fromarray(image)
    vertical = start.resize((source[1], size[0]), Image.Resampling.BICUBIC)
    horizontal = start.resize((size[1], source[0]), Image.Resampling.BICUBIC)
    ways = [np.asarray(w.resize(size[::-1], Image.Resampling.BICUBIC)) for w in (horizontal, vertical)]
    assert not np.array_equal(*ways)
    assert np.array_equal(picture, ways[vertical_first])


def test_both_resizes_round_to_grey_levels_in_between() -> None:
    image = _random(50, 70)
    patches = _patches([image], _row((4, 6, 44, 66), (33, 47), (28, 56), resize=AREA))
    between = cv2.resize(image[4:44, 6:66].copy(), (47, 33), interpolation=cv2.INTER_AREA)
    assert np.array_equal(_picture(patches, 28, 56), _pillow_13(between, (28, 56)))


@pytest.mark.parametrize("merge", [1, 2])
def test_black_views(merge: int) -> None:
    image = np.full((20, 20, 3), 255, dtype=np.uint8)
    rows = [_row((0, 0, 14, 14), final=(56, 56), image=BLACK, merge=merge), _row((0, 0, 14, 14))]
    patches = _patches([image], *rows)
    assert patches[:16].eq(-1).all()
    assert patches[16:].eq(1).all()
    assert _patches([], rows[0]).eq(-1).all()  # needs no image


def test_views_come_one_after_the_other_each_from_its_image() -> None:
    images = [_random(30, 40, seed=1), _random(60, 30, seed=2), _random(14, 14, seed=3)]
    rows = [
        _row((0, 0, 60, 30), (28, 14), image=1, resize=AREA),
        _row((0, 0, 14, 14), image=2),
        _row((2, 3, 30, 31), image=0, merge=2),
        _row((0, 0, 14, 14), image=2),
        _row((5, 5, 6, 6), (14, 28), image=1),
    ]
    together = _patches(images, *rows)
    alone = torch.cat([_patches(images, row) for row in rows])
    assert together.shape == (2 + 1 + 4 + 1 + 2, 588)
    assert torch.equal(together, alone)
    assert torch.equal(together[2], together[7])


def test_many_views() -> None:
    image = _labelled(10, 30)
    rows = [_row((14 * r, 14 * c, 14 * r + 14, 14 * c + 14)) for r in range(10) for c in range(30)]
    levels = _levels(_patches([image], *rows)).reshape(300, 3, 196)
    assert levels[:, 0, 0].tolist() == [r for r in range(10) for _ in range(30)]
    assert levels[:, 1, 0].tolist() == [*range(30)] * 10


def test_no_view() -> None:
    assert _patches([_random(9, 9)]).shape == (0, 588)
    assert _patches([]).shape == (0, 588)


def test_images_of_any_memory_layout() -> None:
    image = _random(28, 42)
    row = _row((0, 0, 28, 42), (14, 28), resize=AREA)
    expected = _patches([image], row)
    for turned in (np.asfortranarray(image), image[:, ::-1].copy()[:, ::-1]):
        assert not turned.flags.c_contiguous
        assert torch.equal(_patches([turned], row), expected)


def test_packed_pixels() -> None:
    images = [_random(3, 5, seed=1), _random(1, 1, seed=2), _random(4, 2, seed=3)]
    pixels, table = pack_pixels(images)
    assert table.tolist() == [[0, 3, 5], [45, 1, 1], [48, 4, 2]]
    assert table.dtype == torch.int64
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == [v for image in images for v in image.flatten().tolist()]
    pixels, table = pack_pixels([])
    assert pixels.shape == (0,)
    assert table.shape == (0, 3)


def test_one_frame_is_not_copied() -> None:
    image = _random(20, 30)
    pixels, _ = pack_pixels([image])
    assert pixels.data_ptr() == image.ctypes.data


def test_images_anywhere_among_the_pixels() -> None:
    images = [_random(20, 30, seed=1), _random(30, 20, seed=2)]
    rows = [_row((0, 0, 14, 28)), _row((1, 2, 29, 16), image=1)]
    pixels, table, *rest = _arguments(images, *rows)
    expected = view_patches(pixels, table, *rest)
    gap = torch.randint(0, 256, (7,), dtype=torch.uint8)
    moved = torch.cat([gap, pixels[1800:], gap, pixels[:1800], gap])
    assert torch.equal(view_patches(moved, torch.tensor([[1814, 20, 30], [7, 30, 20]]), *rest), expected)


def test_the_images_are_not_written_to() -> None:
    image = _random(40, 40)
    before = image.copy()
    _patches([image], _row((0, 0, 28, 28)), _row((0, 0, 40, 40), (28, 28), (56, 56)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row((0, 0, 14, 14), image=1), "expected an image from -1 to 0, got 1"),
        (_row((0, 0, 14, 14), image=-2), "expected an image from -1 to 0, got -2"),
        (_row((0, 0, 21, 14)), r"expected a crop within 20x30, got rows 0:21, columns 0:14"),
        (_row((0, 17, 14, 31)), r"expected a crop within 20x30, got rows 0:14, columns 17:31"),
        (_row((-1, 0, 13, 14)), r"expected a crop within 20x30, got rows -1:13, columns 0:14"),
        (_row((0, -14, 14, 0)), r"expected a crop within 20x30, got rows 0:14, columns -14:0"),
        (_row((5, 0, 5, 14), (14, 14)), r"expected a crop within 20x30, got rows 5:5, columns 0:14"),
        (_row((9, 0, 5, 14), (14, 14)), r"expected a crop within 20x30, got rows 9:5, columns 0:14"),
        (_row((3, 0, 3, 14), (14, 14), image=BLACK), r"expected a crop within 3x14, got rows 3:3, columns 0:14"),
        (_row((0, 0, 15, 14)), "expected a final size in whole cells of 14x14 pixels, got 15x14"),
        (_row((0, 0, 14, 14), final=(14, 0)), "expected a final size in whole cells of 14x14 pixels, got 14x0"),
        (_row((0, 0, 14, 14), final=(-14, 14)), "expected a final size in whole cells of 14x14 pixels, got -14x14"),
        (_row((0, 0, 14, 28), merge=2), "expected a final size in whole cells of 28x28 pixels, got 14x28"),
    ],
)
def test_rows_that_cannot_be(row: list[int], message: str) -> None:
    image = _random(20, 30)
    with pytest.raises(ValueError, match=f"^view_patches: row 0: {message}$"):
        _patches([image], row)
    with pytest.raises(ValueError, match=r"^view_patches: row 1: "):
        _patches([image], _row((0, 0, 14, 14)), row)


@pytest.mark.parametrize("merge", [0, 3, -1])
def test_a_merge_that_is_not(merge: int) -> None:
    with pytest.raises(ValueError, match=r"^view_patches: row 0: expected .*merge.*got .*"):
        _patches([_random(84, 84)], _row((0, 0, 84, 84), merge=merge))


@pytest.mark.parametrize("size", [(0, 14), (14, -5)])
def test_a_first_size_that_is_not(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"^view_patches: row 0: expected .*got {size[0]}x{size[1]}$"):
        _patches([_random(20, 20)], _row((0, 0, 14, 14), size, (14, 14)))


@pytest.mark.parametrize("side", [14 * 2**28, 14 * 2**40, 14 * 2**58])
@pytest.mark.parametrize(
    ("column", "named"), [(5, "first size"), (6, "first size"), (8, "final size"), (9, "final size"), (3, "crop")]
)
def test_sizes_that_no_picture_has(column: int, named: str, side: int) -> None:
    """Before anything is allocated: OpenCV and NumPy have errors of their own for them."""
    row = _row((0, 0, 14, 14))
    row[column] = side
    if named == "crop":
        row[0] = -1  # black, of no image
    with pytest.raises(ValueError, match=rf"^view_patches: row 0: {named}: expected at most \d+ pixels, got a size of"):
        view_patches(
            *_arguments([_random(20, 20)], _row((0, 0, 14, 14)))[:2], torch.tensor([row]), torch.tensor([0, 1]), 1
        )


@pytest.mark.parametrize("image", [[-1, 20, 30], [1, 20, 30], [0, 21, 30], [0, 0, 30], [0, 20, -30], [0, -20, -30]])
def test_an_image_that_is_not_among_the_pixels(image: list[int]) -> None:
    pixels, _, *rest = _arguments([_random(20, 30)], _row((0, 0, 14, 14)))
    message = f"image 0: expected {image[1]}x{image[2]} pixels within 1800 bytes, got byte {image[0]} as the first one"
    with pytest.raises(ValueError, match=f"^view_patches: {message}$"):
        view_patches(pixels, torch.tensor([image]), *rest)


@pytest.mark.parametrize(
    ("first", "patches", "message"),
    [
        ([0, 2, 3], 3, "row 0: expected 1 patches in cu_seqlens, got 2"),
        ([0, 1, 2], 2, "row 1: expected 2 patches in cu_seqlens, got 1"),
        ([0, 1, 3], 4, r"expected cu_seqlens from 0 to 4, got \[0, 1, 3\]"),
        ([1, 2, 3], 3, r"expected cu_seqlens from 0 to 3, got \[1, 2, 3\]"),
        ([0, 4, 3], 3, r"expected cu_seqlens that never fall, got \[0, 4, 3\]"),
    ],
)
def test_first_rows_that_are_not_the_views(first: list[int], patches: int, message: str) -> None:
    pixels, images, plan, *_ = _arguments([_random(20, 30)], _row((0, 0, 14, 14)), _row((0, 0, 14, 28)))
    with pytest.raises(ValueError, match=f"^view_patches: {message}$"):
        view_patches(pixels, images, plan, torch.tensor(first), patches)


def test_a_plan_is_checked_without_its_pixels() -> None:
    pixels, images, plan, first, patches = _arguments([_random(20, 30)], _row((0, 0, 14, 14)))
    check_plan(plan, images, first, patches, len(pixels))
    with pytest.raises(ValueError, match=r"^view_patches: image 0: "):
        check_plan(plan, images, first, patches, len(pixels) - 1)
    plan[0, 3] = 21
    with pytest.raises(ValueError, match=r"^view_patches: row 0: expected a crop within 20x30"):
        check_plan(plan, images, first, patches, len(pixels))


def test_wrong_shapes_and_dtypes() -> None:
    pixels, images, plan, first, patches = _arguments([_random(20, 30)], _row((0, 0, 14, 14)))
    wrong = [
        ("pixels of shape (any), got (1, 1800)", (pixels[None], images, plan, first)),
        ("pixels of torch.uint8, got torch.float32", (pixels.float(), images, plan, first)),
        ("images of shape (any, 3), got (1, 2)", (pixels, images[:, 1:], plan, first)),
        ("images of torch.int64, got torch.int32", (pixels, images.int(), plan, first)),
        ("plan of shape (any, 11), got (1, 10)", (pixels, images, plan[:, :10], first)),
        ("plan of torch.int64, got torch.float32", (pixels, images, plan.float(), first)),
        ("cu_seqlens of shape (2), got (1,)", (pixels, images, plan, first[:1])),
        ("cu_seqlens of torch.int64, got torch.int32", (pixels, images, plan, first.int())),
        ("plan on cpu, got meta", (pixels, images, plan.to("meta"), first)),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=f"^view_patches: expected {re.escape(message)}$"):
            view_patches(*arguments, patches)
