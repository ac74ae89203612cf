"""Requests of a batch -> encoded objects: each planned by itself, then all in one packed pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence

import torch

from pixelrefer_fast.batching.made_of import MadeOf
from pixelrefer_fast.decoding import Generation, PromptEmbeds, prefix_boundaries
from pixelrefer_fast.decoding.prefixes import declare
from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.encoding.vision import result_of
from pixelrefer_fast.network import Network
from pixelrefer_fast.planning.merge import merge
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import View, ViewPlan

SceneKey = tuple[int, tuple[int, ...]]  # the id of a source, and its frames
SCENES = 16  # whole images and videos of which a queue keeps the vision tokens


class Prepared:
    """One request, checked and planned; nothing of it is encoded yet.

    Args:
        question: with a tag for each object.
        generation: how to answer.
        objects: what is asked about, where it is encoded already.
        request: else the request, and
        plan: its own views,
        encode: how to encode.
        made_of: what tells the tokens by what they are made of, where their numbers cannot be read.

    Attributes:
        tokens: at most so many tokens of context, the question's counted by its characters.
        frames: of a video, decoded already, which are there for whoever reads it as long as they are kept here.
    """

    def __init__(
        self,
        question: str,
        generation: Generation,
        *,
        objects: Objects | None = None,
        request: Request | None = None,
        plan: ViewPlan | None = None,
        encode: EncodeOptions | None = None,
        made_of: MadeOf | None = None,
    ) -> None:
        self.question = question
        self.generation = generation
        self.objects = objects
        self.request = request
        self.plan = plan
        self.encode = encode or EncodeOptions()
        self.made_of = made_of
        self.frames: list[object] = []  # kept, and not looked at
        if objects is not None:
            seen = len(objects.tokens) + (0 if objects.scene is None else len(objects.scene.kept))
        else:
            assert plan is not None
            seen = sum(m.tokens for m in plan.marks)
            seen += sum(plan.views[v].patches // plan.views[v].merge ** 2 for v in plan.scene)
        self.tokens = seen + len(question) + generation.max_new_tokens

    @property
    def views(self) -> Sequence[View]:
        return () if self.plan is None else self.plan.views

    def encoded(self) -> None:
        """Let go of pixels and plan."""
        self.objects = self.request = self.plan = self.made_of = None
        self.frames = []


class SceneCache:
    """Vision tokens of scenes that later batches ask about again; the least recently used is given up first."""

    def __init__(self, limit: int = SCENES) -> None:
        self.limit = limit
        # the source is kept with its scene: an id belongs to one object for as long as that lives
        self._scenes: OrderedDict[SceneKey, tuple[FrameSource, SceneTokens]] = OrderedDict()

    def get(self, request: Request) -> SceneTokens | None:
        found = self._scenes.get(self._key(request))
        if found is None:
            return None
        self._scenes.move_to_end(self._key(request))
        return found[1]

    def knows(self, request: Request) -> bool:
        """Whether `get` would find it now; for any thread."""
        return self._key(request) in self._scenes

    def keep(self, request: Request, scene: SceneTokens) -> None:
        self._scenes[self._key(request)] = request.source, scene
        while len(self._scenes) > self.limit:
            self._scenes.popitem(last=False)

    def clear(self) -> None:
        self._scenes.clear()

    @staticmethod
    def _key(request: Request) -> SceneKey:
        return id(request.source), tuple(request.scene)


def encode_prepared(network: Network, batch: Sequence[Prepared]) -> list[Objects]:
    """The objects of each request of a batch, in one packed pass; those that are encoded already come as they are.

    Args:
        network: whose weights encode.
        batch: requests of any images and videos.

    Raises:
        ValueError: a frame that cannot be read, a k-means start that does not fit.
    """
    return result_of(encode_in_parts(network, batch, None, lambda: None))


def encode_in_parts(
    network: Network, batch: Sequence[Prepared], scenes: SceneCache | None, most: Callable[[], int | None]
) -> Generator[None, None, list[Objects]]:
    """As `encode_prepared`, with a pause after each part but the last.

    Args:
        network, batch: as there.
        scenes: what is known of whole images and videos, and what is learnt.
        most: patches of the next part, one view at least; None: all that are left.
    """
    fresh = [p for p in batch if p.objects is None]
    encoded = iter((yield from _encode(network, fresh, scenes or SceneCache(), most)) if fresh else ())
    return [next(encoded) if p.objects is None else p.objects for p in batch]


def embedded_prompt(network: Network, question: str, objects: Objects) -> PromptEmbeds:
    """What the decoder takes: a question about encoded objects, and where its prefixes end.

    Raises:
        ValueError: the question does not fit the objects, or the prompt the context.
    """
    prompt = network.build_prompt(question, objects)
    return PromptEmbeds(network.embed_prompt(prompt, objects), prefix_boundaries(prompt, objects))


def _encode(
    network: Network, batch: Sequence[Prepared], scenes: SceneCache, most: Callable[[], int | None]
) -> Generator[None, None, list[Objects]]:
    requests = [p.request for p in batch if p.request is not None]
    known = [scenes.get(r) if r.scene else None for r in requests]
    joint = merge(requests, [p.plan for p in batch if p.plan is not None], [scene is None for scene in known])

    even = all(map(_starts_evenly, batch))
    drawn: list[torch.Tensor] = []

    def starts(counts: Sequence[int]) -> torch.Tensor:
        clusters = network.config.mask_num
        own = torch.cat(
            [
                kmeans_starts(
                    counts[part.marks.start : part.marks.stop], clusters, p.encode.kmeans_start, p.encode.kmeans_seed
                )
                for part, p in zip(joint.parts, batch, strict=True)
            ]
        )
        drawn.append(own)
        return own

    whole = [part.scene for part in joint.parts]
    tokens, found = yield from network.encode_in_parts(
        joint.plan, joint.source, None if even else starts, whole, network.kept_features, most
    )
    with torch.inference_mode(False):
        tokens = tokens.clone()  # tells whether it was written to, which `decoding.prefixes.content` wants to know
    objects = []
    row = 0
    fingerprint = network.fingerprint
    for p, request, part, scene, own in zip(batch, requests, joint.parts, found, known, strict=True):
        counts = [joint.plan.marks[m].tokens for m in part.marks]
        if scene is not None:
            scenes.keep(request, scene)
        objects.append(network.objects_of(request, counts, tokens[row : row + sum(counts)], own or scene, fingerprint))
        row += sum(counts)
        if p.made_of is not None:
            begun = None if _starts_evenly(p) else drawn[0][part.marks.start : part.marks.stop]
            _declare(objects[-1], p.made_of, begun, network)
    return objects


def _starts_evenly(prepared: Prepared) -> bool:
    return prepared.encode.kmeans_start is None and prepared.encode.kmeans_seed is None


def _declare(objects: Objects, made_of: MadeOf, starts: torch.Tensor | None, network: Network) -> None:
    """Tell what tokens are made of, so that prompts find prefixes of others that are made of the same."""
    maker = f"{network.fingerprint} {network.backend} ".encode()
    given = [(objects.tokens, made_of.objects(starts))]
    if objects.scene is not None:
        given.append((objects.scene.tokens, made_of.scene()))
    for tensor, content in given:
        if content is not None:
            declare(tensor, maker + content)
