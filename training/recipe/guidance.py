"""What a language model finds out on its way to an answer, told to its middle layers.

From answers alone a small model learns very late which of several objects is meant: "the second" depends on the word
that is asked for, on every object's looks and on their order, and no two of these three say anything by themselves.
Each step is easy where it is learnt as such. Linear heads on a middle layer tell what has to be known there, and some
attention heads are shown where to look. Both belong to the pretraining from symbols (`language.py`) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from pixelrefer_fast.world import Question, Scene
from pixelrefer_fast.world.motion import MOTIONS
from pixelrefer_fast.world.questions import ORDINALS
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES

UNKNOWN = -100
FEWEST = 8  # tokens of a batch from which a hint counts fully
LAYERS = 2  # that have been passed where the hints are read
HINTS = {
    # of each token of an object
    "number": len(ORDINALS),  # among the objects of its question
    # of an object's last token: how it compares with the object before, and what it does
    "same_color": 2,
    "same_shape": 2,
    "same_pattern": 2,
    "right": 2,
    "below": 2,
    "larger": 2,
    "motion": len(MOTIONS),
    # where the answer is given: what it has to fit
    "asked_color": len(COLORS),
    "asked_shape": len(SHAPES),
    "asked_pattern": len(PATTERNS),
    "asked_motion": len(MOTIONS),
}
_NAMES = list(HINTS)
COMPARED = slice(_NAMES.index("same_color"), _NAMES.index("asked_color"))
FITTING = slice(COMPARED.stop, len(_NAMES))
ASKED = {
    "by look": ("asked_color", "asked_shape"),
    "by color": ("asked_color",),
    "by shape": ("asked_shape",),
    "by pattern": ("asked_pattern",),
    "by motion": ("asked_motion",),
}
# layer and head of what looks at something: an answer at the object that is meant; an object at the one before it, and
# at where it is seen in the first frame (Full: among the vision tokens) and in the last
POINTERS = {"meant": (2, 0), "before": (1, 2), "first": (1, 3), "last": (1, 4)}


@dataclass(frozen=True)
class Told:
    """A question as it was written.

    Attributes:
        scene, question: of the world.
        marks: of each mark of its request the object's number in the scene, the frame and the object tokens.
        learnt: tokens of its answer, its end included.
    """

    scene: Scene
    question: Question
    marks: Sequence[tuple[int, int, int]]
    learnt: int


@dataclass(frozen=True)
class Pointing:
    """What one attention head should look at.

    Attributes:
        queries: (P,) int64 places in the text.
        keys: (P, L) int64 places that each may look at, -1 beyond the last.
        wanted: (P, L) bool, those it should.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    wanted: torch.Tensor


@dataclass(frozen=True)
class Guidance:
    """Of a batch.

    Attributes:
        places: (H,) int64 places in the text.
        labels: (H, len(HINTS)) int64, UNKNOWN where there is nothing to tell.
        pointing: by name of POINTERS.
    """

    places: torch.Tensor
    labels: torch.Tensor
    pointing: dict[str, Pointing]


def guide(
    told: Sequence[Told], text: dict[str, Any], object_tokens: int, cells: Sequence[np.ndarray | None]
) -> Guidance:
    """Hints and pointers of a batch.

    Args:
        told: its questions, in the order of the text.
        text: `PackedBatch`'s fields from `input_ids` on, by name.
        object_tokens: rows of object tokens, which come before those of the vision tokens.
        cells: Full: of each question (cells, 3) int64 row, frame and object (-1: none) of its kept vision tokens.
    """
    slots, rows = text["slots"].numpy(), text["rows"].numpy()
    of_objects = slots[rows < object_tokens]
    place = np.zeros(rows.max(initial=0) + 1, np.int64)  # in the text of a vision token
    place[rows] = slots
    learnt, starts, cu_keys = (text[name].numpy() for name in ("learnt", "cu_queries", "cu_keys"))
    keys = np.arange(cu_keys[-1]) if text["keys"] is None else text["keys"].numpy()
    places: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    found: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {name: [] for name in POINTERS}
    at = 0
    for one, seen in zip(told, cells, strict=True):
        answer = int(learnt[at + one.learnt - 2])  # here the last word of the answer is said next
        at += one.learnt
        sequence = int(np.searchsorted(starts, answer, "right")) - 1
        own = of_objects[(of_objects >= starts[sequence]) & (of_objects < starts[sequence + 1])]
        looked = keys[cu_keys[sequence] : cu_keys[sequence + 1]]

        def point(name: str, query: int, wanted: np.ndarray, looked: np.ndarray = looked) -> None:
            before = looked[looked <= query]
            hit = np.isin(before, wanted)
            if hit.any():
                found[name].append((query, before, hit))

        ends = np.cumsum([count for _, _, count in one.marks])
        spans = np.split(own, ends[:-1])
        objects = one.question.objects
        tokens = [np.concatenate([s for s, m in zip(spans, one.marks, strict=True) if m[0] == i]) for i in objects]
        for number, (i, mine) in enumerate(zip(objects, tokens, strict=True)):
            table = np.full((len(mine), len(HINTS)), UNKNOWN, np.int64)
            table[:, 0] = number
            table[-1, COMPARED] = _of_object(one.scene, i, objects[number - 1] if number else None)
            places.append(mine)
            labels.append(table)
            last = int(mine[-1])
            if number:
                point("before", last, tokens[number - 1])
            if seen is not None:
                shown = seen[seen[:, 2] == i]
                for name, pick in (("first", np.min), ("last", np.max)):
                    if len(shown) and (name == "first" or one.scene.video):
                        point(name, last, place[shown[shown[:, 1] == pick(shown[:, 1]), 0]])
            elif one.scene.video:
                point("first", last, next(s for s, m in zip(spans, one.marks, strict=True) if m[0] == i))
        if one.question.answer in ORDINALS:
            meant = ORDINALS.index(one.question.answer)
            point("meant", answer, tokens[meant])
            if one.question.kind in ASKED:
                table = np.full((1, len(HINTS)), UNKNOWN, np.int64)
                table[0, FITTING] = _asked(one.scene, objects[meant], ASKED[one.question.kind])
                places.append(np.array([answer]))
                labels.append(table)
    return Guidance(
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(labels)),
        {name: _padded(some) for name, some in found.items() if some},
    )


