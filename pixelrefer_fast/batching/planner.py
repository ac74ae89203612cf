"""Which requests go together: as many as fit the budgets, in order."""

from __future__ import annotations

from collections.abc import Iterable

from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.memory import Budget
from pixelrefer_fast.planning.views import View


class BatchBuilder:
    """A batch that is being filled.

    Args:
        budget: what it may take.
        running: requests whose contexts take memory already.
    """

    def __init__(self, budget: Budget, running: Iterable[Prepared | None] = ()) -> None:
        self.budget = budget
        self.requests = 0
        self.patches = 0
        self.tokens = sum(p.tokens for p in running if p is not None)
        self._busy = self.tokens > 0
        self._views: set[tuple[int, View]] = set()

    def add(self, prepared: Prepared | None) -> bool:
        """Take a request in if it fits beside the others; alone anything fits."""
        assert prepared is not None
        views = {(id(prepared.request.source), v) for v in prepared.views} if prepared.request is not None else set()
        new = views - self._views
        patches = self.patches + sum(view.patches for _, view in new)
        tokens = self.tokens + prepared.tokens
        over = tokens > self.budget.tokens or (self.requests > 0 and patches > max(self.patches, self.budget.patches))
        if over and (self.requests or self._busy):
            return False
        self.requests, self.patches, self.tokens = self.requests + 1, patches, tokens
        self._views |= new
        return True
