"""Weights in: every layout, bit for bit, and all that does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoints import ASSETS, REFERENCE, loaded, same_bits, shard, slots_for
from safetensors.torch import save_file

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.loading import convert, export_llm


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


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite_are_refused_by_name(folder, suffix, bad, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in REFERENCE["lite"].items()}
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][-1, -1] = bad
    shard(folder, tensors, 2, suffix)
    for use in (
        lambda: loaded(folder),
        lambda: convert(folder, folder.parent / "new"),
        lambda: export_llm(folder, folder.parent / "new"),
    ):
        with pytest.raises(ValueError, match=rf"{suffix}: tensor {name}: expected finite values, got NaN or infinity"):
            use()
    assert not (folder.parent / "new").exists()


def test_tensors_without_values(folder):
    tensors = {**REFERENCE["lite"], "empty": torch.zeros(0, 5)}
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
    from pixelrefer_fast.checkpoint import open_checkpoint
    from pixelrefer_fast.checkpoint.digests import digesting
    def peak():
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    checkpoint = open_checkpoint(sys.argv[1])
    torch.zeros(1000).to(torch.bfloat16)
    with digesting("", {}) as digest:  # what is read of the library itself is no memory of a checkpoint's
        digest("", torch.rand(9))
    dtype = torch.float32
    if len(sys.argv) > 2:
        dtype = torch.bfloat16
        checkpoint.tokenizer()
        from pixelrefer_fast import loading
        loading.empty_model = lambda checkpoint: None  # these tensors are of no model
        before = peak()
        loading.convert(sys.argv[1], sys.argv[2])
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
