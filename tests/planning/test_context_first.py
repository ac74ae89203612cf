"""A plan with the views of context first: the same views and marks, each step's rows together."""

from __future__ import annotations

import numpy as np

from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.planning.selection import select_patches
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask


def _plan(images: int) -> ViewPlan:
    config = ModelConfig("lite", VisionConfig(16, 1, 4, 64), {"hidden_size": 16}, 4, 16384, 2, {})
    marks = []
    for i in range(2 * images):
        mask = np.zeros((120, 160), bool)
        mask[10 + 5 * i : 60 + 5 * i, 20 : 90 + 3 * i] = True
        marks.append(Mark(i % images, BoxedMask.of(mask), f"region {i}"))
    return plan_views(config, [(120, 160)] * images, marks, len(marks))


def test_each_step_reads_rows_that_lie_together() -> None:
    plan = _plan(3)
    ordered, places = plan.context_first()
    assert sorted(places) == list(range(len(plan.views)))
    for before, after in enumerate(places):
        assert ordered.views[after] == plan.views[before]
    for old, new in zip(plan.marks, ordered.marks, strict=True):
        for name in ("crop", "local_view", "global_view"):
            assert getattr(new, name) == places[getattr(old, name)]
    scattered, together = select_patches(plan), select_patches(ordered)
    for groups, rows in ((together.local_groups, 0), (together.global_groups, together.local_groups.span)):
        assert groups.first_row == rows
        assert groups.span == sum(length for _, length in groups.sizes)
    assert scattered.local_groups.span > together.local_groups.span
    assert together.counts == scattered.counts


def test_one_image_stays_as_it_is() -> None:
    plan = _plan(1)
    same, places = plan.context_first()
    assert same is plan
    assert places == list(range(len(plan.views)))
