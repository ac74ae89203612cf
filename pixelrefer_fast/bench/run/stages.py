"""One question about marked objects, stage by stage: seconds, launches, waits, FLOPs and bytes of each.

The stages are those of `network.Network`, heard of while it answers (`device.stages`) and then run again one by one, on
the arguments that they were called with. What is measured here is what `costs.py` counts and what `profile.py` traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from pixelrefer_fast.batching.encoding import embedded_prompt, encode_prepared
from pixelrefer_fast.batching.preparing import Bound, MediaCache, prepare
from pixelrefer_fast.bench.measure import timing
from pixelrefer_fast.bench.report.results import Quantiles, Row, relative_error
from pixelrefer_fast.bench.run.askers import counting_stages, definitions
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding import Sequence as DecodedSequence
from pixelrefer_fast.device.counters import Counts, counting
from pixelrefer_fast.device.stages import STAGES, StageCall, StageName, listen
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.selection import Selection
from pixelrefer_fast.planning.views import ViewPlan

HOST: tuple[StageName, ...] = ("plan",)  # works in host memory alone: nothing of it is a device's
DECODER: tuple[StageName, ...] = ("prefill", "decode")  # the decoder goes on from one state to the next
WHAT: dict[StageName, str] = {
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


@dataclass(frozen=True)
class MeasuredStage:
    """What one stage took.

    Attributes:
        name: one of STAGES.
        seconds: by the wall clock, until the device is done with it: quantiles.
        device_seconds: between two events of the device, with a cold L2; None where host and device are one.
        host_seconds: of the host until it has issued everything; None likewise.
        calls: how often it was timed.
        counts: launches, waits, FLOPs and bytes of one call, as it runs on this device.
        sizes: what it worked on.
    """

    name: StageName
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


class StagedQuestion:
    """One question on its way through a model, whose stages may each be run again.

    The model's own pass runs once; every call of a stage is kept with its arguments and its result. Prefill and
    decoding go on from one state of the decoder to the next: their answer begins anew before each. The decoder serves
    nobody else meanwhile.

    Args:
        model: PixelRefer or PixelReferLite.
        media: anything `media.open_media` takes; it is opened here, once.
        question: with a `<region>` tag for each region.
        regions: anything `regions.as_regions` takes.
        generation: how to decode.

    Attributes:
        objects: the encoded objects, once `begin` was called.
        embeds: (L, C) prompt embeddings, likewise.
        sequence: what the decoder makes of them; None between answers.

    Raises:
        ValueError: the media or the generation's options are none.
    """

    objects: Objects
    embeds: torch.Tensor

    def __init__(
        self, model: PixelRefer | PixelReferLite, media: object, question: str, regions: object, generation: Generation
    ) -> None:
        self.model, self.question, self.regions, self.generation = model, question, regions, generation
        self.opened = MediaCache().open(media)
        self.sequence: DecodedSequence | None = None
        self._calls: dict[StageName, list[StageCall]] = {}

    @property
    def names(self) -> tuple[StageName, ...]:
        """The stages of this model, in order."""
        return tuple(name for name in STAGES if name != "infusion" or self.model.kind == "lite")

    def begin(self) -> None:
        """From opened media to prompt embeddings, as the model itself does it."""
        self.end()
        self._calls = {name: [] for name in STAGES}
        network, options = self.model.network, EncodeOptions()
        if network.kept_features is not None:
            network.kept_features.clear()  # every stage has all of its work to do
        with listen(self._keep):
            request = network.bind(self.opened.media, self.opened.source, self.regions, options)
            bound = Bound(request, self.question, options, self.generation)
            (self.objects,) = encode_prepared(network, [prepare(network, bound, MediaCache(), MediaCache())])
            # without its boundaries: no answer may find what another has computed
            self.embeds = embedded_prompt(network, self.question, self.objects).embeds

    def prefill(self) -> None:
        """To the first token of an answer."""
        # who reads along gets the first token before any further one is begun
        self.sequence = self.model.decoder.submit(self.embeds, self.generation, streamed=True)
        while not self.sequence.tokens and not self.sequence.done:
            self.model.decoder.advance()

    def decode(self) -> None:
        """The rest of the answer."""
        assert self.sequence is not None
        self.sequence.result()

    def run(self, name: StageName) -> None:
        """Run one stage once more; `prepare` comes before it."""
        if name == "prefill":
            self.prefill()
        elif name == "decode":
            self.decode()
        else:
            for call in self._calls[name]:
                call.run()

    def prepare(self, name: StageName) -> None:
        """What must be so before a stage runs once more and is no part of it."""
        if name in DECODER:
            self.end()
        if name == "decode":
            self.prefill()

    def ask(self) -> None:
        """The whole question at once, from opened media to text."""
        self.begin()
        self.sequence = self.model.decoder.submit(self.embeds, self.generation)
        self.sequence.result()

    def end(self) -> None:
        """End the answer that has begun, if one has."""
        if self.sequence is not None:
            self.sequence.cancel()
            while self.model.decoder.advance():
                pass
            self.sequence = None

    def close(self) -> None:
        """Give back what the decoder holds."""
        self.end()
        self.model.decoder.clear()

    def sizes(self, name: StageName) -> dict[str, int]:
        """What a stage worked on, once it has run."""
        plan, selection = self._plan, self._selection
        if name in ("plan", "views"):
            return {"views": len(plan.views), "patches": plan.first_rows[-1]}
        if name == "encoder":
            return {"patches": plan.first_rows[-1]}
        if name == "pooling":
            return {"marks": len(selection.counts), "selected": sum(selection.counts)}
        if name == "infusion":
            groups = (selection.local_groups, selection.global_groups)
            return {"marks": len(selection.counts), "groups": sum(len(g.groups) for g in groups)}
        if name == "projector":
            scene = self.objects.scene
            return {"tokens": len(self.objects.tokens), "vision_tokens": 0 if scene is None else len(scene.tokens)}
        if name in ("prompt", "prefill"):
            return {"tokens": len(self.embeds)}
        assert self.sequence is not None
        return {"steps": len(self.sequence.tokens) - 1}

    def results(self, name: StageName) -> list[torch.Tensor]:
        """The tensors that a stage makes, made again by the backend that the model has now."""
        made: list[torch.Tensor] = []
        for call in self._calls[name]:
            result = call.run_by(self.model.network.backend)
            parts = result if isinstance(result, (list, tuple)) else (result,)
            tensors = (part for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point())
            made += [tensor for tensor in tensors if tensor.numel()]
        return made

    @contextmanager
    def _keep(self, call: StageCall) -> Iterator[None]:
        yield
        self._calls[call.stage].append(call)

    @property
    def _plan(self) -> ViewPlan:
        return next(call.result for call in self._calls["plan"] if isinstance(call.result, ViewPlan))

    @property
    def _selection(self) -> Selection:
        ((_, selection, _),) = (call.result for call in self._calls["views"] if isinstance(call.result, tuple))
        return selection


@contextmanager
def asked(
    model: PixelRefer | PixelReferLite, media: object, question: str, regions: object, max_new_tokens: int = 512
) -> Iterator[StagedQuestion]:
    """A `StagedQuestion` whose stages may be run within the block, while the model answers nobody else.

    Raises:
        ValueError: as `model.ask`.
    """
    generation = Generation(max_new_tokens=max_new_tokens)
    with model.requests.exclusive(), torch.inference_mode():
        own = StagedQuestion(model, media, question, regions, generation)
        try:
            yield own
        finally:
            own.close()


@contextmanager
def marked(name: StageName, device: torch.device) -> Iterator[None]:
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


def count(own: StagedQuestion) -> Iterator[tuple[StageName, Counts]]:
    """Every stage's counts, in order, each run once.

    They are of what runs on this device: on a CPU of PyTorch's operations where a GPU has kernels. What is replayed
    from a captured graph is not seen.
    """
    device = own.model.device.type
    with counting_stages(device) as found:
        own.begin()
    for name in own.names:
        if name in HOST:
            yield name, Counts()
        elif name in DECODER:
            with counting(device) as counts:
                own.run(name)
            yield name, counts
        else:
            yield name, found[name]


def error(own: StagedQuestion, name: StageName) -> float | None:
    """How far what a stage makes is from what the PyTorch definitions make of the same inputs, in the same dtype.

    Returns:
        The largest difference over the largest value; infinite for what is not finite; None for a stage that makes no
        tensor.
    """
    if name in HOST or name in DECODER:
        return None
    own.end()
    made = own.results(name)
    with definitions(own.model):
        plain = own.results(name)
    return max(relative_error(got, wanted) for got, wanted in zip(made, plain, strict=True))


def run(
    model: PixelRefer | PixelReferLite,
    media: object,
    question: str,
    regions: object,
    max_new_tokens: int = 64,
    repeats: int = 5,
    tick: Callable[[StageName], None] | None = None,
) -> list[MeasuredStage]:
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


def measure(own: StagedQuestion, repeats: int, tick: Callable[[StageName], None] | None = None) -> list[MeasuredStage]:
    """As `run`, of a question that is there already; it is in no stage afterwards."""
    counted = dict(count(own))  # what runs first compiles kernels and makes tables
    sizes = {name: own.sizes(name) for name in own.names}
    device = own.model.device
    clock = timing.clock(device) if device.type == "cuda" else None
    stages = []
    for name in own.names:
        if tick is not None:
            tick(name)

        def prepare(name: StageName = name) -> None:
            own.prepare(name)

        def run_once(_: object = None, name: StageName = name) -> None:
            own.run(name)

        wall = timing.sample(run_once, device, repeats, prepare=prepare)
        pairs = [] if clock is None else [clock.time(prepare, run_once) for _ in range(repeats)]
        on_device, on_host = (_quantiles(x) for x in zip(*pairs, strict=True)) if pairs else (None, None)
        stages.append(MeasuredStage(name, _quantiles(wall), on_device, on_host, repeats, counted[name], sizes[name]))
    return stages


def through(own: StagedQuestion, in_range: bool = False) -> None:
    """All stages once, one after the other; `in_range`: each in a range of its name, the device done at its end."""
    own.end()
    device = own.model.device
    with listen(lambda call: marked(call.stage, device)) if in_range else nullcontext():
        own.begin()
    for name in DECODER:
        with marked(name, device) if in_range else nullcontext():
            own.run(name)


def _quantiles(seconds: Sequence[float]) -> Quantiles:
    found = timing.quantiles(seconds)
    return Quantiles(q10=found["q10"], median=found["median"], q90=found["q90"])
