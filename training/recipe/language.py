"""The language model's own pretraining: questions about scenes whose objects it is told in symbols.

Released models begin with a pretrained language model; one made from scratch begins here. Each object's tokens, and in
the full model each vision token, are a linear map of what is true there (`symbols.py`), so that thousands of questions
a minute can be asked, and the steps to their answers are told as well (`guidance.py`). `alignment.py` then teaches the
vision side to give such tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.request import Request
from pixelrefer_fast.train.batch import Sample, Scenes, pack_texts, write_text
from pixelrefer_fast.train.llm_attention import pack
from pixelrefer_fast.train.module import read_text
from pixelrefer_fast.train.processes import processes, wait
from pixelrefer_fast.train.scenes import SceneShare, WorldSource, scene_samples
from pixelrefer_fast.world import Question, Scene
from recipe.guidance import Guidance, Guide, Told, guide
from recipe.pretraining import EndlessBatches, each_once, run_pretraining
from recipe.symbols import (
    CELL_FACTS,
    CELL_PLACE,
    COUNT_FACTS,
    LOOKS,
    NEIGHBOUR_LOOKS,
    OBJECT_FACTS,
    OBJECT_PLACE,
    cell_symbols,
    object_symbols,
    shown_objects,
)

LANGUAGE = "language.safetensors"
PATCH = 196  # pixels
NOISE = 0.1  # standard deviation of what is added to every fact of every token
BLUR = 0.5  # of the place, as a share of the object's length: its tokens stand for its parts
PLACE_GAIN = 6.0  # of places and lengths: at the scale of the other facts they take long to be compared
STATIC = 0.5  # of the videos have no noise of their own, so that unchanged cells are dropped


@dataclass(frozen=True)
class LanguageBatch:
    """Questions, with symbols in place of what is seen.

    Attributes:
        objects: (T, OBJECT_FACTS) float32 of each object token.
        cells: (Z, CELL_FACTS) float32 of each kept vision token.
        text: `PackedBatch`'s tensors from `input_ids` on.
        kinds: (A,) int64, of each learnt token the number of its question's category.
        guidance: what is found out on the way.
    """

    objects: torch.Tensor
    cells: torch.Tensor
    text: dict[str, Any]
    kinds: torch.Tensor
    guidance: Guidance


class Symbols(nn.Module):
    """What is true of an object or a cell -> a token of the language model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.object_embed = nn.Linear(OBJECT_FACTS, width)
        self.cell_embed = nn.Linear(CELL_FACTS, width)
        for linear, places in ((self.object_embed, OBJECT_PLACE), (self.cell_embed, CELL_PLACE)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            with torch.no_grad():
                linear.weight[:, places] *= PLACE_GAIN

    def name(self, embedding: nn.Embedding, tokenizer: Any) -> None:
        """Tell every look as the embedding of its word: to name a look and to match it with a word is then the same for
        all looks. A neighbour's looks and how many are alike are told as loud, but in vectors of their own: a
        neighbour's words would be taken for the object's, and numbers that are told quietly fall together."""

        def words(some: Sequence[str]) -> torch.Tensor:
            ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in some]
            return torch.stack([embedding.weight[own].mean(0) for own in ids], 1)

        with torch.no_grad():
            named = torch.cat([words(looks) for looks in LOOKS], 1)
            for linear in (self.object_embed, self.cell_embed):
                linear.weight[:, : named.shape[1]] = named
                nn.init.normal_(linear.weight[:, COUNT_FACTS], std=float(named.std()))
            for color, shape in NEIGHBOUR_LOOKS:
                for first, looks in ((color, LOOKS[0]), (shape, LOOKS[1])):
                    nn.init.normal_(self.object_embed.weight[:, first : first + len(looks)], std=float(named.std()))


class LanguageModel(nn.Module):
    """A language model that is told in symbols what is marked and seen."""

    def __init__(self, llm: Any, categories: int) -> None:
        super().__init__()
        self.llm = llm
        self.symbols = Symbols(llm.config.hidden_size)
        self.guide = Guide(llm.config)
        self.categories = categories
        pack(llm)

    def forward(self, batch: LanguageBatch) -> dict[str, torch.Tensor]:
        """{"loss": mean cross-entropy of the answers' tokens and what the guide adds, "accuracy": (categories,) of
        those tokens}."""
        text = batch.text
        tokens = torch.cat([self.symbols.object_embed(batch.objects), self.symbols.cell_embed(batch.cells)])
        read = read_text(self.llm, tokens, text, every_layer=True)
        logits = self.llm.lm_head(read.last_hidden_state[0, text["learnt"]]).float()
        right = (logits.detach().argmax(1) == text["targets"]).float()
        kinds = F.one_hot(batch.kinds, self.categories).float()
        accuracy = right @ kinds / kinds.sum(0).clamp(min=1)
        guided = self.guide(self.llm, read.hidden_states, text, batch.guidance)
        return {"loss": F.cross_entropy(logits, text["targets"]) + guided, "accuracy": accuracy}


