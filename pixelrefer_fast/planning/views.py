"""Which pixels each marked object needs: crop, local view, global view, whole frames -> ViewPlan (integers, no pixels).

Follows `resize_image_mask` of the reference's two mm_utils.py and `smart_resize` of its image processor; paper section
4.2.1 (Dynamic Object Processing).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import labelled
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops.mask_grids import weight_bits
from pixelrefer_fast.ops.view_patches import AREA, BLACK, LINEAR, PATCH, PLAN_COLUMNS
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.regions.packed_mask import PackedMask, joined

Box = tuple[int, int, int, int]  # top, left, bottom, right
EMPTY: Box = (0, 0, 0, 0)  # of a mask without a marked pixel

PAD = 2 * PATCH  # pixels of context around an object's bounding box
CELL = PATCH * PATCH
MAX_CELLS = {"lite": 50, "full": 100}  # an object of more cells of 14x14 pixels is scaled down to that many
DRAWN_WHOLE = 2**15  # pixels of a bounding box up to which it is quicker not to look for the rows that are read
MIN_PIXELS = 56 * 56
MAX_ASPECT = 200
MAX_CROP_PIXELS = 2**27  # a few scattered pixels can ask for a crop of any size; this one takes 400 MB


@dataclass(frozen=True)
class Mark:
    """One mask of one object: `image` says in which of the request's images or frames it lies."""

    image: int
    mask: BoxedMask | PackedMask  # of the image's size; bits lie on a device
    name: str  # how errors call it


@dataclass(frozen=True)
class View:
    """One sequence of the packed encoder pass; the columns of `ops.view_patches`."""

    image: int
    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int
    filter: int
    final_height: int
    final_width: int
    merge: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.final_height // PATCH, self.final_width // PATCH

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class DeviceMask:
    """What planning knows of a mask without bringing it to the host."""

    # at most so many cells of its grid are selected: in Lite those that reach into its box, in Full it is known
    most: int
    digest: tuple[int, int]  # `PackedMask.digest`


@dataclass(frozen=True)
class MarkPlan:
    """What one mark needs; views are indices into the plan's views."""

    name: str
    image: int
    crop: int
    # (rows, columns) float32, the mask at patch resolution, where the mask lies; may be finer than the crop's grid
    mask_grid: torch.Tensor
    box: Box  # as the position term takes it: top, left, bottom, right
    image_size: tuple[int, int]  # height, width
    tokens: int  # placeholders in the prompt
    global_view: int | None  # Lite only
    local_view: int | None  # Lite only
    on_device: DeviceMask | None = None  # of a mask that lies there, what the host knows of it


@dataclass
class ViewPlan:
    """All views of one request, each once, and what uses them."""

    views: list[View] = field(default_factory=list)
    scene: list[int] = field(default_factory=list)  # Full: the views of the whole images or frames, in order
    marks: list[MarkPlan] = field(default_factory=list)
    _index: dict[View, int] = field(default_factory=dict)

    def add(self, view: View) -> int:
        """The view's index; a view that is there already is used again."""
        if view not in self._index:
            self._index[view] = len(self.views)
            self.views.append(view)
        return self._index[view]

    def context_first(self) -> tuple[ViewPlan, list[int]]:
        """This plan with the local views first and the global ones next, and the new number of each view.

        The rows that one infusion step reads then lie together, with nobody else's between them.
        """
        local_views, global_views = (
            list(dict.fromkeys(v for v in views if v is not None))
            for views in ((m.local_view for m in self.marks), (m.global_view for m in self.marks))
        )
        if len(local_views) <= 1 and len(global_views) <= 1:
            return self, list(range(len(self.views)))
        order = list(dict.fromkeys((*local_views, *global_views, *range(len(self.views)))))
        places = [0] * len(order)
        for place, view in enumerate(order):
            places[view] = place
        marks = [
            replace(
                m,
                crop=places[m.crop],
                global_view=None if m.global_view is None else places[m.global_view],
                local_view=None if m.local_view is None else places[m.local_view],
            )
            for m in self.marks
        ]
        return ViewPlan([self.views[v] for v in order], [places[v] for v in self.scene], marks), places

    def only(self, views: Sequence[int]) -> ViewPlan:
        """Some of the views, in the order given, and no marks."""
        return ViewPlan([self.views[v] for v in views])

    def table(self, views: Sequence[int] | None = None) -> torch.Tensor:
        """(V, 11) int64, a row a view, as `ops.view_patches` takes it; of some views, in the order given, or of all."""
        chosen = self.views if views is None else [self.views[v] for v in views]
        return torch.tensor([astuple(v) for v in chosen], dtype=torch.int64).reshape(-1, PLAN_COLUMNS)

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """(rows, columns, merge) of each view, as the encoder takes it."""
        return [(*v.grid, v.merge) for v in self.views]

    @property
    def first_rows(self) -> list[int]:
        """First row of each view among the packed patches, and their number last."""
        return list(accumulate((v.patches for v in self.views), initial=0))


