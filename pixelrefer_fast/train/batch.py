"""Samples -> one packed batch: ragged patches and ragged text without padding, all in host memory."""

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
    """One conversation about the objects of one request.

    Attributes:
        request: its image or video and objects. Samples with the same Request object share one encoding of it.
        turns: (question, answer) pairs; the `<region>` tags of all questions together name the objects in order.
    """

    request: Request
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PackedBatch:
    """The inputs of one step: one encoder pass, one object-token pass and one packed text for all its samples.

    In the full model, samples of one scene share its vision tokens: that prefix is in the text once, as a sequence of
    its own, and `keys` lets the queries of every sample attend to it.

    Attributes:
        patches: (P, 588) float32, patches of all views.
        grids: (rows, columns, merge) of each view.
        selection: the selected features of all marks.
        starts: (M, n) first centroids.
        scene_rows: Full: for each whole image or frame, in order, (rows of its view among the features, merge).
        kept: (Z,) int64, Full: indices of the scenes' vision tokens that are kept.
        input_ids: (L,) int64, 0 where an object or vision token stands.
        position_ids: (L,) int64.
        slots: (S,) int64, places of object and vision tokens in the text.
        rows: (S,) int64, the token at each of these places: a row of the object tokens followed by the kept vision
            tokens.
        cu_queries, cu_keys: (sequences + 1,) int32, offsets of the sequences in the text and in `keys`.
        keys: (K,) int64, rows of the text that each sequence attends to; None if each attends to itself.
        longest_query, longest_key: length of the longest sequence.
        learnt: (A,) int64, places whose next token is learnt.
        targets: (A,) int64, these next tokens.
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
    """The tokens of one sample, without dropped vision tokens."""

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
        items: lists of samples; the samples of a list are about one image or video.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        kmeans_seed: draws the first centroids at random; None: evenly spaced, as at inference.

    Returns:
        "batch", a PackedBatch, and "labels", (A,) int64, its targets, which the Trainer counts.

    Raises:
        ValueError: a sample cannot be planned or written; the message says what was expected and what was given.
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
    """The whole images and frames of a batch; Full only.

    Attributes:
        of: for each request the number of its scene; None in Lite.
        counts: for each scene the vision tokens of its frames.
        kept: (Z,) bool, which of the vision tokens are kept.
        times: for each scene the seconds of its frames; None for an image.
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
    """The scene of each request, with equal scenes merged, and their views."""
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
    """Tokenize a whole conversation.

    Args:
        sample: the conversation.
        tokenizer: the model's tokenizer.
        counts: object tokens of each mark of the request.
        first_token: row of the first of them.
        scenes: the batch's scenes.
        number: number of the sample's request.

    Raises:
        ValueError: the conversation cannot be written.
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
    """The source of each place of a prompt (as in `Text.source`), and which places are kept."""
    rows = torch.full_like(prompt.input_ids, NO_ROW)
    rows[prompt.region_slots] = torch.arange(token, token + len(prompt.region_slots))
    kept = torch.ones(len(rows), dtype=torch.bool)
    if scene is not None:
        own = scenes.kept[scene]
        rows[prompt.image_slots] = ~(scenes.first[scene] + own.cumsum(0) - 1)
        kept[prompt.image_slots] = own
    return rows, kept


def pack_texts(texts: Sequence[Text], scenes: Sequence[int | None], object_tokens: int) -> dict[str, Any]:
    """Pack the texts of all samples, one sequence after the other; a scene's prefix comes before its first sample.

    Args:
        texts: the samples' texts.
        scenes: for each sample the number of its scene; None in Lite.
        object_tokens: object tokens of the batch.

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
