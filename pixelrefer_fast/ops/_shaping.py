"""What a request changes about the scores of tokens before one is chosen, in place and taken back afterwards.

Only scores of named tokens change (those said, those with a bias, those that end): a few numbers of each row are read
and written, and never the vocabulary. Definitions are those of transformers and vLLM, in their order: bias, no end
before `min_new_tokens`, penalties.
"""

from __future__ import annotations

import torch


class Shaping:
    """Changes to scores (B, V), which `undo` takes back."""

    def __init__(self, scores: torch.Tensor) -> None:
        self._scores = scores
        self._changed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def bias(self, tokens: torch.Tensor, bias: torch.Tensor) -> None:
        """Add to scores; tokens (B, n) int64, bias (B, n), 0 for places that are not used."""
        self._remember(tokens)
        self._scores.scatter_add_(1, tokens, bias)

    def forbid(self, tokens: torch.Tensor, rows: torch.Tensor) -> None:
        """Make tokens (B, n) impossible in those of the rows (B,) that are True; -1 stands for none."""
        places = tokens.clamp(min=0)
        before = self._remember(places)
        # a row without any end keeps the score of token 0, which stands in; others fill up with ends of their own
        forbidden = rows[:, None] & (tokens >= 0)
        self._scores.scatter_(1, places, before.masked_fill(forbidden, -torch.inf))

    def penalise(
        self,
        said: torch.Tensor,
        counts: torch.Tensor,
        repetition: torch.Tensor,
        presence: torch.Tensor,
        frequency: torch.Tensor,
    ) -> None:
        """Make tokens that were said less likely.

        Args:
            said: (B, n) int64, the first `counts` of each row are those said, with repeats. With prompt embeddings
                the reference's generate() penalises generated tokens only.
            counts: (B,) int64.
            repetition: (B,) float32: positive scores are divided by it, negative ones multiplied; 1 is none.
            presence: (B,) float32: taken from the score of a token that was said.
            frequency: (B,) float32: taken from it each time that it was said.
        """
        there = torch.arange(said.shape[1], device=said.device) < counts[:, None]
        # places that are not used stand for the first token that was said, whose score does not change twice
        places = torch.where(there, said, said[:, :1])
        before = self._remember(places)
        rate = repetition[:, None]
        after = torch.where(before < 0, before * rate, before / rate) - presence[:, None]
        self._scores.scatter_(1, places, torch.where(counts[:, None] > 0, after, before))
        self._scores.scatter_add_(1, places, torch.where(there, -frequency[:, None], 0.0))

    def undo(self) -> None:
        """Scores as they were."""
        while self._changed:
            self._scores.scatter_(1, *self._changed.pop())

    def _remember(self, places: torch.Tensor) -> torch.Tensor:
        before = self._scores.gather(1, places)
        self._changed.append((places, before))
        return before
