"""The encoder and the object tokenizer under torch.compile: one graph each, and the eager result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plans import boxes_mask, plan_of

from pixelrefer_fast.encoding.encoder import PassLayout
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.planning.selection import select_patches


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_both_are_one_graph(kind: str, request: pytest.FixtureRequest) -> None:
    model: Any = request.getfixturevalue(kind)
    plan = plan_of(model.config, boxes_mask(150, 200, (10, 10, 140, 90)), boxes_mask(150, 200, (20, 100, 50, 120)))
    selection = select_patches(plan)
    layout = PassLayout.of(plan.grids, selection.reads)
    patches = torch.randn(len(selection.reads), 588, generator=torch.Generator().manual_seed(0))
    starts = kmeans_starts(selection.counts, model.config.mask_num)

    def run(patches: torch.Tensor) -> torch.Tensor:
        return model.network.object_tokenizer(model.network.encoder.run(patches, layout), selection, starts)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with torch.inference_mode():
        assert torch.equal(compiled(patches), run(patches))
