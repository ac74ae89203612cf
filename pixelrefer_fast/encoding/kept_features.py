"""Features of views that are kept from call to call, so that asking again about an image encodes nothing anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.selection import Selection
from pixelrefer_fast.planning.views import View, ViewPlan

SAMPLES = 256  # bytes of an image by which the kept ones that may equal it are found

Glance = tuple[tuple[int, ...], bytes]  # shape and samples
ViewKey = tuple[View, bytes]  # the view, as one of image 0, and which of its patches are read


@dataclass
class _Image:
    pixels: np.ndarray
    nbytes: int
    features: dict[ViewKey, torch.Tensor] = field(default_factory=dict)


class KeptFeatures:
    """Features by the pixels that they were made of: an image is known again by its content, not by its name.

    Images are compared pixel by pixel, with copies that lie here: the caller may change what he gave. Frames of video
    files are not kept, since knowing them again would need them decoded. Not safe between threads: whoever encodes has
    the network for itself.

    Args:
        limit: bytes of pixels and features together; the image that was asked about least recently goes first, and one
            that does not fit alone is not kept.

    Attributes:
        nbytes: of what is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._images: OrderedDict[int, _Image] = OrderedDict()
        self._by_glance: dict[Glance, list[int]] = {}
        self._count = 0  # images that were ever kept
        self._maker: Hashable = None
        self.nbytes = 0

    def clear(self) -> None:
        self._images.clear()
        self._by_glance.clear()
        self.nbytes = 0

    def find(
        self, plan: ViewPlan, source: FrameSource, selection: Selection, maker: Hashable
    ) -> dict[int, torch.Tensor]:
        """What is known of a plan's views: by their numbers the features (F, D) that `selection` reads of each.

        Args:
            plan: the views.
            source: their pixels.
            selection: what is read of them.
            maker: tells the encoder that makes features from any other, and its weights from any changed ones. With
                another one than before nothing is known.
        """
        if maker != self._maker:
            self.clear()
            self._maker = maker
        images = self._known_images(plan, source)
        found = {}
        for number, (view, key) in enumerate(zip(plan.views, _keys(plan, selection), strict=True)):
            image = images.get(view.image)
            # of a video's whole frames the patches are wanted as well: they tell which tokens are dropped
            if image is not None and view.merge == 1:
                features = image.features.get(key)
                if features is not None:
                    found[number] = features
        return found

    def keep(
        self,
        plan: ViewPlan,
        source: FrameSource,
        selection: Selection,
        features: torch.Tensor,
        known: Mapping[int, torch.Tensor],
    ) -> None:
        """Keep what is new.

        Args:
            plan, source, selection: as `find` had them.
            features: (F, D) that `selection` reads of all views, in the plan's order.
            known: what `find` gave.
        """
        fresh = [n for n, view in enumerate(plan.views) if n not in known and _held(source, view.image) is not None]
        if not fresh:
            return
        images = self._known_images(plan, source)
        keys, rows = _keys(plan, selection), selection.first_rows
        for number in fresh:
            place = plan.views[number].image
            if place not in images:
                pixels = _held(source, place)
                assert pixels is not None
                images[place] = self._add(pixels)
            if keys[number] in images[place].features:
                continue  # by a pass that went between the parts of this one
            # a copy: what it is cut from lives on otherwise, or is written again by a captured pass
            own = features[rows[number] : rows[number + 1]].clone()
            images[place].features[keys[number]] = own
            images[place].nbytes += own.numel() * own.element_size()
            self.nbytes += own.numel() * own.element_size()
        while self.nbytes > self.limit:
            number, image = self._images.popitem(last=False)
            self.nbytes -= image.nbytes
            glance = _glance(image.pixels)
            self._by_glance[glance].remove(number)
            if not self._by_glance[glance]:
                del self._by_glance[glance]

    def _known_images(self, plan: ViewPlan, source: FrameSource) -> dict[int, _Image]:
        """The kept images among those of a plan, by their numbers in it; they are the most recently used then."""
        known = {}
        for place in dict.fromkeys(view.image for view in plan.views):
            pixels = _held(source, place)
            if pixels is None:
                continue
            for number in self._by_glance.get(_glance(pixels), ()):
                if np.array_equal(self._images[number].pixels, pixels):
                    self._images.move_to_end(number)
                    known[place] = self._images[number]
        return known

    def _add(self, pixels: np.ndarray) -> _Image:
        self._count += 1
        image = self._images[self._count] = _Image(pixels.copy(), pixels.nbytes)
        self.nbytes += pixels.nbytes
        self._by_glance.setdefault(_glance(pixels), []).append(self._count)
        return image


def completed(selection: Selection, features: torch.Tensor, known: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The features (F, D) that `selection` reads of all views, in the plan's order.

    Args:
        selection: of the plan.
        features: of the views that are not known, in order.
        known: what `KeptFeatures.find` gave.
    """
    if not known:
        return features
    sizes = [stop - start for start, stop in pairwise(selection.first_rows)]
    made = iter(features.split([size for n, size in enumerate(sizes) if n not in known]))
    return torch.cat([known[n] if n in known else next(made) for n in range(len(sizes))])


def _held(source: FrameSource, image: int) -> np.ndarray | None:
    return source.held(image) if image >= 0 else None  # black is no image


def _glance(pixels: np.ndarray) -> Glance:
    step = max(1, pixels.size // SAMPLES)
    return pixels.shape, pixels.flat[::step].tobytes()


def _keys(plan: ViewPlan, selection: Selection) -> list[ViewKey]:
    reads, first = selection.reads.numpy(), plan.first_rows
    return [
        (replace(view, image=0), reads[start:stop].tobytes())
        for view, (start, stop) in zip(plan.views, pairwise(first), strict=True)
    ]
