"""Hostile paths, folders and objects in place of media: a ValueError that says what is wrong."""

from __future__ import annotations

import os

import numpy as np
import pytest
from limits import bounded
from PIL import Image

from pixelrefer_fast.media import load_image, open_media


def test_only_regular_files_are_opened(tmp_path):
    fifo, loop, dangling = tmp_path / "fifo.mp4", tmp_path / "loop.png", tmp_path / "gone.png"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    with bounded(20, 5):
        for path, message in (
            (fifo, "expected a regular file, got a special file"),
            ("/dev/zero", "expected a regular file, got a special file"),
            (loop, "expected a readable file"),
            (dangling, "expected an existing file, found none"),
            (tmp_path / "missing.mp4", "expected an existing file, found none"),
            (tmp_path / "missing.png", "expected an existing file, found none"),
            ("nul\0.png", "expected a readable file"),
            ("x" * 5000, "expected a readable file"),
            ("http://127.0.0.1:9/clip.mp4", "expected an existing file, found none"),
            ("concat:a.mp4|b.mp4", "expected an existing file, found none"),
            ("", "expected an existing file, found none"),
        ):
            with pytest.raises(ValueError, match=message):
                open_media(path)
    with pytest.raises(ValueError, match="expected a regular file, got a folder"):
        load_image(tmp_path)


def test_folders_of_nothing_and_of_traps(tmp_path):
    with pytest.raises(ValueError, match=r"^folder .*: expected 1 to 1000000 frames, got 0"):
        open_media(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)  # folders in it are not entered
    with pytest.raises(ValueError, match="got 0"):
        open_media(tmp_path)
    os.mkfifo(tmp_path / "frame1.png")
    with pytest.raises(ValueError, match=r"frame 0: .*frame1.png.*: expected a regular file"):
        open_media(tmp_path)
    os.unlink(tmp_path / "frame1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "frame1.png")
    (tmp_path / "frame2.png").write_text("no picture")
    video = open_media(tmp_path)
    with pytest.raises(ValueError, match=r"frame 1: .*frame2.png.*: expected an image file"):
        list(video.read([0, 1]))


def test_other_objects():
    for source in (None, 5, 1.5, {}, object(), lambda: 0, iter([])):
        with pytest.raises(ValueError, match=r"^image: expected a path"):
            open_media(source)
    with pytest.raises(ValueError, match=r"^list of 0 frames: expected 1 to 1000000 frames, got 0"):
        open_media([])
    with pytest.raises(ValueError, match=r"^array of shape \(0, 4, 4, 3\): expected 1 to 1000000 frames, got 0"):
        open_media(np.zeros((0, 4, 4, 3), np.uint8))
