"""What the world is written as is what is read again, bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.regions import Region
from pixelrefer_fast.train.batch import Sample
from pixelrefer_fast.train.config import Records
from pixelrefer_fast.train.malformed import MalformedLog
from pixelrefer_fast.train.record_writer import record_json, write_records, write_video, write_world
from pixelrefer_fast.train.records_source import RecordsSource
from pixelrefer_fast.train.scenes import scene_samples
from pixelrefer_fast.world import Scene, ask_about, make_scene


def assert_equal_samples(read: Sample, made: Sample, scene: Scene, kind: str) -> None:
    (question, answer), (wanted, right) = read.turns[0], made.turns[0]
    tag = "" if kind == "lite" else "<video>\n" if scene.video else "<image>\n"
    assert (question, answer) == (tag + wanted, right)
    ours, theirs = read.request.source, made.request.source
    assert list(ours.sizes) == list(theirs.sizes)
    assert (ours.times is None) == (theirs.times is None)
    if ours.times is not None:
        assert list(ours.times) == list(theirs.times or ())
    numbers = range(len(ours.sizes))
    for a, b in itertools.zip_longest(ours.read(numbers), theirs.read(numbers)):
        np.testing.assert_array_equal(a, b)
    assert list(read.request.frames) == list(made.request.frames)
    assert list(read.request.scene) == list(made.request.scene)
    for mine, other in itertools.zip_longest(read.request.marks(), made.request.marks()):
        assert mine.image == other.image
        np.testing.assert_array_equal(mine.mask.full(), other.mask.full())


@pytest.mark.parametrize("layout", ["masks", "annotation"])
@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize("name", ["samples.json", "samples.jsonl"])
def test_scenes_survive_the_file(layout: str, kind: str, name: str, tmp_path: Path, request: Any) -> None:
    scenes = [make_scene(seed, "train", video=bool(seed % 2)) for seed in range(4)]
    asked = [(scene, ask_about(scene, 1, limit=4)) for scene in scenes]
    counts = write_world(tmp_path, asked, kind, layout, name)
    assert counts == {"samples": sum(len(q) for _, q in asked), "images": 2, "videos": 2}
    config: ModelConfig = request.getfixturevalue(kind).config
    log = MalformedLog(tmp_path / "malformed.jsonl")
    source = RecordsSource(Records(tmp_path / name, tmp_path), config, log)
    assert len(source) == source.total == counts["samples"]
    assert log.count() == 0
    made = [(scene, s) for scene, questions in asked for s in scene_samples(scene, questions, kind)]
    for index, (scene, sample) in enumerate(made):
        (read,) = source[index]
        assert_equal_samples(read, sample, scene, kind)


def test_a_video_keeps_its_times_and_equal_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (33, 47, 3), np.uint8) for _ in range(4)]
    frames[2] = frames[1]
    times = [0.0, 0.04, 1.5, 60.001]
    write_video(tmp_path / "a.mkv", frames, times)
    video = open_media(tmp_path / "a.mkv")
    assert isinstance(video, Video)
    assert video.times == times
    for frame, wanted in zip(video.read(range(4)), frames, strict=True):
        np.testing.assert_array_equal(frame, wanted)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_records(path, [{"old": 1}])

    def broken() -> Any:
        yield {"new": 1}
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_records(path, broken())
    assert json.loads(path.read_text()) == [{"old": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert write_records(path, []) == 0
    assert json.loads(path.read_text()) == []


def test_an_unknown_layout_is_refused() -> None:
    region = Region.from_mask(np.ones((4, 4), bool))
    for layout, video in (("boxes", True), ("annotation", False)):
        with pytest.raises(ValueError, match="layout: expected"):
            record_json("a", video, [("<region>?", "A.")], [region], (4, 4), layout)


def test_a_folder_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_world(tmp_path / "file", [])
