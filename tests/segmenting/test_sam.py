"""SAM, SAM 2, EdgeTAM and SAM 3 in tiny random models of transformers' own classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sam
import torch
import transformers
from as_on_a_device import Brought, masks_stay
from packaging.version import Version
from safetensors.torch import load_file, save_file

import pixelrefer_fast as pf
from pixelrefer_fast.regions.tensor_mask import TensorMask
from pixelrefer_fast.segmenting import words
from pixelrefer_fast.segmenting.pixels import Input
from pixelrefer_fast.segmenting.sam import Sam
from pixelrefer_fast.segmenting.tracking import READ_TOGETHER, Frames

SIZES = ((64, 64), (40, 70), (301, 90), (9, 500))
FOLLOWING = ("sam2_video", "edgetam_video", "sam3_video")
RECORDED = json.loads((Path(__file__).parent / "recorded_sam.json").read_text())
HALVES = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a kind of model from its folder, each once."""
    loaded: dict[str, Sam] = {}

    def get(kind: str) -> Sam:
        if kind == "edgetam_video" and Version(transformers.__version__) < Version("5.20"):
            pytest.skip("transformers before 5.20 asks the hub for EdgeTAM's backbone, whatever a configuration says")
        if kind not in loaded:
            loaded[kind] = pf.load_segmenter(tiny_sam.save(kind, tmp_path_factory.mktemp(kind)), device="cpu")
        return loaded[kind]

    with tiny_sam.repvit():
        yield get


@pytest.mark.parametrize("kind", tiny_sam.MODELS)
@pytest.mark.parametrize("case", range(len(tiny_sam.CASES)))
def test_masks_are_those_of_transformers_own_processors(kind, case, load):
    """`tools/record_sam.py` ran them with torchvision."""
    prompt = tiny_sam.CASES[case]
    recorded = RECORDED[kind][case]
    picture = tiny_sam.picture(*prompt["size"])
    found = load(kind).open(picture).masks(prompt.get("points"), prompt.get("labels"), prompt.get("boxes"))
    assert len(found) == len(recorded["masks"])
    for segment, mask, score in zip(found, recorded["masks"], recorded["scores"], strict=True):
        expected = pf.Region.from_rle(mask).mask(*prompt["size"])
        differ = segment.region.mask(*prompt["size"]) != expected
        assert differ.mean() < 0.001
        assert 0 < expected.mean() < 1
        assert segment.score == pytest.approx(score, abs=1e-4)
        assert not segment.rough


@pytest.mark.parametrize("kind", FOLLOWING)
def test_objects_are_followed_as_transformers_own_processors_follow_them(kind, load):
    recorded = RECORDED[kind + "_followed"]
    frames = tiny_sam.frames()
    found = load(kind).open(pf.open_media(frames)).track(boxes=tiny_sam.FOLLOWED["boxes"], frame=2)
    assert [list(segment.region.frames) for segment in found] == [
        [at for at, mask in enumerate(masks) if mask is not None] for masks in recorded
    ]
    for segment, masks in zip(found, recorded, strict=True):
        for frame in segment.region.frames:
            expected = pf.Region.from_rle(masks[frame]).mask(*frames.shape[1:3])
            assert (segment.region.mask(*frames.shape[1:3], frame) != expected).mean() < 0.001


@pytest.mark.parametrize(
    ("whole", "part", "kind"),
    [
        ("sam2_video", "Sam2Model", "sam2"),
        ("edgetam_video", "EdgeTamModel", "edgetam"),
        ("sam3_video", "Sam3TrackerModel", "sam3_tracker"),
        ("sam3_video", "Sam3TrackerVideoModel", "sam3_tracker_video"),
    ],
)
def test_a_checkpoint_of_a_part_marks_as_the_whole_one(whole, part, kind, load, tmp_path):
    own = getattr(transformers, part).from_pretrained(load(whole).name)
    folder = tiny_sam.write(own, tmp_path / "part")
    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    picture = tiny_sam.picture(40, 70)
    sam = pf.load_segmenter(folder)
    (found,), (expected,) = (one.open(picture).masks([[20, 30]]) for one in (sam, load(whole)))
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    assert (found.region.mask(40, 70) != expected.region.mask(40, 70)).mean() < 0.001
    with pytest.raises(ValueError, match="which knows no words"):
        sam.open(picture).masks(text="a cat")
    video = pf.open_media(tiny_sam.frames())
    if kind == "sam3_tracker_video":
        (found,), (expected,) = (one.open(video).track([[20, 15]], frame=1) for one in (sam, load(whole)))
        assert found.region.frames == expected.region.frames
    else:
        with pytest.raises(ValueError, match="expected a segmenter that follows objects"):
            sam.open(video).track([[20, 15]], frame=1)


