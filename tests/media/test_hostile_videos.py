"""Damaged, absurd and malicious videos: a ValueError that says what is wrong, in bounded memory and time."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import bounded

from pixelrefer_fast.media import open_media
from pixelrefer_fast.planning.options import EncodeOptions


def video_bytes(path, count=30, **options) -> bytes:
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 8
        noise = np.random.default_rng(0)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {
        "plain": video_bytes(folder / "plain.mp4"),
        "faststart": video_bytes(folder / "fast.mp4", options={"movflags": "faststart"}),
        "fragments": video_bytes(folder / "frag.mp4", options={"movflags": "frag_keyframe+empty_moov"}),
        "mkv": video_bytes(folder / "plain.mkv"),
        "ts": video_bytes(folder / "plain.ts"),
    }


def test_files_that_only_look_like_videos(tmp_path, videos):
    (tmp_path / "other.mp4").write_bytes(videos["plain"])
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n"
    for content in (
        b"",
        b"plain text\n" * 50,
        playlist.encode(),
        b"ffconcat version 1.0\nfile other.mp4\n",
        bytes(999),
    ):
        for name in ("fake.mp4", "fake"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}.*: expected a complete video file, FFmpeg cannot read it"):
                open_media(tmp_path / name)


def test_videos_without_frames(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="expected a video stream that can be decoded, the file has none"):
        open_media(tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "empty.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"empty.mp4'.*: expected"):
        open_media(tmp_path / "empty.mp4")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["plain", "faststart"])
def test_truncated_mp4(videos, form, share):
    data = videos[form][: int(share * len(videos[form]))]
    with pytest.raises(
        ValueError, match=rf"^video {len(data)} bytes: expected a complete video file|expected an image"
    ):
        open_media(data)


def test_mp4_that_ends_between_two_frames(videos):
    data = videos["faststart"]
    with av.open(io.BytesIO(data)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    with pytest.raises(ValueError, match="expected a complete video file, it ends"):
        open_media(data[: places[12]])


def test_video_that_claims_an_absurd_size(tmp_path):
    with av.open(str(tmp_path / "raw.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    data = bytearray((tmp_path / "raw.avi").read_bytes())
    place = data.index(b"strf") + 12  # the bitmap header: its own size, then width and height
    assert struct.unpack("<ii", data[place : place + 8]) == (64, 48)
    data[place : place + 8] = struct.pack("<ii", 12_000, 9_000)
    with bounded(20, 5), pytest.raises(ValueError, match="expected at most 89478485 pixels, got a size of 9000x12000"):
        open_media(bytes(data))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(["plain", "faststart", "fragments", "mkv", "ts"]), seed=st.integers(0, 2**32 - 1))
def test_damaged_videos_are_read_or_refused(videos, form, seed):
    data = bytearray(videos[form])
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        del data[int(rng.integers(1, len(data))) :]
    for place in rng.integers(0, len(data), rng.integers(1, 20)):
        data[place] = rng.integers(0, 256)
    try:
        video = open_media(bytes(data))
        frames = list(video.read([len(video) - 1, 0, len(video) // 2]))
    except ValueError:
        return
    assert all(frame.shape == (video.height, video.width, 3) for frame in frames)
    assert len(video.times) == len(video)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (-1, "expected frames 0 to 29, got frame -1"),
        (30, "expected frames 0 to 29, got frame 30"),
        (10**30, "expected frames 0 to 29, got frame 1"),
        (-(2**63), "expected frames 0 to 29, got frame -9223372036854775808"),
        pytest.param(10**5000, "expected frames 0 to 29, got frame a value of type int", id="too long to print"),
        (1.0, "expected frame numbers that are integers, got 1.0"),
        (float("nan"), "expected frame numbers that are integers, got nan"),
        (True, "expected frame numbers that are integers, got True"),
        ("3", "expected frame numbers that are integers, got '3'"),
        (None, "expected frame numbers that are integers, got None"),
    ],
)
def test_frames_that_do_not_exist(videos, index, message):
    video = open_media(videos["plain"])
    with pytest.raises(ValueError, match=f"^video {len(videos['plain'])} bytes: {message}"):
        video.read([0, index])  # at once, not when the frame's turn comes


def test_frame_numbers_that_are_no_list(videos):
    video = open_media(videos["plain"])
    for indices in (3, None, "012", {1: 2}, np.zeros((2, 2), int), np.array(1)):
        with pytest.raises(ValueError, match="frame numbers: expected a list"):
            video.read(indices)
    with pytest.raises(ValueError, match=r"expected frame numbers that are integers, got 0\.0"):
        video.read(np.zeros(2))
    assert len(list(video.read(np.array([1, 2])))) == len(list(video.read(torch.tensor([1, 2])))) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, device="meta"), "expected a dense tensor with values"),
        (torch.tensor([1.0, 0.0]).to_sparse(), "expected a dense tensor with values"),
        (np.ma.MaskedArray([0, 1], [True, False]), "expected an array without missing values"),
    ],
)
def test_lists_in_arrays_without_values(videos, values, message):
    for name, use in (
        ("frame numbers", open_media(videos["plain"]).read),
        ("times", lambda times: open_media(np.zeros((2, 8, 8, 3), np.uint8), times=times)),
        ("frames", lambda frames: EncodeOptions(frames=frames)),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            use(values)


def test_reading_holds_one_frame_at_a_time():
    frames = np.broadcast_to(np.uint8(7), (10_000, 480, 640, 3))
    video = open_media(frames)
    with bounded(10, 20):
        for frame in video.read(range(0, 10_000, 50)):
            assert frame.shape == (480, 640, 3)
