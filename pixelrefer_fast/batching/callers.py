"""Who asks a queue, and the requests that they have handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from pixelrefer_fast.batching.asks import Answer
from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.preparing import MediaCache, MediaKey
from pixelrefer_fast.decoding import Event, PromptEmbeds

Stand = Literal["given", "busy", "ready"]


class Pending:
    """One request on its way.

    Attributes:
        stand: "given" until a worker prepares it, "busy" while it does, "ready" with `prepared`.
        media: what tells its image or video apart, once a worker has looked.
        ready_at: seconds of `time.monotonic` when it became so.
        told: events that its caller has; an answer that is begun again tells them again.
    """

    __slots__ = ("answered", "caller", "index", "media", "prepared", "prompt", "ready_at", "stand", "told", "value")

    def __init__(self, caller: Caller, index: int, value: object) -> None:
        self.caller = caller
        self.index = index
        self.value: object = value
        self.stand: Stand = "given"
        self.media: MediaKey | None = None
        self.ready_at = 0.0
        self.prepared: Prepared | None = None
        self.prompt: PromptEmbeds | None = None
        self.answered = False
        self.told = 0


class Caller:
    """The requests of one caller, in order; `finished` fills as they are answered, `events` before if it streams.

    Args:
        defaults: options of all its requests.
        requests: at one time; None: as the queue thinks best.
        notify: called, from any thread, when something was answered or told.
        streams: whether events of its answers are wanted.

    Attributes:
        waiting: requests that nobody has looked at.
        coming: those that are being prepared, or are and were not started.
        open: handed in and not answered, by index.
        cancelled: whether it takes no more answers.
        tracebacks: whether errors keep theirs.
        media: what it asks about, besides files.
        count: of all that was handed in.
    """

    def __init__(
        self,
        defaults: Mapping[str, object] | None = None,
        requests: int | None = None,
        notify: Callable[[], None] | None = None,
        *,
        streams: bool = False,
    ) -> None:
        self.defaults = defaults
        self.requests = requests
        self.notify = notify
        self.streams = streams
        self.waiting: deque[Pending] = deque()
        self.coming: deque[Pending] = deque()
        self.open: dict[int, Pending] = {}
        self.finished: deque[Answer] = deque()
        self.events: deque[Event] = deque()
        self.cancelled = False
        self.tracebacks = False
        self.media = MediaCache()
        self.count = 0

    @property
    def started(self) -> int:
        """Requests that are being encoded or decoded."""
        return len(self.open) - len(self.waiting) - len(self.coming)
