"""Damaged, absurd and malicious media and regions: a ValueError that says what is wrong, in bounded memory and time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import time
import tracemalloc
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pixelrefer_fast.media import Video, load_image, open_media
from pixelrefer_fast.regions import Region, as_regions

MEGABYTE = 2**20
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class bounded:
    """Fail if the block takes more than `megabytes` at its peak (as Python and NumPy count) or `seconds`."""

    def __init__(self, megabytes: float, seconds: float) -> None:
        self.megabytes, self.seconds = megabytes, seconds

    def __enter__(self):
        tracemalloc.start()
        self.start = time.perf_counter()

    def __exit__(self, kind, *_):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if kind is None:
            assert peak < self.megabytes * MEGABYTE
            assert time.perf_counter() - self.start < self.seconds


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def picture_bytes(form: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


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


# --- paths ------------------------------------------------------------------------------------------------------------


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


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (10_000, 9_000), (20_000, 20_000)])
def test_images_that_claim_absurd_sizes(tmp_path, width, height):
    data = png_claiming(width, height)
    (tmp_path / "bomb.png").write_bytes(data)
    with bounded(40, 5):
        for source in (data, tmp_path / "bomb.png"):
            with pytest.raises(ValueError, match="expected at most 89478485 pixels"):
                open_media(source)


def test_gif_that_claims_an_absurd_size():
    data = bytearray(picture_bytes("GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    with bounded(20, 5), pytest.raises(ValueError, match="expected at most 89478485 pixels"):
        open_media(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_truncated_images(form):
    whole = picture_bytes(form)
    for length in (0, 1, 10, 30, len(whole) // 2, len(whole) - len(whole) // 10):
        with pytest.raises(ValueError, match=r"expected a complete image|expected an image file"):
            load_image(whole[:length])
        with pytest.raises(ValueError, match="expected"):
            open_media(whole[:length])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF
@quick
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]),
    st.integers(0, 2**32 - 1),
)
def test_damaged_images_are_read_or_refused(form, seed):
    data = bytearray(picture_bytes(form))
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, min(len(data), 600), rng.integers(1, 8)):
        data[place] = rng.integers(0, 256)
    try:
        media = open_media(bytes(data))
        image = next(media.read([0])) if isinstance(media, Video) else media
    except ValueError:
        return
    assert image.ndim == 3


def test_formats_that_run_programs_or_refer_elsewhere_are_not_read(tmp_path):
    for name, content in (
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"expected an image file .* nor is it a video"):
            open_media(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), np.nan), r"expected float64 values in 0..1, got nan..nan"),
        (np.full((4, 4, 3), 255.0), r"expected float64 values in 0..1, got 255.0..255.0"),
        (torch.full((3, 4, 4), -0.1), r"expected float32 values in 0..1"),
        (np.full((4, 4), 256), r"expected int64 values in 0..255, got 256..256"),
        (np.full((4, 4), -1, np.int8), r"expected int8 values in 0..255"),
        (np.zeros((4, 4), complex), "expected bool, integer or float values, got complex128"),
        (np.array([["a", "b"]]), "expected bool, integer or float values, got <U1"),
        (np.zeros((4, 4), object), "expected bool, integer or float values, got object"),
        (np.zeros((5, 6, 7)), r"expected an array of shape \(H, W\).*, got \(5, 6, 7\)"),
        (np.zeros(7), r"expected an array of shape \(H, W\).*, got \(7,\)"),
        (np.zeros((0, 4, 3)), "expected at least one pixel, got a size of 0x4"),
        (np.broadcast_to(np.uint8(0), (40_000, 40_000, 3)), "expected at most 89478485 pixels, got a size of 40000x"),
        (torch.zeros(1).expand(3, 40_000, 40_000), "expected at most 89478485 pixels, got a size of 40000x"),
        (torch.zeros(4, 4, device="meta"), "expected a dense tensor"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with bounded(5, 5), pytest.raises(ValueError, match=message):
        load_image(array)


# --- videos -----------------------------------------------------------------------------------------------------------


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


def test_reading_holds_one_frame_at_a_time():
    frames = np.broadcast_to(np.uint8(7), (10_000, 480, 640, 3))
    video = open_media(frames)
    with bounded(10, 20):
        for frame in video.read(range(0, 10_000, 50)):
            assert frame.shape == (480, 640, 3)


# --- regions ----------------------------------------------------------------------------------------------------------

KEYS = (
    *("type", "size", "counts", "segmentation", "bbox", "polygons", "points", "width", "height", "xyxy", "xywh"),
    *("frames", "masks", "object_ids", "iou_scores", "0", "7", "12", "-1", "x"),
)
numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([10**9, -(10**9), 1e30, -1e30, 2**31, 2**63, 2**64, 10**400, 1e-300, -0.0]),
)
atoms = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=6),
    st.sampled_from(["box", "polygon", "scribble", "rle", "frames", "0" * 30, "PPYo0", "\x00"]),
)
garbage = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.lists(numbers, min_size=2, max_size=8),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    ),
    max_leaves=25,
)


def parse_and_draw(value) -> None:
    """Whatever the value: regions and masks, or ValueError."""
    try:
        regions = as_regions(value)
    except ValueError:
        return
    for region in regions:
        json.dumps(region.to_json())
        for frame in (region.frames or (None,))[:3]:
            with contextlib.suppress(ValueError):
                mask = region.mask(20, 30, frame)
                assert mask.shape == (20, 30)
                assert mask.any()


@settings(quick, max_examples=250)
@given(garbage)
def test_any_json_is_regions_or_a_value_error(value):
    parse_and_draw(value)
    for parse in (Region.of, Region.from_json, Region.from_rle, Region.from_polygon, Region.from_frames):
        try:
            parse(value)
        except ValueError:
            continue


arrays = st.builds(
    lambda shape, dtype, low, seed: np.random.default_rng(seed).integers(low, 40, shape).astype(dtype),
    st.one_of(
        st.lists(st.integers(0, 5), max_size=5),
        st.tuples(st.integers(0, 30), st.just(4)),
        st.just((20, 30, 1)),
        st.just((3, 20, 30)),
    ),
    st.sampled_from(["bool", "u1", "u8", "i1", "i8", "f2", "f8", "c8", "O", "U3", "S3", "M8[s]"]),
    st.sampled_from([-9, 0, 39]),
    st.integers(0, 2**32 - 1),
)


@settings(quick, max_examples=300)
@given(arrays, st.sampled_from(["numpy", "torch", "rows", "scalars", "list", "frames", "counts"]))
def test_any_array_is_regions_or_a_value_error(array, form):
    if form == "torch" or form == "scalars":
        if array.dtype.kind not in "biufc":
            return
        array = torch.from_numpy(array)
    value = {
        "rows": lambda: list(array) if array.ndim else [array],
        "scalars": lambda: list(array.ravel()),
        "list": lambda: [array],
        "frames": lambda: {2: array},
        "counts": lambda: {"size": [20, 30], "counts": array},
    }.get(form, lambda: array)()
    parse_and_draw(value)


@settings(quick, max_examples=100)
@given(
    st.lists(st.tuples(*[st.integers(-20, 40)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=6),
    st.sampled_from([np.int8, np.int32, np.int64, np.float32, np.float64]),
)
def test_arrays_of_boxes_are_the_boxes_of_their_rows(boxes, dtype):
    array = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]).astype(dtype)
    regions = as_regions(array)
    if array.min() >= 0 and array.max() <= 1:  # [0, 0, 1, 1]: a mask's values
        assert [region.kind for region in regions] == ["mask"]
    else:
        assert regions == as_regions(array.tolist())


@settings(quick, max_examples=200)
@given(
    st.sampled_from(
        [
            {"type": "box", "xyxy": [1, 2, 9, 8]},
            {"type": "polygon", "polygons": [[1, 1, 9, 1, 9, 9]], "size": [20, 30]},
            {"type": "scribble", "points": [[1, 1], [5, 9]], "width": 3},
            {"size": [20, 30], "counts": [100, 50, 450]},
            {"segmentation": {"size": [20, 30], "counts": "T3b1`="}, "height": 20, "width": 30},
            {"type": "frames", "frames": {"3": {"type": "box", "xyxy": [1, 2, 9, 8]}}},
        ]
    ),
    st.data(),
)
def test_regions_with_one_part_replaced(template, data):
    value = json.loads(json.dumps(template))
    holder, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(holder[key], (dict, list)) and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(garbage)
    parse_and_draw(value)


@settings(quick, max_examples=300)
@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.binary(max_size=40), st.booleans())
def test_random_compressed_counts(size, data, printable):
    counts = bytes(48 + byte % 64 for byte in data) if printable else data
    parse_and_draw({"size": list(size), "counts": counts})


@settings(quick, max_examples=200)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.lists(st.integers(-2, 40), max_size=8))
def test_random_uncompressed_counts(size, counts):
    valid = bool(counts) and min(counts) >= 0 and sum(counts) == size[0] * size[1]
    if valid:
        values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
        shape = Region.from_rle({"size": size, "counts": counts}).marks[0][1]
        assert np.array_equal(shape.pixels(*size, "region"), values)
    else:
        with pytest.raises(ValueError, match=r"^RLE counts: expected"):
            Region.from_rle({"size": size, "counts": counts})


@pytest.mark.parametrize(
    "value",
    [
        {"size": [31_623, 31_623], "counts": [10**9]},
        {"size": [10**9, 1], "counts": "0" * 9},
        {"size": [9_000, 9_000], "counts": "o" * 10**7},
        {"size": [9_000, 9_000], "counts": [81_000_000]},  # sound, and refused by its size before it is decoded
        {"size": [20, 30], "counts": "0" * 10**6},
        {"size": [20, 30], "counts": "o" * 10**6 + "0"},
        [[0, 0, 16_000_000, 0, 0, 16_000_000]],
        [[0, 0, 1_000_000, 0, 0, 5] * 100],
        {"type": "scribble", "points": [[-16e6, -16e6], [16e6, 16e6]], "width": 16e6},
        {"type": "box", "xyxy": [-16e6, -16e6, 16e6, 16e6]},
        np.broadcast_to(np.uint8(1), (40_000, 40_000)),
        np.broadcast_to(np.int64(7), (10**15, 4)),
        {"size": [20, 30], "counts": np.broadcast_to(np.int64(0), (10**15,))},
        torch.ones(1, dtype=torch.uint8).expand(40_000, 40_000),
        {"segmentation": [[0, 0] * 40_000]},
    ],
)
def test_absurd_sizes_take_no_memory(value):
    size = len(value["counts"]) if isinstance(value, dict) and "counts" in value else 0
    with bounded(10 + 200 * size / MEGABYTE if size <= 2**23 else 20, 5):
        parse_and_draw([value])
        parse_and_draw(value)


def test_deep_and_recursive_structures():
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    recursive: dict = {}
    recursive["segmentation"] = recursive["7"] = recursive["frames"] = recursive
    endless: list = []
    endless.append(endless)
    nested = {"segmentation": {"segmentation": {"size": [4, 4], "counts": [16]}}}
    for value in (deep, recursive, endless, nested, {1: {2: {3: [0, 0, 1, 1]}}}, {"7": recursive}):
        with pytest.raises(ValueError, match="expected"):
            as_regions(value)
    while deep:  # freeing it recursively would overflow the stack
        deep = deep[0]


def test_ten_thousand_regions():
    mask = np.zeros((1080, 1920), bool)
    mask[500:520, 700:730] = True
    rle = Region.from_mask(mask).to_json()
    forms = [[i % 1900, i % 1000, i % 1900 + 9, i % 1000 + 9] for i in range(4000)]
    forms += [rle] * 3000 + [[[1, 1, 90, 1, 90, 90]]] * 2000 + [{str(i): rle} for i in range(1000)]
    with bounded(60, 20):  # 10,000 masks of this size would be 20 GB
        regions = as_regions(forms)
        assert len(regions) == 10_000
        assert np.array_equal(regions[5000].mask(1080, 1920), mask)
    forms[9_999] = [5, 5, 5, 5]
    with pytest.raises(ValueError, match=r"^region 9999: box: expected x0 < x1"):
        as_regions(forms)


def test_many_masks_are_kept_small():
    mask = np.zeros((1080, 1920), np.uint8)
    mask[500:520, 700:730] = 1
    with bounded(20, 20):
        regions = as_regions(np.broadcast_to(mask, (300, 1080, 1920)))
    assert np.array_equal(regions[299].mask(1080, 1920), mask)
