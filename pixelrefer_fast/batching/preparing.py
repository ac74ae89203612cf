"""A request as it was handed in -> `Prepared`: media opened (once where several ask), regions bound, views planned."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from pixelrefer_fast.batching.asks import Ask
from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.made_of import MadeOf
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.prefixes import READABLE
from pixelrefer_fast.decoding.prompt import check_question, check_tags
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.media import Media, open_media
from pixelrefer_fast.network import Network
from pixelrefer_fast.planning.options import EncodeOptions, split_options
from pixelrefer_fast.planning.request import REGION_TAG, FrameSource, Request
from pixelrefer_fast.planning.views import ViewPlan

DESCRIBE_IMAGE = f"Please describe {REGION_TAG} in detail."
DESCRIBE_VIDEO = f"Please describe in detail the marked object {REGION_TAG} in the video."
KEPT_BYTES = 1 << 28  # of pixels of opened images
KEPT_MEDIA = 64
MediaKey = int | tuple[str | bytes, int, int, int, int]  # an id; or a path, and what tells that its file changed


@dataclass(frozen=True)
class Opened:
    """An image or a video, and its frames by number."""

    given: object  # kept, so that its id belongs to nobody else
    media: Media
    source: FrameSource


@dataclass(frozen=True)
class Bound:
    """A request whose media is open and whose regions are bound; what `describe` hands in for each region."""

    request: Request
    question: str
    encode: EncodeOptions
    generation: Generation


class MediaCache:
    """Images and videos that are asked about again; the least recently used are let go first. For many threads."""

    def __init__(self) -> None:
        self._opened: OrderedDict[MediaKey, Opened] = OrderedDict()
        self._lock = threading.Lock()  # not held while anything is opened

    def open(self, media: object) -> Opened:
        """What is behind `media`, opened once: files while they do not change, other things by identity.

        Raises:
            ValueError: as `media.open_media`.
        """
        key = media_key(media)
        with self._lock:
            found = self._opened.get(key)
            if found is not None:
                self._opened.move_to_end(key)
                return found
        opened = open_media(media)
        name = os.fspath(media) if isinstance(media, (str, os.PathLike)) else None
        found = Opened(media, opened, FrameSource.of(opened, None if name is None else str(name)))
        with self._lock:
            self._opened[key] = found
            while len(self._opened) > 1 and (len(self._opened) > KEPT_MEDIA or self._bytes() > KEPT_BYTES):
                self._opened.popitem(last=False)
        return found

    def clear(self) -> None:
        with self._lock:
            self._opened.clear()

    def _bytes(self) -> int:
        return sum(o.media.nbytes for o in self._opened.values() if isinstance(o.media, np.ndarray))


def is_file(media: object) -> bool:
    """Whether `media` is the path of a regular file, which any caller may share."""
    return isinstance(media_key(media), tuple)


def media_key(media: object) -> MediaKey:
    """Tells media apart: files by what tells that they changed, other things by identity."""
    if isinstance(media, (str, os.PathLike)):
        try:
            found = os.stat(media)
        except (OSError, ValueError):  # the reader says what is wrong with it
            return id(media)
        if stat.S_ISREG(found.st_mode):
            return os.fspath(media), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return id(media)


def prepare(network: Network, ask: Ask | Bound, files: MediaCache, others: MediaCache) -> Prepared:
    """Check and plan one request.

    Args:
        network: whose rules hold.
        ask: the request.
        files: where files are opened, for all callers.
        others: where anything else is, for this caller.

    Raises:
        ValueError: naming the input, what was expected and what came.
    """
    if isinstance(ask, Bound):
        plan = network.plan(ask.request)
        made = made_of(network, ask.request, plan)
        return Prepared(ask.question, ask.generation, request=ask.request, plan=plan, encode=ask.encode, made_of=made)
    encode, generation = split_options(ask.options, EncodeOptions, Generation)
    question = ask.question
    if question is not None:
        check_question(question)
    if isinstance(ask.media, Objects):
        if ask.regions is not None:
            raise ValueError("regions: expected None with encoded objects, which have theirs")
        if encode != EncodeOptions():
            raise ValueError(f"options: expected none of encoding with encoded objects, got {encode}")
        objects = network.own_objects(ask.media)
        if question is None:
            question = _description(len(objects), _of_video(objects))
        elif REGION_TAG not in question:
            question = name_objects(question, objects)
        check_tags(question, len(objects))
        return Prepared(question, generation, objects=objects)
    opened = (files if is_file(ask.media) else others).open(ask.media)
    request = network.bind(opened.media, opened.source, ask.regions, encode, ask.first_region)
    if question is None:
        question = _description(len(request.regions), request.source.video)
    check_tags(question, len(request.regions))
    plan = network.plan(request)
    made = made_of(network, request, plan, ask.media)
    return Prepared(question, generation, request=request, plan=plan, encode=encode, made_of=made)


def made_of(network: Network, request: Request, plan: ViewPlan, media: object = None) -> MadeOf | None:
    """What a request's tokens are made of, where the host does not read them; looks at all pixels that lie in memory.

    Args:
        network: whose device decides.
        request, plan: what is asked.
        media: what was given; None: it is not known.
    """
    if network.device.type in READABLE:
        return None
    key = media_key(media)
    return MadeOf(request, plan, key if isinstance(key, tuple) else None)


def _description(regions: int, video: bool) -> str:
    if regions != 1:
        raise ValueError(f"question: expected one where {regions} regions are marked, got None")
    return DESCRIBE_VIDEO if video else DESCRIBE_IMAGE


def _of_video(objects: Objects) -> bool:
    return objects.times is not None or any(o.times is not None for o in objects.objects)


def name_objects(question: str, objects: Objects) -> str:
    """A question without tags, the objects named before it."""
    return named_objects(question, len(objects), _of_video(objects))


def named_objects(question: str, count: int, video: bool) -> str:
    """A question without tags, so many objects of an image or video named before it."""
    where = "video" if video else "image"
    if count == 1:
        return f"There is one object in the {where}: {REGION_TAG}.\n{question}"
    names = ", ".join(f"<object{i}>{REGION_TAG}" for i in range(count))
    return f"There are {count} objects in the {where}: {names}.\n{question}"
