"""Threads that open media, prepare requests and decode frames while the device works."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from pixelrefer_fast.batching.asks import Ask, as_ask
from pixelrefer_fast.batching.callers import Caller, Pending
from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.preparing import Bound, MediaCache, MediaKey, media_key, prepare
from pixelrefer_fast.network import Network

WORKERS = min(8, os.cpu_count() or 1)  # 8 open 500 JPEG files of 1080p a second


class Workers:
    """Prepare what callers have handed in, those with the fewest requests prepared first; they end with the work.

    Two of them never work on the same image or video: it is opened once, and readers of media need no locks.

    Args:
        network: whose rules hold.
        changed: held while anything is looked at that others change, told of whatever is ready.
        callers: those with open requests.
        files: where files are opened, for all callers.
        decode: decodes the frames of a request.
        failed: told of a request that cannot be prepared.
    """

    def __init__(
        self,
        network: Network,
        changed: threading.Condition,
        callers: deque[Caller],
        files: MediaCache,
        decode: Callable[[Prepared], None],
        failed: Callable[[Pending, BaseException], None],
    ) -> None:
        self._network, self._changed, self._callers, self._files = network, changed, callers, files
        self._decode, self._failed = decode, failed
        self._running = self._busy = 0
        self._most = 0
        self._media: set[MediaKey] = set()  # that somebody works on

    @property
    def at_work(self) -> bool:
        """Whether anything may become ready."""
        return self._running > 0

    def wake(self, most: int) -> None:
        """Have requests prepared, until so many are that were not started; with `changed` held."""
        self._most = most
        left = len(self._takable()) + min(self._room(), sum(len(caller.waiting) for caller in self._callers))
        while self._running < WORKERS and self._running - self._busy < left:
            self._running += 1
            # a process that ends waits for no file
            threading.Thread(target=self._run, name="pixelrefer_fast media", daemon=True).start()

    def _takable(self) -> list[Pending]:
        """Requests that have come and that nobody prepares, about media that nobody works on."""
        coming = (pending for caller in self._callers for pending in caller.coming)
        return [p for p in coming if p.stand == "given" and (p.media is None or p.media not in self._media)]

    def _room(self) -> int:
        return max(self._most - sum(len(caller.coming) for caller in self._callers), 0)

    def _run(self) -> None:
        while True:
            with self._changed:
                pending = self._take()
                if pending is None:
                    self._running -= 1
                    return
                pending.stand = "busy"
                self._busy += 1
            self._prepare(pending)

    def _take(self) -> Pending | None:
        for pending in self._takable():
            return pending
        waiting = [caller for caller in self._callers if caller.waiting]
        if not waiting or not self._room():
            return None
        caller = min(waiting, key=lambda c: len(c.coming))
        pending = caller.waiting.popleft()
        caller.coming.append(pending)
        return pending

    def _prepare(self, pending: Pending) -> None:
        caller, value = pending.caller, pending.value
        mine, error = False, None
        try:
            if not isinstance(value, (Bound, Prepared)):
                value = as_ask(value, caller.defaults)
            pending.media = _media_of(value)
            if pending.media is not None:
                with self._changed:
                    mine = pending.media not in self._media
                    if not mine:
                        return
                    self._media.add(pending.media)
            if not isinstance(value, Prepared):
                value = prepare(self._network, value, self._files, caller.media)
            self._decode(value)
            pending.prepared = value
        except BaseException as raised:  # whoever asks is told, whatever it is
            error = raised
        finally:
            with self._changed:
                self._busy -= 1
                if mine:
                    assert pending.media is not None
                    self._media.discard(pending.media)
                if error is not None:
                    self._failed(pending, error)
                elif pending.prepared is not None:
                    pending.stand, pending.ready_at = "ready", time.monotonic()
                else:
                    pending.stand = "given"  # another worker has its image or video
                self._changed.notify_all()


def _media_of(value: Ask | Bound | Prepared) -> MediaKey | None:
    """What no other worker may read meanwhile; None for an image that is open."""
    if isinstance(value, Ask):
        return media_key(value.media)
    request = value.request
    return id(request.source) if request is not None and request.source.video else None
