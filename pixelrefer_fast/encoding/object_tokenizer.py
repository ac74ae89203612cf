"""Features + masks -> object tokens: the Scale-Adaptive Object Tokenizer (paper section 4.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import check_seed, is_integer, shown
from pixelrefer_fast.encoding.infusion import HEADS, Infusion
from pixelrefer_fast.planning.selection import Selection

ITERATIONS = {"lite": 3, "full": 5}


def kmeans_starts(
    counts: Sequence[int], clusters: int, given: Sequence[Sequence[int] | None] | None = None, seed: int | None = None
) -> torch.Tensor:
    """First centroids of every mark: (M, clusters) int64, ranks among the mark's selected patches.

    Args:
        counts: selected patches of each mark.
        clusters: n; marks of at most n patches need no start (their row is zero).
        given: the caller's starts, one entry a mark (None for the default).
        seed: draw random permutations as the reference does, one per clustering and in order; None: evenly spaced
            ranks, so that answers repeat.

    Raises:
        ValueError: `given` together with `seed`, or starts of the wrong number or range.
    """
    if given is not None and seed is not None:
        raise ValueError("kmeans_start and kmeans_seed: expected one of them, got both")
    if given is not None and len(given) != len(counts):
        raise ValueError(f"kmeans_start: expected an entry for each of the {len(counts)} marks, got {len(given)}")
    check_seed("kmeans_seed", seed)
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    starts = torch.zeros(len(counts), clusters, dtype=torch.int64)
    for i, count in enumerate(counts):
        if count <= clusters:
            continue
        own = None if given is None else given[i]
        if own is not None:
            ranks = own.tolist() if isinstance(own, (torch.Tensor, np.ndarray)) else own
            if (
                not isinstance(ranks, (list, tuple))
                or len(ranks) != clusters
                or not all(is_integer(r) and 0 <= r < count for r in ranks)
            ):
                raise ValueError(
                    f"kmeans_start: mark {i}: expected {clusters} ranks from 0 to {count - 1}, got {shown(ranks)}"
                )
            starts[i] = torch.tensor(ranks)
        elif generator is not None:
            starts[i] = torch.randperm(count, generator=generator)[:clusters]
        else:
            starts[i] = torch.arange(clusters) * count // clusters
    return starts


def even_starts(offsets: torch.Tensor, clusters: int) -> torch.Tensor:
    """As `kmeans_starts` where no start is given or drawn, made where the selected patches' offsets (M + 1,) lie."""
    counts = offsets.diff()[:, None]
    ranks = torch.arange(clusters, device=offsets.device) * counts // clusters
    return torch.where(counts > clusters, ranks, 0)


class ObjectTokenizer(nn.Module):
    """Selected features to object tokens; in Lite with the infusion of context."""

    PREFIX = "model.region_encoder."

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, out = config.vision.hidden_size, config.llm["hidden_size"]
        self.iterations = ITERATIONS[config.kind]
        self.pos_linear = nn.Linear(2, width)
        self.infusion = Infusion(width) if config.kind == "lite" else None
        self.feat_linear = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))

    def forward(
        self, features: torch.Tensor, selection: Selection, starts: torch.Tensor, backend: str = "auto"
    ) -> torch.Tensor:
        """Object tokens of all marks, packed.

        Args:
            features: (F, D), those of the encoder that `selection` was made for.
            selection: the marks' patches.
            starts: (M, n) first centroids.

        Returns:
            (T, C): n tokens a mark in Lite, min(n, selected patches) in Full.
        """
        n = starts.shape[1]
        steps, step_sizes = ([], []) if self.infusion is None else self.infusion.arguments(selection, n)
        into, _, out = self.feat_linear
        tokens: torch.Tensor = ops.object_tokens(
            features,
            selection.index,
            selection.weights,
            selection.positions,
            selection.offsets,
            starts,
            self.pos_linear.weight,
            self.pos_linear.bias,
            steps,
            step_sizes,
            [into.weight, into.bias, out.weight, out.bias],
            self.iterations,
            max((0, *selection.counts)),  # torch.compile knows no max(default=)
            HEADS,
            # in Full those of marks with fewer patches than n are left out
            sum(min(count, n) for count in selection.counts) if self.infusion is None else None,
            backend=backend,
        )
        return tokens

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes, by checkpoint key."""
        slots: dict[str, torch.Tensor] = {}
        for name, module in (("pos_linear", self.pos_linear), ("feat_linear", self.feat_linear)):
            slots |= {f"{name}.{n}": p for n, p in module.named_parameters()}
        if self.infusion is not None:
            slots |= self.infusion.checkpoint_slots()
        return {self.PREFIX + key: slot for key, slot in slots.items()}
