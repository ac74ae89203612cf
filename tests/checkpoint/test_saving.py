"""Checkpoints out: saved, converted, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import ASSETS, PROMPT, PROMPT_IDS, REFERENCE, loaded, same_bits, shard
from safetensors.torch import load_file

from pixelrefer_fast.checkpoint import folder as module
from pixelrefer_fast.checkpoint import open_checkpoint, save_checkpoint
from pixelrefer_fast.checkpoint.new_folder import new_folder
from pixelrefer_fast.checkpoint.safetensors_file import DTYPES
from pixelrefer_fast.loading import convert, load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_checkpoints_are_self_contained_and_load_bit_equal(tmp_path, dtype):
    checkpoint = open_checkpoint(ASSETS / "lite")
    slots = {name: tensor.to(dtype, copy=True) for name, tensor in REFERENCE["lite"].items()}
    slots["model.norm.weight"][0] = -0.0
    slots["model.embed_tokens.weight"] = slots["model.embed_tokens.weight"].T.contiguous().T
    target = tmp_path / "new" / "saved"
    save_checkpoint(target, slots, checkpoint.config, checkpoint.tokenizer(), checkpoint.generation)
    assert not (target / "vision_encoder").exists()
    assert [p.name for p in tmp_path.rglob("*") if "partial" in p.name] == []
    again = open_checkpoint(target)
    contiguous = {name: tensor.contiguous() for name, tensor in slots.items()}
    assert same_bits(loaded(target), contiguous)
    assert same_bits(load_file(target / "model.safetensors"), contiguous)  # the safetensors package reads it too
    assert again.config.vision == checkpoint.config.vision
    assert again.config.llm == checkpoint.config.llm
    assert again.generation == checkpoint.generation
    assert again.tokenizer()(PROMPT).input_ids == PROMPT_IDS
    kept = again.config.raw
    assert kept["torch_dtype"] == str(dtype).removeprefix("torch.")
    ours = {"vision_config", "torch_dtype"}
    assert {k: v for k, v in kept.items() if k not in ours} == {
        k: v for k, v in checkpoint.config.raw.items() if k not in ours
    }


def test_slots_of_any_dtype_and_layout_are_saved(tmp_path, any_tensors):
    checkpoint = open_checkpoint(ASSETS / "lite")
    fused = torch.arange(36.0).reshape(9, 4)
    slots = dict(zip("qkv", fused.chunk(3), strict=True))  # one storage, no overlap
    slots |= {"fused": fused, "rows": fused[1:8], "columns": fused[:, 1:3], "turned": fused.T, "scalar": fused[4, 1]}
    slots |= {"none": fused[5:5], "empty": torch.zeros(0, 7), "parameter": torch.nn.Parameter(fused)}
    slots |= {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES.values()}
    save_checkpoint(tmp_path / "saved", slots, checkpoint.config, checkpoint.tokenizer(), {})
    convert(tmp_path / "saved", tmp_path / "converted")
    for name in ("saved", "converted"):
        path = tmp_path / name / "model.safetensors"
        assert same_bits(load_file(path), {key: slot.detach().contiguous() for key, slot in slots.items()})
        assert path.stat().st_mode == (tmp_path / name / "config.json").stat().st_mode


def test_large_checkpoints_are_saved_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 100_000)
    checkpoint = open_checkpoint(ASSETS / "full")
    slots = dict(REFERENCE["full"])
    slots["model.norm.weight"] = slots["model.norm.weight"].double()
    slots["lm_head.weight"] = slots["lm_head.weight"].bfloat16()
    save_checkpoint(tmp_path / "s", slots, checkpoint.config, checkpoint.tokenizer(), {})
    shards = sorted(p.name for p in (tmp_path / "s").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "s/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in slots.values())
    assert not (tmp_path / "s/generation_config.json").exists()
    assert same_bits(loaded(tmp_path / "s"), slots)
    together: dict[str, torch.Tensor] = {}
    for name in shards:
        together |= load_file(tmp_path / "s" / name)
    assert same_bits(together, slots)
    assert convert(tmp_path / "s", tmp_path / "c")["shards"] == len(shards)
    assert same_bits(loaded(tmp_path / "c"), slots)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_convert(folder, suffix, count):
    slots = dict(REFERENCE["lite"])
    slots["model.norm.weight"] = slots["model.norm.weight"].bfloat16()
    shard(folder, slots, count, suffix)
    target = folder.parent / "converted"
    target.mkdir()  # an empty folder may be there
    report = convert(folder, target)
    assert report == {
        "source": str(folder),
        "destination": str(target),
        "tensors": len(slots),
        "bytes": sum(tensor.nbytes for tensor in slots.values()),
        "dtype": "bfloat16, float32",
        "shards": count,
    }
    assert same_bits(loaded(target), slots)
    assert not list(target.glob("*.bin*"))
    assert open_checkpoint(target).config.vision == open_checkpoint(folder).config.vision
    assert open_checkpoint(target).tokenizer()(PROMPT).input_ids == PROMPT_IDS


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_convert_refuses_what_load_refuses(tmp_path, kind):
    folder, flattened = tmp_path / "checkpoint", "model.layers.1.self_attn.q_proj.weight"
    shutil.copytree(ASSETS / kind, folder)
    slots = dict(REFERENCE[kind])
    slots["renamed"] = slots.pop("model.norm.weight")
    slots[flattened] = slots[flattened].flatten()
    shard(folder, slots, 1, "safetensors")
    told = []
    for attempt in (lambda: convert(folder, tmp_path / "converted"), lambda: load(folder, device="cpu")):
        with pytest.raises(ValueError, match="do not fit the model") as caught:
            attempt()
        told.append(str(caught.value))
    assert told[0] == told[1]
    for part in ("missing (1): model.norm.weight", "unexpected (1): renamed", f"wrong shape (1): {flattened}"):
        assert part in told[0]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_filled_and_stays_the_folder_it_is(tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    target.chmod(0o2750)
    before = target.stat()
    convert(ASSETS / "lite", target)
    after = target.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert same_bits(loaded(target), REFERENCE["lite"])
    assert [path for path in target.rglob("*") if path.is_dir()] == []
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    convert(ASSETS / "lite", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same_bits(loaded(tmp_path / "elsewhere"), REFERENCE["lite"])


def test_a_checkpoint_put_into_an_empty_folder_is_not_one_until_it_is_whole(tmp_path, monkeypatch):
    target = tmp_path / "there"
    target.mkdir()
    rename, seen = os.rename, []

    def interrupted(source, destination):
        seen.append(Path(destination).name)
        with pytest.raises(ValueError, match=r"config\.json"):
            open_checkpoint(target)
        if seen[-1] == "config.json":
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(ASSETS / "lite", target)
    assert "model.safetensors" in seen
    assert list(target.iterdir()) == []


def test_an_empty_folder_that_others_fill_meanwhile_is_left_to_them(tmp_path):
    target = tmp_path / "there"
    target.mkdir()

    def written_by_two() -> None:
        with new_folder(target) as new:
            (new / "config.json").write_text("ours")
            (target / "config.json").write_text("theirs")

    with pytest.raises(ValueError, match="others have written"):
        written_by_two()
    assert [path.read_text() for path in target.iterdir()] == ["theirs"]


def test_nothing_is_overwritten_or_left_behind(tmp_path):
    checkpoint = open_checkpoint(ASSETS / "lite")
    slots = REFERENCE["lite"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for taken in ("full", "full/file"):
        with pytest.raises(ValueError, match="expected a new or empty folder"):
            save_checkpoint(tmp_path / taken, slots, checkpoint.config, checkpoint.tokenizer(), {})
        with pytest.raises(ValueError, match="expected a new or empty folder"):
            convert(ASSETS / "lite", tmp_path / taken)

    class Failing:
        def save_pretrained(self, folder: str) -> None:
            raise RuntimeError("no tokenizer today")

    with pytest.raises(RuntimeError, match="no tokenizer today"):
        save_checkpoint(tmp_path / "new/saved", slots, checkpoint.config, Failing(), {})
    with pytest.raises(ValueError, match="got none"):
        save_checkpoint(tmp_path / "new", {}, checkpoint.config, checkpoint.tokenizer(), {})
    with pytest.raises(ValueError, match="on meta"):
        save_checkpoint(tmp_path / "new", {"a": torch.empty(2, device="meta")}, checkpoint.config, Failing(), {})
    with pytest.raises(ValueError, match="generation: eos_token_id"):
        save_checkpoint(tmp_path / "new", slots, checkpoint.config, Failing(), {"eos_token_id": -1})
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        convert(ASSETS / "lite", tmp_path / "full/file/below")
    with pytest.raises(ValueError, match="expected a folder to write"):
        convert(ASSETS / "lite", "a\0b")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_told_of_the_destination(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights are larger, all else is not
    try:
        with pytest.raises(ValueError, match=r"new: cannot be written: .*File too large"):
            convert(ASSETS / "lite", tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
