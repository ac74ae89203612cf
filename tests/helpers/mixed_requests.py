"""Requests of every kind, drawn at random: what a batch must answer as one at a time does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import pixelrefer_fast as pf

CAT = Path(pf.__file__).parent / "assets" / "cat.jpg"
QUESTIONS = (
    "What is <region>?",
    "Describe <region> in a word or two, please.",
    "What colour is <region>, and what lies beside it?",
    "<region>",
)
TWO = ("What lies between <region> and <region>?", "Is <region> larger than <region>?")


class Pictures:
    """A few images and videos that requests share."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        photograph = pf.load_image(CAT)
        self.images: list[Any] = [CAT, str(CAT), photograph]
        for _ in range(5):
            height, width = rng.integers(30, 140, 2).tolist()
            top, left = int(rng.integers(0, 300 - height)), int(rng.integers(0, 451 - width))
            self.images.append(np.ascontiguousarray(photograph[top : top + height, left : left + width]))
        self.videos: list[Any] = []
        for count in (2, 4, 5):
            side = 10 * count
            self.videos.append([photograph[side * i : side * i + 70, 9 * i : 9 * i + 90] for i in range(count)])


def size_of(image: Any) -> tuple[int, int]:
    return image.shape[:2] if isinstance(image, np.ndarray) else (300, 451)


def box_in(rng: np.random.Generator, height: int, width: int) -> list[int]:
    x0, y0 = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
    return [x0, y0, int(rng.integers(x0 + 4, width + 1)), int(rng.integers(y0 + 4, height + 1))]


def mixed_requests(kind: str, count: int, seed: int = 0, tokens: int = 12) -> list[pf.Ask]:
    """Images and videos, one and two regions, masks and boxes, several frames an object (Lite), different questions."""
    rng = np.random.default_rng(seed + 1)
    pictures = Pictures(seed)
    asks = []
    for _ in range(count):
        options: dict[str, Any] = {"max_new_tokens": int(rng.integers(1, tokens + 1))}
        if rng.random() < 0.2:
            options["kmeans_seed"] = int(rng.integers(100))
        regions = 1 + int(rng.random() < 0.3)
        question = str(rng.choice(QUESTIONS if regions == 1 else TWO))
        marked: list[Any] = []
        if rng.random() < 0.25:
            media = pictures.videos[int(rng.integers(len(pictures.videos)))]
            for _ in range(regions):
                marks = 1 + int(rng.integers(min(3, len(media)))) if kind == "lite" else 1
                frames = sorted(rng.choice(len(media), marks, replace=False).tolist())
                marked.append({frame: box_in(rng, 70, 90) for frame in frames})
            if kind == "full":
                options["frames"] = sorted(rng.choice(len(media), 1 + int(rng.integers(2)), replace=False).tolist())
        else:
            media = pictures.images[int(rng.integers(len(pictures.images)))]
            height, width = size_of(media)
            for _ in range(regions):
                box = box_in(rng, height, width)
                if rng.random() < 0.4:
                    mask = np.zeros((height, width), np.uint8)
                    mask[box[1] : box[3], box[0] : box[2]] = rng.random((box[3] - box[1], box[2] - box[0])) < 0.7
                    mask[box[1], box[0]] = 1
                    marked.append(mask)
                else:
                    marked.append(box)
        asks.append(pf.Ask(media, question, marked, **options))
    return asks
