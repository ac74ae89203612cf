"""What all endpoints of a server share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from pixelrefer_fast.batching.engines import EngineModel
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.segmenting import Segmenter
from pixelrefer_fast.serving.admission import Gate, Room
from pixelrefer_fast.serving.encoded import EncodedObjects
from pixelrefer_fast.serving.errors import ApiError
from pixelrefer_fast.serving.limits import Limits
from pixelrefer_fast.serving.media import MediaReader
from pixelrefer_fast.serving.metrics import Metrics

Made = TypeVar("Made")
Model = PixelRefer | PixelReferLite | EngineModel


@dataclass(frozen=True)
class State:
    """Of one server.

    Attributes:
        models: by the names that requests give.
        segmenter: makes masks.
        workers: threads in which media are read and masks made, so that the event loop goes on.
        created: when it began, in seconds since 1970.
    """

    models: Mapping[str, Model]
    segmenter: Segmenter
    limits: Limits
    gate: Gate
    reader: MediaReader
    encoded: EncodedObjects
    metrics: Metrics
    workers: ThreadPoolExecutor
    created: int

    def model(self, name: str) -> Model:
        """By its name; ApiError 404 if there is none."""
        found = self.models.get(name)
        if found is None:
            raise ApiError(404, f"model: expected one of {', '.join(self.models)}", "model")
        return found

    async def work(self, room: Room, do: Callable[[], Made]) -> Made:
        """What `do` returns, which runs in a thread. Where it is not waited for any more, it is dropped."""
        thread = self.workers.submit(do)
        room.with_thread(thread)
        return await asyncio.wrap_future(thread)

    async def answered(self, request: Request, answer: Awaitable[Made]) -> Made:
        """What `answer` gives, unless the client goes or the time is over: both cancel it.

        Raises:
            ApiError: 400, a ValueError of it; 499 and 504.
        """
        begin = time.monotonic()
        task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=self.limits.seconds, return_when="FIRST_COMPLETED")
            if task.done():
                return task.result()
            if gone.done():
                raise ApiError(499, "client: expected to stay until the answer")
            raise self.late()
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.wait({task, gone})
            self.gate.took(time.monotonic() - begin)

    def late(self) -> ApiError:
        """What a request gets whose time is over."""
        return ApiError(504, f"request: expected an answer within {self.limits.seconds:g} s")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def state_of(request: Request) -> State:
    """Of the server that has the request."""
    state: State = request.app.state.shared
    return state
