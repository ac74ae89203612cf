"""Video files in: exact pixels and times, in any order."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import RNG, brightness, check_image, encode, real_video

from pixelrefer_fast.media import Video, open_media


@pytest.mark.parametrize(
    ("name", "count", "size", "fps"),
    [
        ("bikes.mp4", 250, (272, 640), Fraction(25)),
        ("carphone_pristine.mp4", 120, (144, 176), Fraction(30000, 1001)),
        ("bigbuckbunny.mp4", 132, (720, 1280), Fraction(25)),
    ],
)
def test_real_videos(name, count, size, fps):
    video = open_media(real_video(name))
    assert isinstance(video, Video)
    assert (len(video), (video.height, video.width)) == (count, size)
    assert video.times == [float(number / fps) for number in range(count)]
    assert video.average_fps == pytest.approx(float(fps))
    wanted = [count - 1, 3, 70, 71, 71, 0]
    with av.open(str(real_video(name))) as container:
        expected = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(container.streams.video[0]))
            if number in wanted
        }
    for number, frame in zip(wanted, video.read(wanted), strict=True):
        check_image(frame, expected[number])


def test_bytes_of_a_video(short_video):
    video = open_media(short_video.read_bytes())
    assert [brightness(frame) for frame in video.read([40, 2])] == [40, 2]
    renamed = short_video.with_name("no_suffix")
    renamed.write_bytes(short_video.read_bytes())
    assert len(open_media(renamed)) == 48


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("b_frames.mp4", {}),
        ("intra.mp4", {"gop": 1}),
        ("one_keyframe.mp4", {"gop": 500}),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}}),
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("stream.ts", {}),
        ("matroska.mkv", {}),
        ("mpeg4.avi", {"codec": "mpeg4", "b_frames": 0}),
        ("vp8.webm", {"codec": "libvpx", "b_frames": 0, "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "b_frames": 0, "options": {"lag-in-frames": "10", "cpu-used": "8"}}),
    ],
)
def test_every_frame_in_any_order(tmp_path, name, settings):
    video = open_media(encode(tmp_path / name, **settings))
    assert len(video) == 48
    assert video.times == pytest.approx([0.04 * number for number in range(48)])
    in_order = list(video.read(range(48)))
    assert [brightness(frame) for frame in in_order] == list(range(48))
    order = RNG.permutation(48)
    for number, frame in zip(order, video.read(order), strict=True):
        assert np.array_equal(frame, in_order[number])


def test_variable_rate_and_start_offsets(tmp_path):
    pts = np.cumsum([0, *RNG.integers(1, 400, 47)]).tolist()
    for name in ("variable.mp4", "variable.mkv"):
        for offset in (0, 2000):
            video = open_media(encode(tmp_path / name, pts=[offset + stamp for stamp in pts]))
            assert video.times == [stamp / 1000 for stamp in pts]
            assert [brightness(frame) for frame in video.read([47, 20])] == [47, 20]
            assert video.average_fps == pytest.approx(47 / (pts[-1] / 1000), rel=0.1)


@pytest.mark.parametrize(
    ("matrix", "quarter_turns", "size"),
    [((0, 1, -1, 0), -1, (64, 48)), ((0, -1, 1, 0), 1, (64, 48)), ((-1, 0, 0, -1), 2, (48, 64))],
    ids=["clockwise", "counterclockwise", "upside down"],
)
def test_rotation_metadata(tmp_path, matrix, quarter_turns, size):
    plain = encode(tmp_path / "plain.mp4")
    data = bytearray(plain.read_bytes())
    place = data.index(b"tkhd") + 44  # ISO 14496-12: the track header's matrix, in 16.16; (x, y) -> (ax + cy, bx + dy)
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == identity
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    video = open_media(bytes(data))
    assert (video.height, video.width) == size
    (frame,), (stored,) = video.read([30]), open_media(plain).read([30])
    assert np.array_equal(frame, np.rot90(stored, quarter_turns))  # y points down: (0, 1, -1, 0) turns clockwise


def _with_matrix(path, a, b, c, d) -> bytes:
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    numbers = [max(-(1 << 31), min((1 << 31) - 1, round(value * (1 << 16)))) for value in (a, b, c, d)]
    data[place : place + 36] = struct.pack(">9i", *numbers[:2], 0, *numbers[2:], 0, 0, 0, 1 << 30)
    return bytes(data)


def test_mirrored_matrices_flip(tmp_path):
    """Each of the eight ways to lay a picture, against the picture drawn by the matrix itself."""
    plain = encode(tmp_path / "plain.mp4", 3, b_frames=0)
    (stored,) = open_media(plain).read([1])
    height, width = stored.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    seen = set()
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4):
        if abs(a * d - b * c) != 1 or abs(a) + abs(b) != 1 or abs(c) + abs(d) != 1:
            continue
        x, y = a * columns + c * rows, b * columns + d * rows
        x, y = x - x.min(), y - y.min()
        expected = np.empty((y.max() + 1, x.max() + 1, 3), np.uint8)
        expected[y, x] = stored
        (frame,) = open_media(_with_matrix(plain, a, b, c, d)).read([1])
        assert np.array_equal(frame, expected), (a, b, c, d)
        seen.add(frame.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 1, 1), (2, 4, 1, 2)])
def test_matrices_that_lose_the_picture_are_ignored(tmp_path, matrix):
    plain = encode(tmp_path / "plain.mp4", 3, b_frames=0)
    (stored,), (frame,) = open_media(plain).read([1]), open_media(_with_matrix(plain, *matrix)).read([1])
    assert np.array_equal(frame, stored)


def test_matrices_of_any_numbers_lay_a_picture(tmp_path):
    plain = encode(tmp_path / "plain.mp4", 3, b_frames=0)
    sides = {(48, 64), (64, 48)}
    for matrix in np.random.default_rng(5).normal(0, 8000, (40, 4)):
        video = open_media(_with_matrix(plain, *matrix))
        assert (video.height, video.width) in sides
        assert next(video.read([0])).shape[:2] == (video.height, video.width)


def test_edit_lists_hide_frames(tmp_path):
    # A negative first pts makes the muxer write an edit list that begins after it
    path = encode(tmp_path / "edited.mp4", pts=[40 * number - 200 for number in range(48)], b_frames=0, gop=48)
    video = open_media(path)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    assert len(video) == len(expected) == 43
    assert video.times[0] == 0.0
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(video.read(range(43)), expected, strict=True))


def test_recording_that_starts_between_keyframes(tmp_path):
    path = tmp_path / "cut.ts"
    data = encode(tmp_path / "whole.ts", gop=10).read_bytes()
    second = data.index(b"\x00\x00\x00\x01\x41", len(data) // 10)  # a slice that is no keyframe
    path.write_bytes(data[:564] + data[second // 188 * 188 :])
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    video = open_media(path)
    assert 10 < len(video) == len(expected) < 48
    order = [len(video) - 1, 0, 5]
    for number, frame in zip(order, video.read(order), strict=True):
        assert np.array_equal(frame, expected[number])


def test_reading_is_lazy_and_iterators_are_independent(short_video):
    video = open_media(short_video)
    first, second = video.read(range(48)), video.read([47, 0])
    assert brightness(next(first)) == 0
    assert brightness(next(second)) == 47
    assert brightness(next(first)) == 1
    assert brightness(next(second)) == 0
    repeated = video.read([3, 3])
    next(repeated)[:] = 0
    assert brightness(next(repeated)) == 3
    assert list(video.read([])) == []
