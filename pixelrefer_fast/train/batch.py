"""Samples -> one packed batch: ragged patches, ragged text, nothing padded. All of it in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.decoding.prompt import Prompt, build_prompt, continue_prompt
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.encoding.projector import kept_cells
from pixelrefer_fast.planning.merge import Joint, join
from pixelrefer_fast.planning.request import Request
from pixelrefer_fast.planning.selection import Selection, select_patches

IGNORED = -100  # label of a token that is not learnt


@dataclass(frozen=True)
class Sample:
    """One conversation about one request's objects.

    Attributes:
        request: its image or video and objects; samples with one and the same Request object have it encoded once.
        turns: (question, answer); the questions' `<region>` tags, all turns together, name the objects in order.
    """

    request: Request
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PackedBatch:
    """What a step computes on: one encoder pass, one object-token pass and one packed text for all its samples.

    Samples of one scene of the full model share its vision tokens: that prefix stands in the text once, as a sequence
    of its own, and `keys` lets every sample's queries attend to it.

    Attributes:
        patches: (P, 588) float32 of all views.
        grids: (rows, columns, merge) of each view.
        selection: of all marks.
        starts: (M, n) first centroids.
        scene_rows: Full: (rows of a view among the features, merge) of each whole image or frame, in order.
        kept: (Z,) int64, Full: the scenes' vision tokens that are kept.
        input_ids: (L,) int64, 0 where something else than text stands.
        position_ids: (L,) int64.
        slots: (S,) int64 places in the text of object and vision tokens.
        rows: (S,) int64 which of them: rows of the object tokens followed by the kept vision tokens.
        cu_queries, cu_keys: (sequences + 1,) int32 of the text and of `keys`.
        keys: (K,) int64 rows of the text that each sequence attends to, or None where it is itself.
        longest_query, longest_key: of a sequence.
        learnt: (A,) int64 places whose next token is learnt.
        targets: (A,) int64 those tokens.
    """

    patches: torch.Tensor
    grids: list[tuple[int, int, int]]
    selection: Selection
    starts: torch.Tensor
    scene_rows: list[tuple[int, int, int]]
    kept: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    slots: torch.Tensor
    rows: torch.Tensor
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    keys: torch.Tensor | None
    longest_query: int
    longest_key: int
    learnt: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved |= {name: value.to(device) for name, value in moved.items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved | {"selection": self.selection.to(torch.device(device))})


@dataclass(frozen=True)
class Text:
    """One sample's tokens, dropped vision tokens left out."""

    ids: torch.Tensor  # (l,)
    source: torch.Tensor  # (l,) row of an object token, ~row of a kept vision token's, or NO_ROW for text
    labels: torch.Tensor  # (l,) the token itself where it is learnt, else IGNORED
    prefix: int  # leading tokens that all samples of the scene share


NO_ROW = torch.iinfo(torch.int64).max


def collate(
    items: Sequence[Sequence[Sample]], config: ModelConfig, tokenizer: Any, kmeans_seed: int | None = None
) -> dict[str, Any]:
    """Pack samples into one batch.

    Args:
        items: lists of samples; those of a list are about one image or video.
        config, tokenizer: the model's.
        kmeans_seed: draw the first centroids at random; None: evenly spaced, as at inference.

    Returns:
        "batch", a PackedBatch, and "labels", (A,) int64: its targets, which the Trainer counts.

    Raises:
        ValueError: a sample that cannot be planned or written, with what was expected and given.
    """
    samples = [sample for item in items for sample in item]
    requests = list({id(s.request): s.request for s in samples}.values())
    place = {id(request): i for i, request in enumerate(requests)}
    joint = join(config, requests)
    selection = select_patches(joint.plan)
    starts = torch.cat(
        [
            kmeans_starts(selection.counts[p.marks.start : p.marks.stop], config.mask_num, None, kmeans_seed)
            for p in joint.parts
        ]
    )
    patches = pack_patches(joint.plan, joint.source)
    scenes, views = _scenes(joint, requests, patches)
    counts = [mark.tokens for mark in joint.plan.marks]
    first_token = [0, *accumulate(counts)]
    texts = []
    for sample in samples:
        number = place[id(sample.request)]
        marks = joint.parts[number].marks
        texts.append(
            write_text(sample, tokenizer, counts[marks.start : marks.stop], first_token[marks.start], scenes, number)
        )
    packed = pack_texts(texts, [scenes.of[place[id(s.request)]] for s in samples], first_token[-1])
    batch = PackedBatch(
        patches=patches,
        grids=joint.plan.grids,
        selection=selection,
        starts=starts,
        scene_rows=[(selection.first_rows[v], selection.first_rows[v + 1], joint.plan.views[v].merge) for v in views],
        kept=torch.cat(list(scenes.kept)).nonzero().flatten() if views else torch.zeros(0, dtype=torch.int64),
        **packed,
    )
    return {"batch": batch, "labels": batch.targets}


