"""Parameters, and the bytes that are alive at the most."""

from __future__ import annotations

from pixelrefer_fast.bench.estimate.costs.language import (
    cache_bytes,
    decode_steps,
    keys_width_of,
    layers_of,
    prefill_passes,
)
from pixelrefer_fast.bench.estimate.costs.vision import passes
from pixelrefer_fast.bench.estimate.costs.work import VALUES, Machine, Sizes
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.decoding.decoder import BLOCK


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
    keys = keys_width_of(config)
    attention = 2 * out * out + out + 2 * keys * (out + 1)
    found["llm"] = layers_of(config) * (attention + 3 * out * llm["intermediate_size"] + 2 * out) + out
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
    keys = keys_width_of(config)
    held = item * sum(weights(config).values())
    # streams, queries, keys and values of a layer stay until its MLP is done, which is when most is alive
    layer = 8 * width + 2 * config.vision.intermediate_size
    rows = max((sum(patches for patches, _ in part) for part in passes(sizes.views)), default=0)
    read = sum(reads for _, reads in sizes.views)
    patches = 4 * VALUES * sizes.patches
    pixels = sizes.pixels if machine.kernels else 0
    encoding = patches + max(pixels, item * (rows * layer + (read if rows < sizes.patches else 0) * width))
    projecting = patches + item * (read * width + 2 * sizes.vision_tokens * (width + out))
    grown, cache = cache_bytes(config, sizes, machine)
    embeds = 2 * item * out * sum(tokens - found for tokens, found in sizes.prompts)
    prompts = [
        item * sum(t - c for t, c in part) * (6 * out + 2 * keys + 3 * inner) + 2 * (4 + item) * len(part) * vocabulary
        for part in prefill_passes(sizes.prompts)
    ]
    slots = max((n for n, _ in decode_steps(sizes, machine)), default=0)
    blocks = max((n for _, n in decode_steps(sizes, machine)), default=0)
    gathered = 0 if machine.kernels else item * 4 * slots * blocks * BLOCK[machine.kind] * keys
    steps = gathered + 2 * (4 + item) * slots * vocabulary
    prompting = max(embeds + cache + max((0, *prompts)), embeds + grown)
    phases = {"encoding": max(encoding, projecting), "prefill": prompting, "decode": embeds + cache + steps}
    return {"weights": held, "cache": cache, **phases, "peak": held + max(phases.values())}
