"""Safetensors files, read and written with the `safetensors` package; its errors become ValueErrors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pixelrefer_fast.checks.safe_files import brief, name_of, parse_json, reading

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_VALUES = 1 << 48

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

Read = Callable[[str], torch.Tensor]  # a tensor of an open weight file by its name; mapped, so read as it is used


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor, known before its values are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def tensor_info(name: str, tensor: torch.Tensor) -> TensorInfo:
    """The TensorInfo of `tensor`; ValueError if a checkpoint cannot hold it."""
    if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided or tensor.device.type == "meta":
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
        raise ValueError(
            f"{name_of(name)}: expected a dense tensor with values of {dtypes}, "
            f"got {tensor.layout} of {tensor.dtype} on {tensor.device}"
        )
    return TensorInfo(tensor.dtype, tuple(tensor.shape))


class SafetensorsFile:
    """One safetensors file whose header has been read and checked.

    Attributes:
        path: the file.
        tensors: dtype and shape of each tensor by name, in the order of their bytes.
        metadata: the texts in its header.

    Raises:
        ValueError: the file is truncated or damaged, or its header is not that of a checkpoint. The message names the
            file.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # the package accepts 100 MB, and takes fourteen times that to read them
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"{path}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
            header = file.read(length)
        with self._mapped() as mapped:
            parse_json(header, f"{path}: header")  # the package accepts a name twice and ignores the first entry
            self.tensors = self._listed(mapped)
            self.metadata: dict[str, str] = mapped.metadata() or {}

    @contextmanager
    def _mapped(self) -> Iterator[Any]:
        try:
            with reading(self.path):
                mapped = safe_open(self.path, framework="pt")
        except (SafetensorError, MemoryError, RuntimeError) as error:  # the last two: no address space to map it
            raise ValueError(
                f"{self.path}: expected a safetensors file, got one that is truncated, damaged or too large to map: "
                f"{brief(str(error))}"
            ) from error
        with mapped:
            yield mapped

    def _listed(self, mapped: Any) -> dict[str, TensorInfo]:
        names = mapped.offset_keys()
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{self.path}: expected at most {MAX_TENSORS} tensors, got {len(names)}")
        return {name: self._info(name, mapped.get_slice(name)) for name in names}

    def _info(self, name: str, entry: Any) -> TensorInfo:
        code, shape = entry.get_dtype(), entry.get_shape()
        if code not in DTYPES:
            expected = f"one of {', '.join(DTYPES)}"
            raise ValueError(f"{self.path}: tensor {name_of(name)}: dtype: expected {expected}, got {brief(code)}")
        # the package checks shapes against the file's bytes only: those of empty tensors may be what torch cannot hold
        if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_VALUES:
            expected = f"at most {MAX_DIMENSIONS} sizes and {MAX_VALUES} values"
            raise ValueError(f"{self.path}: tensor {name_of(name)}: shape: expected {expected}, got {brief(shape)}")
        return TensorInfo(DTYPES[code], tuple(shape))

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Map the file for reading values; ValueError if it has changed since it was first read."""
        with self._mapped() as mapped:
            if self._listed(mapped) != self.tensors:
                raise ValueError(f"{self.path}: expected the tensors it held when it was first read, got others")
            yield mapped.get_tensor


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})
) -> None:
    """Write dense tensors of any device and layout.

    Raises:
        OSError: the file cannot be written.
    """
    written = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name in sorted(written, key=lambda name: written[name].data_ptr()):
        tensor = written[name]
        if tensor.data_ptr() < end:  # the package refuses tensors that overlap; parts of one storage are fine
            written[name] = tensor.clone()
        else:
            end = tensor.data_ptr() + tensor.nbytes
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(written, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # the package makes files that nobody else may read
