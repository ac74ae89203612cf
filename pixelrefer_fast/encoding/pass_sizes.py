"""For how much captured passes have room: few sizes that serve any traffic, each with room for what comes together."""

from __future__ import annotations

from dataclasses import dataclass

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.ops.view_patches import PATCH
from pixelrefer_fast.planning.selection import Selection
from pixelrefer_fast.planning.views import View

# Patches of views that are encoded anew, and marks. From one to the next a pass takes half as long again at most. A
# larger one keeps a device busy for longer than the host takes to issue it; without patches all features are known.
# One object of Lite at 1080p has about 930 patches, 8 objects have 1,500.
LADDER = ((7680, 64), (5760, 64), (3840, 32), (2880, 32), (1920, 16), (1280, 8), (960, 4), (640, 4), (384, 4), (0, 16))
KNOWN_ROWS = 2048  # of features that are known already, beside those of the patches
KNOWN_SCENE = 12288  # the same in Full, whose LLM sees whole images
LARGEST = {"lite": 128, "full": 256}  # patches of a mark: those of 50 and 100 cells, ragged edges included
LONGEST = 1024  # patches of a view in Lite
SCENES = 4  # whole images in Full


@dataclass(frozen=True)
class PassSizes:
    """What a captured pass from patches to object tokens has room for.

    Attributes:
        patches: of all views.
        views: how many.
        longest: patches of one of them; their rows and columns are fewer.
        rows: features that anybody reads, known ones included.
        marks: objects, in Lite times frames.
        largest: selected patches of one of them.
        groups: of marks that share a context view, Lite only.
        context: patches of a context view, Lite only.
    """

    patches: int
    views: int
    longest: int
    rows: int
    marks: int
    largest: int
    groups: int
    context: int

    @property
    def selected(self) -> int:
        """Patches of all marks."""
        return self.marks * self.largest

    def hold(self, views: list[View], selection: Selection) -> bool:
        """Whether there is room for a pass that encodes these views and reads what was selected."""
        shared = (selection.local_groups, selection.global_groups)
        return (
            sum(view.patches for view in views) <= self.patches
            and len(views) <= self.views
            and max((view.patches for view in views), default=0) <= self.longest
            and selection.first_rows[-1] <= self.rows
            and len(selection.counts) <= self.marks
            and max(selection.counts, default=0) <= self.largest
            and all(len(g.groups) <= self.groups and g.max_rows <= self.context for g in shared)
        )


def pass_sizes(config: ModelConfig) -> list[PassSizes]:
    """All sizes for a model, the largest first."""
    lite = config.kind == "lite"
    local_patches, global_patches = ((side // PATCH) ** 2 for side in (config.local_view_size, config.global_view_size))
    found = []
    for patches, marks in LADDER:
        own = marks if lite else max(marks // 4, 4)
        groups = max(2, patches // local_patches) if lite else 0
        found.append(
            PassSizes(
                patches=patches,
                views=(2 * groups + own if lite else SCENES + own) if patches else 0,
                longest=min(patches, LONGEST) if lite else patches,
                rows=patches + (KNOWN_ROWS if lite else KNOWN_SCENE),
                marks=own,
                largest=LARGEST[config.kind],
                groups=groups,
                context=max(local_patches, global_patches) if lite else 0,
            )
        )
    return found
