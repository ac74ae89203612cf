"""Pickles made to hurt: a ValueError that names the file, no code run, nothing written, bounded memory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_checkpoints import ASSETS, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.pickle_file import PickleFile
from pixelrefer_fast.checkpoint.safetensors_file import tensor_info


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
