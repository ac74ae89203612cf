"""Damaged checkpoints and files of objects: loaded as they were, or a ValueError; no code in them runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import ASSETS, REFERENCE
from fuzzing import Fuzzer, damaged, odd_value

import pixelrefer_fast as pf
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.planning.request import ObjectTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a `.bin` and as safetensors, whose files are damaged in turn."""
    target = Path(shutil.copytree(ASSETS / "lite", tmp_path_factory.mktemp("checkpoint") / "lite"))
    torch.save(dict(REFERENCE["lite"]), target / "pytorch_model.bin")
    return target


def _odd_json(text: bytes, rng: np.random.Generator) -> bytes:
    """A JSON object with another value under one of its keys."""
    fields = json.loads(text)
    key = list(fields)[rng.integers(len(fields))]
    value = odd_value(rng, 1)
    try:
        return json.dumps({**fields, key: value}).encode()
    except (TypeError, ValueError):
        return json.dumps({k: v for k, v in fields.items() if k != key}).encode()


def test_damaged_checkpoints(fuzzer: Fuzzer, folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    whole = {name: (folder / name).read_bytes() for name in names}
    plain = pf.load(folder, device="cpu").fingerprint

    def case(rng: np.random.Generator) -> str:
        name = names[rng.integers(len(names))]
        data = whole[name]
        with_pickle = name == "pytorch_model.bin"
        try:
            if with_pickle:
                (folder / "model.safetensors").unlink()
            odd = name.endswith("json") and rng.random() < 0.6
            (folder / name).write_bytes(_odd_json(data, rng) if odd else damaged(data, rng))
            same = pf.load(folder, device="cpu").fingerprint == plain
        finally:
            for changed in {name, "model.safetensors"}:
                (folder / changed).write_bytes(whole[changed])
        return "same model" if same else "another model"

    fuzzer.run("checkpoints", case, 40)


def _objects() -> Objects:
    generator = torch.Generator().manual_seed(0)
    scene = SceneTokens(torch.randn(3, 5, generator=generator), torch.tensor([True, False, True, True, False]), (2, 3))
    tokens = torch.randn(4, 5, generator=generator)
    return Objects("full", tokens, (ObjectTokens((3,)), ObjectTokens((1,))), (0.0, 1.5), scene, {"model": "x"})


def test_damaged_objects(fuzzer: Fuzzer, tmp_path: Path) -> None:
    objects, path = _objects(), tmp_path / "objects.safetensors"
    objects.save(path)
    whole = path.read_bytes()

    def case(rng: np.random.Generator) -> str:
        path.write_bytes(damaged(whole, rng))
        loaded = Objects.load(path)
        assert torch.equal(loaded.tokens, objects.tokens)
        assert loaded.scene is not None
        assert objects.scene is not None
        assert torch.equal(loaded.scene.tokens, objects.scene.tokens)
        assert (loaded.objects, loaded.times, loaded.provenance) == (objects.objects, objects.times, objects.provenance)
        return "same objects"

    fuzzer.run("files of objects", case, 700)
