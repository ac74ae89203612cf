"""The main job on a bundled photograph, with the two small recorded checkpoints."""

from __future__ import annotations

import importlib.resources
import time
from pathlib import Path
from typing import Any, TextIO

from pixelrefer_fast.cli.output import print_texts

KINDS = {"lite": "PixelRefer-Lite", "full": "PixelRefer"}
CAVEAT = "The weights of these two small checkpoints are random: the words mean nothing."
TOKENS = 24  # of an answer; more of such words would not say more
FACE = (40, 20, 365, 285)  # x0, y0, x1, y1 of the cat's face
EYE = (171, 115, 37, 32)  # centre x, y and radii of the eye on the left


def run_demo(folder: Path, out: TextIO | None) -> dict[str, Any]:
    """Describes the cat's face (a box) and an eye (a mask), prints to `out` if given, and saves a picture per model."""
    import numpy as np

    import pixelrefer_fast
    from pixelrefer_fast import render
    from pixelrefer_fast.media import load_image
    from pixelrefer_fast.regions import Region

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot make this folder: {error.strerror}") from error
    targets = {kind: render.check_writable(folder / f"demo-{kind}.png") for kind in KINDS}
    assets = importlib.resources.files("pixelrefer_fast.assets")
    photograph = Path(str(assets / "cat.jpg"))
    image = load_image(photograph)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    eye = ((columns - EYE[0]) / EYE[2]) ** 2 + ((rows - EYE[1]) / EYE[3]) ** 2 <= 1
    regions = [Region.from_box(xyxy=FACE), Region.from_mask(eye)]
    if out:
        print(f"{photograph}: the cat's face (a box) and its eye on the left (a mask)\n{CAVEAT}", file=out)
    models = []
    for kind, name in KINDS.items():
        model = pixelrefer_fast.load(Path(str(assets / kind)))
        texts, seconds = [], []
        for region in regions:
            start = time.perf_counter()
            texts += model.describe(image, [region], max_new_tokens=TOKENS)
            seconds.append(time.perf_counter() - start)
        picture = render.answers(image, regions, texts, title=f"{name} with random weights: the words mean nothing")
        render.save(picture, targets[kind])
        answers = [
            {"region": i, "text": text, "seconds": spent}
            for i, (text, spent) in enumerate(zip(texts, seconds, strict=True))
        ]
        models.append({"model": name, "regions": answers, "saved": str(targets[kind])})
        if out:
            print(
                f"\n{name} ({', '.join(f'{spent:.2f} s' for spent in seconds)}), picture in {targets[kind]}", file=out
            )
            print_texts(texts, out)
    return {"image": str(photograph), "random_weights": True, "note": CAVEAT, "models": models}