HUB_SCRIPT = """
import pixelrefer_fast as pf
import tiny_sam
sam = pf.load_segmenter("someone/a-sam")
(found,) = sam.open(tiny_sam.picture(40, 70)).masks([[20, 30]])
print(sam.name, found.region.mask(40, 70).sum())
"""


def test_a_hub_id_is_taken_from_the_cache(load, tmp_path):
    snapshot = tmp_path / "models--someone--a-sam" / "snapshots" / ("0" * 40)
    shutil.copytree(load("sam").name, snapshot)
    (tmp_path / "models--someone--a-sam" / "refs").mkdir()
    (tmp_path / "models--someone--a-sam" / "refs" / "main").write_text("0" * 40)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(tiny_sam.__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    (found,) = load("sam").open(tiny_sam.picture(40, 70)).masks([[20, 30]])
    assert ran.stdout.split() == ["someone/a-sam", str(found.region.mask(40, 70).sum())]


class Dots:
    """A model whose mask is a disc around each object's first point, a fortieth of the square in radius."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, side: int) -> None:
        self.side = side
        self.embedded = 0

    def eval(self):
        return self

    def requires_grad_(self, wanted):
        return self

    def get_image_embeddings(self, pixels):
        assert pixels.shape == (1, 3, self.side, self.side)
        self.embedded += 1
        return pixels

    def __call__(self, image_embeddings, multimask_output, input_points=None, input_labels=None, input_boxes=None):
        points = input_points[0, :, 0] if input_boxes is None else input_boxes[0, :, :2]
        cells = self.side // 4
        rows, columns = np.mgrid[:cells, :cells] * 4 + 1.5
        logits = [4 - np.hypot(columns - float(x), rows - float(y)) for x, y in points]
        return SimpleNamespace(
            pred_masks=torch.tensor(np.array(logits)[None, :, None], dtype=torch.float32),
            iou_scores=torch.full((1, len(points), 1), 1.5),
        )


@pytest.mark.parametrize("keeps_shape", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_point_lands_where_it_was_put(size, keeps_shape):
    height, width = size
    model = Dots(256)
    opened = Sam("dots", model, Input(256, HALVES, HALVES, keeps_shape)).open(np.zeros((*size, 3), np.uint8))
    for across, down in ((0.2, 0.3), (0.5, 0.5), (0.9, 0.7)):
        x, y = int(across * width), int(down * height)
        (found,) = opened.masks([[x + 0.5, y + 0.5]])
        rows, columns = np.nonzero(found.region.mask(*size))
        scale = 256 / max(size) if keeps_shape else 256 / np.array([height, width])
        off = np.abs([rows.mean() - y, columns.mean() - x])
        assert (off <= np.maximum(0.5, 1.5 / scale)).all()  # half a pixel, or one and a half of the square
        assert found.score == 1.0
    found = opened.masks(boxes=[[0, 0, width, height], [width / 2, height / 2, width, height]])
    assert len(found) == 2
    assert model.embedded == 1


def test_the_last_few_frames_of_a_video_stay_embedded():
    model = Dots(64)
    opened = Sam("dots", model, Input(64, HALVES, HALVES)).open(pf.open_media(np.zeros((6, 20, 30, 3), np.uint8)))
    for frame in (0, 1, 2, 3, 0, 1, 2, 3):
        (found,) = opened.masks([[5, 5]], frame=frame)
        assert found.region.frames == (frame,)
    assert model.embedded == 4
    opened.masks([[5, 5]], frame=4)
    opened.masks([[5, 5]], frame=0)
    assert model.embedded == 6


def test_pixels_are_scaled_and_what_is_left_of_the_square_is_zero():
    picture = np.full((50, 100, 3), 255, np.uint8)
    pixels = Input(64, HALVES, HALVES, keeps_shape=True).pixels(picture, torch.device("cpu"), torch.float32)
    assert pixels.shape == (1, 3, 64, 64)
    assert (pixels[..., :32, :] == 1).all()
    assert (pixels[..., 32:, :] == 0).all()
    assert (Input(64, HALVES, HALVES).pixels(picture, torch.device("cpu"), torch.bfloat16) == 1).all()


def test_frames_are_read_in_blocks_and_may_be_asked_for_backwards():
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    video, asked = pf.open_media(pictures), []
    read = video.read
    video.read = lambda numbers: asked.append(list(numbers)) or read(numbers)
    like = Input(8, HALVES, HALVES)
    frames = Frames(video, like, torch.device("cpu"), torch.float32)
    assert len(frames) == 40
    for frame in reversed(range(40)):
        assert torch.equal(frames[frame], like.pixels(pictures[frame], torch.device("cpu"), torch.float32)[0])
    assert len(asked) == -(-40 // READ_TOGETHER)


def test_words_find_objects_the_surest_first(load, monkeypatch):
    monkeypatch.setattr(words, "LEAST_SCORE", 0.0)
    opened = load("sam3_video").open(tiny_sam.picture(40, 70))
    found = opened.masks(text="a cat")
    assert len(found) >= 2
    assert all(segment.region.mask(40, 70).any() for segment in found)
    scores = [segment.score for segment in found]
    assert scores == sorted(scores, reverse=True)
    assert [segment.score for segment in opened.masks(text="a dog and a tree")] != scores
    assert opened.masks(text=" a cat ") == found
    monkeypatch.setattr(words, "LEAST_SCORE", 1.0)
    assert opened.masks(text="a cat") == []


def test_an_object_is_followed_from_its_frame_in_both_directions(load):
    sam, frames = load("sam2_video"), tiny_sam.frames()
    opened = sam.open(pf.open_media(frames))
    (clicked,) = opened.track([[20, 15], [60, 30]], [1, 0], frame=3)
    assert 3 in clicked.region.frames
    assert clicked.region.frames == tuple(sorted(set(clicked.region.frames)))
    assert set(clicked.region.frames) <= set(range(len(frames)))
    one, two = (opened.track([[20, 15]], boxes=[5, 5, 50, 35], frame=frame) for frame in (0, len(frames) - 1))
    assert 0 in one[0].region.frames
    assert len(frames) - 1 in two[0].region.frames


def test_a_model_is_asked_about_points_through_a_sam(load):
    model = pf.load()
    model.segmenter = load("sam2_video")
    picture = tiny_sam.picture(40, 70)
    (found,) = load("sam2_video").open(picture).masks([[20, 15]])
    assert model.describe(picture, [{"points": [20, 15]}]) == model.describe(picture, [found.region])


@pytest.mark.parametrize("kind", ["sam", "sam2_video", "edgetam_video"])
def test_words_are_refused_by_a_model_that_knows_none(kind, load):
    picture = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"text: expected points or boxes for .*, which knows no words"):
        load(kind).open(picture).masks(text="a cat")


def test_what_a_model_cannot_do_is_said(load):
    picture, video = np.zeros((20, 30, 3), np.uint8), pf.open_media(np.zeros((2, 20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match="text: expected it by itself"):
        load("sam3_video").open(picture).masks([[1, 1]], text="a cat")
    with pytest.raises(ValueError, match="text: expected 1 to 256 characters"):
        load("sam3_video").open(picture).masks(text=" ")
    with pytest.raises(ValueError, match="track: expected a segmenter that follows objects"):
        load("sam").open(video).track([[1, 1]])
    with pytest.raises(ValueError, match="track: expected a video, got an image"):
        load("sam2_video").open(picture).track([[1, 1]])
    with pytest.raises(ValueError, match="frame: expected a number from 0 to 1, got 2"):
        load("sam2_video").open(video).track([[1, 1]], frame=2)
    with pytest.raises(ValueError, match="points: expected x below 30 and y below 20"):
        load("sam2_video").open(video).track([[30, 1]])


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path, load):
    with pytest.raises(ValueError, match=r"nowhere.*: expected grabcut, a folder or a hub id of a SAM"):
        pf.load_segmenter(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"expected a segmenter \(sam, sam2, .*\), got a model of type 'bert'"):
        pf.load_segmenter(tmp_path / "other")
    with pytest.raises(ValueError, match="device: expected 'auto' or a device that is here, got 'tpu'"):
        pf.load_segmenter(load("sam").name, device="tpu")
    # transformers would draw the weights that are not there at random
    folder = shutil.copytree(load("sam").name, tmp_path / "partly")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_encoder.layers.1.mlp.lin1.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected all weights of SamModel, got none for 1 \('vision_encoder\.layers"):
        pf.load_segmenter(folder)


@pytest.mark.parametrize("kind", ["sam", "sam2_video"])
def test_masks_stay_where_the_model_computes(kind, load):
    """Bits, and the numbers that planning asks for: the mask itself is not read."""
    picture = tiny_sam.picture(40, 70)
    boxes = [[3, 4, 30, 20], [10, 10, 60, 38]]
    opened = load(kind).open(picture)
    wanted = opened.masks(boxes=boxes)
    with masks_stay(), Brought() as brought:
        found = opened.masks(boxes=boxes)
    assert max(brought.reads) < picture.shape[0] * picture.shape[1]
    assert all(isinstance(one.region.marks[0][1], TensorMask) for one in found)
    for one, other in zip(found, wanted, strict=True):
        assert one.region.to_json() == other.region.to_json()
        assert one.score == other.score
