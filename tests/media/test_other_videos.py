"""Videos that are no video files: animations, folders, lists and arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from media_files import PIXELS, shades
from PIL import Image

from pixelrefer_fast.media import Video, open_media


def read_shades(video):
    return [int(frame[0, 0, 0]) // 10 for frame in video.read(range(len(video)))]


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_animations_keep_their_own_durations(tmp_path, name):
    frames = [Image.fromarray(shade) for shade in shades(4)]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(
        tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 250, 40, 110], loop=0, **options
    )
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        video = open_media(source)
        assert isinstance(video, Video)
        assert video.times == [0.0, 0.1, 0.35, 0.39]
        assert video.average_fps == 8.0
        assert (video.height, video.width) == (6, 8)
        assert read_shades(video) == [0, 1, 2, 3]
        assert [int(frame[0, 0, 0]) // 10 for frame in video.read([3, 1, 1, 2])] == [3, 1, 1, 2]


def test_gif_frames_without_duration_last_a_tenth_of_a_second(tmp_path):
    frames = [Image.fromarray(shade) for shade in shades(3)]
    frames[0].save(tmp_path / "quick.gif", save_all=True, append_images=frames[1:], duration=0)
    assert open_media(tmp_path / "quick.gif").times == [0.0, 0.1, 0.2]


def test_folder_of_frames(tmp_path):
    for number, shade in enumerate(shades(12)):
        Image.fromarray(shade).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".frame99.png").write_text("hidden")
    video = open_media(tmp_path)
    assert read_shades(video) == list(range(12))
    assert video.average_fps == 3.0
    assert video.times == [number / 3 for number in range(12)]
    assert open_media(str(tmp_path), fps=10).times[11] == 1.1
    times = [number**2 / 7 for number in range(12)]
    assert open_media(tmp_path, times=times).times == times


def test_lists_and_arrays_of_frames(tmp_path):
    frames = shades(5)
    Image.fromarray(frames[2]).save(tmp_path / "two.png")
    mixed = [frames[0], Image.fromarray(frames[1]), tmp_path / "two.png", torch.from_numpy(frames[3]), frames[4] / 255]
    stack = np.stack(frames)
    for source in (
        frames,
        tuple(mixed),
        stack,
        stack.transpose(0, 3, 1, 2),
        torch.from_numpy(stack).permute(0, 3, 1, 2),
    ):
        video = open_media(source, times=np.array([0, 0.5, 0.75, 2, 9]))
        assert video.times == [0.0, 0.5, 0.75, 2.0, 9.0]
        assert video.average_fps == 4 / 9
        assert read_shades(video) == [0, 1, 2, 3, 4]
    assert len(open_media([PIXELS])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": [0, 1]}, "expected 3 times, one per frame, got 2"),
        ({"times": [0, 1, 1]}, "strictly increasing in .*, got 1 for frame 2"),
        ({"times": [-1, 0, 1]}, "got -1 for frame 0"),
        ({"times": [0, 1, float("nan")]}, "got nan for frame 2"),
        ({"times": [0, 1, 10**400]}, "for frame 2"),
        ({"times": [0, 1, "2"]}, "got '2' for frame 2"),
        ({"times": 5}, "times: expected a list, got int"),
        ({"times": [0, 1, 2], "fps": 2}, "expected times or fps, got both"),
        ({"fps": 0}, "expected an fps that is"),
        ({"fps": float("inf")}, "expected an fps that is"),
        ({"fps": True}, "expected an fps that is"),
    ],
)
def test_times_of_frames_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        open_media(shades(3), **options)


def test_times_belong_to_frames_without_a_clock(short_video):
    for source in (short_video, PIXELS):
        with pytest.raises(ValueError, match=r"^times, fps: expected only with"):
            open_media(source, fps=2)


def test_frames_of_different_sizes():
    video = open_media([PIXELS, PIXELS[:5]])
    with pytest.raises(ValueError, match=r"list of 2 frames, frame 1: expected a size of 13x21 .*, got 5x21"):
        list(video.read([0, 1]))
