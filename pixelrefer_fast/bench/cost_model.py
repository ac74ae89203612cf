"""What each stage of a question computes and moves, from sizes alone: no weights, no pixels, no device.

Every function gives the launches of one stage as `Work`. FLOPs are those that `counters` counts: matrix products,
convolutions and attention, a multiply-add being two, and what Triton kernels declare. Bytes are each launch's inputs
and outputs, each once. There are two kinds of machine: "cuda", where Triton kernels serve the operations that have one,
and "cpu", where PyTorch's definitions serve them, in more launches. `docs/estimating.md` says what is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.decoding.decoder import BLOCK, MAX_RUNNING, PREFILL_TOKENS
from pixelrefer_fast.encoder import PASS_PATCHES
from pixelrefer_fast.infusion import HEADS
from pixelrefer_fast.object_tokenizer import ITERATIONS
from pixelrefer_fast.ops.infuse import Groups, is_projected
from pixelrefer_fast.ops.view_patches import PATCH

STAGES = ("views", "encoder", "pooling", "infusion", "projector", "prefill", "decode")
VALUES = 3 * PATCH * PATCH  # of a patch, float32 when it comes from the views


@dataclass(frozen=True)
class Work:
    """One launch, or several alike.

    Attributes:
        what: in words.
        flops, moved: of one of them.
        times: how many.
        launches: that each of them takes: more than one where a definition is made of several.
        spared: part of the FLOPs that are counted and not computed: what a kernel leaves out behind a causal mask.
    """

    what: str
    flops: int
    moved: int
    times: int = 1
    launches: int = 1
    spared: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What a plan says of a question, as far as costs depend on it.

    Attributes:
        views: (patches, patches whose features are read) of each view, in the order of the encoder's passes.
        pixels: bytes of the images and frames that are looked at.
        marks: selected patches of each mark.
        corners: feature rows that each of those is made of, 1 or 4.
        local, global_: (members, feature rows) of the groups of marks that share a context view; Lite only.
        tokens: object tokens.
        scene: (patches, merge) of each whole image or frame that the LLM sees, each once; Full only.
        videos: frames of each video whose unchanged cells are dropped; Full only.
        prompts: (tokens, of which are in the cache already) of each prompt, in the order of their passes.
        answer: tokens of each answer.
    """

    views: tuple[tuple[int, int], ...]
    pixels: int
    marks: tuple[int, ...]
    corners: int
    local: tuple[tuple[int, int], ...]
    global_: tuple[tuple[int, int], ...]
    tokens: int
    scene: tuple[tuple[int, int], ...]
    videos: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]
    answer: int

    @property
    def patches(self) -> int:
        return sum(patches for patches, _ in self.views)

    @property
    def vision_tokens(self) -> int:
        """Before unchanged cells are dropped."""
        return sum(patches // merge**2 for patches, merge in self.scene)


@dataclass(frozen=True)
class Machine:
    """What the code depends on besides the sizes.

    Attributes:
        kind: "cuda" or "cpu".
        item: bytes of a number of the model.
        graphs: whether decode steps are captured, in buckets of lanes and of blocks.
    """

    kind: str
    item: int
    graphs: bool = False

    @property
    def kernels(self) -> bool:
        return self.kind == "cuda"

    def linear(self, what: str, rows: int, into: int, out: int, bias: bool = True, times: int = 1) -> Work:
        moved = self.item * (rows * into + into * out + rows * out + (out if bias else 0))
        return Work(what, 2 * rows * into * out, moved, times)

    def pointwise(self, what: str, numbers: int, passes: float, launches: int = 1, times: int = 1) -> Work:
        """An operation that reads or writes so many `numbers` `passes` times over all."""
        return Work(what, 0, int(self.item * numbers * passes), times, launches)


def stages(config: ModelConfig, sizes: Sizes, machine: Machine) -> dict[str, list[Work]]:
    """The work of each stage, in order; "infusion" is Lite's."""
    found = {
        "views": views(sizes, machine),
        "encoder": encoder(config, sizes, machine),
        "pooling": pooling(config, sizes, machine),
        "infusion": infusion(config, sizes, machine),
        "projector": projector(config, sizes, machine),
        "prefill": prefill(config, sizes, machine),
        "decode": decode(config, sizes, machine),
    }
    if config.kind == "full":
        del found["infusion"]
    return found


def views(sizes: Sizes, machine: Machine) -> list[Work]:
    """Cutting, resizing and normalising: NumPy, OpenCV and Pillow on a CPU, one launch on a device."""
    work = Work("view_patches", 0, sizes.pixels + 4 * VALUES * sizes.patches)
    return [work, Work("tables", 0, 0, 2)] if machine.kernels else [work]


def passes(views: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The views of each pass of the encoder, which takes a limited number of patches."""
    part: list[tuple[int, int]] = []
    for view in views:
        if part and sum(patches for patches, _ in part) + view[0] > PASS_PATCHES:
            yield part
            part = []
        part.append(view)
    if part:
        yield part


def encoder(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    works: list[Work] = []
    for part, times in _alike(passes(sizes.views)):
        works += [_times(work, times) for work in _encoder_pass(config, part, machine)]
    return works


def _encoder_pass(config: ModelConfig, part: Sequence[tuple[int, int]], machine: Machine) -> list[Work]:
    vision, item = config.vision, machine.item
    width, inner, layers = vision.hidden_size, vision.intermediate_size, vision.num_layers
    rows, read = sum(patches for patches, _ in part), sum(reads for _, reads in part)
    partial = read < rows
    works = []
    if machine.kernels:
        works.append(Work("upload", 0, 0))
        if item != 4:
            works.append(Work("patches, cast", 0, (4 + item) * rows * VALUES))
    else:
        works.append(Work("tables", 0, 8 * rows, 1, 21))
    works += [
        machine.linear("patch embedding", rows, VALUES, width),
        machine.pointwise("norm", rows * width, 2),
        machine.linear("qkv", rows, width, 3 * width, bias=False, times=layers),
        # as the kernel declares it: qkv in and out; the definition goes over parts of it in 24 operations
        Work("rope2d", 9 * rows * width, 6 * item * rows * width + 8 * rows, layers)
        if machine.kernels
        else machine.pointwise("rope2d", rows * width, 23.4, 24, layers),
    ]
    for last in (False, True):
        times = 1 if last else layers - 1
        queries = read if last and partial else rows
        if last and partial:
            works.append(machine.pointwise("rows that are read", queries * width, 2, 1, 2))
        pairs = sum((reads if last and partial else patches) * patches for patches, reads in part)
        runs = len(list(groupby((patches, reads if last and partial else patches) for patches, reads in part)))
        attention = item * width * 2 * (queries + rows)
        if machine.kernels:
            works.append(Work("varlen_attention", 4 * pairs * width, attention, times))
        else:
            together = machine.pointwise("varlen_attention, join", queries * width, 2, 1, times)
            works += [Work("varlen_attention", 4 * pairs * width, attention, times, runs), together]
        works += [
            machine.linear("out", queries, width, width, times=times),
            machine.linear("fc1", queries, width, inner, times=times),
            machine.pointwise("gelu", queries * inner, 2, times=times),
            machine.linear("fc2", queries, inner, width, times=times),
            _add_norm(queries, width, machine, 2 * times),
        ]
    return works


def _add_norm(rows: int, width: int, machine: Machine, times: int = 1, norm: bool = True) -> Work:
    if machine.kernels:
        moved = machine.item * width * (rows * (4 if norm else 3) + 2 * norm)
        return Work("add_norm", (9 if norm else 1) * rows * width, moved, times)
    return machine.pointwise("add_norm", rows * width, 5 if norm else 3, 2 if norm else 1, times)


def pooling(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """`object_pool`: the kernels work with inner products of patches, the definition with their distances."""
    width, item, n, corners = config.vision.hidden_size, machine.item, config.mask_num, sizes.corners
    iterations = ITERATIONS[config.kind]
    selected, marks = sum(sizes.marks), len(sizes.marks)
    pooled = item * marks * n * width * (2 if config.kind == "lite" else 1)
    if machine.kernels:
        most = max((0, *sizes.marks))
        rows = min(selected, marks * most)
        works = [Work("object_pool.pool", rows * width + 8 * marks * n * width, pooled)]
        cluster = 2 * iterations * rows * most * n if most > n else 0
        works.insert(0, Work("object_pool.cluster", cluster, 8 * marks * n))
        if most > n:
            described = rows * (corners * 12 + 8)
            gram = Work("object_pool.gram", rows * (most + 1) * width, described + item * rows * corners * width)
            works.insert(0, gram)
        return works
    gathered = 2 * corners + (0 if corners == 1 else 4 * corners)
    works = [
        machine.pointwise("object_pool, features", selected * width, gathered, 3 if corners == 1 else 7),
        machine.linear("object_pool, position", selected, 2, width),
        machine.pointwise("object_pool, sum", selected * width, 3),
        Work("object_pool, result", 0, pooled, 1, 2),
    ]
    for count in sizes.marks:
        if count <= n:
            works.append(machine.pointwise("object_pool, copy", count * width, 2))
            continue
        # distances in float64, means in float32
        works.append(Work("object_pool, wide", 0, 12 * count * width, 1, 7))
        moved = (36 * count + 68 * n) * width + 100 * count * n
        works.append(Work("k-means", 4 * count * width * n, moved, iterations, 30))
    return works


def infusion(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Two steps of cross-attention, each with keys and values projected or with their weights folded."""
    if config.kind != "lite":
        return []
    width, item, n = config.vision.hidden_size, machine.item, config.mask_num
    rows = len(sizes.marks) * n
    works = []
    for groups, norm in ((sizes.local, True), (sizes.global_, False)):
        works += [
            machine.linear("query", rows, width, width),
            machine.linear("out", rows, width, width),
            Work("value bias", 0, item * width * (width + 2)),  # a matrix and a vector, of which no FLOPs are counted
            *_attend(groups, width, n, machine),
        ]
        if machine.kernels:
            works.append(_add_norm(rows, width, machine, norm=norm))
        else:
            works.append(machine.pointwise("sum and norm", rows * width, 5 if norm else 3, 2))
    if not machine.kernels:
        works.append(machine.pointwise("norm", rows * width, 2))
    return works


def _attend(groups: Sequence[tuple[int, int]], width: int, n: int, machine: Machine) -> Iterator[Work]:
    item = machine.item
    none = torch.empty(0)
    projected = is_projected(Groups(none, none, 0, 0, tuple(groups)), n, width, HEADS)
    if machine.kernels:
        # ragged ends are filled up to the longest: how long a group is, only the device knows
        rows = sum(members for members, _ in groups) * n
        most = max((0, *(length for _, length in groups)))
        filled = len(groups) * most
        inner, queries = (width // HEADS, rows) if projected else (width, HEADS * rows)
        numbers = queries * inner * (HEADS if projected else 1) + filled * width
        flops = 2 * HEADS * rows * most * inner
        attend = Work("infuse", flops, item * numbers + 4 * HEADS * rows * most, 2)
        if projected:
            yield Work("infuse.gather", 0, 2 * item * filled * width)
            yield machine.linear("key and value", filled, width, 2 * width, bias=False)
            yield attend
        else:
            yield attend
            weight = item * (width * width + rows * width * (1 + HEADS))
            yield Work("folded weight", 2 * rows * width * width, weight, 2)
        return
    for (members, length), times in Counter(groups).items():
        queries = members * n
        yield machine.pointwise("infuse, rows", queries * width, 4, 2, times)
        if projected:
            yield machine.linear("key and value", length, width, width, bias=False, times=2 * times)
            moved = item * width * 2 * (queries + length)
            yield Work("attention", 4 * queries * length * width, moved, times)
        else:
            weight = item * (width * width + queries * width * (1 + HEADS))
            yield Work("folded weight", 2 * queries * width * width, weight, 2 * times)
            scores = item * HEADS * queries * length
            shared = item * (HEADS * queries + length) * width
            yield Work("attention", 2 * HEADS * queries * length * width, shared + scores, 2 * times)
            yield Work("softmax", 0, 4 * scores, times, 3)


def projector(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Object tokens, and in Full the features of whole images and frames, to the LLM's width."""
    width, out = config.vision.hidden_size, config.hidden_size
    works = list(_two_layers("object tokens", sizes.tokens, width, out, machine))
    if config.kind == "full":
        works.append(machine.pointwise("object tokens, packed", sizes.tokens * width, 2, 9))
    for merge in sorted({merge for _, merge in sizes.scene}):
        patches = sum(own for own, of in sizes.scene if of == merge)
        works.append(machine.pointwise("whole features", patches * width, 2))
        if merge > 1:
            works.append(machine.pointwise("halving", patches * width, 1 + merge**-2))
        works += _two_layers("vision tokens", patches // merge**2, width, out, machine)
    if sizes.scene:
        works.append(machine.pointwise("vision tokens, joined", sizes.vision_tokens * out, 2))
    for frames, patches in sizes.videos:
        # normalised patches, float32, of each frame and the one before it
        works.append(Work("kept cells", 0, 6 * 4 * VALUES * patches // frames, frames - 1, 9))
    if sizes.videos:
        works.append(machine.pointwise("vision tokens, kept", sizes.vision_tokens * out, 2))
    return works


def _two_layers(what: str, rows: int, width: int, out: int, machine: Machine) -> Iterator[Work]:
    yield machine.linear(what, rows, width, out)
    yield machine.pointwise("gelu", rows * out, 2)
    yield machine.linear(what, rows, out, out)


def prefill(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Embedded prompts through the LLM, each pass packed; the first tokens chosen."""
    works = [
        machine.pointwise("embedding", sum(tokens for tokens, _ in sizes.prompts) * config.hidden_size, 4, 15),
        Work("cache, made", 0, _cache(config, sizes, machine)[1], 1, 2),
    ]
    for part, times in _alike(prefill_passes(sizes.prompts)):
        works += [_times(work, times) for work in _prefill_pass(config, part, machine)]
    return works


def prefill_passes(prompts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The prompts of each pass: those that share a beginning wait for the one that computes it."""
    for cached in (False, True):
        own = [prompt for prompt in prompts if bool(prompt[1]) == cached]
        for first in range(0, len(own), MAX_RUNNING):
            part: list[tuple[int, int]] = []
            for tokens, found in own[first : first + MAX_RUNNING]:
                if part and sum(t for t, _ in part) + tokens > PREFILL_TOKENS:
                    yield part
                    part = []
                part.append((tokens, found))
            if part:
                yield part


def _prefill_pass(config: ModelConfig, part: Sequence[tuple[int, int]], machine: Machine) -> list[Work]:
    width, layers, item = config.hidden_size, _layers(config), machine.item
    keys_width = _keys_width(config)
    rows, keys = sum(tokens - found for tokens, found in part), sum(tokens for tokens, _ in part)
    pairs = sum((tokens - found) * tokens for tokens, found in part)
    works = list(_llm_layers(config, rows, machine))
    if any(found for _, found in part):
        works.append(machine.pointwise("keys and values, read", keys * keys_width, 2, 1, 2 * layers))
    attention = item * 2 * (rows * width + keys * keys_width)
    # torch counts the whole square of queries and keys, whoever computes half of it
    hidden = sum((tokens - found) * (tokens - found - 1) // 2 for tokens, found in part)
    spared = hidden / pairs if machine.kernels else 0.0
    works.append(Work("varlen_attention", 4 * pairs * width, attention, layers, 1, spared))
    if not machine.kernels:
        moved = item * (9 * rows * width + 4 * keys * keys_width)
        works.append(Work("varlen_attention, packing", 0, moved, layers, 7))
    works += [*_head(config, len(part), machine), Work("packing, lanes", 0, 0, 1, 47)]
    return works


def decode(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """All steps after the first token; more sequences than lanes go in turns."""
    works: list[Work] = []
    for (lanes, blocks), times in Counter(decode_steps(sizes, machine)).items():
        works += [_times(work, times) for work in step(config, lanes, blocks, machine)]
    return works


def decode_steps(sizes: Sizes, machine: Machine) -> Iterator[tuple[int, int]]:
    """(lanes, blocks of the longest sequence) of each step."""
    size = BLOCK[machine.kind]
    for first in range(0, len(sizes.prompts), MAX_RUNNING):
        own = sizes.prompts[first : first + MAX_RUNNING]
        longest = max(tokens for tokens, _ in own)
        for done in range(1, sizes.answer):
            lanes, blocks = len(own), -(-(longest + 1 + done) // size)
            yield (_bucket(lanes), _bucket(blocks)) if machine.graphs else (lanes, blocks)


def step(config: ModelConfig, lanes: int, blocks: int, machine: Machine) -> list[Work]:
    """One token of so many sequences over keys and values in blocks, read whole."""
    width, layers, item = config.hidden_size, _layers(config), machine.item
    keys = lanes * blocks * BLOCK[machine.kind]
    gathered = item * 4 * keys * _keys_width(config)
    attention = item * 2 * (keys * _keys_width(config) + lanes * width)
    return [
        *_llm_layers(config, lanes, machine),
        Work("paged_attention, blocks", 0, gathered, layers, 13),
        Work("paged_attention", 4 * keys * width, attention, layers),
        machine.pointwise("embedding", lanes * width, 2),
        *_head(config, lanes, machine),
    ]


def _llm_layers(config: ModelConfig, rows: int, machine: Machine) -> Iterator[Work]:
    """All layers without the attention itself, and the last norm."""
    width, inner, layers = config.hidden_size, config.llm["intermediate_size"], _layers(config)
    keys = _keys_width(config)
    # one kernel where torch has one, six operations where it is counted as what it is made of
    passes, launches = (2, 1) if machine.kernels else (7, 6)
    yield machine.pointwise("norm", rows * width, passes, launches, 2 * layers + 1)
    yield machine.linear("query", rows, width, width, times=layers)
    yield machine.linear("key, value", rows, width, keys, times=2 * layers)
    yield machine.pointwise("rotary position", rows * (width + keys), 10, 10, layers)
    yield machine.pointwise("keys and values, written", rows * keys, 4, 2, layers)
    yield machine.linear("out", rows, width, width, bias=False, times=layers)
    yield machine.pointwise("sums", rows * width, 3, 1, 2 * layers)
    yield machine.linear("gate, up", rows, width, inner, bias=False, times=2 * layers)
    yield machine.pointwise("silu, product", rows * inner, 5, 2, layers)
    yield machine.linear("down", rows, inner, width, bias=False, times=layers)


def _head(config: ModelConfig, rows: int, machine: Machine) -> Iterator[Work]:
    """Logits, and what chooses tokens from them."""
    vocabulary = config.llm["vocab_size"]
    yield machine.linear("lm_head", rows, config.hidden_size, vocabulary, bias=False)
    if machine.item != 4:
        yield Work("logits, float32", 0, (4 + machine.item) * rows * vocabulary)
    yield Work("choice", 0, 4 * 5 * rows * vocabulary, 1, 34)


def weights(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part. The head is in "embedding" where it is tied to that, else it is "head"."""
    vision, llm = config.vision, config.llm
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
    out = config.hidden_size
    found = {
        "encoder": (VALUES + 1) * width + vision.num_layers * layer + 2 * width,
        "pooling": 3 * width,
        "projector": 2 * ((width + 1) * out + (out + 1) * out),  # of object tokens and of vision tokens
    }
    if config.kind == "lite":
        # projections, norms, and the convolution of masks, which is in every checkpoint and used by nothing
        found["infusion"] = 2 * (4 * width * (width + 1) + 2 * width) + 2 * width
    keys = _keys_width(config)
    attention = 2 * out * out + out + 2 * keys * (out + 1)
    found["llm"] = _layers(config) * (attention + 3 * out * llm["intermediate_size"] + 2 * out) + out
    found["embedding"] = llm["vocab_size"] * out
    if not config.tied:
        found["head"] = llm["vocab_size"] * out
    return found


def memory(config: ModelConfig, sizes: Sizes, machine: Machine) -> dict[str, int]:
    """Bytes: weights, the cache of keys and values, and what is alive at the most in each phase beside them.

    "peak" is the weights and the largest of the phases: the encoder's (no cache yet), the prompt's and the steps'.
    """
    item, width = machine.item, config.vision.hidden_size
    out, inner, vocabulary = config.hidden_size, config.llm["intermediate_size"], config.llm["vocab_size"]
    keys = _keys_width(config)
    held = item * sum(weights(config).values())
    # streams, queries, keys and values of a layer stay until its MLP is done, which is when most is alive
    layer = 8 * width + 2 * config.vision.intermediate_size
    rows = max((sum(patches for patches, _ in part) for part in passes(sizes.views)), default=0)
    read = sum(reads for _, reads in sizes.views)
    patches = 4 * VALUES * sizes.patches
    pixels = sizes.pixels if machine.kernels else 0
    encoding = patches + max(pixels, item * (rows * layer + (read if rows < sizes.patches else 0) * width))
    projecting = patches + item * (read * width + 2 * sizes.vision_tokens * (width + out))
    grown, cache = _cache(config, sizes, machine)
    embeds = 2 * item * out * sum(tokens - found for tokens, found in sizes.prompts)
    prompts = [
        item * sum(t - c for t, c in part) * (6 * out + 2 * keys + 3 * inner) + 2 * (4 + item) * len(part) * vocabulary
        for part in prefill_passes(sizes.prompts)
    ]
    lanes = max((n for n, _ in decode_steps(sizes, machine)), default=0)
    blocks = max((n for _, n in decode_steps(sizes, machine)), default=0)
    steps = item * 4 * lanes * blocks * BLOCK[machine.kind] * keys + 2 * (4 + item) * lanes * vocabulary
    prompting = max(embeds + cache + max((0, *prompts)), embeds + grown)
    phases = {"encoding": max(encoding, projecting), "prefill": prompting, "decode": embeds + cache + steps}
    return {"weights": held, "cache": cache, **phases, "peak": held + max(phases.values())}


def _cache(config: ModelConfig, sizes: Sizes, machine: Machine) -> tuple[int, int]:
    """Bytes of the cache while it grows (the old and the new one) and afterwards."""
    size = BLOCK[machine.kind]
    block = 2 * _layers(config) * size * _keys_width(config) * machine.item
    now = most = free = 0
    for first in range(0, len(sizes.prompts), MAX_RUNNING):
        free = max(now - 1, 0)  # all of the turn before have left
        for tokens, found in sizes.prompts[first : first + MAX_RUNNING]:
            needed = -(-(tokens + sizes.answer) // size) - found // size
            if needed > free:
                after = max(now + (needed - free) + (not now), now + now // 2, 64)
                most = max(most, (now + after) * block)
                free += after - max(now, 1)
                now = after
            free -= needed
    return most, now * block


def _layers(config: ModelConfig) -> int:
    return int(config.llm["num_hidden_layers"])


def _keys_width(config: ModelConfig) -> int:
    llm = config.llm
    return int(llm["hidden_size"] // llm["num_attention_heads"] * llm["num_key_value_heads"])


def _times(work: Work, times: int) -> Work:
    return replace(work, times=work.times * times)


def _alike(parts: Iterable[list[tuple[int, int]]]) -> Iterator[tuple[tuple[tuple[int, int], ...], int]]:
    """Passes over the same sizes, and how many there are."""
    yield from Counter(tuple(part) for part in parts).items()


def _bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
