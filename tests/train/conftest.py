"""What the tests of training share: a written piece of the world, and configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_fixtures
from PIL import Image

HEIGHT, WIDTH = 40, 60

one_thread = training_fixtures.one_thread
tokenizer = training_fixtures.tokenizer


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes, images and videos, with three questions each, as files."""
    from pixelrefer_fast.train.record_writer import write_world
    from pixelrefer_fast.world import ask_about, make_scene

    folder = tmp_path_factory.mktemp("world")
    scenes = [make_scene(seed, "train", video=seed % 3 == 0) for seed in range(6)]
    write_world(folder, [(scene, ask_about(scene, 0, limit=3)) for scene in scenes])
    return folder


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with an image `a.png` and a folder of three frames `clip`."""
    rng = np.random.default_rng(0)
    (tmp_path / "clip").mkdir()
    for name in ("a.png", "clip/0.png", "clip/1.png", "clip/2.png"):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def write_config(tmp_path: Path, assets: Path) -> Callable[..., Path]:
    """Write a config of one short stage over two scenes of the world; keywords replace keys of it or of its stage."""

    def write(name: str = "config.yaml", stage: dict[str, Any] | None = None, **values: Any) -> Path:
        first: dict[str, Any] = {
            "name": "first",
            "data": [{"world": {"scenes": 2, "video": False, "questions": 2}}],
            "steps": 4,
            "batch_items": 2,
            "learning_rate": 0.001,
        }
        document = {
            "model": str(assets / "lite"),
            "output": "out",
            "precision": "fp32",
            "device": "cpu",
            "tensorboard": False,
            "log_every": 1,
            "save_every": 1000,
            "stages": [first | (stage or {})],
        }
        path = tmp_path / name
        # JSON is YAML
        path.write_text(json.dumps({k: v for k, v in (document | values).items() if v is not None}))
        return path

    return write
