"""PyTorch's `.bin` checkpoint files, read without running any code in them.

`torch.load(weights_only=True)` refuses to call arbitrary code. It still lets a file request a huge bytearray, inflate a
compressed record, or build structures that take very long to walk. So a file is first checked to be what `torch.save`
writes for a mapping from names to tensors: an uncompressed zip archive, and a pickle of a few harmless operations.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from pixelrefer_fast.checkpoint.safetensors_file import MAX_TENSORS, Read, tensor_info
from pixelrefer_fast.checks.safe_files import brief, name_of, reading

MAX_PICKLE_BYTES = 4 << 20
MAX_DIRECTORY_BYTES = 16 << 20
_LONGEST_TUPLE = 200  # operations between the mark and the tuple; the arguments of one tensor take about 40
_REBUILDERS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
_ORDERED_DICT = "collections OrderedDict"
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE")
_PLAIN = (
    *("PROTO", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPERSID", "REDUCE", "NONE", "NEWTRUE"),
    *("NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
)


class PickleFile:
    """One `.bin` file written by `torch.save`, checked and its tensors listed.

    Attributes:
        path: the file.
        tensors: dtype and shape of each tensor by name.

    Raises:
        ValueError: the file is truncated, compressed, written before PyTorch 1.6, or is not a mapping from names to
            dense tensors. The message names the file; no code in it has been run.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path):
            _check_pickle(_pickle_of(path), path)
        loaded = self._load()
        self.tensors = {name: tensor_info(name, tensor) for name, tensor in loaded.items()}

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"{self.path}: expected a mapping from names to tensors, got {reason}")

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            loaded = torch.load(str(self.path), map_location="cpu", weights_only=True, mmap=True)
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise ValueError(f"{self.path}: cannot be read as a PyTorch file: {brief(str(error))}") from error
        if not isinstance(loaded, dict):
            self._refuse(f"a {type(loaded).__name__}")
        if len(loaded) > MAX_TENSORS:
            self._refuse(f"{len(loaded)} of them, more than {MAX_TENSORS}")
        total = 0
        for name, tensor in loaded.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                self._refuse(f"a {type(tensor).__name__} under {brief(name)}")
            nbytes = tensor_info(name, tensor).nbytes
            if nbytes > tensor.untyped_storage().nbytes():
                self._refuse(f"{name_of(name)} with more values than are stored for it")
            total += nbytes
        # tied embeddings share their values; a file in which everything does would grow without bound when copied
        if total > 2 * self.path.stat().st_size:
            self._refuse(f"{total} bytes of tensors in a file of {self.path.stat().st_size}")
        return loaded

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Map the file for reading values; ValueError if it has changed since it was first read."""
        with reading(self.path):
            loaded = self._load()
        if {name: tensor_info(name, tensor) for name, tensor in loaded.items()} != self.tensors:
            self._refuse("other tensors than when it was first read")
        yield loaded.__getitem__


def _pickle_of(path: Path) -> bytes:
    """The pickle inside the zip archive `path`, once the archive is known to hold its records uncompressed."""
    size = path.stat().st_size

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{path}: expected a file written by torch.save (PyTorch 1.6 or later), got {reason}")

    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read(98)
        end = tail[-22:]
        if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
            refuse("a file without a zip archive's end: truncated, or of another kind")
        directory_bytes, directory_start = struct.unpack("<2L", end[12:20])
        directory_end = size - 22
        if tail[-42:-38] == b"PK\6\7":
            if len(tail) < 98 or tail[:4] != b"PK\6\6":
                refuse("a damaged zip archive")
            directory_bytes, directory_start = struct.unpack("<2Q", tail[40:56])
            directory_end = struct.unpack("<Q", tail[64:72])[0]
            if directory_end != size - 98:
                refuse("a damaged zip archive")
        # anything else would let two readers of the archive see different records
        if directory_start + directory_bytes != directory_end or directory_bytes > MAX_DIRECTORY_BYTES:
            refuse("a zip archive with a damaged or huge list of records")
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                objection = _objection(records, size)
                data = b"" if objection else archive.read(next(r for r in records if _is_pickle(r)))
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:  # zipfile raises half a dozen kinds on damaged archives
            refuse(f"a damaged zip archive ({brief(str(error))})")
    if objection:
        refuse(objection)
    return data


def _is_pickle(record: zipfile.ZipInfo) -> bool:
    return record.filename.endswith("/data.pkl")


def _objection(records: list[zipfile.ZipInfo], size: int) -> str | None:
    """What speaks against the records of an archive of `size` bytes being those of `torch.save`."""
    names = {record.filename for record in records}
    pickles = [record for record in records if _is_pickle(record)]
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records):
        return "compressed records"
    if len(names) != len(records) or sum(record.file_size for record in records) > size:
        return "a zip archive with records that overlap"
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
        return "a zip archive of another kind"
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        return f"a list of tensors of {pickles[0].file_size} bytes, more than {MAX_PICKLE_BYTES}"
    return None


def _operations(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    """The name and argument of every operation of a pickle; ValueError when it is damaged."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # of several kinds
        raise ValueError(f"{path}: expected a pickle of tensors, got a damaged one ({brief(str(error))})") from error


def _check_pickle(data: bytes, path: Path) -> None:
    """Raises ValueError unless every operation in the pickle is one that `torch.save` uses for a state dict.

    Kept out: every callable but the builders of tensors and empty ordered dicts, and every operation whose cost can
    outgrow its length (lists, copies of containers, tuples that are reused inside tuples).
    """

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{path}: expected a pickle of tensors only, got {reason}; nothing in the file was run")

    marks: list[int] = []
    tuples: set[int] = set()
    ordered_dicts: set[int] = set()
    builds = 0
    previous = previous_global = ""
    awaited: list[str] = []
    for index, (name, argument) in enumerate(_operations(data, path)):
        if name in _PUTS:
            if previous in _TUPLES:
                tuples.add(argument)
            elif previous == "GLOBAL" and previous_global == _ORDERED_DICT:
                ordered_dicts.add(argument)
            continue
        if awaited and name != awaited.pop(0):
            refuse("an ordered dict that is not built empty")
        if name == "GLOBAL":
            previous_global = argument
            if previous_global == _ORDERED_DICT:
                awaited = ["EMPTY_TUPLE", "REDUCE"]
            elif previous_global not in _REBUILDERS and not _is_storage(previous_global):
                refuse(f"{brief(previous_global.replace(' ', '.'))}")
        elif name in _GETS:
            if argument in tuples:
                refuse("a tuple that is used twice")
            if argument in ordered_dicts:
                awaited = ["EMPTY_TUPLE", "REDUCE"]
        elif name == "MARK":
            marks.append(index)
        elif name == "TUPLE":
            if not marks or index - marks.pop() > _LONGEST_TUPLE:
                refuse("a tuple that is too long")
        elif name == "SETITEMS" and marks:
            marks.pop()
        elif name == "BUILD":
            builds += 1  # the attributes of one state dict
            if builds > 1:
                refuse("several objects with attributes")
        elif name not in _PLAIN and name not in _TUPLES:
            refuse(f"the operation {name}")
        previous = name


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module in ("torch", "torch.storage") and kind.isalnum() and kind.endswith("Storage")
