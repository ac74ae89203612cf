"""Checkpoints made to hurt: a ValueError that names the file, no code run, nothing written, bounded memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pixelrefer_fast.checkpoint import convert, open_checkpoint
from pixelrefer_fast.checkpoint.pickle_file import PickleFile
from pixelrefer_fast.checkpoint.safetensors_file import SafetensorsFile, tensor_info
from pixelrefer_fast.loading import load

ASSETS = Path(str(files("pixelrefer_fast.assets"))) / "lite"
MEMORY = 2 << 30  # address space for an attempt beside what the process has; torch's threads alone take some


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Every test here runs with its address space limited, and quickly."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    start = time.monotonic()
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - start < 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ASSETS, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def refused(folder: Path, name: str, reason: str) -> None:
    """Opening and converting are refused for `reason`, naming the file, and leave every file as it was."""
    before = sorted((path, path.lstat().st_mtime_ns) for path in folder.parent.rglob("*"))
    for attempt in (lambda: open_checkpoint(folder), lambda: convert(folder, folder.parent / "converted")):
        with pytest.raises(ValueError, match=reason) as caught:
            attempt()
        message = str(caught.value)
        assert name in message
        assert message.isprintable()
        assert len(message) < 1500
    assert sorted((path, path.lstat().st_mtime_ns) for path in folder.parent.rglob("*")) == before


def write_bin(
    folder: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, extra: tuple[str, ...] = (), nbytes: int = 64
) -> None:
    """Replaces the weights by a `.bin` archive around the pickle `data` and one storage."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * nbytes)
        archive.writestr("archive/version", "3\n")
        for name in extra:
            archive.writestr(name, b"x")


class Runs:
    """Unpickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_code_in_a_pickle_is_not_run(folder, protocol):
    marker = folder.parent / "ran"
    for call in (Runs(os.system, f"touch {marker}"), Runs(eval, f"open({str(marker)!r}, 'w')")):
        write_bin(folder, pickle.dumps({"a": call}, protocol))
        refused(folder, "pytorch_model.bin", "nothing in the file was run")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": call}, protocol))  # no archive around it
        refused(folder, "pytorch_model.bin", "without a zip archive's end")
    assert not marker.exists()


def test_code_in_a_shard_or_beside_the_weights_is_not_run(folder):
    marker = folder.parent / "ran"
    write_bin(folder, pickle.dumps({"a": Runs(os.system, f"touch {marker}")}, 2))
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(folder, "pytorch_model-00001-of-00001.bin", "got 'posix.system'")
    # where there are safetensors no pickle is opened, and no code beside them is imported
    shutil.copyfile(ASSETS / "model.safetensors", folder / "model.safetensors")
    for name in ("modeling_x.py", "tokenization_x.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"], "AutoConfig": "modeling_x.X"}
        (folder / name).write_text(json.dumps(values))
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.keys) == 87
    assert len(checkpoint.tokenizer()) == 263
    assert not marker.exists()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"


def tensor(size: bytes, stride: bytes, numel: bytes = b"K\x10", offset: bytes = b"K\x00") -> bytes:
    """The operations for a float32 tensor over the storage of write_bin, its numbers given as operations."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    hooks = b"\x89ccollections\nOrderedDict\n)Rt"
    return rebuild + STORAGE % numel + offset + size + stride + hooks + b"R"


