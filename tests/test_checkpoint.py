"""Released and own checkpoints in and out."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelrefer_fast.checkpoint import convert, open_checkpoint, save_checkpoint
from pixelrefer_fast.checkpoint import folder as module
from pixelrefer_fast.checkpoint.hub import checkpoint_folder
from pixelrefer_fast.checkpoint.new_folder import new_folder
from pixelrefer_fast.checkpoint.safetensors_file import DTYPES
from pixelrefer_fast.loading import load

ASSETS = Path(str(files("pixelrefer_fast.assets")))
REFERENCE = {kind: load_file(ASSETS / kind / "model.safetensors") for kind in ("lite", "full")}
# of the reference's run on "Describe <region>." with one object (golden/lite/case_image_one)
PROMPT = f"<|im_start|>user\nDescribe [{'<REGION>' * 8}].<|im_end|>\n<|im_start|>assistant\n"
PROMPT_IDS = [258, 84, 82, 68, 81, 198, 35, 68, 82, 66, 81, 72, 65, 68, 220, 58, *[259] * 8]
PROMPT_IDS += [60, 13, 256, 198, 258, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the bundled Lite checkpoint."""
    shutil.copytree(ASSETS / "lite", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def slots_for(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, -7.0, dtype=dtype) for name, shape in shapes.items()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    slots = {name: torch.empty(info.shape, dtype=info.dtype) for name, info in checkpoint.tensors.items()}
    checkpoint.load_into(slots)
    return slots


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


def shard(folder: Path, tensors: dict[str, torch.Tensor], count: int, suffix: str) -> None:
    """Replaces the weights in `folder` by `count` shards with an index, or by one file when `count` is 1."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        name = f"{stem}.{suffix}" if count == 1 else f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}"
        part = {key: tensors[key] for key in names[i::count]}
        write(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if count > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def any_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert` copies what no model has a place for."""
    monkeypatch.setattr("pixelrefer_fast.loading.empty_model", lambda checkpoint: None)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_bundled_checkpoints_load_bit_equal(kind):
    checkpoint = open_checkpoint(str(ASSETS / kind))
    assert checkpoint.config.kind == kind
    assert checkpoint.folder == ASSETS / kind
    assert checkpoint.keys == {name: tuple(tensor.shape) for name, tensor in REFERENCE[kind].items()}
    assert checkpoint.generation["eos_token_id"] == 256
    assert same_bits(loaded(ASSETS / kind), REFERENCE[kind])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_released_weight_layouts(folder, suffix, count):
    shard(folder, REFERENCE["lite"], count, suffix)
    assert same_bits(loaded(folder), REFERENCE["lite"])


def test_bin_files_as_training_scripts_write_them(folder, any_tensors):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.LayerNorm(2)})
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")  # an OrderedDict with attributes of its own
    assert open_checkpoint(folder).keys == {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (2,), "b.bias": (2,)}
    values = torch.arange(12.0).reshape(3, 4)
    saved = OrderedDict(
        p=torch.nn.Parameter(values), t=values.T, part=values[1:, ::2], tied=values, scalar=values[0, 1]
    )
    saved["empty"] = torch.empty(0, 4)
    torch.save(saved, folder / "pytorch_model.bin")
    result = loaded(folder)
    assert all(torch.equal(result[name], saved[name]) for name in saved)
    convert(folder, folder.parent / "converted")
    assert same_bits(loaded(folder.parent / "converted"), result)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_are_cast_as_they_are_copied(folder, suffix, dtype):
    shard(folder, REFERENCE["lite"], 1, suffix)
    checkpoint = open_checkpoint(folder)
    slots = slots_for(checkpoint.keys, dtype)
    checkpoint.load_into(slots)
    assert same_bits(slots, {name: tensor.to(dtype) for name, tensor in REFERENCE["lite"].items()})


def test_views_and_parameters_are_filled_in_place():
    reference = REFERENCE["lite"]
    checkpoint = open_checkpoint(ASSETS / "lite")
    slots: dict[str, torch.Tensor] = slots_for(checkpoint.keys)
    name = "model.embed_tokens.weight"
    transposed = torch.zeros(48, 267)
    packed = torch.zeros(100, 48)
    slots[name] = transposed.T
    slots["model.layers.0.self_attn.q_proj.weight"] = packed[10:58]
    slots["lm_head.weight"] = torch.nn.Parameter(torch.zeros(267, 48))
    checkpoint.load_into(slots)
    assert torch.equal(transposed, reference[name].T)
    assert torch.equal(packed[10:58], reference["model.layers.0.self_attn.q_proj.weight"])
    assert not packed[:10].any()
    assert not packed[58:].any()
    assert torch.equal(slots["lm_head.weight"], reference["lm_head.weight"])


def test_values_that_are_not_finite_and_tensors_without_values(folder):
    tensors = {**REFERENCE["lite"], "empty": torch.zeros(0, 5)}
    tensors["model.norm.weight"] = torch.full((48,), float("nan"))
    tensors["model.norm.weight"][::2] = float("-inf")
    save_file(tensors, folder / "model.safetensors")
    assert same_bits(loaded(folder), tensors)


