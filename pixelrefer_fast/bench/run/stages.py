"""One question about marked objects, stage by stage: seconds, launches, waits, FLOPs and bytes of each.

The stages are the model's own pieces in the order in which `model.ask` runs them, one after the other. What is measured
here is what `costs.py` counts and what `profile.py` traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pixelrefer_fast.batching.preparing import MediaCache
from pixelrefer_fast.bench.measure import timing
from pixelrefer_fast.bench.report.results import Quantiles, Row, relative_error
from pixelrefer_fast.bench.run.askers import definitions
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.device.counters import Counts, counting
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.selection import select_patches

NAMES = ("plan", "views", "encoder", "pooling", "infusion", "projector", "prompt", "prefill", "decode")
HOST = ("plan",)  # works in host memory alone: nothing of it is a device's
WHAT = {
    "plan": "which pixels and patches each object needs, in host memory",
    "views": "pixels to packed patches, tables to the device",
    "encoder": "patches to features",
    "pooling": "selected features to n tokens an object",
    "infusion": "context of the views into these tokens (Lite)",
    "projector": "tokens to the LLM's width; in Full those of whole images and frames too",
    "prompt": "text to token ids, their embeddings, object tokens in their places",
    "prefill": "prompt to the first token",
    "decode": "all further tokens",
}
# what a stage leaves, of those whose result is compared with the definitions'
RESULTS = {
    "views": "patches",
    "encoder": "features",
    "pooling": "pooled",
    "infusion": "infused",
    "projector": "tokens",
    "prompt": "embeds",
}


@dataclass(frozen=True)
class Stage:
    """What one stage took.

    Attributes:
        name: one of NAMES.
        seconds: by the wall clock, until the device is done with it: quantiles.
        device_seconds: between two events of the device, with a cold L2; None where host and device are one.
        host_seconds: of the host until it has issued everything; None likewise.
        calls: how often it was timed.
        counts: launches, waits, FLOPs and bytes of one call, as it runs on this device.
        sizes: what it worked on.
    """

    name: str
    seconds: Quantiles
    device_seconds: Quantiles | None
    host_seconds: Quantiles | None
    calls: int
    counts: Counts
    sizes: dict[str, int]

    def row(self, case: str, model: str, dtype: str, sizes: Mapping[str, int] | None = None) -> Row:
        """A row of a result file.

        Args:
            case: the whole question in words; the stage's name is put after it.
            model, dtype: by name.
            sizes: of the whole question; the stage's own are put beside them.
        """
        row = work(self.name, self.counts, case, model, dtype, {**(sizes or {}), **self.sizes})
        row |= {"seconds": self.seconds if self.device_seconds is None else self.device_seconds, "calls": self.calls}
        row["extra"]["wall_seconds"] = self.seconds
        if self.host_seconds is not None:
            row |= {"host_seconds": self.host_seconds, "waits": sum(self.counts.waits.values())}
        return row


def work(name: str, counts: Counts, case: str, model: str, dtype: str, sizes: Mapping[str, int]) -> Row:
    """What a stage does as a row of a result file, without times.

    Waits are not in it: where host and device are one, everything that the host reads would count.
    """
    return Row(
        suite="stages",
        case=f"{case}: {name}",
        by="ours",
        model=model,
        dtype=dtype,
        sizes=dict(sizes),
        flops=counts.flops,
        moved=counts.moved,
        launches=sum(counts.launches.values()),
        ok=True,
        extra={"stage": name},
    )


class Question:
    """One question on its way through a model: each stage reads what those before it have left here.

    A stage may be run again, on the same inputs. The decoder serves nobody else meanwhile.

    Args:
        model: PixelRefer or PixelReferLite.
        media: anything `media.open_media` takes; it is opened here, once.
        question: with a `<region>` tag for each region.
        regions: anything `regions.as_regions` takes.
        generation: how to decode.

    Raises:
        ValueError: the media or the generation's options are none.
    """

    def __init__(self, model: Any, media: Any, question: str, regions: Any, generation: Generation) -> None:
        self.model, self.question, self.regions, self.generation = model, question, regions, generation
        self.opened = MediaCache().open(media)
        self.sequence: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The stages of this model, in order."""
        return tuple(name for name in NAMES if name != "infusion" or self.model.kind == "lite")

    def run(self, name: str) -> None:
        """Run one stage; `prepare` comes before it, and every stage before that."""
        getattr(self, f"_{name}")()

    def prepare(self, name: str) -> None:
        """What must be so before a stage runs once more and is no part of it."""
        if name in ("prefill", "decode"):
            self.end()
        if name == "decode":
            self._prefill()

    def end(self) -> None:
        """End the answer that has begun, if one has."""
        if self.sequence is not None:
            self.sequence.cancel()
            while self.model.decoder.advance():
                pass
            self.sequence = None

    def ask(self) -> None:
        """The whole question at once, from opened media to text."""
        self.end()
        for name in self.names[:-2]:
            self.run(name)
        self.sequence = self.model.decoder.submit(self.embeds, self.generation)
        self.sequence.result()

    def close(self) -> None:
        """Give back what the decoder holds."""
        self.end()
        self.model.decoder.clear()

    def sizes(self, name: str) -> dict[str, int]:
        """What a stage worked on, once it has run."""
        if name in ("plan", "views"):
            return {"views": len(self.plan.views), "patches": self.plan.first_rows[-1]}
        if name == "encoder":
            return {"patches": self.plan.first_rows[-1]}
        if name == "pooling":
            return {"marks": len(self.selection.counts), "selected": sum(self.selection.counts)}
        if name == "infusion":
            groups = (self.selection.local_groups, self.selection.global_groups)
            return {"marks": len(self.selection.counts), "groups": sum(len(g.groups) for g in groups)}
        if name == "projector":
            return {"tokens": len(self.tokens), "vision_tokens": 0 if self.scene is None else len(self.scene.tokens)}
        if name in ("prompt", "prefill"):
            return {"tokens": len(self.embeds)}
        return {"steps": len(self.sequence.tokens) - 1}

    def _plan(self) -> None:
        model, options = self.model, EncodeOptions()
        self.request = model.bind(self.opened.media, self.opened.source, self.regions, options)
        self.plan = model.plan_request(self.request)
        self.selection = select_patches(self.plan, model.backend)
        self.starts = kmeans_starts(self.selection.counts, model.config.mask_num)

    def _views(self) -> None:
        device = self.model.device
        self.patches = pack_patches(self.plan, self.request.source, device, self.model.backend)
        (self.first,) = upload([self.starts], device)
        self.chosen = self.selection.to(device)

    def _encoder(self) -> None:
        model = self.model
        self.features = model.encoder(self.patches, self.plan.grids, self.selection.reads, model.backend)

    def _pooling(self) -> None:
        model = self.model
        self.pooled, self.normed = model.object_tokenizer.pool(self.features, self.chosen, self.first, model.backend)
        self.infused = self.pooled

    def _infusion(self) -> None:
        model = self.model
        self.infused = model.object_tokenizer.infuse(
            self.pooled, self.normed, self.features, self.chosen, model.backend
        )

    def _projector(self) -> None:
        model = self.model
        self.tokens = model.object_tokenizer.project(self.infused, self.chosen)
        self.scene = model.encode_scene(self.plan, self.selection, self.patches, self.features)

    def _prompt(self) -> None:
        counts = [mark.tokens for mark in self.plan.marks]
        objects = self.model.objects_of(self.request, counts, self.tokens, self.scene)
        self.embeds = self.model.embed_prompt(self.model.build_prompt(self.question, objects), objects)

    def _prefill(self) -> None:
        # who reads along gets the first token before any further one is begun
        self.sequence = self.model.decoder.submit(self.embeds, self.generation, streamed=True)
        while not self.sequence.tokens and not self.sequence.done:
            self.model.decoder.advance()

    def _decode(self) -> None:
        self.sequence.result()


