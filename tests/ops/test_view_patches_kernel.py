"""The Triton kernel of view_patches against OpenCV and Pillow: the same grey levels, for every size, crop and filter.

The kernel rounds as the libraries do, step by step, so its results are compared for equality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_place import INTERPRETED
from plans import AREA, BLACK, LINEAR, boxes_mask, marks_of, model_config

from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.kernels import view_patches as kernel
from pixelrefer_fast.ops import view_patches
from pixelrefer_fast.ops.view_patches import IMAGE, pack_pixels
from pixelrefer_fast.planning.views import ViewPlan, plan_views

pytestmark = pytest.mark.kernel

Size = tuple[int, int]
Rows = Sequence[Sequence[int]]


def _random(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _row(
    source: Size, size: Size, final: Size | None = None, image: int = 0, resize: int = LINEAR, merge: int = 1
) -> list[int]:
    """A view of an image's top left corner."""
    return [image, 0, 0, *source, *size, resize, *(final or size), merge]


def _arguments(frames: Sequence[np.ndarray], rows: Rows) -> tuple[Any, ...]:
    first = list(accumulate((row[8] * row[9] // 196 for row in rows), initial=0))
    plan = torch.tensor(rows, dtype=torch.int64).reshape(-1, 11)
    return (*pack_pixels(frames), plan, torch.tensor(first), first[-1])


def _on(device: torch.device, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)


def _check(device: torch.device, frames: Sequence[np.ndarray], rows: Rows) -> torch.Tensor:
    """The kernel's patches, equal to the definition's."""
    arguments = _arguments(frames, rows)
    wanted = view_patches(*arguments, backend="torch")
    given = view_patches(*_on(device, arguments), backend="triton")
    assert given.device.type == device.type
    assert given.dtype == torch.float32
    given = given.cpu()
    for i, row in enumerate(rows):
        own = slice(arguments[3][i], arguments[3][i + 1])
        levels = (given[own] - wanted[own]).abs() * 127.5
        assert torch.equal(given[own], wanted[own]), f"view {i}, {row}: {levels.max().item():.3g} levels away"
    assert given.shape == wanted.shape
    return given


def test_samples(kernel_device: torch.device) -> None:
    for sample in view_patches.samples(torch.Generator().manual_seed(0), torch.float32):
        given = view_patches(*_on(kernel_device, sample), backend="triton")
        assert torch.equal(given.cpu(), view_patches.definition(*sample))


# source and size after the first resize
SIZES = [
    ((37, 53), (42, 56)),  # grows
    ((60, 100), (28, 42)),  # shrinks
    ((37, 53), (42, 14)),  # grows and shrinks
    ((37, 53), (14, 70)),
    ((1, 1), (28, 14)),
    ((5, 90), (14, 84)),
    ((90, 1), (70, 14)),
    ((28, 42), (28, 42)),
    ((28, 50), (28, 14)),  # one side stays
    ((50, 28), (14, 28)),
    ((28, 28), (14, 28)),
    ((28, 84), (28, 28)),
    ((28, 56), (14, 28)),  # half as large: the linear filter is an area mean there
    ((56, 28), (14, 28)),
    ((42, 70), (14, 14)),  # whole cells
    ((14, 98), (14, 14)),
    ((43, 71), (14, 14)),
    ((200, 30), (14, 14)),
]


@pytest.mark.parametrize("resize", [LINEAR, AREA])
def test_first_resize(kernel_device: torch.device, resize: int) -> None:
    """Random pixels, pixels that all but overflow, and ones whose means lie half-way between two levels."""
    steps = (np.indices((200, 120)).sum(axis=0) % 2)[..., None].repeat(3, axis=2).astype(np.uint8)
    frames = [_random(200, 120), 255 - steps * 255, steps]
    rows = [_row(source, size, image=image, resize=resize) for source, size in SIZES for image in range(3)]
    _check(kernel_device, frames, rows)


@pytest.mark.parametrize("view", [_row((28, 50), (28, 14)), _row((50, 28), (14, 28))])
def test_one_side_alone_is_resized(kernel_device: torch.device, view: list[int]) -> None:
    """Without another view in the launch, so that a program sees nothing else resized."""
    _check(kernel_device, [_random(50, 50)], [view])


def test_a_scale_that_is_whole_but_for_rounding(kernel_device: torch.device) -> None:
    """1 / (14 / 1372) is not 98 in float64, so OpenCV does not sum 98 pixels: it shows where their mean is a half."""
    assert 1 / (14 / 1372) != 98
    cells = np.minimum(_random(14, 1372), 254).reshape(14, 14, 98, 3)
    missing = (49 - cells.sum(axis=2, dtype=np.int64)) % 98
    cells += np.arange(98)[:, None] < missing[:, :, None]
    assert (cells.sum(axis=2, dtype=np.int64) % 98 == 49).all()
    frame = cells.reshape(14, 1372, 3)
    patches = _check(kernel_device, [frame], [_row((14, 1372), (14, 14), resize=AREA)])
    levels = ((patches + 1) * 127.5).round().reshape(3, 14, 14).permute(1, 2, 0).numpy()
    assert (levels != np.rint(cells.sum(axis=2) * np.float32(1 / 98))).mean() > 0.1
    _check(kernel_device, [frame.transpose(1, 0, 2)], [_row((1372, 14), (14, 14), resize=AREA)])


# size after the first resize and final one: both orders of the second resize's passes
SECOND = [
    ((42, 21), (28, 14)),  # the height shrinks by exactly twice what the width does: still columns first
    ((42, 22), (28, 14)),  # ... by less, ...
    ((42, 20), (28, 14)),  # ... by more
    ((28, 42), (14, 28)),
    ((45, 20), (28, 28)),
    ((20, 45), (28, 28)),
    ((17, 31), (28, 42)),
    ((28, 30), (28, 28)),
    ((30, 28), (28, 28)),
    ((1, 3), (14, 14)),
]


def test_second_resize(kernel_device: torch.device) -> None:
    """On pixels as they are; black beside white makes bicubic sums leave 0..255 on both sides."""
    noise = (_random(45, 45, seed=1) > 127).astype(np.uint8) * 255
    rows = [_row(size, size, final, image=image) for size, final in SECOND for image in (0, 1)]
    _check(kernel_device, [_random(45, 45), noise], rows)


def test_both_resizes_round_in_between(kernel_device: torch.device) -> None:
    sizes = [((17, 31), (28, 42)), ((34, 30), (28, 28))]
    rows = [_row((40, 50), size, final, resize=f) for size, final in sizes for f in (LINEAR, AREA)]
    _check(kernel_device, [_random(40, 50)], rows)


def _random_rows(seed: int, count: int, frames: Sequence[np.ndarray], second: bool) -> Iterator[list[int]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = int(rng.integers(len(frames)))
        height, width = (int(rng.integers(1, side + 1)) for side in frames[image].shape[:2])
        top, left = (
            int(rng.integers(0, s - n + 1)) for s, n in zip(frames[image].shape, (height, width), strict=False)
        )
        merge = int(rng.integers(1, 3))
        final = [14 * merge * int(rng.integers(1, 4 // merge + 1)) for _ in range(2)]
        size = [int(rng.integers(side // 2, int(side * 1.3) + 1)) for side in final] if second else final
        resize = int(rng.integers(2))
        yield [image, top, left, top + height, left + width, *size, resize, *final, merge]


def _random_frames(seed: int, *largest: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [_random(*(int(n) for n in rng.integers(1, side + 1, 2)), seed=seed) for side in largest]


@pytest.mark.parametrize("seed", range(2))
def test_random_views(kernel_device: torch.device, seed: int) -> None:
    frames = _random_frames(seed, 2, 30, 60, 60)
    _check(kernel_device, frames, list(_random_rows(seed, 60, frames, False)))
    frames = _random_frames(seed, 2, 10, 20, 20)
    _check(kernel_device, frames, list(_random_rows(seed, 20, frames, True)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_random_views(kernel_device: torch.device, seed: int) -> None:
    frames = _random_frames(seed, 3, 30, 150, 250)
    _check(kernel_device, frames, list(_random_rows(seed, 100, frames, False)))
    frames = _random_frames(seed, 3, 30, 60)
    _check(kernel_device, frames, list(_random_rows(seed, 40, frames, True)))


def _plan(kind: str, budget: int, merge: int = 1) -> ViewPlan:
    """One small, one large, one scattered and one empty mark (Full takes none) in two images, or a video for Full."""
    small = boxes_mask(90, 130, (10, 20, 14, 26))
    large = boxes_mask(60, 70, (0, 0, 60, 66))
    scattered = boxes_mask(90, 130, (0, 0, 3, 3), (80, 100, 85, 130))
    masks, images = [small, large, scattered], [0, 1, 0]
    if kind == "lite":
        masks, images = [*masks, np.zeros_like(small)], [*images, 0]
    config = model_config(kind, mask_num=4, mm_max_length=budget)
    scene = [0, 1] if kind == "full" else []
    return plan_views(
        config, [(90, 130), (60, 70)], marks_of(*masks, images=images), len(masks), scene=scene, scene_merge=merge
    )


@pytest.mark.parametrize(("kind", "merge"), [("lite", 1), ("full", 1), ("full", 2)])
def test_the_models_own_plans(kernel_device: torch.device, kind: str, merge: int) -> None:
    """Crops, local, global and whole views as the models ask for them."""
    plan = _plan(kind, 16384, merge)
    assert len(plan.views) == {"lite": 8, "full": 5}[kind]
    _check(kernel_device, [_random(90, 130, seed=1), _random(60, 70, seed=2)], plan.table().tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "budget"), [("lite", 1500), ("full", 64)])
def test_the_models_own_plans_under_a_budget(kernel_device: torch.device, kind: str, budget: int) -> None:
    plan = _plan(kind, budget)
    bitten = [v for v in plan.views if (v.height, v.width) != (v.final_height, v.final_width)]
    assert len(bitten) >= 2
    _check(kernel_device, [_random(90, 130, seed=1), _random(60, 70, seed=2)], plan.table().tolist())


@pytest.mark.parametrize("merge", [1, 2])
def test_black_views(kernel_device: torch.device, merge: int) -> None:
    """As an empty mask asks for: a single cell, enlarged by the image processor."""
    white = np.full((20, 20, 3), 255, dtype=np.uint8)
    black = _row((14, 14), (14, 14), (56, 56), image=BLACK, merge=merge)
    given = _check(kernel_device, [white], [black, _row((14, 14), (14, 14)), black])
    assert given[[*range(16), *range(17, 33)]].eq(-1).all()
    assert given[16].eq(1).all()
    assert _check(kernel_device, [], [black]).eq(-1).all()  # needs no image


def test_no_view(kernel_device: torch.device) -> None:
    assert _check(kernel_device, [_random(9, 9)], []).shape == (0, 588)
    assert _check(kernel_device, [], []).shape == (0, 588)


@pytest.mark.skipif(not INTERPRETED, reason="compiled programs are so small that every other test takes several")
def test_any_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that end within a patch, and ones that hold several views, in the interpreter."""
    frames = [_random(50, 40)]
    rows = [_row((20 + i, 40), (14, 28), image=0, resize=i % 2) for i in range(7)]
    for block in (128, 1024):
        monkeypatch.setattr(kernel, "INTERPRETED_BLOCK", block)
        _check(torch.device("cpu"), frames, rows)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 7, 8, 9, 100])
def test_every_view_is_found(kernel_device: torch.device, views: int) -> None:
    """Each of another colour, of one to three patches, in one launch."""
    frame = np.arange(views, dtype=np.uint8).repeat(3).reshape(1, views, 3)
    rows = [[0, 0, i, 1, i + 1, 14, 14 * (i % 3 + 1), LINEAR, 14, 14 * (i % 3 + 1), 1] for i in range(views)]
    launches: list[Launch] = []
    with listen(launches.append):
        given = _check(kernel_device, [frame], rows)
    assert len(launches) == 1
    levels = ((given + 1) * 127.5).round().to(torch.int64)
    assert levels[:, 0].tolist() == [i for i in range(views) for _ in range(i % 3 + 1)]


def test_arguments_of_any_layout(kernel_device: torch.device) -> None:
    arguments = _arguments(
        [_random(30, 40), _random(20, 20)], [_row((30, 40), (14, 28)), _row((20, 9), (14, 14), image=1)]
    )
    strided = [torch.stack([t, t + 1], dim=-1).to(kernel_device)[..., 0] for t in arguments[:4]]
    assert not any(t.is_contiguous() for t in strided)
    given = view_patches(*strided, arguments[4], backend="triton")
    assert torch.equal(given.cpu(), view_patches(*arguments, backend="torch"))


def test_wrong_dtypes_are_refused(kernel_device: torch.device) -> None:
    pixels, images, plan, first, patches = _on(kernel_device, _arguments([_random(20, 20)], [_row((14, 14), (14, 14))]))
    with pytest.raises(ValueError, match=r"^view_patches: expected plan of torch.int64, got torch.int32$"):
        view_patches(pixels, images, plan.int(), first, patches, backend="triton")
    with pytest.raises(ValueError, match=r"^view_patches: expected pixels of torch.uint8, got torch.int8$"):
        view_patches(pixels.to(torch.int8), images, plan, first, patches, backend="triton")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The addresses that kernels read, in the interpreter; the emulator and compute-sanitizer check them themselves."""
    from triton.runtime import interpreter

    found: list[np.ndarray] = []
    real = interpreter._interpreter

    def load(pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        found.append(pointers[mask])
        return real.load(pointers, mask, other, dtype)

    monkeypatch.setattr(interpreter, "_interpreter", SimpleNamespace(load=load, store=real.store))
    return found


def _assert_read_within(reads: list[np.ndarray], *tensors: torch.Tensor) -> None:
    if not INTERPRETED:
        return
    addresses = np.unique(np.concatenate(reads))
    within = np.any([(t.data_ptr() <= addresses) & (addresses < t.data_ptr() + t.nbytes) for t in tensors], axis=0)
    assert within.all(), f"{(~within).sum()} of {len(within)} addresses lie outside the arguments"


def test_nothing_is_read_beyond_an_image(kernel_device: torch.device, reads: list[np.ndarray]) -> None:
    """Edges of crops that are edges of the memory."""
    for source, size in (*SIZES[:7], ((14, 42), (28, 42))):
        frame = _random(*source)
        for resize in (LINEAR, AREA):
            *tensors, patches = _on(kernel_device, _arguments([frame], [_row(source, size, resize=resize)]))
            view_patches(*tensors, patches, backend="triton")
            _assert_read_within(reads, *tensors)
            reads.clear()


WILD = 2**40

# what may be wrong in a plan for one image of 20x30 pixels: (column, value)
WRONG_ROWS = [
    [(IMAGE, 1)],
    [(IMAGE, -2)],
    [(IMAGE, WILD)],
    [(1, -50), (2, -50)],
    [(1, WILD), (2, WILD)],
    [(1, -WILD), (2, -WILD)],
    [(3, 500), (4, 500)],
    [(3, WILD), (4, WILD)],
    [(3, -WILD), (4, 0)],
    [(5, 0), (6, -3)],
    [(7, 9)],
    [(8, 0), (9, -14)],
    [(8, 15), (9, 1)],
    [(10, 0)],
    [(10, -5)],
    [(10, 3)],
]
WRONG_IMAGES = [
    [-600, 20, 30],
    [600, 20, 30],
    [0, 40, 30],
    [0, 20, 31],
    [0, WILD, WILD],
    [0, 2**62, 2**62],
    [WILD, 20, 30],
    [-WILD, 20, 30],
    [0, -20, -30],
    [0, 0, 0],
]
WRONG_FIRST = [
    [0, 4, 5],
    [5, 0, 9],
    [3, 9, 12],
    [-3, 1, 5],
    [0, 0, 0],
    [0, WILD, 2 * WILD],
    [WILD, WILD, WILD],
    [-WILD, -WILD, 5],
]


def test_a_wrong_plan_reads_nothing_outside_the_pixels(kernel_device: torch.device, reads: list[np.ndarray]) -> None:
    """The pixels are black and lie among white ones: whatever is read elsewhere shows."""
    around = torch.full((5400,), 255, dtype=torch.uint8, device=kernel_device)
    around[1800:3600] = 0
    row, plain = [0, 0, 0, 20, 30, 14, 28, LINEAR, 14, 28, 1], _row((14, 28), (14, 28))
    rows = [[dict(wrong).get(i, value) for i, value in enumerate(row)] for wrong in WRONG_ROWS]
    right = [[0, 20, 30]]
    calls = [(right, rows, list(range(0, 2 * len(rows) + 1, 2)))]
    calls.append((WRONG_IMAGES, [[i, *row[1:]] for i in range(len(WRONG_IMAGES))], list(range(0, 21, 2))))
    calls += [(right, [plain, row], first) for first in WRONG_FIRST]
    for images, plan, first in calls:
        tensors = (around[1800:3600], *(torch.tensor(t, device=kernel_device) for t in (images, plan, first)))
        given = view_patches(*tensors, 2 * len(plan) + 1, backend="triton")
        _assert_read_within(reads, *tensors)
        reads.clear()
        wrong = given.ne(-1).any(dim=1).nonzero().flatten().tolist()
        assert not wrong, f"patches {wrong} of plan {plan} for images {images} at {first}"
    assert given.shape == (5, 588)


def test_patches_beyond_the_last_view_are_black(kernel_device: torch.device) -> None:
    white = np.full((20, 20, 3), 255, dtype=np.uint8)
    *tensors, patches = _on(kernel_device, _arguments([white], [_row((14, 28 - 14), (14, 14))]))
    given = view_patches(*tensors, patches + 3, backend="triton")
    assert given[0].eq(1).all()
    assert given[1:].eq(-1).all()


@pytest.mark.gpu
def test_the_definition_on_a_device_is_that_of_the_host() -> None:
    arguments = _arguments([_random(30, 40)], [_row((30, 40), (14, 28))])
    given = view_patches(*_on(torch.device("cuda"), arguments), backend="torch")
    assert given.device.type == "cuda"
    assert torch.equal(given.cpu(), view_patches(*arguments))
