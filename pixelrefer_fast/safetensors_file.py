"""Safetensors files, read and written tensor by tensor.

The `safetensors` package maps the whole file and hands out finished tensors, so a loaded model and its file are in
memory together. Here the bytes go straight from the file to where they belong, and from where they are to the file:
nothing larger than one chunk is held between. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeGuard

import torch

from pixelrefer_fast.safe_files import brief, name_of, parse_json, reading

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40
CHUNK_BYTES = 16 << 20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before its values are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def tensor_info(name: str, tensor: torch.Tensor) -> TensorInfo:
    """The TensorInfo of `tensor`; ValueError when a safetensors file cannot hold it."""
    if tensor.dtype not in _CODES or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ValueError(
            f"{name_of(name)}: expected a dense tensor with values of {', '.join(str(d)[6:] for d in _CODES)}, "
            f"got {tensor.layout} of {tensor.dtype} on {tensor.device}"
        )
    return TensorInfo(tensor.dtype, tuple(tensor.shape))


def bytes_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The values of a tensor of any device and layout, little-endian and row-major, in chunks of at most 16 MiB."""
    flat = tensor.detach().contiguous().view(-1)
    step = CHUNK_BYTES // flat.dtype.itemsize
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].cpu().view(torch.uint8).numpy().data


class SafetensorsFile:
    """One safetensors file, its header read and checked.

    Attributes:
        path: the file.
        tensors: what it holds, in the order of their bytes.

    Raises:
        ValueError: the file is truncated or its header is not one that a writer of this format makes. Names the file.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path), path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(
                    f"{path}: expected a safetensors file of at least {8 + length} bytes, got {size}: it is "
                    "truncated or not a safetensors file"
                )
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"{path}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
            header = parse_json(file.read(length), f"{path}: header")
        self._starts: dict[str, int] = {}
        self.tensors = self._check(header, 8 + length, size)

    def _check(self, header: dict[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{self.path}: expected at most {MAX_TENSORS} tensors, got {len(header)}")
        spans = []
        for name, entry in header.items():
            info, start, end = self._entry(name, entry)
            spans.append((start, end, name, info))
        spans.sort(key=lambda span: span[:2])
        position = 0
        for start, end, name, _ in spans:
            if start != position:
                raise ValueError(
                    f"{self.path}: tensor {name_of(name)}: expected its bytes to start at {position}, got {start}"
                )
            self._starts[name] = data_start + start
            position = end
        if data_start + position != size:
            raise ValueError(
                f"{self.path}: expected {data_start + position} bytes as its header says, got {size}: truncated or "
                "damaged"
            )
        return {name: info for _, _, name, info in spans}

    def _entry(self, name: str, entry: object) -> tuple[TensorInfo, int, int]:
        def error(key: str, expected: str, given: object) -> ValueError:
            return ValueError(f"{self.path}: tensor {name_of(name)}: {key}: expected {expected}, got {brief(given)}")

        if not isinstance(entry, dict):
            raise error("header entry", "an object", entry)
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(code, str) or code not in DTYPES:
            raise error("dtype", f"one of {', '.join(DTYPES)}", code)
        if not _integers(shape) or len(shape) > MAX_DIMENSIONS:
            raise error("shape", f"at most {MAX_DIMENSIONS} sizes from 0 to {MAX_SIZE}", shape)
        if not _integers(offsets) or len(offsets) != 2:
            raise error("data_offsets", "two positions in the file", offsets)
        info = TensorInfo(DTYPES[code], tuple(shape))
        start, end = offsets
        if end - start != info.nbytes:
            raise error("data_offsets", f"{info.nbytes} bytes for {code} {list(shape)}", offsets)
        return info, start, end

    @contextmanager
    def open(self) -> Iterator[SafetensorsReader]:
        """Opens the file for reading values; what the operating system refuses becomes a ValueError."""
        with reading(self.path):
            file = self.path.open("rb", buffering=0)
        with file:
            yield SafetensorsReader(self.path, file, self.tensors, self._starts)


def _integers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= MAX_SIZE for v in values)


class SafetensorsReader:
    """Reads values out of an open safetensors file."""

    def __init__(self, path: Path, file: FileIO, tensors: Mapping[str, TensorInfo], starts: Mapping[str, int]):
        self._path = path
        self._file = file
        self._tensors = tensors
        self._starts = starts
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _fill(self, target: torch.Tensor) -> None:
        # a single read returns at most 2 GiB on Linux, and less at the end of a file that shrank since it was opened
        view = target.numpy().data
        while view:
            with reading(self._path):
                count = self._file.readinto(view)
            if not count:
                raise ValueError(f"{self._path}: expected {len(view)} more bytes, got the end of the file")
            view = view[count:]

    def copy(self, name: str, destination: torch.Tensor) -> None:
        """Copies tensor `name` to `destination` of the same shape, casting to its dtype, on its device."""
        self._file.seek(self._starts[name])
        dtype = self._tensors[name].dtype
        destination = destination.detach()
        if not destination.is_contiguous():
            whole = torch.empty(destination.shape, dtype=dtype)
            self._fill(whole.view(-1).view(torch.uint8))
            destination.copy_(whole)
            return
        flat = destination.view(-1)
        if flat.device.type == "cpu" and flat.dtype == dtype:
            self._fill(flat.view(torch.uint8))
            return
        for start, chunk in self._chunks(flat.numel() * dtype.itemsize):
            values = chunk.view(dtype)
            first = start // dtype.itemsize
            flat[first : first + values.numel()].copy_(values)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of tensor `name` in the order of the file; a chunk is valid until the next one is asked for."""
        self._file.seek(self._starts[name])
        for _, chunk in self._chunks(self._tensors[name].nbytes):
            yield chunk.numpy().data

    def _chunks(self, nbytes: int) -> Iterator[tuple[int, torch.Tensor]]:
        if len(self._buffer) < min(nbytes, CHUNK_BYTES):
            self._buffer = torch.empty(min(nbytes, CHUNK_BYTES), dtype=torch.uint8)
        for start in range(0, nbytes, CHUNK_BYTES):
            chunk = self._buffer[: min(CHUNK_BYTES, nbytes - start)]
            self._fill(chunk)
            yield start, chunk


def file_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The names in the order in which `write_safetensors` lays them out: wide values first, so all stay aligned."""
    return sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorInfo], chunks: Callable[[str], Iterable[memoryview]]
) -> None:
    """Writes a safetensors file, asking `chunks(name)` for the bytes of each tensor in `file_order`.

    Raises:
        ValueError: `chunks` gave more or fewer bytes than a tensor's shape and dtype need.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in file_order(tensors):
        info = tensors[name]
        offsets = [position, position + info.nbytes]
        header[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in file_order(tensors):
            written = sum(file.write(chunk) for chunk in chunks(name))
            if written != tensors[name].nbytes:
                raise ValueError(f"{name_of(name)}: expected {tensors[name].nbytes} bytes, got {written}")
