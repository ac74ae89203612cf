"""Images and videos in: paths, bytes, PIL images, arrays, folders of frames -> pixels and presentation times."""

from pixelrefer_fast.checks.values import MAX_PIXELS
from pixelrefer_fast.media.dispatch import open_media
from pixelrefer_fast.media.images import load_image
from pixelrefer_fast.media.video import FRAME_SEQUENCE_FPS, MAX_FRAMES, Media, Video

__all__ = ["FRAME_SEQUENCE_FPS", "MAX_FRAMES", "MAX_PIXELS", "Media", "Video", "load_image", "open_media"]