def processor_size(height: int, width: int, factor: int, max_pixels: int) -> tuple[int, int]:
    """The size to which the image processor brings a picture.

    Args:
        height, width: in pixels.
        factor: both sides become multiples of it (14 x merge).
        max_pixels: the pixel budget of each image of the call.

    Raises:
        ValueError: an aspect ratio over 200, or a budget that leaves a side of no patch at all.
    """
    if min(height, width) < factor:
        scale = factor / min(height, width)
        height, width = round(height * scale), round(width * scale)
    elif max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(f"expected an aspect ratio of at most {MAX_ASPECT}, got {height}x{width}")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels) if max_pixels else math.inf
        rows, columns = math.floor(height / shrink / factor), math.floor(width / shrink / factor)
    elif rows * columns * factor**2 < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"expected a pixel budget that leaves at least one patch, got {max_pixels} pixels for {height}x{width} "
            "(too many images or regions in one request)"
        )
    return rows * factor, columns * factor


def pixel_budget(config: ModelConfig, images: int, merge: int = 1) -> int:
    """Pixels that each of `images` images of one processor call may have."""
    return config.mm_max_length * CELL * merge**2 // images


def plan_views(
    config: ModelConfig,
    sizes: Sequence[tuple[int, int]],
    marks: Iterable[Mark],
    num_marks: int,
    scene: Sequence[int] = (),
    scene_merge: int = 1,
    into: ViewPlan | None = None,
    backend: str = "auto",
) -> ViewPlan:
    """Plan one request.

    Args:
        config: the model's; its kind decides between the two models' rules.
        sizes: (height, width) of the request's images or frames.
        marks: the masks, in the order of their tokens; looked at one by one, so that a generator keeps few in memory.
        num_marks: how many there are, which the pixel budget depends on.
        scene: Full only: which images or frames the LLM sees whole, in order.
        scene_merge: 2 for the frames of a Full video, else 1.
        into: a plan to add to, so that requests about the same images share their views.
        backend: who draws masks that lie on a device at patch resolution.

    Raises:
        ValueError: naming the mark (or the image) that cannot be planned, with what was expected and given.
    """
    plan = ViewPlan() if into is None else into
    budget = pixel_budget(config, max(len(scene), 1), scene_merge)
    for image in scene:
        height, width = sizes[image]
        whole, size = (0, 0, height, width), (height, width)
        plan.scene.append(plan.add(_view(f"image {image}", image, whole, size, LINEAR, budget, scene_merge)))

    budget = pixel_budget(config, max(num_marks, 1))
    draw = _mask_grid_lite if config.kind == "lite" else _mask_grid_full
    context: dict[int, tuple[int, ...]] = {}
    places: list[_Place] = []
    for mark in marks:
        if mark.mask.shape != tuple(sizes[mark.image]):
            raise ValueError(f"{mark.name}: expected a mask of {sizes[mark.image]}, got {mark.mask.shape}")
        box, crop = _crop_lite(mark) if config.kind == "lite" else _crop_full(mark)
        size = _scale(mark, crop, config)
        if config.kind == "lite" and mark.image not in context:
            # made once per image, on its first object: every later one gets the first one's local view
            context[mark.image] = tuple(plan.add(view) for view in _context(mark, crop, config, budget))
        global_view, local_view = context.get(mark.image, (None, None))
        view = plan.add(_crop_view(mark, crop, size, config.kind, budget))
        shape = (size[0] // PATCH, size[1] // PATCH)
        # what lies in host memory is drawn at once, so that its pixels need not stay
        mask = mark.mask if isinstance(mark.mask, PackedMask) else torch.from_numpy(draw(mark.mask, crop, *shape))
        places.append(
            _Place(mark.name, mark.image, mark.mask.shape, mask, view, crop, box, shape, global_view, local_view)
        )
    grids = _mask_grids(places, config.kind == "full", backend)
    # Full's prompt has a token for each selected patch, up to a number
    selected: Sequence[int | None] = (
        [None] * len(places) if config.kind == "lite" else _selected(places, grids, backend)
    )
    for place, grid, count in zip(places, grids, selected, strict=True):
        plan.marks.append(
            MarkPlan(
                name=place.name,
                image=place.image,
                crop=place.view,
                mask_grid=grid,
                box=place.box,
                image_size=place.image_size,
                tokens=config.mask_num if count is None else min(config.mask_num, count),
                global_view=place.global_view,
                local_view=place.local_view,
                on_device=place.known(count),
            )
        )
    return plan


@dataclass(frozen=True)
class _Place:
    """What is known of a mark before its mask is drawn, if it lies on a device, and that is, if it does not."""

    name: str
    image: int
    image_size: tuple[int, int]  # height, width
    mask: PackedMask | torch.Tensor
    view: int
    crop: Box
    box: Box
    grid: tuple[int, int]  # rows and columns of the mask at patch resolution
    global_view: int | None
    local_view: int | None

    def known(self, selected: int | None) -> DeviceMask | None:
        """Of a mask on a device, and how many cells are selected if that is known; None: it is in host memory."""
        if not isinstance(self.mask, PackedMask):
            return None
        if selected is not None or self.mask.bounds is None:
            return DeviceMask(selected or 0, self.mask.digest)
        bounds, (top, left, bottom, right) = self.mask.bounds, self.crop
        rows = _reaching(self.grid[0], bottom - top, bounds[0] - top, bounds[2] - top)
        columns = _reaching(self.grid[1], right - left, bounds[1] - left, bounds[3] - left)
        return DeviceMask(rows * columns, self.mask.digest)

    def weight_bits(self, rounded: bool) -> tuple[int, int]:
        """Of both passes, where they round as Full's reference does, which resizes uint8; Lite's keeps fractions."""
        if not rounded:
            return 0, 0
        top, left, bottom, right = self.crop
        return weight_bits(self.grid[0], bottom - top), weight_bits(self.grid[1], right - left)


def _reaching(size: int, source: int, first: int, last: int) -> int:
    """How many of `size` cells along an axis read any of the pixels from `first` to `last` of `source`."""
    at = np.maximum((2 * np.arange(size) + 1) * source - size, 0)
    low = np.minimum(at // (2 * size), source - 1)
    high = np.minimum(low + (at % (2 * size) > 0), source - 1)
    return int(np.count_nonzero((high >= first) & (low <= last)))


def _mask_grids(places: Sequence[_Place], rounded: bool, backend: str) -> list[torch.Tensor]:
    """The marks' masks at patch resolution, (rows, columns) float32 each, where each mask lies."""
    on_device = [(place, place.mask) for place in places if isinstance(place.mask, PackedMask)]
    packed = iter(_packed_grids(on_device, rounded, backend) if on_device else ())
    return [next(packed) if isinstance(place.mask, PackedMask) else place.mask for place in places]


def _packed_grids(
    on_device: Sequence[tuple[_Place, PackedMask]], rounded: bool, backend: str
) -> tuple[torch.Tensor, ...]:
    """Of masks that lie on a device: all in one launch."""
    places, masks = zip(*on_device, strict=True)
    bits, first_bits = joined(masks)
    sizes = [place.grid[0] * place.grid[1] for place in places]
    first_cells = list(accumulate(sizes, initial=0))
    rows = [
        (cell, bit, mask.row_bits, 0, 0, *mask.shape, *place.crop, *place.grid, *place.weight_bits(rounded))
        for place, mask, cell, bit in zip(places, masks, first_cells, first_bits, strict=False)
    ]
    (table,) = upload([torch.tensor(rows, dtype=torch.int64)], bits.device)
    cells = ops.mask_grids(bits, table, first_cells[-1], backend=backend)
    return tuple(own.view(place.grid) for own, place in zip(cells.split(sizes), places, strict=True))


def _selected(places: Sequence[_Place], grids: Sequence[torch.Tensor], backend: str) -> list[int]:
    """How many cells of each grid are selected; of masks on a device all are brought together."""
    there = [grid for place, grid in zip(places, grids, strict=True) if isinstance(place.mask, PackedMask)]
    brought: Iterator[int] = iter(())
    if there:
        (shapes,) = upload([torch.tensor([grid.shape for grid in there])], there[0].device)
        cells = torch.cat([grid.flatten() for grid in there])
        brought = iter(ops.pack_objects(cells, shapes, 0, backend=backend).counts.tolist())
    return [
        next(brought) if isinstance(place.mask, PackedMask) else int(grid.sum())
        for place, grid in zip(places, grids, strict=True)
    ]


def _crop_view(mark: Mark, crop: Box, size: tuple[int, int], kind: str, budget: int) -> View:
    """The scaled crop; an empty mask's is black."""
    if crop == EMPTY:
        return _view(mark.name, BLACK, (0, 0, PATCH, PATCH), (PATCH, PATCH), LINEAR, budget)
    shrinks = kind == "lite" and size[0] < crop[2] - crop[0] and size[1] < crop[3] - crop[1]
    return _view(mark.name, mark.image, crop, size, AREA if shrinks else LINEAR, budget)


def _context(mark: Mark, crop: Box, config: ModelConfig, budget: int) -> tuple[View, View]:
    """Global and local view; the local view of an empty mask is the whole image."""
    whole: Box = (0, 0, mark.mask.height, mark.mask.width)
    local = whole if crop == EMPTY else crop
    global_size, local_size = config.global_view_size, config.local_view_size
    return (
        _view(mark.name, mark.image, whole, (global_size, global_size), AREA, budget),
        _view(mark.name, mark.image, local, (local_size, local_size), AREA, budget),
    )


def _view(name: str, image: int, box: Box, size: tuple[int, int], filter: int, budget: int, merge: int = 1) -> View:
    """A box of an image, resized to `size`, and by the image processor to what its budget allows."""
    with labelled(name):
        final_height, final_width = processor_size(*size, PATCH * merge, budget)
    return View(image, *box, *size, filter, final_height, final_width, merge)


def _crop_lite(mark: Mark) -> tuple[Box, Box]:
    """Box for the position term and half-open crop; both zeros for an empty mask."""
    bounds = mark.mask.bounds
    if bounds is None:
        return EMPTY, EMPTY
    height, width = mark.mask.shape
    top, left = max(0, bounds[0] - PAD), max(0, bounds[1] - PAD)
    bottom, right = min(height, bounds[2] + 1 + PAD), min(width, bounds[3] + 1 + PAD)
    return (top, left, min(height - 1, bottom - 1), min(width - 1, right - 1)), (top, left, bottom, right)


def _crop_full(mark: Mark) -> tuple[Box, Box]:
    """Box for the position term, which is the crop as well: its last row and column are left out of the pixels."""
    bounds = mark.mask.bounds
    if bounds is None:
        raise ValueError(f"{mark.name}: expected a mask with at least one marked pixel, got an empty one")
    height, width = mark.mask.shape
    if min(height, width) < 2:
        raise ValueError(f"{mark.name}: expected an image of at least 2x2 pixels, got {height}x{width}")
    box = (
        max(0, bounds[0] - PAD),
        max(0, bounds[1] - PAD),
        min(height - 1, bounds[2] + PAD),
        min(width - 1, bounds[3] + PAD),
    )
    return box, box


def _scale(mark: Mark, crop: Box, config: ModelConfig) -> tuple[int, int]:
    """Size of the scaled crop in pixels, whole patches."""
    area = mark.mask.area
    if area == 0:
        return PATCH, PATCH
    limit = MAX_CELLS[config.kind]
    scale: float = math.ceil(math.sqrt(CELL * config.mask_num / area))
    if scale == 1:
        number: Any = np.float32 if config.kind == "full" else float  # Full's reference divides float32 tensors
        cells = number(area) / number(CELL)
        if cells > limit:
            scale = 1 / math.sqrt(cells / number(limit))
    rows = math.ceil((crop[2] - crop[0]) * scale / PATCH)
    columns = math.ceil((crop[3] - crop[1]) * scale / PATCH)
    if rows * columns * CELL > MAX_CROP_PIXELS:
        raise ValueError(
            f"{mark.name}: expected marked pixels that lie together, got {area} of them spread over "
            f"{crop[2] - crop[0]}x{crop[3] - crop[1]}: enlarging that crop {scale} times would take "
            f"{rows * PATCH}x{columns * PATCH} pixels"
        )
    return rows * PATCH, columns * PATCH


def _mask_grid_lite(mask: BoxedMask, crop: Box, rows: int, columns: int) -> np.ndarray:
    """The mask at patch resolution, resized as Lite's reference does, which keeps fractions; of none all are 0."""
    import cv2

    if crop == EMPTY:
        return np.zeros((rows, columns), np.float32)
    top, left, bottom, right = crop
    height, first_row, first_column = bottom - top, mask.top - top, mask.left - left
    picture = np.zeros((height, right - left), np.float32)
    box_rows, box_columns = mask.pixels.shape
    drawn = picture[first_row : first_row + box_rows, first_column : first_column + box_columns]
    if mask.pixels.size > DRAWN_WHOLE:
        # bilinear without antialiasing: an output row reads two rows. They are drawn with one more on either side;
        # the memory of the others is never touched
        low = ((np.arange(rows) + 0.5) * height / rows - 0.5).astype(np.int64) - first_row
        near = (low[:, None] + np.arange(-1, 3)).ravel()
        near = near[(near >= 0) & (near < box_rows)]
        drawn[near] = mask.pixels[near]
    else:
        drawn[:] = mask.pixels
    return cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR)


def _mask_grid_full(mask: BoxedMask, crop: Box, rows: int, columns: int) -> np.ndarray:
    """The mask at patch resolution, resized as Full's reference does, which rounds each pass."""
    cut = torch.from_numpy(mask.window(*crop))[None, None]
    resized = torch.nn.functional.interpolate(cut, size=(rows, columns), mode="bilinear", align_corners=False)
    return resized[0, 0].numpy().astype(np.float32)