@contextmanager
def asked(model: Any, media: Any, question: str, regions: Any, max_new_tokens: int = 512) -> Iterator[Question]:
    """A `Question` whose stages may be run within the block, while the model answers nobody else.

    Raises:
        ValueError: as `model.ask`.
    """
    generation = Generation(max_new_tokens=max_new_tokens)
    with model.requests.exclusive(), torch.inference_mode():
        own = Question(model, media, question, regions, generation)
        try:
            yield own
        finally:
            own.close()


@contextmanager
def marked(name: str, device: torch.device) -> Iterator[None]:
    """A range of this name for whoever watches: torch.profiler, and on a CUDA device NVTX (Nsight Systems, Compute).

    The device has done everything when it ends.
    """
    cuda = device.type == "cuda"
    with torch.profiler.record_function(name):
        if cuda:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
            timing.synchronize(device)
        finally:
            if cuda:
                torch.cuda.nvtx.range_pop()


def count(own: Question) -> Iterator[tuple[str, Counts]]:
    """Every stage's counts, in order, each run once.

    They are of what runs on this device: on a CPU of PyTorch's operations where a GPU has kernels. What is replayed
    from a captured graph is not seen.
    """
    own.end()
    for name in own.names:
        if name in HOST:
            own.run(name)
            yield name, Counts()
            continue
        with counting(own.model.device.type) as counts:
            own.run(name)
        yield name, counts


