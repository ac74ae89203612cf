"""Scenes of the synthetic world as training samples and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixelrefer_fast.media import Video
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.regions import Region
from pixelrefer_fast.train.batch import Sample
from pixelrefer_fast.train.config import World
from pixelrefer_fast.train.malformed import Malformed
from pixelrefer_fast.world.marked import scene_media, scene_region

if TYPE_CHECKING:
    from pixelrefer_fast.world.questions import Question
    from pixelrefer_fast.world.scene import Scene

QUESTION_TOKENS = 40  # of a question with its answer, about
ALL_QUESTIONS = 20  # that there are about a scene, about


@dataclass(frozen=True)
class SceneShare:
    """A part of a pretraining's batches.

    Attributes:
        world: the world to draw from.
        scenes: number of its scenes in a batch.
    """

    world: World
    scenes: int


def scene_samples(
    scene: Scene, questions: Sequence[Question], kind: str, fps: float | None = 1.0, max_frames: int = 768
) -> list[Sample]:
    """One sample per question; samples about the same objects share a request, and all share the frames."""
    media = scene_media(scene)
    source = FrameSource.of(media)
    whole: Sequence[int] = ()
    if kind == "full":
        whole = media.sample(fps, max_frames) if isinstance(media, Video) else [0]
    regions: dict[int, Region] = {}
    requests: dict[tuple[int, ...], Request] = {}
    for objects in {question.objects: None for question in questions}:
        for i in objects:
            if i not in regions:
                regions[i] = scene_region(scene, i, kind)
        own = [regions[i] for i in objects]
        requests[objects] = Request(source, own, [r.frames or (0,) for r in own], whole)
    return [Sample(requests[q.objects], ((q.text, q.answer),)) for q in questions]


class WorldSource:
    """Scenes of the world by number, each with a few questions; the same for the same config."""

    def __init__(self, world: World, kind: str, mask_num: int) -> None:
        self._world, self._kind = world, kind
        # two of three questions are about one object, a third of the scenes are videos of about five frames
        marks = 2 if kind == "full" else 5
        cost = (world.questions or ALL_QUESTIONS) * (QUESTION_TOKENS + marks * mask_num) + (
            150 if kind == "full" else 0
        )
        self.costs = np.broadcast_to(np.int64(cost * world.rounds), (world.scenes,))  # one number, however many scenes

    def __getitem__(self, index: int) -> list[Sample]:
        scene, questions = self.asked(index)
        return scene_samples(scene, questions, self._kind, self._world.fps, self._world.max_frames)

    def asked(self, index: int) -> tuple[Scene, list[Question]]:
        """Scene and questions of an item."""
        from pixelrefer_fast.world import ask_about

        world, scene = self._world, self.scene(index)
        seed = world.first_seed + index
        rounds = [ask_about(scene, seed + turn, world.categories, world.questions) for turn in range(world.rounds)]
        return scene, list({(q.text, q.objects): q for questions in rounds for q in questions}.values())

    def scene(self, index: int) -> Scene:
        """Scene of an item."""
        from pixelrefer_fast.world import make_scene

        return make_scene(self._world.first_seed + index, self._world.split, self._world.video)

    def malformed(self, index: int, reason: str) -> Malformed:
        return Malformed("world", self._world.first_seed + index, reason)