def test_all_that_does_not_fit_is_listed_at_once(folder):
    tensors = dict(REFERENCE["lite"])
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors |= {f"extra.{i:02d}": torch.zeros(1) for i in range(25)}
    tensors["model.region_encoder.pos_linear.weight"] = torch.zeros(2, 64)
    tensors["model.region_encoder.pos_linear.bias"] = torch.zeros(64, dtype=torch.int64)
    save_file(tensors, folder / "model.safetensors")
    slots = slots_for({name: tuple(tensor.shape) for name, tensor in REFERENCE["lite"].items()})
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        checkpoint.load_into(slots)
    message = str(caught.value)
    assert "missing (2): lm_head.weight, model.norm.weight;" in message
    assert "unexpected (25): extra.00, " in message
    assert "extra.19 and 5 more;" in message
    assert "wrong shape (1): model.region_encoder.pos_linear.weight: expected (64, 2), got (2, 64);" in message
    assert "wrong dtype (1): model.region_encoder.pos_linear.bias: expected floating-point values" in message
    assert all(torch.all(slot == -7) for slot in slots.values())  # nothing was copied
    with pytest.raises(ValueError, match=r"missing \(2\)"):
        checkpoint.check({name: slot.to("meta") for name, slot in slots.items()})


def test_optional_and_ignored_names(folder):
    tensors = dict(REFERENCE["lite"])
    slots = slots_for({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    del tensors["model.norm.weight"]
    save_file(tensors | {"extra": torch.zeros(2, dtype=torch.uint8)}, folder / "model.safetensors")
    open_checkpoint(folder).load_into(slots, optional=["model.norm.weight"], ignored=["extra"])
    assert torch.all(slots["model.norm.weight"] == -7)
    assert torch.equal(slots["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("present", [True, False])
def test_tied_embeddings(folder, present):
    tensors = dict(REFERENCE["lite"])
    if not present:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    slots = slots_for({name: tuple(t.shape) for name, t in tensors.items() if name != "lm_head.weight"})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tied
    checkpoint.load_into(slots)
    assert torch.equal(slots["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


def test_weights_that_change_after_opening_are_noticed(folder):
    for suffix in ("safetensors", "bin"):
        shard(folder, REFERENCE["lite"], 1, suffix)
        checkpoint = open_checkpoint(folder)
        path = next(p for p in folder.iterdir() if p.name in ("model.safetensors", "pytorch_model.bin"))
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(ValueError, match=path.name):
            checkpoint.load_into(slots_for(checkpoint.keys))
        # of a shape that would fill the slot by broadcasting
        shard(folder, REFERENCE["lite"] | {"model.norm.weight": torch.zeros(1)}, 1, suffix)
        with pytest.raises(ValueError, match=rf"{path.name}.* when it was first read"):
            checkpoint.load_into(slots_for(checkpoint.keys))


MEMORY_SCRIPT = """
    import sys, torch
    from pixelrefer_fast.checkpoint import open_checkpoint, convert
    def peak():
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    checkpoint = open_checkpoint(sys.argv[1])
    torch.zeros(1000).to(torch.bfloat16)
    dtype = torch.float32
    if len(sys.argv) > 2:
        dtype = torch.bfloat16
        checkpoint.tokenizer()
        from pixelrefer_fast import loading
        loading.empty_model = lambda checkpoint: None  # these tensors are of no model
        before = peak()
        convert(sys.argv[1], sys.argv[2])
        print(peak() - before)
    before = peak()
    slots = {name: torch.empty(shape, dtype=dtype) for name, shape in checkpoint.keys.items()}
    checkpoint.load_into(slots)
    assert all(float(slot[-1, -1]) == 3.0 for slot in slots.values())
    print(peak() - before)
"""


def peaks(*arguments: str) -> list[int]:
    """Bytes by which the peak of a process's memory rises while it loads (converts, then loads) a checkpoint."""
    script = textwrap.dedent(MEMORY_SCRIPT)
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return [int(line) for line in result.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_peak_memory_is_the_weights_and_one_shard(folder, suffix):
    shard_bytes, count = 50 << 20, 6
    weight = torch.full((shard_bytes // 10 // 4 // 64, 64), 3.0)
    shard(folder, {f"w{i:02d}": weight.clone() for i in range(60)}, count, suffix)
    # A mapped file counts as far as it is read: one shard. The margin, a quarter of a shard, is for the allocator
    # (1 to 3 MiB were measured). A second shard, or a copy of what is written, would not fit.
    aside = shard_bytes + shard_bytes // 4
    weights = count * shard_bytes
    (as_stored,) = peaks(str(folder))
    assert 0.8 * weights < as_stored <= weights + aside
    converted, cast = peaks(str(folder), str(folder.parent / "converted"))
    assert converted <= aside
    assert 0.3 * weights < converted + cast <= weights / 2 + aside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_checkpoints_are_self_contained_and_load_bit_equal(tmp_path, dtype):
    checkpoint = open_checkpoint(ASSETS / "lite")
    slots = {name: tensor.to(dtype, copy=True) for name, tensor in REFERENCE["lite"].items()}
    slots["model.norm.weight"][0] = float("nan")
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


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_tokenizer_encodes_as_recorded_and_says_nothing(kind, capfd, recwarn):
    tokenizer = open_checkpoint(ASSETS / kind).tokenizer()
    assert tokenizer(PROMPT).input_ids == PROMPT_IDS
    assert tokenizer.decode([259, 84, 256], skip_special_tokens=True) == "u"
    assert tokenizer.eos_token_id == 256
    assert tuple(capfd.readouterr()) == ("", "")
    assert len(recwarn) == 0


@pytest.mark.parametrize("absent", [["<image>", "<|stream_start|>", "<|stream_end|>"], None])
def test_missing_special_tokens_are_added(folder, absent):
    ours = absent or ["<REGION>", "<image>", "<|stream_start|>", "<|stream_end|>"]
    (folder / "added_tokens.json").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in ours]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = settings["added_tokens_decoder"]
    settings["added_tokens_decoder"] = {i: token for i, token in decoder.items() if token["content"] not in ours}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = open_checkpoint(folder).tokenizer()
    assert made(PROMPT).input_ids == PROMPT_IDS
    assert made.convert_tokens_to_ids(["<image>", "<|stream_start|>", "<|stream_end|>"]) == [260, 261, 262]
    assert made.decode([260, 84], skip_special_tokens=True) == "u"


def test_tokenizer_from_vocabulary_and_merges_alone(folder):
    (folder / "tokenizer.json").unlink()
    assert open_checkpoint(folder).tokenizer()(PROMPT).input_ids == PROMPT_IDS


def test_tokenizer_ids_need_embeddings(folder):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 262}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="below the model's vocab_size 262, got ids up to 262"):
        open_checkpoint(folder).tokenizer()


HUB_SCRIPT = """
    import sys
    from pixelrefer_fast.checkpoint import open_checkpoint
    checkpoint = open_checkpoint("someone/a-model")
    assert len(checkpoint.keys) == 87 and "snapshots" in str(checkpoint.folder)
    assert len(checkpoint.tokenizer()) == 263
    try:
        open_checkpoint("someone/else")
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("shared_store", [False, True])
def test_hub_ids_offline(tmp_path, shared_store):
    repository = tmp_path / "models--someone--a-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    sources = [path for path in (ASSETS / "lite").rglob("*") if path.is_file()]
    for number, path in enumerate(sources):
        blob = repository / "blobs" / f"{number:040x}"
        link = snapshot / path.relative_to(ASSETS / "lite")
        for parent in (blob.parent, link.parent):
            parent.mkdir(parents=True, exist_ok=True)
        if shared_store:  # newer versions of huggingface_hub keep one copy for all repositories
            store = tmp_path / "blobs" / "ab" / f"{number:064x}"
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, store)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUB_SCRIPT)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "someone/else: no such folder here, and not to be had from the Hugging Face hub: "
        "it is not in the local cache (or not whole) and the hub cannot be reached"
    ]
    assert open_checkpoint(snapshot).folder == snapshot  # the snapshot by its path


def test_downloads_leave_code_and_needless_pickles_alone(folder, monkeypatch):
    import huggingface_hub

    calls = []

    def download(hub_id, allow_patterns, tqdm_class):
        calls.append((hub_id, allow_patterns, tqdm_class))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint_folder("someone/a-model", progress=True) == folder
    assert len(calls) == 1
    assert not any("bin" in pattern or ".py" in pattern or pattern == "*" for pattern in calls[0][1])
    assert calls[0][2] is None
    (folder / "model.safetensors").unlink()
    checkpoint_folder("someone/a-model", progress=False)
    assert "pytorch_model*.bin" in calls[2][1]
    bar = calls[1][2](total=3)
    assert bar.disable


def test_failed_downloads_are_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"^someone/a-model: .*ConnectionError") as caught:
        open_checkpoint("someone/a-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere", "/no/where", "./no/where", "a/b/c", "", "a\0b/c", "x" * 5000, 3, None])
def test_what_is_neither_folder_nor_hub_id(path):
    with pytest.raises(ValueError, match=r"expected (a checkpoint folder or a hub id|the path of)") as caught:
        open_checkpoint(path)
    assert len(str(caught.value)) < 400
    assert "\0" not in str(caught.value)


def test_folders_without_a_checkpoint(tmp_path, folder):
    with pytest.raises(ValueError, match=r"expected a checkpoint folder with a config\.json, found none"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="expected a checkpoint folder or a hub id"):
        open_checkpoint(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected weights in one of model\.safetensors, .* found none of them"):
        open_checkpoint(folder)
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    save_file(REFERENCE["lite"], folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt, found neither"):
        open_checkpoint(folder).tokenizer()
    with pytest.raises(ValueError, match="found neither"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
