"""CUDA graphs of computations of fixed shape: captured once a bucket, replayed with one launch, within a memory limit.

Lengths vary from call to call and a graph's do not: `bucket` rounds a length up to one of few, the caller pads its
tensors to that length with what changes nothing (patches that belong to no view, slots of -1), and `GraphCache` keeps
a graph for each bucket. `GraphStore` is what it shares with the decoder's steps (`decoding/step_graphs.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from pixelrefer_fast.device import trust

if TYPE_CHECKING:
    from torch.cuda.graphs import _POOL_HANDLE

SMALLEST_BUCKET = 64
STEPS = 4  # buckets from one power of two to the next

Inputs = Mapping[str, torch.Tensor]
Function = Callable[..., torch.Tensor]


def bucket(length: int) -> int:
    """The length to pad to: a power of two or one of the three steps up to the next, at least SMALLEST_BUCKET.

    Above SMALLEST_BUCKET less than a quarter of `length` is added, 9 % on average, and 33 buckets reach from 1 to
    16,384.
    """
    if length <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    step = 2 ** ((length - 1).bit_length() - 1) // STEPS
    return -(-length // step) * step


class Captured(Protocol):
    """A computation that can be run again on what its inputs hold by then.

    Attributes:
        output: what the last replay computed; the next one writes over it.
        held: bytes of device memory that it keeps as long as it lives, its inputs not counted.
    """

    output: torch.Tensor
    held: int

    def replay(self) -> None: ...


class Capturer(Protocol):
    """Makes `Captured` computations on a device; tests put one in that needs no GPU."""

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""

    def capture(self, function: Function, inputs: Inputs) -> Captured:
        """`function(**inputs)`, which is run at least once before."""


Graph = TypeVar("Graph", bound=Captured)


class GraphStore(Generic[Graph]):
    """Graphs by key within a memory limit, the least recently used given up first.

    How much a graph takes is known once it is captured. One that exceeds the limit alone is not kept, and one that
    cannot be captured is not tried again: `refused` says why, and calls run as they are.

    Args:
        limit_bytes: of device memory that all graphs together may keep between calls.
        capturer: makes the graphs; that of torch.cuda unless given.

    Attributes:
        refused: keys without a graph, and why they have none.
    """

    def __init__(self, limit_bytes: int, capturer: Capturer | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.refused: dict[Hashable, str] = {}
        self._capturer = CudaCapturer() if capturer is None else capturer
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._counts = {"captures": 0, "replays": 0, "evictions": 0, "not_kept": 0}

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""
        return self._capturer.unusable(device)

    def held_bytes(self) -> int:
        """Bytes of device memory that the graphs keep."""
        return sum(graph.held for graph in self._graphs.values())

    def counts(self) -> dict[str, int]:
        """Graphs kept now and their bytes; captures, replays, evictions, and later calls of keys that were refused."""
        return {"graphs": len(self._graphs), "held_bytes": self.held_bytes(), **self._counts}

    def clear(self) -> None:
        """Give up all graphs; needed when what they read besides their inputs (weights, cache) moves."""
        self._graphs.clear()
        self.refused.clear()

    def _graph(self, key: Hashable, capture: Callable[[], Graph]) -> Graph | None:
        """The graph of a key, made by `capture` unless it is there; None for a key that is refused.

        Raises:
            torch.OutOfMemoryError: there is no memory to capture it now; the next call tries again.
        """
        if key in self.refused:
            self._counts["not_kept"] += 1
            return None
        if key not in self._graphs and not self._keep(key, capture):
            return None
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _replay(self, graph: Graph) -> torch.Tensor:
        graph.replay()
        self._counts["replays"] += 1
        return graph.output

    def _keep(self, key: Hashable, capture: Callable[[], Graph]) -> bool:
        """Capture a graph and make room for it; whether it is kept."""
        try:
            graph = capture()
        except torch.OutOfMemoryError:  # may pass, and whoever calls makes room
            raise
        except RuntimeError as error:
            # without a capture the same call either works or raises what is wrong with it
            untrusted = isinstance(error, trust.UntrustedCapture)
            self.refused[key] = str(error) if untrusted else f"the capture failed: {error}"
            trust.dropped(self.refused[key])
            return False
        self._counts["captures"] += 1
        if graph.held > self.limit_bytes:
            self.refused[key] = f"it takes {graph.held} bytes, of a limit of {self.limit_bytes}"
            return False
        while self.held_bytes() + graph.held > self.limit_bytes:
            self._graphs.popitem(last=False)
            self._counts["evictions"] += 1
        self._graphs[key] = graph
        return True


class GraphCache(GraphStore["BufferedGraph"]):
    """Graphs by bucket, with buffers of their own that each call fills.

    For one stream at a time: replays of a graph share its inputs and output, which count as its memory.
    """

    def run(self, key: Hashable, function: Function, inputs: Inputs, rows: int | None = None) -> torch.Tensor:
        """`function(**inputs)`, by replaying its graph, which the first call captures and checks (`trust`).

        Args:
            key: stands for everything besides the inputs' shapes and dtypes that decides what `function` does: the
                model, the backend, and every number of the host it uses (`max_q`).
            function: from tensors to one tensor, without gradients, data-dependent shapes or waits for the device.
            inputs: its arguments, all on one device, padded to the shapes of their bucket.
            rows: of the result that are wanted, the first ones; None: all. What lies after them may be anything.

        Returns:
            The result, a copy that belongs to the caller.

        Raises:
            ValueError: without inputs, or where there are no CUDA graphs; ask `unusable` first.
        """
        device = _device(inputs)
        reason = self.unusable(device)
        if reason is not None:
            raise ValueError(f"graphs: expected inputs on a device with CUDA graphs, got {device}: {reason}")
        shapes = tuple((name, x.shape, x.dtype) for name, x in sorted(inputs.items()))
        # normal tensors even within inference mode: buffers that live on are written to in every mode
        with torch.inference_mode(False), torch.no_grad():
            graph = self._graph((key, device, shapes), lambda: self._capture(function, inputs, rows))
            if graph is None:
                return function(**inputs)[:rows]
            graph.load(inputs)
            return self._replay(graph)[:rows].clone()

    def _capture(self, function: Function, inputs: Inputs, rows: int | None) -> BufferedGraph:
        eager = function(**inputs)
        graph = BufferedGraph(self._capturer, function, inputs)
        graph.replay()
        trust.confirm({"result": eager[:rows]}, {"result": graph.output[:rows]})
        return graph


class BufferedGraph:
    """A captured computation with the buffers that it reads its inputs from."""

    def __init__(self, capturer: Capturer, function: Function, inputs: Inputs) -> None:
        self._inputs = {name: x.detach().clone() for name, x in inputs.items()}
        self._captured = capturer.capture(function, self._inputs)
        self.output = self._captured.output
        self.held = self._captured.held + sum(x.nbytes for x in self._inputs.values())

    def load(self, inputs: Inputs) -> None:
        for name, x in inputs.items():
            self._inputs[name].copy_(x)

    def replay(self) -> None:
        self._captured.replay()


class CudaCapturer:
    """CUDA graphs by torch.cuda, each with a memory pool of its own, so that giving one up frees what it kept.

    `one_pool`: all share one instead, whose memory each uses again; their replays may not overlap.

    All captures of a device share a stream with the runs before them: the vendor library keeps a workspace (32 MiB) for
    each stream, which is then there before the first capture and in no graph's pool.
    """

    def __init__(self, one_pool: bool = False) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._one_pool = one_pool
        self._pool: _POOL_HANDLE | None = None
        self._held = 0  # bytes of that pool that earlier graphs count as theirs

    def unusable(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else "CUDA graphs exist on cuda only"

    def capture(self, function: Function, inputs: Inputs) -> Captured:
        device = _device(inputs)
        with torch.cuda.device(device):
            # the first run compiles kernels and makes library handles, which a capture must not
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            stream.wait_stream(torch.cuda.current_stream(device))
            try:
                with torch.cuda.stream(stream):
                    function(**inputs)
            finally:  # also what a run that failed has begun comes before what the caller does next
                torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using the device meanwhile
            with torch.cuda.graph(graph, self._pool, stream=stream, capture_error_mode="thread_local"):
                output = function(**inputs)
        captured = _CudaGraph(graph, output)
        if self._one_pool:
            self._pool = graph.pool()
            captured.held -= self._held
            self._held += captured.held
        return captured


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: torch.Tensor) -> None:
        self._graph = graph
        self.output = output
        pool = tuple(graph.pool())
        segments = torch.cuda.memory_snapshot()
        self.held = sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)

    def replay(self) -> None:
        self._graph.replay()


def _device(inputs: Inputs) -> torch.device:
    """The one device of the inputs."""
    devices = {x.device for x in inputs.values()}
    if len(devices) != 1:
        raise ValueError(f"graphs: expected inputs on one device, got {sorted(map(str, devices)) or 'no inputs'}")
    return devices.pop()
