"""What is marked on a page: objects with their masks, frame by frame. A board never changes; steps make new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pixelrefer_fast.checks.values import labelled
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.regions import Region
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.regions.shapes import Bitmap
from pixelrefer_fast.segmenting import OpenedMedia, Segment

MOST_OBJECTS = 32
MOST_UNDONE = 30
"""Steps that can be gone back."""
Click = tuple[float, float, int]
"""x and y in pixels; 1 on the object, 0 beside it."""


@dataclass(frozen=True, eq=False)
class BoardMark:
    """An object in an image, or in one frame of a video.

    Attributes:
        shape: at least one marked pixel.
        given: the region as requests have it.
        clicks: that the mask was made of, if it was.
        rough: whether the mask is a segmenter's guess.
    """

    shape: Bitmap
    given: Mapping[str, Any]
    clicks: tuple[Click, ...] = ()
    rough: bool = False

    @classmethod
    def of(cls, mask: np.ndarray, *, rough: bool = False) -> BoardMark:
        """Of a mask (H, W), in the form that requests have."""
        shape = Bitmap.of(mask)
        value = shape.to_json()
        return cls(shape, {"rle": {"size": value["size"], "counts": value["counts"]}}, rough=rough)

    @property
    def boxed(self) -> BoxedMask:
        """The marked pixels."""
        return self.shape.boxed(self.shape.height, self.shape.width, "mask")

    @property
    def corners(self) -> list[int]:
        """x0, y0, x1, y1 around them."""
        shape = self.shape
        return [shape.left, shape.top, shape.left + shape.box_width, shape.top + shape.box_height]

    @property
    def mask(self) -> np.ndarray:
        """The same, (H, W) bool."""
        return self.boxed.full() > 0


BoardMarks = Mapping[int | None, BoardMark]
"""Of one object by frame; the frame of an image is None."""


@dataclass(frozen=True, eq=False)
class Board:
    """An image or a video, and what is marked in it.

    Attributes:
        media: what `media.open_media` returned.
        opened: by the segmenter.
        frame: of a video, the one that is looked at.
        objects: their marks; an object's number is its place from 0.
        chosen: the number of the object that is worked on; None: what is marked next is a new one.
    """

    media: Media
    opened: OpenedMedia
    frame: int | None
    objects: tuple[BoardMarks, ...] = ()
    chosen: int | None = None
    _before: tuple[tuple[BoardMarks, ...], ...] = field(default=(), repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.media, Video):
            return self.media.height, self.media.width
        height, width = self.media.shape[:2]
        return height, width

    def picture(self) -> np.ndarray:
        """The image, or the frame that is looked at, (H, W, 3) uint8."""
        if isinstance(self.media, Video):
            assert self.frame is not None
            return next(self.media.read([self.frame]))
        return self.media

    def at(self, frame: int) -> Board:
        """Another frame of the video.

        Raises:
            ValueError: there is no such frame.
        """
        if not isinstance(self.media, Video) or not 0 <= frame < len(self.media):
            raise ValueError(f"frame: expected one of the video, got {frame}")
        return replace(self, frame=frame)

    def choosing(self, number: int | None) -> Board:
        """With another object to work on; None: a new one."""
        return replace(self, chosen=None if number is None else self._number(number))

    def clicked(self, x: float, y: float, label: int) -> Board:
        """The chosen object has another click; one beside the object goes to the last one where none is chosen.

        Raises:
            ValueError: naming the click, what was expected and what came.
        """
        number = self.chosen
        if label == 0 and number is None:
            if not self.objects:
                raise ValueError("click: expected one on an object first, got one beside it")
            number = len(self.objects) - 1
        marks = self._marks(number)
        own = marks.get(self.frame)
        clicks = (*(own.clicks if own is not None else ()), (x, y, label))
        points, labels = [[float(x), float(y)] for x, y, _ in clicks], [label for *_, label in clicks]
        found = self._one(self.opened.masks(points, labels, frame=self.frame))
        given = {"points": [[_plain(x), _plain(y)] for x, y in points], "labels": labels}
        return self._marked(number, BoardMark(Bitmap.of(self._mask(found.region)), given, clicks, found.rough))

    def boxed(self, corners: Sequence[float], cut_out: bool) -> Board:
        """The chosen object is a box, x0, y0, x1, y1, or what a segmenter finds in it.

        Raises:
            ValueError: as `clicked`.
        """
        box = Region.from_box(xyxy=corners)
        whole = self._mask(box)
        if not cut_out:
            return self._marked(self.chosen, BoardMark(Bitmap.of(whole), {"box": [_plain(value) for value in corners]}))
        found = self._one(self.opened.masks(boxes=[list(corners)], frame=self.frame))
        return self._marked(self.chosen, BoardMark.of(self._mask(found.region), rough=found.rough))

    def painted(self, points: Sequence[Sequence[float]], width: float, *, erase: bool) -> Board:
        """A stroke along these points is added to the chosen object, or taken from it (from the last if none is).

        Raises:
            ValueError: as `clicked`.
        """
        height, columns = self.size
        stroke = Region.from_scribble(points, width).mask(height, columns, name="stroke") > 0
        number = self.chosen
        if erase and number is None and self.objects:
            number = len(self.objects) - 1
        own = self._marks(number).get(self.frame)
        if erase:
            if number is None or own is None:
                raise ValueError("eraser: expected an object that is marked here, got none")
            mask = own.mask & ~stroke
            return self._without(number) if not mask.any() else self._marked(number, BoardMark.of(mask))
        board = self._marked(number, BoardMark.of(stroke if own is None else own.mask | stroke))
        return replace(board, chosen=len(board.objects) - 1 if number is None else number)

    def masked(self, mask: np.ndarray) -> Board:
        """The chosen object is a mask (H, W).

        Raises:
            ValueError: it has another size than the image, or marks nothing.
        """
        return self._marked(self.chosen, BoardMark.of(self._mask(Region.from_mask(mask))))

    def removed(self, number: int) -> Board:
        """Without an object; those after it get its number and so on."""
        self._number(number)
        kept = tuple(marks for at, marks in enumerate(self.objects) if at != number)
        return self._with(kept, None)

    def undone(self) -> Board:
        """As before the last change of an object."""
        if not self._before:
            return self
        *before, objects = self._before
        chosen = self.chosen if self.chosen is not None and self.chosen < len(objects) else None
        return replace(self, objects=objects, chosen=chosen, _before=tuple(before))

    def tracked(self) -> Board:
        """Every object that is marked in this frame, followed through the video.

        Raises:
            ValueError: the segmenter follows nothing, or nothing is marked here.
        """
        if self.frame is None:
            raise ValueError("track: expected a video, got an image")
        objects = list(self.objects)
        here = [at for at, marks in enumerate(objects) if self.frame in marks]
        if not here:
            raise ValueError(f"track: expected an object that is marked in frame {self.frame}, got none")
        for at in here:
            own = objects[at][self.frame]
            if own.clicks:
                points, labels = [[x, y] for x, y, _ in own.clicks], [label for *_, label in own.clicks]
                found = self.opened.track(points, labels, frame=self.frame)
            else:
                found = self.opened.track(boxes=[own.corners], frame=self.frame)
            with labelled(f"object {at}"):
                region = self._one(found).region
                shown: dict[int | None, BoardMark] = {
                    frame: BoardMark.of(region.mask(*self.size, frame=frame) > 0) for frame in region.frames or ()
                }
            objects[at] = shown | {self.frame: own}
        return self._with(tuple(objects), self.chosen)

    def regions(self, kind: str) -> list[Region]:
        """Of every object, for a model of this kind: the full one sees an object in one frame, the fullest."""
        regions = []
        for marks in self.objects:
            own = sorted(self._seen(marks, kind).items(), key=_frame)
            regions.append(Region(tuple((frame, mark.shape) for frame, mark in own)))
        return regions

    def given(self, kind: str) -> list[dict[str, Any]]:
        """The regions as requests have them."""
        listed: list[dict[str, Any]] = []
        for marks in self.objects:
            own = {frame: dict(mark.given) for frame, mark in sorted(self._seen(marks, kind).items(), key=_frame)}
            listed.append(own[None] if None in own else {"frames": {str(frame): one for frame, one in own.items()}})
        return listed

    def _seen(self, marks: BoardMarks, kind: str) -> BoardMarks:
        if kind != "full" or len(marks) == 1:
            return marks
        fullest = max(marks, key=lambda frame: marks[frame].boxed.area)
        return {fullest: marks[fullest]}

    def _number(self, number: int) -> int:
        if not 0 <= number < len(self.objects):
            raise ValueError(f"object: expected a number below {len(self.objects)}, got {number}")
        return number

    def _marks(self, number: int | None) -> BoardMarks:
        return {} if number is None else self.objects[number]

    def _mask(self, region: Region) -> np.ndarray:
        """Of a region in the frame that is looked at; nothing marked is a ValueError."""
        frame = self.frame if region.frames is not None else None
        mask = region.mask(*self.size, frame=frame) > 0
        if not mask.any():
            raise ValueError("object: expected at least one marked pixel, got none")
        return mask

    def _one(self, found: Sequence[Segment]) -> Segment:
        if len(found) != 1:
            raise ValueError(f"segmenter: expected one object, got {len(found)}")
        return found[0]

    def _marked(self, number: int | None, mark: BoardMark) -> Board:
        """The object, or a new one, has this mark in the frame that is looked at."""
        if number is None:
            if len(self.objects) >= MOST_OBJECTS:
                raise ValueError(f"objects: expected at most {MOST_OBJECTS}, got another one")
            return self._with((*self.objects, {self.frame: mark}), None)
        return self._changed(number, {**self.objects[number], self.frame: mark})

    def _without(self, number: int) -> Board:
        """The object is not in the frame that is looked at; without any frame it is gone."""
        marks = {frame: mark for frame, mark in self.objects[number].items() if frame != self.frame}
        return self._changed(number, marks) if marks else self.removed(number)

    def _changed(self, number: int, marks: BoardMarks) -> Board:
        objects = tuple(marks if at == number else own for at, own in enumerate(self.objects))
        return self._with(objects, self.chosen)

    def _with(self, objects: tuple[BoardMarks, ...], chosen: int | None) -> Board:
        before = (*self._before, self.objects)[-MOST_UNDONE:]
        return replace(self, objects=objects, chosen=chosen, _before=before)


Step = Callable[[Board], Board]
"""What a person does to a board."""


def _frame(entry: tuple[int | None, BoardMark]) -> int:
    return -1 if entry[0] is None else entry[0]


def _plain(value: float) -> float:
    """Whole numbers as such."""
    return int(value) if value == int(value) else value
