"""Folders made to hurt: indexes, links and special files that lead astray are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hostile_checkpoints import ASSETS, refused

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.loading import convert


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        ".hidden.safetensors",
        "x\0.safetensors",
        "model-00001-of-00001.bin",
        "x" * 300 + ".safetensors",
        3,
        None,
        {"a": 1},
    ],
)
def test_index_names_that_leave_the_folder(folder, name):
    shutil.copyfile(ASSETS / "model.safetensors", folder.parent / "outside.safetensors")
    write_index(folder, {"a": name})
    refused(folder, "model.safetensors.index.json", "expected names of .safetensors files in its folder")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 3])
def test_index_without_a_map(folder, weight_map):
    write_index(folder, weight_map)
    refused(folder, "model.safetensors.index.json", "weight_map: expected an object")


def test_indexes_that_do_not_fit_the_files(folder):
    first = "model-00001-of-00001.safetensors"
    index = folder / "model.safetensors.index.json"
    write_index(folder, {"a": first, "b": "missing.safetensors"})
    refused(folder, index.name, r"missing 1: missing\.safetensors")
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": first, "nowhere": first}}))
    refused(folder, index.name, r"1 missing there: nowhere")
    shutil.copyfile(folder / first, folder / "second.safetensors")
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": first, "model.norm.weight": "second.safetensors"}}))
    refused(folder, index.name, "expected in one file, got model-00001-of-00001.safetensors and second.safetensors")
    index.write_text(json.dumps({"weight_map": {f"{i}": f"{i}.safetensors" for i in range(2000)}}))
    refused(folder, index.name, "expected at most 1024 files, got 2000")
    index.write_text(json.dumps({"weight_map": {f"{i}": first for i in range(100_001)}}))
    refused(folder, index.name, "at most 100000 tensors, got 100001")
    index.write_text(json.dumps({"weight_map": {f"{i}": f"{i}.safetensors" for i in range(10**6)}}))
    refused(folder, index.name, "expected at most 8388608 bytes")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vision_encoder/config.json", "tokenizer.json"])
def test_links_out_of_the_folder(folder, name):
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    for target, reason in (
        (outside, "expected a file inside the folder, got a link to"),
        ("../outside" if "/" not in name else "../../outside", "expected a file inside the folder, got a link to"),
        ("nowhere", "a link to something that does not exist"),
        (Path(name).name, "cannot be read"),  # itself
    ):
        (folder / name).symlink_to(target)
        if name == "tokenizer.json":
            with pytest.raises(ValueError, match=reason):
                open_checkpoint(folder).tokenizer()
        else:
            refused(folder, Path(name).name, reason)
        (folder / name).unlink()
    (folder / "kept").write_bytes(outside.read_bytes())
    (folder / name).symlink_to(folder / "kept")  # a link that stays inside is fine
    assert len(open_checkpoint(folder).tokenizer()) == 263


def test_what_looks_like_a_cache_of_the_hub_still_keeps_links_inside(tmp_path):
    snapshot = tmp_path / "cache/models--a--b/snapshots/0"
    shutil.copytree(ASSETS, snapshot)
    (snapshot / "model.safetensors").rename(tmp_path / "outside")
    (snapshot / "model.safetensors").symlink_to(tmp_path / "outside")
    refused(snapshot, "model.safetensors", "expected a file inside the folder")
    blobs = tmp_path / "cache/models--a--b/blobs"
    blobs.symlink_to(tmp_path)  # the blobs themselves lead away
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/outside")
    refused(snapshot, "model.safetensors", "expected a file inside the folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_what_is_no_regular_file(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    checks = (lambda: open_checkpoint(folder).tokenizer(), lambda: convert(folder, folder.parent / "converted"))
    for check in checks:  # reading the pipe would wait for ever
        with pytest.raises(ValueError, match=rf"{name}: expected a regular file, got something else"):
            check()
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}: expected a regular file, got something else"):
        open_checkpoint(folder).tokenizer()
