"""CUDA graphs: computations of fixed shape, captured before anybody waits for them, replayed with one launch.

What is captured reads and writes tensors that stay where they are. Whoever captures pads its lengths to those of a
graph with what changes nothing: patches of no view, tokens of no prompt, slots of no sequence. Captures of steps
(`decoding/step_graphs.py`), of prefills (`decoding/prefill_graphs.py`) and of passes from patches to object tokens
(`encoding/captured_passes.py`) are kept in a `GraphStore` each, and share one memory pool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from pixelrefer_fast.device import trust

if TYPE_CHECKING:
    from torch.cuda.graphs import _POOL_HANDLE

GRAPH_BYTES = 2**30  # of device memory that the captures of a store may keep, unless somebody says otherwise

Run = Callable[[], torch.Tensor]
State = Mapping[str, torch.Tensor]
Key = TypeVar("Key", bound=Hashable)


class Captured(Protocol):
    """A computation that can be run again on what the tensors that it reads hold by then.

    Attributes:
        output: what the last replay computed; the next one writes over it.
        held: bytes of device memory that it keeps as long as it lives.
    """

    output: torch.Tensor
    held: int

    def replay(self) -> None: ...


class Capturer(Protocol):
    """Makes `Captured` computations on a device; tests put one in that needs no GPU."""

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""

    def capture(self, run: Run, device: torch.device) -> Captured:
        """`run()`, which is run at least once before."""


class GraphStore(Generic[Key]):
    """Graphs by key, within a memory limit.

    All are captured before the first of them is wanted, the largest first: the others use its memory again. How much
    one takes is known once it is captured; one for which there is no room, one that cannot be captured and one whose
    first replay is not what the eager run gave (`trust`) is not kept and not tried again: `refused` says why, and what
    it would have done runs as it is.

    For one stream at a time, on which replays follow each other.

    Args:
        limit_bytes: of device memory that all graphs together may keep.
        capturer: makes the graphs; that of torch.cuda unless given.

    Attributes:
        refused: keys without a graph, and why they have none.
    """

    def __init__(self, limit_bytes: int, capturer: Capturer | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.refused: dict[Key, str] = {}
        self._capturer = cuda_capturer() if capturer is None else capturer
        self._graphs: dict[Key, Captured] = {}
        self._counts = {"captures": 0, "replays": 0, "not_kept": 0}

    def __contains__(self, key: Key) -> bool:
        return key in self._graphs

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""
        return self._capturer.unusable(device)

    def held_bytes(self) -> int:
        """Bytes of device memory that the graphs keep."""
        return sum(graph.held for graph in self._graphs.values())

    def counts(self) -> dict[str, int]:
        """Graphs kept now and their bytes; captures, replays, and replays that were asked for without a graph."""
        return {"graphs": len(self._graphs), "held_bytes": self.held_bytes(), **self._counts}

    def clear(self) -> None:
        """Give up all graphs; needed when what they read (weights, cache) moves."""
        self._graphs.clear()
        self.refused.clear()

    def capture(self, key: Key, run: Run, state: State, device: torch.device) -> None:
        """Capture a computation unless it was, and keep the graph if its first replay is what the eager run is.

        Args:
            key: of the computation.
            run: changes `state`, and nothing else that running it again with the same state would change. It waits for
                no device, brings nothing to it, and takes no gradient.
            state: is compared as the result is, and put back afterwards.
            device: where all this is.

        Raises:
            torch.OutOfMemoryError: there is no memory for the computation or its capture.
        """
        if key in self._graphs or key in self.refused:
            return
        try:
            graph = self._confirmed(run, state, device)
        except torch.OutOfMemoryError:  # whoever captures knows what to do without
            raise
        except RuntimeError as error:
            # without a capture the same call either works or raises what is wrong with it
            untrusted = isinstance(error, trust.UntrustedCapture)
            self.refused[key] = str(error) if untrusted else f"the capture failed: {error}"
            trust.dropped(self.refused[key])
            return
        self._counts["captures"] += 1
        room = self.limit_bytes - self.held_bytes()
        if graph.held > room:
            self.refused[key] = f"it takes {graph.held} bytes, where {room} are left of {self.limit_bytes}"
        else:
            self._graphs[key] = graph

    def replay(self, key: Key) -> torch.Tensor | None:
        """The result, over which the next replay of this graph writes; None where there is none."""
        graph = self._graphs.get(key)
        if graph is None:
            self._counts["not_kept"] += 1
            return None
        graph.replay()
        self._counts["replays"] += 1
        return graph.output

    def _confirmed(self, run: Run, state: State, device: torch.device) -> Captured:
        before = _copied(state)

        def put_back() -> None:
            for name, x in state.items():
                x.copy_(before[name])

        try:
            result = run().clone()
            eager = _copied(state) | {"result": result}
            put_back()
            captured = self._capturer.capture(run, device)
            put_back()
            captured.replay()
            trust.confirm(eager, _copied(state) | {"result": captured.output})
        finally:
            put_back()
        return captured


def _copied(state: State) -> dict[str, torch.Tensor]:
    """Copies whose numbers lie side by side; columns of a state need not."""
    return {name: x.clone(memory_format=torch.contiguous_format) for name, x in state.items()}


class CudaCapturer:
    """CUDA graphs by torch.cuda, all of a device in one memory pool, whose memory each uses again: their replays may
    not overlap.

    All captures of a device share a stream with the runs before them: the vendor library keeps a workspace (32 MiB) for
    each stream, which is then there before the first capture and in no graph's pool.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        # an empty graph for each device: its pool lives as long as this does, whatever becomes of other graphs
        self._anchors: dict[torch.device, torch.cuda.CUDAGraph] = {}

    def unusable(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else "CUDA graphs exist on cuda only"

    def capture(self, run: Run, device: torch.device) -> Captured:
        with torch.cuda.device(device):
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            stream.wait_stream(torch.cuda.current_stream(device))
            try:
                with torch.cuda.stream(stream):
                    run()  # the first run compiles kernels and makes library handles, which a capture must not
            finally:  # also what a run that failed has begun comes before what the caller does next
                torch.cuda.current_stream(device).wait_stream(stream)
            if device not in self._anchors:
                self._anchors[device] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._anchors[device], stream=stream, capture_error_mode="thread_local"):
                    torch.zeros(1, device=device)
            pool = self._anchors[device].pool()
            before = _pool_bytes(pool)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using the device meanwhile
            with torch.cuda.graph(graph, pool, stream=stream, capture_error_mode="thread_local"):
                output = run()
        return _CudaGraph(graph, output, _pool_bytes(pool) - before)


@functools.cache
def cuda_capturer() -> CudaCapturer:
    """The one of this process, in whose pool all captures are."""
    return CudaCapturer()


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: torch.Tensor, held: int) -> None:
        self._graph = graph
        self.output = output
        self.held = held

    def replay(self) -> None:
        self._graph.replay()


def _pool_bytes(pool: _POOL_HANDLE) -> int:
    segments = torch.cuda.memory_snapshot()
    return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(pool))
