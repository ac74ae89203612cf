"""What a container says about its own length, against the bytes that are there; no pixels are decoded.

Layouts: PNG (ISO/IEC 15948), GIF89a, RIFF (AVI, WebP), Matroska (RFC 9559), FLV 10.1, ASF, IVF, MPEG program streams
(ISO/IEC 13818-1) and boxes of ISO/IEC 14496-12 (AVIF, JPEG 2000).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

_CHUNK = 1 << 20
_UNKNOWN_32 = (0, 0xFFFFFFFF)  # what streams write where a length belongs that they do not know
_FLV_FILESIZE = b"\x00\x08filesize\x00"
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MPEG_END = b"\x00\x00\x01\xb9"
_HEAD = 1 << 14  # where headers are looked for


class Incomplete(ValueError):
    """A file ends before its container says, or a part of it is not what was written."""


def check_image_file(source: str | os.PathLike[str] | bytes, form: str) -> None:
    """Raise `Incomplete` where a PNG, GIF, WebP, AVIF or JPEG 2000 file is damaged or ends too early.

    Args:
        source: a path or the bytes.
        form: Pillow's name of the format; nothing is known about others.
    """
    if form in _IMAGE_CHECKS:
        with _opened(source) as file:
            _IMAGE_CHECKS[form](file)


def count_gif_frames(source: str | os.PathLike[str] | bytes) -> int:
    """Frames of a GIF, from its blocks alone; raises `Incomplete` where it ends too early."""
    with _opened(source) as file:
        return _gif_frames(file)


def size_of(source: str | os.PathLike[str] | bytes) -> int:
    """Bytes of a file."""
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def declares_length(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether a video file says how long it is, and so is known to be complete.

    Raises:
        Incomplete: it says so, and is shorter.
    """
    with _opened(source) as file:
        head = file.read(_HEAD)
        for magic, check in _VIDEO_CHECKS:
            if head[magic[0] :].startswith(magic[1]):
                file.seek(0)
                return check(file)
    return False