class LanguageData(EndlessBatches):
    """Batches of questions.

    Args:
        config, tokenizer: the model's.
        lessons: each with its first step, from 0 on, and the parts of its batches. What a small model
            learns late among other questions, to compare two objects, it learns soon by itself.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Any, lessons: Sequence[tuple[int, Sequence[SceneShare]]]
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.lessons = [
            (first, [(part, WorldSource(part.world, config.kind, config.mask_num)) for part in parts])
            for first, parts in lessons
        ]

    def make(self, number: int) -> dict[str, LanguageBatch]:
        asked = []
        step = number // processes()
        for part, source in [parts for first, parts in self.lessons if first <= step][-1]:
            for i in range(part.scenes):
                asked.append(source.asked(number * part.scenes + i))
        return {"batch": language_batch(asked, self.config, self.tokenizer, number)}


def language_batch(
    asked: Sequence[tuple[Scene, Sequence[Question]]], config: ModelConfig, tokenizer: Any, seed: int
) -> LanguageBatch:
    """Pack questions about scenes; `seed` draws the noise on what is told."""
    from pixelrefer_fast.world import CATEGORIES

    rng = np.random.default_rng(seed)
    full = config.kind == "full"
    samples: list[Sample] = []
    kinds: list[int] = []
    requests: dict[int, tuple[Request, int, tuple[int, ...]]] = {}  # with the scene's number and the objects
    counts: list[tuple[int, ...]] = []
    kept, times, cells, shown = [], [], [], []
    for number, (scene, questions) in enumerate(asked):
        own = scene_samples(scene, questions, config.kind)
        for sample, question in zip(own, questions, strict=True):
            requests.setdefault(id(sample.request), (sample.request, number, question.objects))
            kinds.append(CATEGORIES.index(question.category))
        samples += own
        if full and own:
            grids = scene_grids(config, own[0].request)
            counts.append(tuple(rows * columns for rows, columns in grids))
            times.append(scene.times)
            kept.append(_kept(scene, *grids[0], everything=not scene.video or rng.random() > STATIC))
            showing = [shown_objects(scene.masks[:, f], *grid) for f, grid in enumerate(grids)]
            cells.append(np.concatenate([cell_symbols(scene, f, own) for f, own in enumerate(showing)])[kept[-1]])
            frame_of = np.repeat(np.arange(len(showing)), [own.size for own in showing])
            shown.append(np.stack([frame_of, np.concatenate([own.reshape(-1) for own in showing])])[:, kept[-1]])
        elif full:
            counts.append(())
            times.append(None)
            kept.append(torch.zeros(0, dtype=torch.bool))
            shown.append(np.zeros((2, 0), np.int64))
    place = {key: i for i, key in enumerate(requests)}
    of = [number if full else None for _, number, _ in requests.values()]
    scenes = Scenes(of, counts, kept, times)

    objects: list[np.ndarray] = []
    spans: list[tuple[int, list[int]]] = []  # first token and tokens of each mark, by request
    marks: list[list[tuple[int, int, int]]] = []
    for request, number, marked in requests.values():
        scene = asked[number][0]
        own_counts, own_marks = [], []
        first = sum(map(len, objects))
        for i, frames in zip(marked, request.frames, strict=True):
            for frame in frames:
                area = int(scene.facts.areas[i, frame])
                tokens = min(config.mask_num, max(1, area // PATCH)) if full else config.mask_num
                objects.append(_tokens(scene, i, frame, tokens, not full, rng))
                own_counts.append(tokens)
                own_marks.append((i, frame, tokens))
        spans.append((first, own_counts))
        marks.append(own_marks)
    texts = []
    for sample in samples:
        number = place[id(sample.request)]
        first, own_counts = spans[number]
        texts.append(write_text(sample, tokenizer, own_counts, first, scenes, number))
    told = torch.from_numpy(np.concatenate(objects))
    seen = np.concatenate(cells) if cells else np.zeros((0, CELL_FACTS), np.float32)
    seen = seen + NOISE * rng.standard_normal(seen.shape, dtype=np.float32)
    learnt = [int((text.labels >= 0).sum()) for text in texts]
    packed = pack_texts(texts, [of[place[id(s.request)]] for s in samples], len(told))
    of_scene = [
        np.stack([len(told) + first + np.arange(own.shape[1]), *own], 1)
        for first, own in zip(scenes.first, shown, strict=True)
    ]
    numbers = [place[id(sample.request)] for sample in samples]
    every = [(scene, question) for scene, questions in asked for question in questions]
    steps = [Told(*one, marks[number], count) for one, number, count in zip(every, numbers, learnt, strict=True)]
    shows = [None if (seen_in := of[n]) is None else of_scene[seen_in] for n in numbers]
    guidance = guide(steps, packed, len(told), shows)
    categories = torch.tensor(kinds).repeat_interleave(torch.tensor(learnt))
    return LanguageBatch(told, torch.from_numpy(seen), packed, categories, guidance)


def scene_grids(config: ModelConfig, request: Request) -> list[tuple[int, int]]:
    """Full: rows and columns of the vision tokens of each whole image or frame."""
    plan = plan_request(config, request.single(0))
    views = [plan.views[i] for i in plan.scene]
    return [(view.grid[0] // view.merge, view.grid[1] // view.merge) for view in views]


def _tokens(scene: Scene, i: int, frame: int, tokens: int, alike: bool, rng: np.random.Generator) -> np.ndarray:
    """(tokens, OBJECT_FACTS) of one mark: the same facts with noise, each at a place of its own within the object."""
    table = np.repeat(object_symbols(scene, i, frame, alike)[None], tokens, axis=0)
    table += NOISE * rng.standard_normal(table.shape, dtype=np.float32)
    height, width = scene.size
    reach = 2 * BLUR * float(scene.facts.across[i, frame]) / np.array([width, height])
    place = slice(OBJECT_PLACE.start, OBJECT_PLACE.start + 2)
    moved = rng.uniform(-0.5, 0.5, (tokens, 2)) * reach
    table[:, place] += (moved - moved.mean(0)).astype(np.float32)
    return table


def _kept(scene: Scene, rows: int, columns: int, everything: bool) -> torch.Tensor:
    """(cells of all frames,) bool: which cells are not dropped as unchanged."""
    frames = len(scene.frames)
    kept = np.ones((frames, rows * columns), bool)
    if not everything:
        owner = (scene.masks * np.arange(1, len(scene.masks) + 1)[:, None, None, None]).sum(0).astype(np.float32)
        for f in range(1, frames):
            changed = (owner[f] != owner[f - 1]).astype(np.float32)
            kept[f] = cv2.resize(changed, (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1) > 0
            kept[f, 0] |= not kept[f].any()
    return torch.from_numpy(kept.reshape(-1))


def pretrain_language(
    model: Any,
    lessons: Sequence[tuple[int, Sequence[SceneShare]]],
    folder: Path,
    steps: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
    start: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train a fresh model's language model on symbols and write its weights and the symbols'.

    Args:
        model: PixelRefer or PixelReferLite; its language model is trained in place.
        lessons: as in `LanguageData`.
        folder: for checkpoints, the log and the result.
        steps, learning_rate, seed, resume: as in `run_pretraining`.
        start: result of an earlier pretraining to go on from.

    Returns:
        The file of the weights, float32: keys `llm.*` and `symbols.*`.
    """
    from pixelrefer_fast.world import CATEGORIES

    torch.manual_seed(seed)
    learner = LanguageModel(model.network.llm.requires_grad_(True), len(CATEGORIES))
    learner.symbols.name(model.network.llm.get_input_embeddings(), model.tokenizer)
    if start is not None:
        learner.load_state_dict(load_file(start), strict=False)  # a tied head is in the file once
    data = LanguageData(model.config, model.tokenizer, lessons)
    if run_pretraining(learner, data, CATEGORIES, folder, steps, learning_rate, seed, resume, schedule="late"):
        save_file(each_once(learner.state_dict()), folder / LANGUAGE)
    wait()
    return folder / LANGUAGE


def load_language(model: Any, path: Path) -> Symbols:
    """Give a model the language model that `pretrain_language` wrote; the symbols that it was told in."""
    weights = load_file(path)
    llm = {k.removeprefix("llm."): v for k, v in weights.items() if k.startswith("llm.")}
    missing = model.network.llm.load_state_dict(llm, strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{path}: expected the weights of this model's language model, it lacks {missing[:3]}")
    symbols = Symbols(model.network.llm.config.hidden_size)
    symbols.load_state_dict({k.removeprefix("symbols."): v for k, v in weights.items() if k.startswith("symbols.")})
    return symbols
