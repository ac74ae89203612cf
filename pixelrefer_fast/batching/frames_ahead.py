"""Frames of videos that are decoded by who prepares a request, and wait with it to be encoded."""

from __future__ import annotations

import threading
from collections import deque
from itertools import takewhile
from weakref import finalize

from pixelrefer_fast.batching.encoding import Prepared, SceneCache
from pixelrefer_fast.ops.view_patches import BLACK

AHEAD_BYTES = 1 << 29  # of frames that wait, of all requests together: 86 of 1080p


class FramesAhead:
    """Decodes frames ahead of their encoding, so that who drives the device need not. For many threads.

    What there is no room for is decoded as it is encoded: a long video is not held in memory as a whole.

    Args:
        limit: bytes of frames of all requests that wait.
    """

    def __init__(self, limit: int = AHEAD_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._nbytes = 0
        # of frames that nobody keeps any more: wherever that comes about, no lock may be taken there
        self._gone: deque[int] = deque()

    @property
    def nbytes(self) -> int:
        """Of all frames that wait."""
        with self._lock:
            while self._gone:
                self._nbytes -= self._gone.popleft()
            return self._nbytes

    def decode(self, prepared: Prepared, scenes: SceneCache | None = None) -> None:
        """Decode frames of a request, which stay for as long as it keeps them; those that others keep come from there.

        Args:
            prepared: the request.
            scenes: whole videos that are known, whose frames nobody needs but for marks.

        Raises:
            ValueError: a frame that cannot be decoded.
        """
        numbers = self.wanted(prepared, scenes)
        if not numbers:
            return
        assert prepared.request is not None
        source = prepared.request.source
        fitting = takewhile(lambda n: n in source.ahead or self._fits(source.sizes[n]), numbers)
        for number, frame in zip(fitting, source.read(numbers), strict=False):
            prepared.frames.append(frame)
            if source.ahead.get(number) is not frame:
                source.ahead[number] = frame
                with self._lock:
                    self._nbytes += frame.nbytes
                finalize(frame, self._gone.append, frame.nbytes).atexit = False

    @staticmethod
    def wanted(prepared: Prepared, scenes: SceneCache | None = None) -> list[int]:
        """Frames that a request will have read, in order; none of what lies in memory, or is encoded already."""
        request, plan = prepared.request, prepared.plan
        if request is None or plan is None:
            return []
        views = [v for m in plan.marks for v in (m.crop, m.global_view, m.local_view) if v is not None]
        if scenes is None or not scenes.knows(request):
            views += plan.scene
        numbers = {plan.views[v].image for v in views} - {BLACK}
        return sorted(n for n in numbers if request.source.held(n) is None)

    def _fits(self, size: tuple[int, int]) -> bool:
        return self.nbytes + 3 * size[0] * size[1] <= self._limit
