"""What costs are made of: launches, the sizes that they depend on, and the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pixelrefer_fast.ops.view_patches import PATCH

VALUES = 3 * PATCH * PATCH  # of a patch, float32 when it comes from the views


@dataclass(frozen=True)
class Work:
    """One launch, or several alike.

    Attributes:
        what: in words.
        flops, moved: of one of them.
        times: how many.
        launches: that each of them takes: more than one where a definition is made of several.
        spared: part of the FLOPs that are counted and not computed: what a kernel leaves out behind a causal mask.
    """

    what: str
    flops: int
    moved: int
    times: int = 1
    launches: int = 1
    spared: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What a plan says of a question, as far as costs depend on it.

    Attributes:
        views: (patches, patches whose features are read) of each view, in the order of the encoder's passes.
        pixels: bytes of the images and frames that are looked at.
        marks: selected patches of each mark.
        corners: feature rows that each of those is made of, 1 or 4.
        local, global_: (members, feature rows) of the groups of marks that share a context view; Lite only.
        tokens: object tokens.
        scene: (patches, merge) of each whole image or frame that the LLM sees, each once; Full only.
        videos: frames of each video whose unchanged cells are dropped; Full only.
        prompts: (tokens, of which are in the cache already) of each prompt, in the order of their passes.
        answer: tokens of each answer.
    """

    views: tuple[tuple[int, int], ...]
    pixels: int
    marks: tuple[int, ...]
    corners: int
    local: tuple[tuple[int, int], ...]
    global_: tuple[tuple[int, int], ...]
    tokens: int
    scene: tuple[tuple[int, int], ...]
    videos: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]
    answer: int

    @property
    def patches(self) -> int:
        return sum(patches for patches, _ in self.views)

    @property
    def vision_tokens(self) -> int:
        """Before unchanged cells are dropped."""
        return sum(patches // merge**2 for patches, merge in self.scene)


@dataclass(frozen=True)
class Machine:
    """What the code depends on besides the sizes.

    Attributes:
        kind: "cuda" or "cpu".
        item: bytes of a number of the model.
        graphs: whether decode steps are captured, for numbers of slots that are powers of two.
    """

    kind: str
    item: int
    graphs: bool = False

    @property
    def kernels(self) -> bool:
        return self.kind == "cuda"

    def linear(self, what: str, rows: int, into: int, out: int, bias: bool = True, times: int = 1) -> Work:
        moved = self.item * (rows * into + into * out + rows * out + (out if bias else 0))
        return Work(what, 2 * rows * into * out, moved, times)

    def pointwise(self, what: str, numbers: int, passes: float, launches: int = 1, times: int = 1) -> Work:
        """An operation that reads or writes so many `numbers` `passes` times over all."""
        return Work(what, 0, int(self.item * numbers * passes), times, launches)


def repeated(work: Work, times: int) -> Work:
    return replace(work, times=work.times * times)


def alike(parts: Iterable[list[tuple[int, int]]]) -> Iterator[tuple[tuple[tuple[int, int], ...], int]]:
    """Passes over the same sizes, and how many there are."""
    yield from Counter(tuple(part) for part in parts).items()
