"""Encoded objects: reusable for many questions, saved and loaded as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast._version import __version__
from pixelrefer_fast.checks.new_files import new_file
from pixelrefer_fast.checks.safe_files import name_of
from pixelrefer_fast.checks.values import reason_of, shown
from pixelrefer_fast.planning.request import ObjectTokens

FORMAT = "pixelrefer_fast.objects/2"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of tokens


@dataclass(frozen=True)
class SceneTokens:
    """PixelRefer only: the vision tokens of whole images or frames that the LLM sees."""

    tokens: torch.Tensor  # (Z', C) vision tokens that were kept
    kept: torch.Tensor  # (Z,) bool: which of the placeholders they are
    counts: tuple[int, ...]  # placeholders of each image or frame; their sum is Z


@dataclass(frozen=True, eq=False)
class Objects:
    """The object tokens of one image or video: the result of `encode`, used by `ask`, saved and loaded.

    Attributes:
        kind: "lite" or "full".
        tokens: (T, C) object tokens, one object after the other.
        objects: how each object is written into a prompt.
        times: seconds of each frame of the scene; PixelRefer on videos only, else None.
        scene: vision tokens of whole images or frames; PixelRefer only, else None.
        provenance: the model's fingerprint, the library's version, media and regions. `ask` checks the fingerprint.
    """

    kind: str
    tokens: torch.Tensor
    objects: tuple[ObjectTokens, ...]
    times: tuple[float, ...] | None
    scene: SceneTokens | None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.objects)

    def __repr__(self) -> str:
        given = f", with {len(self.scene.tokens)} vision tokens" if self.scene is not None else ""
        dtype = str(self.tokens.dtype).removeprefix("torch.")
        return f"<Objects ({self.kind}): {len(self)} in {len(self.tokens)} tokens{given}, {dtype}>"

    def _repr_html_(self) -> str:
        """A row for each object, for notebooks."""
        rows = "".join(f"<tr><td>{i}</td><td>{sum(o.counts)}</td></tr>" for i, o in enumerate(self.objects))
        return f"<table><caption>{escape(repr(self))}</caption><tr><th>object</th><th>tokens</th></tr>{rows}</table>"

    def save(self, path: str | Path) -> None:
        """Write the objects to one safetensors file.

        It is written under a temporary name and then renamed: an interrupted save leaves no incomplete file. Only a
        regular file is ever replaced, never a device or pipe.

        Raises:
            ValueError: the file cannot be written.
        """
        from pixelrefer_fast.checkpoint.safetensors_file import write_safetensors

        tensors = {"object_tokens": self.tokens.cpu().contiguous()}
        if self.scene is not None:
            tensors["vision_tokens"] = self.scene.tokens.cpu().contiguous()
            tensors["vision_kept"] = self.scene.kept.cpu().contiguous()
        header = {
            "kind": self.kind,
            "objects": [{"counts": o.counts, "times": o.times} for o in self.objects],
            "times": self.times,
            "scene_counts": None if self.scene is None else self.scene.counts,
            "provenance": self.provenance,
        }
        text = json.dumps(header, default=_plain)
        metadata = {"format": FORMAT, "version": __version__, "objects": text, "checksum": checksum(text, tensors)}
        try:
            with new_file(path) as part:
                write_safetensors(part, tensors, metadata)
        except OSError as error:
            raise ValueError(f"{name_of(str(path))}: cannot be written: {reason_of(error)}") from error

    @classmethod
    def load(cls, path: str | Path) -> Objects:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is missing, damaged, or of another kind.
        """
        from pixelrefer_fast.checkpoint.safetensors_file import SafetensorsFile

        path = _path(path)
        if not os.path.isfile(path):  # false too for a name that cannot be
            raise ValueError(f"{name_of(str(path))}: expected a file of encoded objects, found none")
        try:
            file = SafetensorsFile(path)
            if file.metadata.get("format") != FORMAT:
                raise ValueError(f"expected the format {FORMAT!r}, got {shown(file.metadata.get('format'))}")
            with file.open() as read:
                tensors = {key: read(key) for key in file.tensors}
            text = file.metadata["objects"]
            if file.metadata.get("checksum") != checksum(text, tensors):
                raise ValueError("its checksum is that of other contents")
            return cls._from_parts(tensors, json.loads(text))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: not a file of encoded objects ({error})") from None

    @classmethod
    def _from_parts(cls, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> Objects:
        kind = header["kind"]
        if kind not in ("lite", "full"):
            raise ValueError(f"expected kind 'lite' or 'full', got {shown(kind)}")
        objects = tuple(
            ObjectTokens(_counts(f"object {i}", o["counts"]), None if o["times"] is None else _seconds(o["times"]))
            for i, o in enumerate(header["objects"])
        )
        for i, o in enumerate(objects):
            if o.times is not None and len(o.times) != len(o.counts):
                raise ValueError(f"object {i}: expected a time for each token count, got {shown(o)}")
        if not objects:
            raise ValueError("expected at least one object, got none")
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dtype not in DTYPES:
                raise ValueError(f"{key}: expected one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{key}: expected finite values, got others")
        tokens = tensors["object_tokens"]
        total = sum(sum(o.counts) for o in objects)
        if tokens.ndim != 2 or len(tokens) != total or not tokens.is_floating_point():
            raise ValueError(f"expected {total} object tokens, got {tuple(tokens.shape)} of {tokens.dtype}")
        times = None if header["times"] is None else _seconds(header["times"])
        scene = None
        if kind == "full":
            counts = _counts("scene", header["scene_counts"])
            scene = SceneTokens(tensors["vision_tokens"], tensors["vision_kept"], counts)
            if scene.kept.shape != (sum(counts),) or scene.kept.dtype != torch.bool:
                raise ValueError(f"expected a kept flag for {sum(counts)} vision tokens, got {tuple(scene.kept.shape)}")
            if not scene.tokens.is_floating_point():
                raise ValueError(f"expected vision tokens of a float dtype, got {scene.tokens.dtype}")
            if scene.tokens.shape != (int(scene.kept.sum()), tokens.shape[1]):
                raise ValueError(
                    f"expected vision tokens of shape {(int(scene.kept.sum()), tokens.shape[1])}, "
                    f"got {tuple(scene.tokens.shape)}"
                )
            if times is not None and len(times) != len(counts):
                raise ValueError(f"expected a time for each of {len(counts)} frames, got {len(times)}")
        return cls(kind, tokens, objects, times, scene, dict(header["provenance"]))


def _plain(value: object) -> dict[str, Any]:
    """Of a mapping what JSON knows: a region's may be made only when it is written (`Region.written`)."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of the header's text and every bit of the tensors; 64 hexadecimal digits."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _counts(name: str, values: list[Any]) -> tuple[int, ...]:
    if any(type(v) is not int or v < 0 for v in values):
        raise ValueError(f"{name}: expected token counts of at least 0, got {shown(values)}")
    return tuple(values)


def _seconds(values: list[Any]) -> tuple[float, ...]:
    seconds = tuple(map(float, values))
    if not all(map(math.isfinite, seconds)):
        raise ValueError(f"expected finite times, got {shown(values)}")
    return seconds


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path: expected a path, got {type(path).__name__}")
    return Path(path)
