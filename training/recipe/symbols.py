"""What is true of a scene's objects and of the cells of its frames, as vectors: what a model should read off pixels.

A small language model learns to compare, count and select from these vectors long before it could from a vision
encoder's features (`language.py`); the vision side then learns to give the same tokens (`alignment.py`).
"""

from __future__ import annotations

import cv2
import numpy as np

from pixelrefer_fast.world import Scene
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES, SIZES, SYMMETRY, TINY

ALIKE = 6  # most objects of one colour or shape
NEIGHBOURS = ("touched", "behind", "in front")
USUAL = 35.0  # pixels across, of which sizes are told as logarithms of multiples
SEEN = 0.15  # part of a cell that an object covers, from which the cell shows it
_COLORS, _SIZES = tuple(COLORS), (*SIZES, TINY)
LOOKS = (_COLORS, SHAPES, PATTERNS, _SIZES)
_LOOK = len(_COLORS) + len(SHAPES) + len(PATTERNS) + len(_SIZES)
_NEIGHBOUR = len(_COLORS) + 1 + len(SHAPES) + 1
NEIGHBOUR_LOOKS = [
    (_LOOK + 5 + k * _NEIGHBOUR, _LOOK + 6 + k * _NEIGHBOUR + len(_COLORS)) for k in range(len(NEIGHBOURS))
]
OBJECT_PLACE = slice(_LOOK, _LOOK + 3)
OBJECT_FACTS = _LOOK + 5 + len(NEIGHBOURS) * _NEIGHBOUR + 2 * ALIKE
CELL_PLACE = slice(_LOOK + 1, _LOOK + 6)
CELL_FACTS = _LOOK + 8 + 2 * ALIKE
COUNT_FACTS = slice(-2 * ALIKE, None)  # of objects and of cells: how many share the colour, and the shape


def object_symbols(scene: Scene, i: int, frame: int, alike: bool) -> np.ndarray:
    """(OBJECT_FACTS,) float32 of object i in one frame.

    Colour, shape, pattern and size; row, column and logarithm of the length; the cosine and sine of its angle as far
    as the shape shows it; colour and shape of what it touches, hides and is hidden by; how many are alike. What is not
    plain is left at zero. Rows lie along the width and columns along the height, as in equation 4 as it was trained.

    Args:
        scene: of `make_scene`.
        i, frame: numbers.
        alike: tell how many objects share its colour and shape.
    """
    facts = scene.facts
    height, width = scene.size
    if not facts.areas[i, frame]:
        return np.zeros(OBJECT_FACTS, np.float32)
    x, y = facts.centres[i, frame]
    n = range(len(scene.things))
    near = (
        [j for j in n if j != i and facts.touching[frame, i, j]],
        [j for j in n if facts.covers[frame, i, j]],
        [j for j in n if facts.covers[frame, j, i]],
    )
    place = [2 * y / (width - 1) - 1, 2 * x / (height - 1) - 1, np.log(facts.across[i, frame] / USUAL)]
    neighbours = [_neighbour(scene, others) for others in near]
    told = [_look(scene, i), np.array(place), _turned(scene, i, frame), *neighbours, _alike(scene, i) * alike]
    return np.concatenate(told).astype(np.float32)


def cell_symbols(scene: Scene, frame: int, shown: np.ndarray) -> np.ndarray:
    """(rows * columns, CELL_FACTS) float32 of the cells of a frame, row by row.

    Of the object that a cell shows: colour, shape, pattern and size, centre and logarithm of the length, the cosine and
    sine of its angle as far as the shape shows it, and how many are alike; where it shows none that it shows none. Of
    every cell where it lies.

    Args:
        scene: of `make_scene`.
        frame: its number.
        shown: (rows, columns) of `shown_objects`.
    """
    rows, columns = shown.shape
    facts, n = scene.facts, len(scene.things)
    height, width = scene.size
    table = np.zeros((n + 1, CELL_FACTS), np.float32)
    table[-1, _LOOK] = 1.0
    for i in range(n):
        if facts.areas[i, frame]:
            x, y = facts.centres[i, frame]
            place = [0, 0, 2 * y / height - 1, 2 * x / width - 1, np.log(facts.across[i, frame] / USUAL)]
            table[i] = np.concatenate([_look(scene, i), [0], place, _turned(scene, i, frame), _alike(scene, i)])
    cells = table[shown.reshape(-1)]
    cells[:, CELL_PLACE.start] = np.repeat(2 * (np.arange(rows) + 0.5) / rows - 1, columns)
    cells[:, CELL_PLACE.start + 1] = np.tile(2 * (np.arange(columns) + 0.5) / columns - 1, rows)
    return cells


def shown_objects(masks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) int64: which of the objects (n, H, W) each cell shows, -1 where it shows none."""
    cover = np.stack([cv2.resize(m.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA) for m in masks])
    return np.where(cover.max(0) >= SEEN, cover.argmax(0), -1)


def _look(scene: Scene, i: int) -> np.ndarray:
    """Colour, shape, pattern and size; no size where it changes."""
    thing = scene.things[i]
    constant = scene.motions is None or scene.motions[i] not in ("growing", "shrinking")
    return np.concatenate(
        [
            _one(_COLORS.index(thing.color), len(_COLORS)),
            _one(SHAPES.index(thing.shape), len(SHAPES)),
            _one(PATTERNS.index(thing.pattern), len(PATTERNS)),
            _one(_SIZES.index(thing.size), len(_SIZES)) * constant,
        ]
    )


def _turned(scene: Scene, i: int, frame: int) -> np.ndarray:
    """Cosine and sine of its angle, zeros where the shape does not show it."""
    shape = scene.things[i].shape
    turn = np.radians(scene.angles[i, frame] * SYMMETRY.get(shape, 0))
    return np.array([np.cos(turn), np.sin(turn)]) * (shape in SYMMETRY)


def _neighbour(scene: Scene, others: list[int]) -> np.ndarray:
    """Colour and shape of the only one of these objects, that there is none, or nothing where there are several."""
    if len(others) > 1:
        return np.zeros(_NEIGHBOUR)
    thing = scene.things[others[0]] if others else None
    return np.concatenate(
        [
            _one(len(_COLORS) if thing is None else _COLORS.index(thing.color), len(_COLORS) + 1),
            _one(len(SHAPES) if thing is None else SHAPES.index(thing.shape), len(SHAPES) + 1),
        ]
    )


def _alike(scene: Scene, i: int) -> np.ndarray:
    thing = scene.things[i]
    return np.concatenate(
        [
            _one(sum(t.color == thing.color for t in scene.things) - 1, ALIKE),
            _one(sum(t.shape == thing.shape for t in scene.things) - 1, ALIKE),
        ]
    )


def _one(place: int, size: int) -> np.ndarray:
    vector = np.zeros(size)
    vector[place] = 1.0
    return vector