def _opened(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _size(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end


def _need(declared: int, file: BinaryIO) -> bool:
    if declared > (size := _size(file)):
        raise Incomplete(f"it ends after {size} of {declared} bytes")
    return True


def _check_png(file: BinaryIO) -> None:
    """Every chunk's check sum, up to the end chunk."""
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise Incomplete("it ends before its last chunk")
        length, kind = struct.unpack(">I4s", head)
        found = zlib.crc32(kind)
        while length > 0:
            data = file.read(min(length, _CHUNK))
            if not data:
                raise Incomplete(f"it ends within a chunk {kind!r}")
            found = zlib.crc32(data, found)
            length -= len(data)
        if file.read(4) != struct.pack(">I", found):
            raise Incomplete(f"the check sum of a chunk {kind!r} is wrong")
        if kind == b"IEND":
            return


def _gif_frames(file: BinaryIO) -> int:
    """Frames of an opened GIF up to its trailer."""

    def read(count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise Incomplete(f"it ends after {frames} whole frames, without a trailer")
        return data

    def skip_blocks() -> None:
        while length := read(1)[0]:
            read(length)

    frames = 0
    flags = read(13)[10]
    if flags & 0x80:
        read(3 << ((flags & 7) + 1))
    while True:
        kind = read(1)
        if kind == b";":
            return frames
        if kind == b"!":
            read(1)
            skip_blocks()
        elif kind == b",":
            flags = read(9)[8]
            if flags & 0x80:
                read(3 << ((flags & 7) + 1))
            read(1)
            skip_blocks()
            frames += 1
        elif kind != b"\0":  # padding that some writers leave
            raise Incomplete(f"a block of unknown kind follows frame {frames - 1}")


def _check_boxes(file: BinaryIO) -> bool:
    """The boxes at the top; what follows the last one that is well-formed is nobody's."""
    size, start = _size(file), 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length == 0:  # to the end of the file
            return False
        if length < 8:
            break
        start += length
        _need(start, file)
    return True


def _check_riff(file: BinaryIO) -> bool:
    """The outermost chunks of AVI, of which large files have several."""
    size, start, known = _size(file), 0, False
    while start + 8 <= size:
        file.seek(start)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF":
            break
        if length in _UNKNOWN_32:
            return False
        start += 8 + length + length % 2
        _need(start - length % 2, file)
        known = True
    return known


def _check_matroska(file: BinaryIO) -> bool:
    """The length of the segment, the second of two elements at the top."""
    for wanted in (0x1A45DFA3, 0x18538067):
        kind, _ = _element_number(file, keep_marker=True)
        length, width = _element_number(file, keep_marker=False)
        if kind != wanted:
            return False
        if length == (1 << 7 * width) - 1:  # unknown: a stream
            return False
        if wanted == 0x18538067:
            return _need(file.tell() + length, file)
        file.seek(length, os.SEEK_CUR)
    return False


def _element_number(file: BinaryIO, *, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length and its bytes; (0, 1) where there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, 1
    width = 9 - first[0].bit_length()
    value = first[0] if keep_marker else first[0] & ((1 << (8 - width)) - 1)
    return int.from_bytes(bytes([value]) + file.read(width - 1), "big"), width


def _check_flv(file: BinaryIO) -> bool:
    head = file.read(_HEAD)
    at = head.find(_FLV_FILESIZE) + len(_FLV_FILESIZE)
    if at < len(_FLV_FILESIZE) or at + 8 > len(head):
        return False
    declared = struct.unpack(">d", head[at : at + 8])[0]
    return 0 < declared < 1 << 53 and _need(int(declared), file)


def _check_asf(file: BinaryIO) -> bool:
    head = file.read(_HEAD)
    at = head.find(_ASF_FILE_PROPERTIES) + 16 + 8 + 16  # its name, its length, the file's own name
    if at < 40 or at + 8 > len(head):
        return False
    declared = struct.unpack("<Q", head[at : at + 8])[0]
    return declared > 0 and _need(declared, file)


def _check_ivf(file: BinaryIO) -> bool:
    head = file.read(32)
    if len(head) < 32:
        raise Incomplete("it ends within its header")
    declared, found, start, size = struct.unpack("<I", head[24:28])[0], 0, 32, _size(file)
    while start + 12 <= size:
        file.seek(start)
        start += 12 + struct.unpack("<I", file.read(4))[0]
        _need(start, file)
        found += 1
    if declared and found < declared:
        raise Incomplete(f"it ends after {found} of {declared} frames")
    return bool(declared)


def _check_program_stream(file: BinaryIO) -> bool:
    """An end code is all that a program stream has to say."""
    file.seek(max(0, _size(file) - _HEAD))
    return file.read().rstrip(b"\0\xff").endswith(_MPEG_END)


def _check_ogg(file: BinaryIO) -> bool:
    """Whether the last page ends its stream."""
    file.seek(max(0, _size(file) - (1 << 16) - (1 << 9)))  # more than a page
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return False
    lengths = tail[at + 27 : at + 27 + tail[at + 26]]
    whole = at + 27 + tail[at + 26] + sum(lengths) <= len(tail)
    return whole and bool(tail[at + 5] & 4)


_IMAGE_CHECKS: dict[str, Callable[[BinaryIO], object]] = {
    "PNG": _check_png,
    "GIF": _gif_frames,
    "WEBP": _check_riff,
    "AVIF": _check_boxes,
    "JPEG2000": _check_boxes,
}
_VIDEO_CHECKS: tuple[tuple[tuple[int, bytes], Callable[[BinaryIO], bool]], ...] = (
    ((0, b"RIFF"), _check_riff),
    ((0, b"\x1aE\xdf\xa3"), _check_matroska),
    ((0, b"FLV"), _check_flv),
    ((0, b"0&\xb2u"), _check_asf),
    ((0, b"DKIF"), _check_ivf),
    ((0, b"OggS"), _check_ogg),
    ((0, b"\x00\x00\x01\xba"), _check_program_stream),
    ((4, b"ftyp"), _check_boxes),
    ((4, b"moov"), _check_boxes),
    ((4, b"mdat"), _check_boxes),
    ((4, b"wide"), _check_boxes),
)