def _of_object(scene: Scene, i: int, before: int | None) -> list[int]:
    motion = UNKNOWN if scene.motions is None else MOTIONS.index(scene.motions[i])
    if before is None:
        return [UNKNOWN] * 6 + [motion]
    one, other = scene.things[i], scene.things[before]
    facts = scene.facts
    right, below = (facts.centres[i] - facts.centres[before]).T
    same = [one.color == other.color, one.shape == other.shape, one.pattern == other.pattern]
    compared = [_always(right), _always(below), _always(facts.across[i] - facts.across[before])]
    return [*map(int, same), *compared, motion]


def _always(difference: np.ndarray) -> int:
    return 1 if (difference > 0).all() else 0 if (difference < 0).all() else UNKNOWN


def _asked(scene: Scene, i: int, names: Sequence[str]) -> list[int]:
    thing = scene.things[i]
    known = {
        "asked_color": list(COLORS).index(thing.color),
        "asked_shape": SHAPES.index(thing.shape),
        "asked_pattern": PATTERNS.index(thing.pattern),
        "asked_motion": UNKNOWN if scene.motions is None else MOTIONS.index(scene.motions[i]),
    }
    return [value if name in names else UNKNOWN for name, value in known.items()]


def _padded(some: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Pointing:
    queries, keys, wanted = zip(*some, strict=True)
    return Pointing(
        torch.tensor(queries),
        pad_sequence([torch.from_numpy(k) for k in keys], batch_first=True, padding_value=-1),
        pad_sequence([torch.from_numpy(w) for w in wanted], batch_first=True, padding_value=False),
    )


class Guide(nn.Module):
    """The heads of the hints, and the losses.

    Args:
        config: of a Qwen2 of transformers.

    Raises:
        ValueError: it has too few layers or heads to be guided.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        layers, heads = (max(number) + 1 for number in zip(*POINTERS.values(), strict=True))
        if config.num_hidden_layers < layers or config.num_attention_heads < heads:
            raise ValueError(
                f"language model: expected at least {layers} layers of {heads} heads, which guidance speaks to, "
                f"got {config.num_hidden_layers} of {config.num_attention_heads}"
            )
        self.heads = nn.Linear(config.hidden_size, sum(HINTS.values()))

    def forward(self, llm: Any, hidden: Sequence[torch.Tensor], text: dict[str, Any], guidance: Guidance) -> Any:
        """What the middle of a model does not know and where its heads do not look, as one loss.

        Args:
            llm: of transformers, a Qwen2.
            hidden: (1, L, C) of its embeddings and of every layer.
            text: as in `guide`.
            guidance: of the batch.
        """
        with torch.autocast(hidden[0].device.type, enabled=False):
            logits = self.heads(hidden[LAYERS][0, guidance.places].float())
            losses = []
            for own, labels in zip(logits.split(list(HINTS.values()), 1), guidance.labels.unbind(1), strict=True):
                summed = F.cross_entropy(own, labels, ignore_index=UNKNOWN, reduction="sum")
                losses.append(summed / (labels != UNKNOWN).sum().clamp(min=FEWEST))
            for name, pointing in guidance.pointing.items():
                losses.append(_looks_elsewhere(llm.model, hidden, text["position_ids"], pointing, *POINTERS[name]))
        return torch.stack(losses).sum()


def _looks_elsewhere(
    model: Any, hidden: Sequence[torch.Tensor], positions: torch.Tensor, pointing: Pointing, layer: int, head: int
) -> torch.Tensor:
    """Minus the logarithm of a head's attention to what is wanted, mean over the queries."""
    block = model.layers[layer]
    attention = block.self_attn
    size = attention.head_dim
    normed = block.input_layernorm(hidden[layer][0].float())
    cos, sin = (x[0] for x in model.rotary_emb(normed[None], positions[None]))

    def projected(linear: nn.Linear, number: int) -> torch.Tensor:
        part = slice(number * size, (number + 1) * size)
        x = F.linear(normed, linear.weight[part], linear.bias[part])
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    query = projected(attention.q_proj, head)[pointing.queries]
    key = projected(attention.k_proj, head // attention.num_key_value_groups)[pointing.keys.clamp(min=0)]
    scores = torch.einsum("pd,pld->pl", query, key) / size**0.5
    scores = scores.masked_fill(pointing.keys < 0, -torch.inf).log_softmax(1)
    return -scores.masked_fill(~pointing.wanted, -torch.inf).logsumexp(1).mean()
