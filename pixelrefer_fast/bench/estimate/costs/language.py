"""What the LLM computes and moves: prompts and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pixelrefer_fast.bench.estimate.costs.work import Machine, Sizes, Work, alike, repeated
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.decoding.decoder import BLOCK, MAX_RUNNING, PREFILL_TOKENS


def prefill(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Embedded prompts through the LLM, each pass packed; the first tokens chosen."""
    works = [
        machine.pointwise("embedding", sum(tokens for tokens, _ in sizes.prompts) * config.hidden_size, 4, 15),
        Work("cache, made", 0, cache_bytes(config, sizes, machine)[1], 1, 2),
    ]
    for part, times in alike(prefill_passes(sizes.prompts)):
        works += [repeated(work, times) for work in _prefill_pass(config, part, machine)]
    return works


def prefill_passes(prompts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The prompts of each pass: those that share a prefix wait for the one that computes it."""
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
    width, layers, item = config.hidden_size, layers_of(config), machine.item
    keys_width = keys_width_of(config)
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
    works += [*_head(config, len(part), machine), Work("packing, slots", 0, 0, 1, 35)]
    return works


def decode(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """All steps after the first token; more sequences than slots go in turns."""
    works: list[Work] = []
    for (slots, blocks), times in Counter(decode_steps(sizes, machine)).items():
        works += [repeated(work, times) for work in step(config, slots, blocks, machine)]
    return works


def decode_steps(sizes: Sizes, machine: Machine) -> Iterator[tuple[int, int]]:
    """(slots, blocks of the longest sequence) of each step."""
    size = BLOCK[machine.kind]
    for first in range(0, len(sizes.prompts), MAX_RUNNING):
        own = sizes.prompts[first : first + MAX_RUNNING]
        longest = max(tokens for tokens, _ in own)
        for done in range(1, sizes.answer):
            slots, blocks = len(own), -(-(longest + 1 + done) // size)
            yield _bucket(slots) if machine.graphs else slots, blocks


def step(config: ModelConfig, slots: int, blocks: int, machine: Machine) -> list[Work]:
    """One token of so many sequences over keys and values in blocks, read whole."""
    width, layers, item = config.hidden_size, layers_of(config), machine.item
    keys = slots * blocks * BLOCK[machine.kind]
    if machine.kernels:
        return [
            machine.pointwise("embedding", slots * width, 2),
            *_kernel_layers(config, slots, keys, machine),
            machine.pointwise("norm", slots * width, 2),
            *_head(config, slots, machine),
        ]
    gathered = item * 4 * keys * keys_width_of(config)
    attention = item * 2 * (keys * keys_width_of(config) + slots * width)
    return [
        *_llm_layers(config, slots, machine),
        Work("paged_attention, blocks", 0, gathered, layers, 13),
        Work("paged_attention", 4 * keys * width, attention, layers),
        machine.pointwise("embedding", slots * width, 2),
        *_head(config, slots, machine),
    ]


def _llm_layers(config: ModelConfig, rows: int, machine: Machine) -> Iterator[Work]:
    """All layers without the attention itself, and the last norm."""
    width, inner, layers = config.hidden_size, config.llm["intermediate_size"], layers_of(config)
    keys = keys_width_of(config)
    yield machine.pointwise("norm", rows * width, 2, 1, 2 * layers + 1)
    yield machine.linear("query, key, value", rows, width, width + 2 * keys, times=layers)
    yield machine.pointwise("rotary position", rows * (width + keys), 10, 4, layers)
    yield machine.pointwise("keys and values, written", rows * keys, 4, 2, layers)
    yield machine.linear("out", rows, width, width, bias=False, times=layers)
    yield machine.pointwise("sums, read by the products that add to them", rows * width, 1, 0, 2 * layers)
    yield machine.linear("gate, up", rows, width, 2 * inner, bias=False, times=layers)
    yield machine.pointwise("silu, product", rows * inner, 5, 2, layers)
    yield machine.linear("down", rows, inner, width, bias=False, times=layers)


def _kernel_layers(config: ModelConfig, rows: int, keys: int, machine: Machine) -> Iterator[Work]:
    """All layers of a step where kernels compute it: five launches each, blocks read where they lie."""
    width, inner, layers = config.hidden_size, config.llm["intermediate_size"], layers_of(config)
    own, item = keys_width_of(config), machine.item
    qkv = width + 2 * own
    turns = width // config.llm["num_attention_heads"]  # half a head of cosines, and of sines
    product = machine.linear("norm_linear", rows, width, qkv)
    yield replace(product, flops=product.flops + 4 * rows * width, moved=product.moved + item * width, times=layers)
    # queries, keys and values, their turns, the new rows of the cache, what is attended to, and the result
    moved = item * (rows * (qkv + turns + 2 * own + width) + 2 * keys * own)
    yield Work("paged_attention", 4 * keys * width, moved, layers)
    yield machine.linear("out", rows, width, width, bias=False, times=layers)
    gated = item * (rows * width + width + 2 * inner * width + rows * inner)
    yield Work("swiglu", 4 * rows * width * inner + 4 * rows * (width + inner), gated, layers)
    yield machine.linear("down", rows, inner, width, bias=False, times=layers)
    yield machine.pointwise("sums, read by the products that add to them", rows * width, 1, 0, 2 * layers)


def _head(config: ModelConfig, rows: int, machine: Machine) -> Iterator[Work]:
    """Logits, and what chooses tokens from them."""
    vocabulary = config.llm["vocab_size"]
    yield machine.linear("lm_head", rows, config.hidden_size, vocabulary, bias=False)
    if machine.kernels:
        yield machine.pointwise("best_token", rows * vocabulary, 1)
        yield Work("slots", 0, 0, 1, 28)
        return
    if machine.item != 4:
        yield Work("logits, float32", 0, (4 + machine.item) * rows * vocabulary)
    yield Work("choice", 0, 4 * 5 * rows * vocabulary, 1, 34)


def cache_bytes(config: ModelConfig, sizes: Sizes, machine: Machine) -> tuple[int, int]:
    """Bytes of the cache while it grows (the old and the new one) and afterwards."""
    size = BLOCK[machine.kind]
    block = 2 * layers_of(config) * size * keys_width_of(config) * machine.item
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


def layers_of(config: ModelConfig) -> int:
    return int(config.llm["num_hidden_layers"])


def keys_width_of(config: ModelConfig) -> int:
    llm = config.llm
    return int(llm["hidden_size"] // llm["num_attention_heads"] * llm["num_key_value_heads"])


def _bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
