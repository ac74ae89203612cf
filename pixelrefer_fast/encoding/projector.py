"""Features of whole images or frames -> vision tokens of the LLM (Full), and which of them a video keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast.planning.views import ViewPlan

# Mean absolute difference of a cell's normalised (-1..1) values, times 255, above which it counts as changed.
CHANGED = 0.1


class VisionProjector(nn.Module):
    """2x2 downsampling for video, then Linear-GELU-Linear (reference model/projector.py mlp2x_gelu)."""

    PREFIX = "model.mm_projector.readout."

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, out)
        self.second = nn.Linear(out, out)

    def forward(self, features: torch.Tensor, merge: int) -> torch.Tensor:
        """(Z * merge², D) features to (Z, C) vision tokens.

        With merge 2 the features come in 2x2 order; bilinear halving with half-pixel centres is then the mean of each
        four neighbours.
        """
        if merge not in (1, 2):
            raise ValueError(f"projector: expected merge 1 or 2, got {merge}")
        if merge == 2:
            features = features.unflatten(0, (-1, 4)).mean(1)
        return self.second(F.gelu(self.first(features)))

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        slots: dict[str, torch.Tensor] = {}
        for index, module in ((0, self.first), (2, self.second)):
            slots |= {f"{self.PREFIX}{index}.{n}": p for n, p in module.named_parameters()}
        return slots


def kept_cells(frames: Sequence[torch.Tensor], merge: int) -> torch.Tensor:
    """Which merged cells of a video's frames are kept: those that changed since the frame before.

    The first frame is kept whole; a frame in which nothing changed keeps its first cell (reference
    prepare_inputs_labels_for_multimodal_with_compression).

    Args:
        frames: (cells * merge², 588) normalised patches of each frame, in merged order, all of one size.

    Returns:
        (frames * cells,) bool, where the patches are.
    """
    cells = [frame.unflatten(0, (-1, merge**2)).flatten(1) for frame in frames]
    kept = [torch.ones(len(cells[0]), dtype=torch.bool, device=cells[0].device)]
    for before, after in pairwise(cells):
        changed = (after - before).abs().mean(dim=1) * 255 > CHANGED
        changed[0] |= ~changed.any()
        kept.append(changed)
    return torch.cat(kept)


def kept_tokens(
    plan: ViewPlan, scenes: Collection[tuple[int, ...]], patches: Mapping[int, torch.Tensor]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Which vision tokens of videos are kept, in host memory."""
    order = sorted(scenes)
    if not order:
        return {}
    flags = [kept_cells([patches[v] for v in scene], plan.views[scene[0]].merge) for scene in order]
    # the one wait of a pass: the length of a video's prompt depends on its pixels
    together = torch.cat(flags).cpu()
    return dict(zip(order, together.split([len(f) for f in flags]), strict=True))
