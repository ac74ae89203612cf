"""What tokens are made of, in few bytes: tells their content apart where reading them would wait for a device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import torch

from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import MarkPlan, View, ViewPlan


class MadeOf:
    """Of one request: the pixels of its views, the views, and what is marked in them.

    Args:
        request: its frames; those that do not lie in memory are known by `file` alone.
        plan: its own views.
        file: what tells its file, and whether that changed; None: it is no file.
    """

    def __init__(self, request: Request, plan: ViewPlan, file: object = None) -> None:
        self._plan = plan
        self._pixels = {n: _pixels(request.source, n, file) for n in {v.image for v in plan.views}}

    def objects(self, starts: torch.Tensor | None) -> bytes | None:
        """Of the object tokens of all marks; None: not known.

        Args:
            starts: with which their clustering begins, (M, n) in host memory; None: evenly spaced.
        """
        marks = self._plan.marks
        views = [self._plan.views[v] for mark in marks for v in _views_of(mark)]
        grids = [mark.mask_grid.flatten() for mark in marks if mark.on_device is None]
        cells = torch.cat(grids).numpy().tobytes() if grids else b""
        start = b"" if starts is None else starts.contiguous().numpy().tobytes()
        return self._of(views, [*map(_layout, marks), cells, start])

    def scene(self) -> bytes | None:
        """Of the vision tokens of the whole images or frames."""
        return self._of([self._plan.views[v] for v in self._plan.scene], [])

    def _of(self, views: Sequence[View], parts: Sequence[bytes]) -> bytes | None:
        digest = hashlib.sha256()
        for view in views:
            pixels = self._pixels[view.image]
            if pixels is None:
                return None
            digest.update(pixels + repr(astuple(replace(view, image=0))).encode())
        for part in parts:
            digest.update(part)
        return digest.digest()


def _views_of(mark: MarkPlan) -> list[int]:
    return [v for v in (mark.crop, mark.local_view, mark.global_view) if v is not None]


def _layout(mark: MarkPlan) -> bytes:
    """All of a mark that its tokens depend on besides pixels and mask, where its mask ends, and what tells a mask that
    lies on a device."""
    views = mark.local_view is not None, mark.global_view is not None
    digest = None if mark.on_device is None else mark.on_device.digest
    return repr((mark.box, mark.image_size, tuple(mark.mask_grid.shape), digest, views)).encode()


def _pixels(source: FrameSource, image: int, file: object) -> bytes | None:
    """Of an image or frame, looked at once for all requests of its source; of black nothing."""
    if image < 0:
        return b"black"
    if image not in source.digests:
        held = source.held(image)
        if held is not None:
            digest = hashlib.sha256(repr(held.shape).encode())
            digest.update(np.ascontiguousarray(held).data)
            source.digests[image] = digest.digest()
        else:
            source.digests[image] = None if file is None else hashlib.sha256(repr((file, image)).encode()).digest()
    return source.digests[image]