def state(*values: bytes) -> bytes:
    """The operations for a mapping from "0", "1", ... to `values`."""
    items = b"".join(b"X\x01\x00\x00\x00%d" % i + value for i, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


HUGE = b"\x8a\x05" + (10**11).to_bytes(5, "little")
PICKLES = {
    "huge bytearray": (b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.", "'builtins.bytearray'"),
    "python 2 bytearray": (b"\x80\x02c__builtin__\nbytearray\n" + HUGE + b"\x85R.", "'__builtin__.bytearray'"),
    "numpy": (b"\x80\x02cnumpy\nzeros\n" + HUGE + b"\x85R.", "'numpy.zeros'"),
    "sparse": (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.", "rebuild_sparse_tensor"),
    "no mapping": (b"\x80\x02K\x01.", "got a int"),
    "a list": (b"\x80\x02](K\x01K\x02e.", "the operation EMPTY_LIST"),
    "stack global": (b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "the operation STACK_GLOBAL"),
    "inst": (b"(X\x01\x00\x00\x00aios\nsystem\n.", "the operation INST"),
    "numbers": (state(b"K\x01"), "a int under '0'"),
    "name is no string": (b"\x80\x02}(K\x01" + tensor(b"K\x02\x85", b"K\x01\x85") + b"u.", "a Tensor under 1"),
    "more values than stored": (state(tensor(b"K\x11\x85", b"K\x01\x85")), "cannot be read as a PyTorch file"),
    "repeated by stride 0": (state(tensor(HUGE + b"\x85", b"K\x00\x85")), "more values than are stored"),
    "huge stride": (state(tensor(b"K\x02\x85", HUGE + b"\x85")), "cannot be read as a PyTorch file"),
    "negative size": (state(tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85")), "cannot be read as a PyTorch file"),
    "overflowing size": (state(tensor(HUGE + HUGE + b"\x86", HUGE + b"K\x01\x86")), "cannot be read as"),
    "huge storage": (state(tensor(HUGE + b"\x85", b"K\x01\x85", HUGE)), "cannot be read as a PyTorch file"),
    "far offset": (state(tensor(b"K\x02\x85", b"K\x01\x85", offset=HUGE)), "cannot be read as a PyTorch file"),
    "copied dict": (b"\x80\x02}q\x00ccollections\nOrderedDict\nh\x00\x85R.", "not built empty"),
    "copied dict by name": (b"\x80\x02ccollections\nOrderedDict\nq\x01)Rh\x01(h\x00tR.", "not built empty"),
    "tuples of tuples": (b"\x80\x02K\x01\x85q\x00h\x00h\x00\x86.", "a tuple that is used twice"),
    "long tuple": (b"\x80\x02(" + b"K\x01" * 300 + b"t.", "a tuple that is too long"),
    "attributes": (b"\x80\x02" + b"ccollections\nOrderedDict\n)R}b" * 2 + b".", "several objects"),
    "truncated": (state(b"K\x01")[:-1], "damaged"),
    "empty": (b"", "damaged"),
    "unknown operation": (b"\x80\x02\xff.", "damaged"),
    "stack runs dry": (b"\x80\x02R.", "cannot be read as a PyTorch file"),
    "too long": (b"\x80\x02" + b"K\x00" * (3 << 20), "more than 4194304"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(folder, name):
    data, reason = PICKLES[name]
    write_bin(folder, data)
    refused(folder, "pytorch_model.bin", reason)


def test_the_handmade_pickles_are_otherwise_sound(folder):
    write_bin(folder, state(tensor(b"K\x04\x85", b"K\x01\x85"), tensor(b"K\x02K\x03\x86", b"K\x03K\x01\x86")))
    assert open_checkpoint(folder).keys == {"0": (4,), "1": (2, 3)}


def test_one_storage_under_many_names(folder):
    tensors = [tensor(b"M\x00\x40\x85", b"K\x01\x85", numel=b"M\x00\x40")] * 3
    write_bin(folder, state(*tensors[:2]), nbytes=1 << 16)  # as tied embeddings are
    assert len(open_checkpoint(folder).keys) == 2
    write_bin(folder, state(*tensors), nbytes=1 << 16)
    refused(folder, "pytorch_model.bin", "got 196608 bytes of tensors in a file of 6")


def test_zip_bombs(folder):
    bomb = b"\x80\x02}(" + b"X\x01\x00\x00\x00a" * (8 << 20) + b"u."
    write_bin(folder, bomb, compression=zipfile.ZIP_DEFLATED)
    assert (folder / "pytorch_model.bin").stat().st_size < 1 << 20
    refused(folder, "pytorch_model.bin", "compressed records")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("archive/constants.pkl",), "of another kind"),
        (("other/data.pkl",), "of another kind"),
        (("archive/data.pkl",), "records that overlap"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_archives_of_another_kind(folder, extra, reason):
    write_bin(folder, state(tensor(b"K\x04\x85", b"K\x01\x85")), extra=extra)
    refused(folder, "pytorch_model.bin", reason)


def test_damaged_zip_archives(folder):
    path = folder / "pytorch_model.bin"
    write_bin(folder, state(tensor(b"K\x04\x85", b"K\x01\x85")))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", b"prefix" + whole):
        path.write_bytes(damaged)
        refused(folder, path.name, "expected a file written by torch.save")
    for size, start in ((2**32 - 1, 0), (10**8, 2**31), (46, 0)):
        path.write_bytes(whole[:-10] + struct.pack("<2L", size, start) + whole[-2:])
        refused(folder, path.name, "expected a file written by torch.save")
    directory = whole.index(b"PK\1\2")
    claims_more = bytearray(whole)
    claims_more[directory + 20 : directory + 28] = struct.pack("<2L", 2**31, 2**31)
    path.write_bytes(claims_more)
    refused(folder, path.name, "expected a file written by torch.save")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bin_files_load_or_are_refused(tmp_path, data):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = PickleFile(path)
        with file.open() as read:
            for name, info in file.tensors.items():
                assert tensor_info(name, read(name).clone()) == info
    except ValueError as error:
        message = str(error)
    else:
        message = str(path)
    assert str(path) in message


def write_safetensors(folder: Path, header: object, data: bytes = b"\0" * 8) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(dtype="F31")}, "damaged .*unknown variant `F31`"),
        ({"a": entry(dtype=["F32"])}, "damaged .*invalid type: sequence"),
        ({"a": entry(dtype="U16", shape=[4])}, r"tensor a: dtype: expected one of .*, got 'U16'"),
        ({"a": entry(dtype="C64", shape=[1])}, r"tensor a: dtype: expected one of .*, got 'C64'"),
        ({"a": entry(dtype="F4", shape=[16])}, r"tensor a: dtype: expected one of .*, got 'F4'"),
        ({"\n\x1b[31m\u202e": entry(dtype="U32")}, r"tensor '\\n\\x1b\[31m\\u202e'"),
        ({"a" * 10**5: entry(dtype="U32")}, "100002 characters"),
        ({"a": entry(shape=[-2])}, "damaged .*-2"),
        ({"a": entry(shape=[2.0])}, "damaged .*floating point"),
        ({"a": entry(shape=[True, 2])}, "damaged .*boolean"),
        ({"a": entry(shape="2")}, "damaged .*string"),
        ({"a": entry(shape=[2**62, 2**62])}, "damaged .*overflow"),
        ({"a": entry(shape=[2**64, 0], offsets=[0, 0])}, "damaged .*"),
        ({"a": entry(shape=[0, 2**63], offsets=[0, 0]), "b": entry()}, "tensor a: shape: expected at most 8 sizes"),
        (
            {"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0]), "b": entry()},
            "tensor a: shape: .* 281474976710656 val",
        ),
        ({"a": entry(shape=[2, *[1] * 8])}, "tensor a: shape: expected at most 8 sizes"),
        ({"a": entry(shape=[2, *[1] * 10**6])}, r"tensor a: shape: .* \(3000003 characters\)"),
        ({"a": entry(shape=[2**40] * 8)}, "damaged .*overflow"),
        ({"a": entry(shape=[3])}, "damaged .*invalid shape"),
        ({"a": entry(offsets=[8, 0])}, "damaged .*invalid offset"),
        ({"a": entry(offsets=[-8, 0])}, "damaged .*-8"),
        ({"a": entry(offsets=[2**63 - 8, 2**63])}, "damaged .*invalid offset"),
        ({"a": entry(offsets=[0])}, "damaged .*invalid length"),
        ({"a": entry(offsets=[4, 12])}, "damaged .*invalid offset"),
        ({"a": entry(), "b": entry()}, "damaged .*invalid offset for tensor `[ab]`"),
        ({"a": entry(), "b": entry(offsets=[8, 16])}, "truncated, damaged .*not fully covered"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "damaged .*not fully covered"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "damaged .*missing field `data_offsets`"),
        ({"a": 3}, "damaged .*integer `3`"),
        ({"\n\x1b[31m\u202e": 3}, "damaged .*integer `3`"),
        ({"__metadata__": {"a": 3}, "a": entry()}, "damaged .*integer `3`"),
        ([], "damaged .*invalid type: sequence"),
        (b"", "damaged .*EOF"),
        (f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}'.encode(), "the key 'a' twice"),
        (b"[" * 10**6, "damaged .*invalid type: sequence"),
        (b'{"a":' * 10**5, "damaged .*recursion limit"),
        (b'{"a":"' + b"\xff" * 10 + b'"}', "damaged"),
        ({}, "damaged .*not fully covered"),
        (
            {f"{i}": entry("U8", [0], [0, 0]) for i in range(100_001)} | {"a": entry()},
            "at most 100000 tensors, got 100002",
        ),
    ],
)
def test_safetensors_headers(folder, header, reason):
    write_safetensors(folder, header)
    refused(folder, "model.safetensors", reason)


@pytest.mark.parametrize("length", [0, 9, 10**6, 2**31, 2**63, 2**64 - 1])
def test_safetensors_header_lengths(folder, length):
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(folder, "model.safetensors", "expected")


def test_truncated_and_sparse_safetensors(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(folder, path.name, "truncated")
    path.write_bytes((1 << 30).to_bytes(8, "little"))
    os.truncate(path, 1 << 40)  # claims a header of a gigabyte and has it
    refused(folder, path.name, "expected a header of at most")
    for size in (5 << 28, 1 << 40):  # too large to be mapped twice, as the package does, and once
        write_safetensors(folder, {"a": entry("U8", [size - 8], [0, size - 8])}, b"")
        os.truncate(path, path.stat().st_size + size - 8)
        refused(folder, path.name, "too large to map")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_safetensors_load_or_are_refused(tmp_path, data):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int8)}, path)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header - 1))
        content[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789",:[]{} '))
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except ValueError as error:
        message = str(error)
    else:
        message = str(path)
        expected = load_file(path)
        assert file.tensors.keys() == expected.keys()
        with file.open() as read:
            for name, info in file.tensors.items():
                copy = torch.zeros(info.shape, dtype=info.dtype).copy_(read(name))
                assert torch.equal(copy.view(torch.uint8), expected[name].view(torch.uint8))
    assert str(path) in message


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


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (
            {"hidden_size": 1 << 17, "intermediate_size": 1 << 18, "num_attention_heads": 1 << 10},
            r"model\.embed_tokens\.weight: expected \(267, 131072\), got \(267, 48\)",
        ),
        ({"vocab_size": 1 << 24, "num_hidden_layers": 64}, r"missing \(\d+\): model\.layers\.2\."),
    ],
)
def test_a_config_larger_than_the_weights_costs_nothing(folder, claims, reason):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | claims))
    with pytest.raises(ValueError, match=reason) as caught:
        load(folder, device="cpu")
    assert str(caught.value).startswith(f"{folder}: the weights do not fit the model: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 10**6),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 99999999}, "merges": []}}'),
        ("tokenizer_config.json", "[" * 10**5),
        ("tokenizer_config.json", '{"tokenizer_class": "MyTokenizer"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}'),
        ("tokenizer_config.json", '{"tokenizer_class": ["Qwen2Tokenizer"]}'),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": [1]}'),
    ],
)
def test_hostile_tokenizers(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        open_checkpoint(folder).tokenizer()
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=str(folder)):
        convert(folder, folder.parent / "converted")
    assert not (folder.parent / "converted").exists()


@pytest.mark.parametrize("end", [None, 3, ["x"], {"a": 1}, "<|nowhere|>"])
def test_tokenizers_without_an_end_token_of_their_own(folder, end):
    (folder / "special_tokens_map.json").unlink()  # it would decide
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": end}))
    try:
        tokenizer = open_checkpoint(folder).tokenizer()
    except ValueError as error:
        message = str(error)
    else:
        message = str(folder)
        assert 0 <= tokenizer.eos_token_id < 267
    assert str(folder) in message


def test_huge_tokenizers_are_refused_unread(folder):
    os.truncate(folder / "merges.txt", 1 << 40)
    with pytest.raises(ValueError, match=r"merges\.txt: expected at most 33554432 bytes, got 1099511627776"):
        open_checkpoint(folder).tokenizer()
