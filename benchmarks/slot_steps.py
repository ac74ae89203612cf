"""Slot-steps: how many steps a device computes for its sequences, against how many their answers need.

    python benchmarks/slot_steps.py

A slot-step is one step of one slot. The host learns of the end of an answer after the step that ended it, and what was
launched meanwhile is computed for nothing. Counted on a CPU with the settings of a CUDA device, nothing is timed: the
answers' lengths are given, so that the weights do not matter. The last line is a JSON document: `run` and `needed` by
load.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

import pixelrefer_fast as pf
from pixelrefer_fast.bench.report import tables
from pixelrefer_fast.decoding import Decoder, Generation
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.qwen import LanguageModel, PrefillLayout

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

PERIOD = 256  # an answer ends at a place in its sequence that is a multiple of this
SEED = 5


def loads() -> dict[str, list[int]]:
    """Tokens of each answer of a load, end tokens included."""
    draw = random.Random(SEED)
    return {
        # "yes", "a red car": with the end token mostly two or three tokens, once in a while a sentence
        "mixed short answers": draw.choices([2, 3, 4, 5, 9], [58, 24, 10, 5, 3], k=400),
        "64 masks": [draw.randint(3, 9) for _ in range(64)],
        "captions": [draw.randint(64, 192) for _ in range(128)],
    }


class Ending(LanguageModel):
    """Says the end at every PERIOD-th place of a sequence, and something else before."""

    def __init__(self, llm: Qwen2ForCausalLM, end: int) -> None:
        super().__init__(llm)
        self.end = end

    def prefill(self, embeds: torch.Tensor, layout: PrefillLayout, pool: BlockPool) -> torch.Tensor:
        return self._at(layout.positions.index_select(0, layout.last) + 1)

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, pool: BlockPool) -> torch.Tensor:
        return self._at(lengths + 1)

    def _at(self, places: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(places), self.config.vocab_size)
        logits[:, self.end] = torch.where(places % PERIOD == 0, 1.0, -1.0)
        return logits


def counted(answers: Sequence[int]) -> dict[str, int]:
    """Slot-steps run and needed for answers of so many tokens, all asked at once."""
    model = pf.load(device="cpu")
    decoder = Decoder(model.network.llm, model.tokenizer, {})
    decoder.language_model = Ending(model.network.llm, min(decoder.end_ids))
    with patch.dict(decoder_module.AHEAD, cpu=decoder_module.AHEAD["cuda"]):
        width = model.network.llm.config.hidden_size
        prompts = [torch.zeros(PERIOD - (tokens - 1), width) for tokens in answers]
        sequences = [decoder.submit(prompt, Generation()) for prompt in prompts]
        for sequence, tokens in zip(sequences, answers, strict=True):
            found = sequence.result()
            assert found.finish_reason == "stop"
            assert len(found.tokens) == tokens
    # the pass over a prompt decides the first token
    return {"run": decoder.counts()["slot_steps"], "needed": sum(answers) - len(answers)}


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description="Slot-steps that are run and needed.").parse_args(arguments)
    found = {name: counted(answers) for name, answers in loads().items()}
    lines = [[name, f"{n['run']:,}", f"{n['needed']:,}", f"{n['run'] / n['needed']:.3f}x"] for name, n in found.items()]
    tables.terminal("slot-steps", ["load", "run", "needed", ""], lines)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
