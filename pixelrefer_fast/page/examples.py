"""Pictures to begin with: two scenes and a video of the world that the embedded models know, and a photograph."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from pixelrefer_fast.page.asked import PageFile
from pixelrefer_fast.world import Scene, make_scene

PATH = "/examples"
"""Below which a page offers them."""
_SCENES = {"scene.png": ("Scene", 102), "scene-2.png": ("Another", 294)}
_VIDEO_SEED = 294  # as the demo's: four of its five objects move


@dataclass(frozen=True)
class Example:
    """A file that ships or is drawn here, what it is called, and a question that suits it."""

    file: Path
    title: str
    question: str

    @property
    def source(self) -> PageFile:
        return PageFile(self.file.name, f"{PATH}/{self.file.name}")


def make_examples(folder: Path) -> list[Example]:
    """Write them into an empty folder; `NOTICE.md` of `pixelrefer_fast.assets` says whose photograph it is."""
    made = []
    for name, (title, seed) in _SCENES.items():
        scene = make_scene(seed, "heldout", False)
        Image.fromarray(scene.frames[0]).save(folder / name)
        made.append(Example(folder / name, title, "What color is #0?"))
    made.append(Example(_video(folder / "video.webp"), "Video", "How does #0 move?"))
    with as_file(files("pixelrefer_fast.assets") / "cat.jpg") as photograph:
        shutil.copyfile(photograph, folder / "cat.jpg")
    made.append(Example(folder / "cat.jpg", "Photo", "What is #0?"))
    return made


def _video(file: Path) -> Path:
    scene: Scene = make_scene(_VIDEO_SEED, "heldout", True)
    assert scene.times is not None
    first, *others = (Image.fromarray(frame) for frame in scene.frames)
    lasting = [round(1000 * (after - before)) for before, after in zip(scene.times, scene.times[1:], strict=False)]
    options = {"save_all": True, "append_images": others, "duration": [*lasting, lasting[-1]], "lossless": True}
    first.save(file, "WEBP", **options)
    return file
