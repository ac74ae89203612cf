"""Safetensors made to hurt: a ValueError that names the file, nothing written, bounded memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hostile_checkpoints import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pixelrefer_fast.checkpoint.safetensors_file import SafetensorsFile


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
