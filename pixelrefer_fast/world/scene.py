"""Scenes: images and short videos of objects with exact masks, drawn from a seed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelrefer_fast.world import motion as motions
from pixelrefer_fast.world.backgrounds import add_noise, background
from pixelrefer_fast.world.canvas import Canvas, Sprite
from pixelrefer_fast.world.facts import Facts
from pixelrefer_fast.world.splits import generator, held_out
from pixelrefer_fast.world.things import (
    COLORS,
    PATTERNS,
    SHAPES,
    SIZES,
    TINY,
    Drawn,
    Pose,
    Thing,
    draw,
    draw_angle,
    draw_look,
    unit_across,
)

IMAGE_SIDES = (112, 196)
VIDEO_SIDES = (112, 154)
MAX_ASPECT = 1.7
VIDEO_FRAMES = (4, 6)
CROWD = (9, 16)
"""Objects of a crowd, the second exclusive; those that find no room are left out."""
CROWD_SMALL = 0.7
"""Part of them that are small, the others are medium."""
MIN_VISIBLE = 0.7
"""Part of an object that a later one leaves uncovered, but for rare ones."""

_VIDEO_SHARE = 0.3
_TINY_SHARE = 0.06
_PAIR_SHARE = 0.4  # of the videos: two objects that stay still touch
_HELDOUT_SHARE = 0.5  # of the objects of a held-out scene
_COUNTS = {False: (0.08, 0.18, 0.28, 0.26, 0.20), True: (0.14, 0.26, 0.36, 0.24)}  # of 2, 3, ... objects; by video

_REPEATS = ((), ("color",), ("shape",), ("color", "shape"))  # words that several objects of a scene share on purpose
_REPEAT_SHARES = (0.24, 0.34, 0.34, 0.08)


@dataclass(frozen=True, eq=False)
class Scene:
    """One image or video with everything that is true of it.

    Attributes:
        frames: (H, W, 3) uint8 RGB each; an image has one.
        times: seconds of each frame of a video; None for an image.
        masks: (objects, frames, H, W) bool, the visible pixels of each object; disjoint.
        whole: as `masks`, including the pixels that later objects cover. Objects are in drawing order, the first behind
            all others.
        things: what each object is; its size is that in the first frame.
        motions: the motion of each object, one of `motion.MOTIONS`; None for an image.
        angles: (objects, frames), the clockwise rotation of each object from upright, in degrees.
        seed: the seed that the scene was drawn from.
        split: the split that the scene was drawn from.
    """

    frames: tuple[np.ndarray, ...]
    times: tuple[float, ...] | None
    masks: np.ndarray
    whole: np.ndarray
    things: tuple[Thing, ...]
    motions: tuple[str, ...] | None
    angles: np.ndarray
    seed: int
    split: str

    @property
    def video(self) -> bool:
        return self.times is not None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.masks.shape[2], self.masks.shape[3]

    @functools.cached_property
    def facts(self) -> Facts:
        """The facts that follow from the masks: visible parts, places, what touches what."""
        return Facts.of(self.masks, self.whole)

    def best_frame(self, i: int) -> int:
        """The frame that shows most of object i (the earliest if several do), for models that take one marked frame."""
        return int(self.facts.areas[i].argmax())

    def summary(self) -> dict[str, Any]:
        """Plain facts for printing or JSON: the objects, their places and their motions."""
        height, width = self.size
        best = [self.best_frame(i) for i in range(len(self.things))]
        return {
            "seed": self.seed,
            "split": self.split,
            "kind": "video" if self.video else "image",
            "height": height,
            "width": width,
            "times": None if self.times is None else list(self.times),
            "objects": [
                {
                    "shape": t.shape,
                    "color": t.color,
                    "pattern": t.pattern,
                    "size": t.size,
                    "motion": None if self.motions is None else self.motions[i],
                    "best_frame": best[i],
                    "box": [int(v) for v in self.facts.boxes[i, best[i]]],
                    "visible": round(float(self.facts.visible[i].min()), 3),
                    "held_out": t.combination in held_out(),
                }
                for i, t in enumerate(self.things)
            ],
        }


def make_scene(seed: int, split: str = "train", video: bool | None = None) -> Scene:
    """Draw a scene of 2 to 6 objects, always the same for the same arguments.

    Args:
        seed: an integer, at least 0.
        split: `train`, in which no held-out combination occurs, or `heldout`, whose scenes each have at least one.
        video: an image or a video; None draws a video with a probability of 30 %.

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what was given.
    """
    if video is not None and not isinstance(video, (bool, np.bool_)):
        raise ValueError(f"video: expected True, False or None, got {video!r}")
    rng = generator(seed, split, *(() if video is None else (int(video),)))
    if video is None:
        video = bool(rng.random() < _VIDEO_SHARE)
    height, width = _draw_size(rng, *(VIDEO_SIDES if video else IMAGE_SIDES))
    frames = int(rng.integers(VIDEO_FRAMES[0], VIDEO_FRAMES[1] + 1)) if video else 1
    while True:  # a layout in which only one object found room is drawn anew
        things = _draw_things(rng, split, video)
        canvas, moves = _lay_out(rng, things, frames, height, width, video)
        placed = tuple(s.thing for s in canvas.sprites)
        if len(placed) >= 2 and (split == "train" or any(t.combination in held_out() for t in placed)):
            break
    return _finished(rng, canvas, tuple(moves) if video else None, seed, split)


def make_crowd(seed: int) -> Scene:
    """Draw an image of many small and some medium objects for training, always the same for the same seed.

    Ordinary scenes have one or two small objects, whose shapes are the hardest to see. Several objects of a crowd share
    a colour or a shape, sometimes more than six.

    Args:
        seed: an integer, at least 0.

    Raises:
        ValueError: the seed is anything else.
    """
    rng = generator(seed, "train", 2)
    height, width = _draw_size(rng, *IMAGE_SIDES)
    colors, shapes = (rng.permutation(len(words))[: rng.integers(3, len(words) + 1)] for words in (COLORS, SHAPES))
    things = []
    for _ in range(rng.integers(*CROWD)):
        looks = _draw_combination(rng, False, int(rng.choice(shapes)), int(rng.choice(colors)), None)
        things.append(_thing(looks, SIZES[int(rng.random() >= CROWD_SMALL)]))
    canvas, _ = _lay_out(rng, things, 1, height, width, False)
    return _finished(rng, canvas, None, seed, "train")


def _finished(rng: np.random.Generator, canvas: Canvas, moves: tuple[str, ...] | None, seed: int, split: str) -> Scene:
    """The scene with the objects placed so far; a video if they move."""
    video = moves is not None
    return Scene(
        _pictures(rng, canvas, video),
        tuple(float(t) for t in range(len(canvas.owner))) if video else None,
        np.stack([canvas.owner == i + 1 for i in range(len(canvas.sprites))]),
        canvas.whole(),
        tuple(s.thing for s in canvas.sprites),
        moves,
        np.array([s.angles for s in canvas.sprites]),
        int(seed),
        split,
    )


def _draw_size(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    first = int(rng.integers(low, high + 1))
    second = int(rng.integers(max(low, math.ceil(first / MAX_ASPECT)), min(high, int(first * MAX_ASPECT)) + 1))
    return (first, second) if rng.random() < 0.5 else (second, first)


@functools.lru_cache(maxsize=1)
def _combinations() -> tuple[np.ndarray, np.ndarray]:
    """(shape, color, pattern) by number, (n, 3): those of training, and those held out."""
    held = held_out()
    every = [(s, c, p) for s in range(len(SHAPES)) for c in range(len(COLORS)) for p in range(len(PATTERNS))]
    names = tuple(COLORS)
    apart = np.array([(SHAPES[s], names[c], PATTERNS[p]) in held for s, c, p in every])
    table = np.array(every)
    return table[~apart], table[apart]


def _draw_combination(
    rng: np.random.Generator, held: bool, shape: int | None, color: int | None, pattern: int | None
) -> tuple[int, int, int]:
    """Draw one combination, held out or not, with the given words; if there is none, with any colour."""
    train, apart = _combinations()
    words: tuple[tuple[np.ndarray, int | None], ...] = ((train, color), (train, None))
    if held:
        words = ((apart, color), *words)
    for table, tone in words:
        fits = np.ones(len(table), bool)
        for column, word in enumerate((shape, tone, pattern)):
            if word is not None:
                fits &= table[:, column] == word
        rows = np.flatnonzero(fits)
        if len(rows):
            break
    s, c, p = (int(v) for v in table[rows[rng.integers(len(rows))]])
    return s, c, p


def _draw_things(rng: np.random.Generator, split: str, video: bool) -> list[Thing]:
    """Draw what the objects are; colours and shapes repeat on purpose, for the questions that count."""
    shares = _COUNTS[video]
    n = 2 + int(rng.choice(len(shares), p=shares))
    shapes: list[int | None] = [None] * n
    colors: list[int | None] = [None] * n
    repeats = _REPEATS[int(rng.choice(len(_REPEATS), p=_REPEAT_SHARES))]
    for words, options, repeat in ((shapes, len(SHAPES), "shape"), (colors, len(COLORS), "color")):
        if repeat in repeats:
            word = int(rng.integers(options))
            for i in rng.permutation(n)[: 2 + int(rng.choice(4, p=(0.22, 0.3, 0.36, 0.12)))]:
                words[i] = word
    heldout = [split == "heldout" and bool(rng.random() < _HELDOUT_SHARE) for _ in range(n)]
    if split == "heldout" and not any(heldout):
        heldout[int(rng.integers(n))] = True
    things = []
    large, most = 0, 1 if video else 2
    for i in range(n):
        size = SIZES[int(rng.choice(3, p=(0.34, 0.38, 0.28) if large < most else (0.45, 0.55, 0.0)))]
        if rng.random() < _TINY_SHARE:
            size = TINY
        large += size == "large"
        looks = _draw_combination(rng, heldout[i], shapes[i], colors[i], 0 if size == TINY else None)
        things.append(_thing(looks, size))
    return things


def _thing(looks: tuple[int, int, int], size: str) -> Thing:
    shape, color, pattern = looks
    return Thing(SHAPES[shape], tuple(COLORS)[color], PATTERNS[pattern], size)


def _lay_out(
    rng: np.random.Generator, things: list[Thing], frames: int, height: int, width: int, video: bool
) -> tuple[Canvas, list[str]]:
    """Place the things, mostly larger ones first so that they are behind; a thing without room is left out."""
    across = {TINY: 0, "small": 1, "medium": 2, "large": 3}
    order = sorted(range(len(things)), key=lambda i: -across[things[i].size] + rng.normal(0, 0.7))
    canvas = Canvas(frames, height, width)
    moves: list[str] = []
    pair = video and rng.random() < _PAIR_SHARE
    for i in order:
        thing = things[i]
        paired = pair and moves.count("still") < 2 and thing.size != TINY
        move = "still" if paired or not video else _draw_motion(rng, thing)
        touching = bool(moves) and move == "still" and thing.size != TINY and (paired or rng.random() < 0.5)
        edge = touching or rng.random() < (0.5 if video else 0.3)
        sprite = _draw_sprite(rng, thing, move, frames, height, width, edge)
        room = sprite.room(height, width)
        if room is None:
            continue
        partners = [
            j
            for j in range(len(moves))
            if moves[j] == "still" and canvas.sprites[j].thing.size != TINY and j not in canvas.contacts
        ]
        place = None
        if touching and partners:
            place = _touching_place(rng, canvas, sprite, room, partners)
        if place is None:
            place = _free_place(rng, canvas, sprite, room)
        if place is not None:
            canvas.place(sprite, *place)
            moves.append(move)
    return canvas, moves


def _draw_motion(rng: np.random.Generator, thing: Thing) -> str:
    options = motions.possible_motions(thing.shape, thing.size)
    weights = np.array([{"still": 0.6, "turning": 1.8, "growing": 1.9, "shrinking": 1.8}.get(m, 1.0) for m in options])
    return options[int(rng.choice(len(options), p=weights / weights.sum()))]


def _draw_sprite(
    rng: np.random.Generator, thing: Thing, move: str, frames: int, height: int, width: int, edge: bool
) -> Sprite:
    low, high = motions.size_range(thing.size, move, height, width)
    if thing.pattern != "solid" and thing.size == "small":
        low = max(low, 18.0)  # thin parts must show the pattern
    across = float(rng.uniform(min(low, high), high))
    angle = draw_angle(thing.shape, rng)
    look = draw_look(thing, rng, edge and thing.size != TINY)
    path = motions.draw_path(move, frames, across, height, width, rng)
    unit = unit_across(thing.shape, angle)
    drawn: list[Drawn] = []
    for f in range(frames):
        if f and path.factors[f] == path.factors[f - 1] and path.angles[f] == path.angles[f - 1]:
            drawn.append(drawn[-1])
            continue
        pose = Pose(0.0, 0.0, across * path.factors[f], angle + path.angles[f])
        drawn.append(draw(thing, look, pose, unit, path.angles[f]))
    return Sprite(thing, tuple(drawn), path.shifts, tuple(angle + a for a in path.angles), look.edge is not None)


def _inside(rng: np.random.Generator, room: tuple[int, int, int, int]) -> tuple[int, int]:
    return int(rng.integers(room[0], room[1] + 1)), int(rng.integers(room[2], room[3] + 1))


def _free_place(
    rng: np.random.Generator, canvas: Canvas, sprite: Sprite, room: tuple[int, int, int, int]
) -> tuple[int, int] | None:
    """A place apart from all others; after some failures one that leaves enough of them; None where there is none.

    Without an outline nothing would tell it from an object of its colour that it covers.
    """
    tries = [_inside(rng, room) for _ in range(20)]
    for x, y in tries:
        if not canvas.near(sprite, x, y):
            return x, y
    if not sprite.edged:
        return None
    part = MIN_VISIBLE if rng.random() < 0.85 else 0.35
    return next(((x, y) for x, y in tries[:8] if canvas.leaves(sprite, x, y, part)), None)


def _touching_place(
    rng: np.random.Generator, canvas: Canvas, sprite: Sprite, room: tuple[int, int, int, int], partners: list[int]
) -> tuple[int, int] | None:
    """A place where it just touches or partly covers one other object and is apart from the rest."""
    area = int(np.count_nonzero(sprite.drawn[0].mask))
    for _ in range(6):
        j = partners[int(rng.integers(len(partners)))]
        (cx, cy), theirs = canvas.centres[j], canvas.sprites[j].drawn[0].mask
        wanted = rng.uniform(0.01, 0.3) * min(area, int(canvas.areas[j][0]))
        a = rng.uniform(0, 2 * math.pi)
        reach = (max(theirs.shape) + max(sprite.drawn[0].mask.shape)) * 0.75
        for distance in np.arange(reach, 3, -2.0):
            x, y = cx + round(distance * math.cos(a)), cy + round(distance * math.sin(a))
            if not (room[0] <= x <= room[1] and room[2] <= y <= room[3]):
                continue
            if canvas.covered(sprite, 0, x, y)[j] >= wanted:
                if canvas.leaves(sprite, x, y, MIN_VISIBLE) and not canvas.near(sprite, x, y, but=j):
                    canvas.contacts += [j, len(canvas.sprites)]
                    return x, y
                break
    return None


def _pictures(rng: np.random.Generator, canvas: Canvas, video: bool) -> tuple[np.ndarray, ...]:
    """Draw the frames. A video's background does not change; half of the videos have no noise of their own."""
    ground = background(rng, *canvas.owner.shape[1:])
    level = int(rng.integers(3))
    noise: Callable[[np.ndarray], np.ndarray]
    if video and rng.random() < 0.5:
        ground = add_noise(ground, rng, level)
        noise = np.copy
    elif not video and rng.random() < 0.3:
        noise = np.copy
    else:
        noise = functools.partial(add_noise, rng=rng, level=level)
    return tuple(noise(canvas.paint(f, ground.copy())) for f in range(len(canvas.owner)))