def error(own: Question, name: str) -> float | None:
    """How far what a stage has left is from what the PyTorch definitions make of the same inputs, in the same dtype.

    Returns:
        The largest difference over the largest value; infinite for what is not finite; None for a stage whose result
        is no tensor.
    """
    if name not in RESULTS:
        return None
    own.end()
    left = dict(vars(own))
    with definitions(own.model):
        own.run(name)
    plain = getattr(own, RESULTS[name])
    vars(own).update(left)
    return relative_error(left[RESULTS[name]], plain)


def run(
    model: Any,
    media: Any,
    question: str,
    regions: Any,
    max_new_tokens: int = 64,
    repeats: int = 5,
    tick: Callable[[str], None] | None = None,
) -> list[Stage]:
    """`model.ask(media, question, regions)` in stages, each of them counted once and timed `repeats` times.

    A stage ends when the device is done with it, so that the sum of all is somewhat more than one question takes.

    Args:
        model: PixelRefer or PixelReferLite.
        media, question, regions: as `model.ask` takes them.
        max_new_tokens: longest answer.
        repeats: how often each stage is timed.
        tick: called with the name of each stage before it is timed.

    Raises:
        ValueError: as `model.ask`.
    """
    with asked(model, media, question, regions, max_new_tokens) as own:
        return measure(own, repeats, tick)


def measure(own: Question, repeats: int, tick: Callable[[str], None] | None = None) -> list[Stage]:
    """As `run`, of a question that is there already; it is in no stage afterwards."""
    counted = dict(count(own))  # what runs first compiles kernels and makes tables
    sizes = {name: own.sizes(name) for name in own.names}
    device = own.model.device
    clock = timing.clock(device) if device.type == "cuda" else None
    stages = []
    for name in own.names:
        if tick is not None:
            tick(name)

        def prepare(name: str = name) -> None:
            own.prepare(name)

        def run_once(_: Any = None, name: str = name) -> None:
            own.run(name)

        wall = timing.sample(run_once, device, repeats, prepare=prepare)
        pairs = [] if clock is None else [clock.time(prepare, run_once) for _ in range(repeats)]
        on_device, on_host = (_quantiles(x) for x in zip(*pairs, strict=True)) if pairs else (None, None)
        stages.append(Stage(name, _quantiles(wall), on_device, on_host, repeats, counted[name], sizes[name]))
    return stages


def through(own: Question, in_range: bool = False) -> None:
    """All stages once, one after the other; `in_range`: each in a range of its name, the device done at its end."""
    own.end()
    for name in own.names:
        with marked(name, own.model.device) if in_range else nullcontext():
            own.run(name)


def _quantiles(seconds: Sequence[float]) -> Quantiles:
    found = timing.quantiles(seconds)
    return Quantiles(q10=found["q10"], median=found["median"], q90=found["q90"])
