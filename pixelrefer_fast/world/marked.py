"""Scenes of the synthetic world as input of a model: media that it opens, objects as marked regions."""

from __future__ import annotations

import numpy as np

from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.regions import Region
from pixelrefer_fast.world.scene import Scene


def scene_media(scene: Scene) -> np.ndarray | Video:
    """The image (H, W, 3), or the video with its times."""
    return scene.frames[0] if scene.times is None else open_media(list(scene.frames), times=scene.times)


def scene_region(scene: Scene, i: int, kind: str) -> Region:
    """Object i as a region for a model of this kind.

    In an image it is the object's mask. In a video Lite gets the masks of all frames that show the object, Full that of
    the frame that shows most of it.
    """
    masks = scene.masks[i]
    if scene.times is None:
        return Region.from_mask(masks[0])
    if kind == "full":
        best = scene.best_frame(i)
        return Region.from_frames({best: masks[best]})
    return Region.from_frames({frame: mask for frame, mask in enumerate(masks) if mask.any()})
