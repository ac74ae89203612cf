"""What one question costs a model: tokens, FLOPs of each stage, time and memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixelrefer_fast.batching.preparing import MediaCache
from pixelrefer_fast.counters import counting
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.object_tokenizer import kmeans_starts
from pixelrefer_fast.options import EncodeOptions
from pixelrefer_fast.patches import pack_patches
from pixelrefer_fast.selection import select_patches

REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Of one question.

    Attributes:
        object_tokens, vision_tokens: that the language model sees (vision tokens: Full only, those that were kept).
        prompt_tokens: of the whole prompt, text included.
        answer_tokens: the end token included.
        encoder_flops, region_flops, prefill_flops, decode_flops: a multiply-add is two; of matrix products,
            convolutions and attention, counted while they run. The region stage is the tokenizer, the infusion of
            context (Lite) and the projection of whole images and frames (Full).
        seconds: of the whole call, from opened media to text: the shortest of some, after a first one.
        memory: bytes at the most, weights included. On a CPU of all tensors that are alive at one time (what libraries
            take for themselves is not seen), on a CUDA device what torch has allocated.
    """

    object_tokens: int
    vision_tokens: int
    prompt_tokens: int
    answer_tokens: int
    encoder_flops: int
    region_flops: int
    prefill_flops: int
    decode_flops: int
    seconds: float
    memory: int

    @property
    def flops(self) -> int:
        return self.encoder_flops + self.region_flops + self.prefill_flops + self.decode_flops

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"flops": self.flops}


def measure(
    model: Any, media: Any, question: str, regions: Any, max_new_tokens: int = 512, repeats: int = REPEATS
) -> Costs:
    """The costs of `model.ask(media, question, regions)`, nothing of it being known to the model before.

    Raises:
        ValueError: as `model.ask`.
    """
    generation = Generation(max_new_tokens=max_new_tokens)
    with model.requests.exclusive(), torch.inference_mode():
        stages = _stages(model, media, question, regions, generation)

        def ask() -> None:
            model.decoder.clear()  # else what is asked again is found computed
            _ask(model, media, question, regions, generation)

        memory = _peak(ask, model)
        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            ask()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds.append(time.perf_counter() - start)
        model.decoder.clear()
    return Costs(**stages, seconds=min(seconds[1:]), memory=memory)


def _planned(model: Any, media: Any, regions: Any) -> tuple[Any, Any]:
    opened = MediaCache().open(media)
    request = model.bind(opened.media, opened.source, regions, EncodeOptions())
    return request, model.plan_request(request)


def _ask(model: Any, media: Any, question: str, regions: Any, generation: Generation) -> None:
    request, plan = _planned(model, media, regions)
    tokens, scene = model.encode_plan(plan, request.source, EncodeOptions())
    objects = model.objects_of(request, [mark.tokens for mark in plan.marks], tokens, scene)
    embeds = model.embed_prompt(model.build_prompt(question, objects), objects)
    model.decoder.submit(embeds, generation).result()


def _stages(model: Any, media: Any, question: str, regions: Any, generation: Generation) -> dict[str, int]:
    device, backend = model.device, model.backend
    request, plan = _planned(model, media, regions)
    selection = select_patches(plan, backend)
    first = kmeans_starts(selection.counts, model.config.mask_num, None, None).to(device)
    patches, chosen = pack_patches(plan, request.source, device, backend), selection.to(device)
    with counting(device.type) as encoder:
        features = model.encoder(patches, plan.grids, selection.reads, backend)
    with counting(device.type) as region:
        tokens = model.object_tokenizer(features, chosen, first, backend=backend)
        scene = model.encode_scene(plan, selection, patches, features)
    objects = model.objects_of(request, [mark.tokens for mark in plan.marks], tokens, scene)
    embeds = model.embed_prompt(model.build_prompt(question, objects), objects)
    with counting(device.type) as prefill:
        model.decoder.submit(embeds, Generation(max_new_tokens=1)).result()
    with counting(device.type) as whole:
        answer = model.decoder.submit(embeds, generation).result()
    return {
        "object_tokens": len(tokens),
        "vision_tokens": 0 if scene is None else len(scene.tokens),
        "prompt_tokens": len(embeds),
        "answer_tokens": len(answer.tokens),
        "encoder_flops": encoder.flops,
        "region_flops": region.flops,
        "prefill_flops": prefill.flops,
        "decode_flops": whole.flops - prefill.flops,
    }


def _peak(run: Callable[[], None], model: Any) -> int:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        run()
        return torch.cuda.max_memory_allocated(model.device)
    model.decoder.clear()
    alive = _Alive((*model.parameters(), *model.buffers()))
    with alive:
        run()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, whoever made them within the block, and of those given."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: set[int] = set()
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._storages:
            # a storage keeps its Python object for as long as it lives
            self._storages.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, id(storage), storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size