@dataclass(frozen=True)
class Scenes:
    """Full: the whole images and frames of a batch.

    Attributes:
        of: of each request the number of its scene, None in Lite.
        counts: of each scene the vision tokens of its frames.
        kept: (Z,) bool, which of them are kept.
        times: seconds of its frames, None for images.
    """

    of: Sequence[int | None]
    counts: Sequence[tuple[int, ...]]
    kept: Sequence[torch.Tensor]
    times: Sequence[tuple[float, ...] | None]

    @property
    def first(self) -> list[int]:
        """First row of each scene among the kept vision tokens."""
        return [0, *accumulate(int(kept.sum()) for kept in self.kept)][:-1]


def _scenes(joint: Joint, requests: Sequence[Request], patches: torch.Tensor) -> tuple[Scenes, list[int]]:
    """Each request's scene, equal ones as one, and the views that they are."""
    keys = {part.scene: i for i, part in reversed(list(enumerate(joint.parts))) if part.scene}
    distinct = list(dict.fromkeys(part.scene for part in joint.parts if part.scene))
    counts: list[tuple[int, ...]] = []
    all_kept: list[torch.Tensor] = []
    all_times: list[tuple[float, ...] | None] = []
    first_rows = joint.plan.first_rows
    for scene in distinct:
        request = requests[keys[scene]]
        times, merge = request.source.times, joint.plan.views[scene[0]].merge
        all_times.append(None if times is None else tuple(times[f] for f in request.scene))
        counts.append(tuple(joint.plan.views[v].patches // merge**2 for v in scene))
        kept = torch.ones(sum(counts[-1]), dtype=torch.bool)
        if merge > 1 and len(scene) > 1:
            kept = kept_cells([patches[first_rows[v] : first_rows[v + 1]] for v in scene], merge)
        all_kept.append(kept)
    of = [distinct.index(part.scene) if part.scene else None for part in joint.parts]
    return Scenes(of, counts, all_kept, all_times), [v for scene in distinct for v in scene]


def write_text(
    sample: Sample, tokenizer: Any, counts: Sequence[int], first_token: int, scenes: Scenes, number: int
) -> Text:
    """Tokens of a whole conversation.

    Args:
        sample: what is said.
        tokenizer: the model's.
        counts: object tokens of each mark of its request.
        first_token: row of their first.
        scenes, number: the batch's scenes, and the number of its request.

    Raises:
        ValueError: a conversation that cannot be written.
    """
    objects = sample.request.object_tokens(counts)
    scene = scenes.of[number]
    ids: list[torch.Tensor] = []
    source: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    keep: list[torch.Tensor] = []
    token, named, prefix = first_token, 0, 0
    for turn, (question, answer) in enumerate(sample.turns):
        last = turn == len(sample.turns) - 1
        # the last question takes whatever objects are left, so that a missing tag is told
        tags = len(objects) - named if last else question.count("<region>")
        own = objects[named : named + tags]
        named += tags
        if turn:
            prompt = continue_prompt(tokenizer, question, own)
        else:
            counted = None if scene is None else scenes.counts[scene]
            prompt = build_prompt(tokenizer, question, own, counted, None if scene is None else scenes.times[scene])
        rows, kept = _sources(prompt, token, scenes, scene if turn == 0 else None)
        token += len(prompt.region_slots)
        if turn == 0 and len(prompt.image_slots):
            prefix = int(kept[: int(prompt.image_slots[-1]) + 1].sum())
        ids.append(prompt.input_ids)
        source.append(rows)
        keep.append(kept)
        labels.append(torch.full_like(prompt.input_ids, IGNORED))
        said = torch.tensor([*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
        ids.append(said)
        source.append(torch.full_like(said, NO_ROW))
        keep.append(torch.ones(len(said), dtype=torch.bool))
        labels.append(said)
    kept = torch.cat(keep)
    return Text(torch.cat(ids)[kept], torch.cat(source)[kept], torch.cat(labels)[kept], prefix)


def _sources(prompt: Prompt, token: int, scenes: Scenes, scene: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands at each place of a prompt (as `Text.source`), and which places are kept."""
    rows = torch.full_like(prompt.input_ids, NO_ROW)
    rows[prompt.region_slots] = torch.arange(token, token + len(prompt.region_slots))
    kept = torch.ones(len(rows), dtype=torch.bool)
    if scene is not None:
        own = scenes.kept[scene]
        rows[prompt.image_slots] = ~(scenes.first[scene] + own.cumsum(0) - 1)
        kept[prompt.image_slots] = own
    return rows, kept


def pack_texts(texts: Sequence[Text], scenes: Sequence[int | None], object_tokens: int) -> dict[str, Any]:
    """Text of all samples, one sequence after the other; a scene's prefix before the first sample that has it.

    Args:
        texts: of the samples.
        scenes: of each sample the number of its scene, None in Lite.
        object_tokens: of the batch.

    Returns:
        `PackedBatch`'s tensors from `input_ids` on, by name.
    """
    ids: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    length = 0
    prefixes: dict[int, range] = {}

    def add(text: Text, start: int, stop: int, before: range) -> range:
        nonlocal length
        own = range(length, length + stop - start)
        ids.append(text.ids[start:stop])
        sources.append(text.source[start:stop])
        labels.append(text.labels[start:stop])
        positions.append(torch.arange(len(before), len(before) + len(own)))
        keys.append(torch.cat([torch.arange(before.start, before.stop), torch.arange(own.start, own.stop)]))
        length = own.stop
        return own

    for text, scene in zip(texts, scenes, strict=True):
        before = range(0)
        if scene is not None and text.prefix:
            if scene not in prefixes:
                prefixes[scene] = add(text, 0, text.prefix, before)
            before = prefixes[scene]
        add(text, len(before), len(text.ids), before)

    def offsets(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(map(len, parts))], dtype=torch.int32)

    all_ids, source, label = torch.cat(ids), torch.cat(sources), torch.cat(labels)
    slots = (source != NO_ROW).nonzero().flatten()
    rows = source[slots]
    learnt = (label != IGNORED).nonzero().flatten()
    all_ids_or_text = all_ids.clone()
    all_ids_or_text[slots] = 0  # placeholders may lie beyond the embedding table
    return {
        "input_ids": all_ids_or_text,
        "position_ids": torch.cat(positions),
        "slots": slots,
        "rows": torch.where(rows < 0, object_tokens + ~rows, rows),
        "cu_queries": offsets(ids),
        "cu_keys": offsets(keys),
        "keys": torch.cat(keys) if prefixes else None,
        "longest_query": max(map(len, ids)),
        "longest_key": max(map(len, keys)),
        "learnt": learnt - 1,  # a token is predicted where the one before it stands
        "targets": label[learnt],
    }
