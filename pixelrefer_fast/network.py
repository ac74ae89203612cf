"""The weights in the order in which a question passes them: plan -> patches -> features -> object tokens -> prompt."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast._version import __version__
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checkpoint.digests import combined_digest, tensor_digest
from pixelrefer_fast.checks.values import plain_list
from pixelrefer_fast.decoding import Decoder
from pixelrefer_fast.decoding.prompt import Prompt, build_prompt
from pixelrefer_fast.device.stages import stage
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.encoding.kept_features import KeptFeatures
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.encoding.projector import VisionProjector, kept_tokens
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.planning.selection import Selection, select_patches
from pixelrefer_fast.planning.views import ViewPlan
from pixelrefer_fast.regions import as_regions
from pixelrefer_fast.segmenting import Segmenter, marked_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Starts = Callable[[Sequence[int]], torch.Tensor]
"""From the numbers of selected patches of a plan's marks to their first centroids, (M, n) int64 ranks."""


class Network(nn.Module):
    """What both models share. Its methods are the stages of a question, in order (`device.stages`).

    Args:
        config: of a checkpoint of this network's kind.
        tokenizer: its tokenizer.
        generation: what its generation_config.json says.
        backend: who computes the operations.

    Attributes:
        quantization: how the LLM's linear layers are quantised; None: they are not.
        segmenter: makes the masks of regions that are given as points.
        kept_features: of images that were asked about; None: none are kept.

    Raises:
        ops.BackendError: the backend serves nothing here.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        generation: Mapping[str, object],
        backend: str = "auto",
    ) -> None:
        from pixelrefer_fast.segmenting.grabcut import GrabCut  # brings OpenCV, which an import of the package does not

        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        ops.check_backend(backend)
        self.config = config
        self.tokenizer = tokenizer
        self.generation = dict(generation)
        self.backend = backend
        self.quantization: str | None = None
        self.segmenter: Segmenter = GrabCut()
        self.kept_features: KeptFeatures | None = None
        self.encoder = VisionEncoder(config.vision)
        self.object_tokenizer = ObjectTokenizer(config)
        self.projector = VisionProjector(config.vision.hidden_size, config.llm["hidden_size"])
        self.llm = Qwen2ForCausalLM(Qwen2Config(**config.llm))
        self.decoder = Decoder(self.llm, tokenizer, self.generation, backend)
        self._fingerprint: str | None = None
        self._tree: list[tuple[nn.Module, list[nn.Module | None]]] = []
        self._written: list[tuple[int, int]] = []
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.projector.first.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.first.weight.dtype

    def loaded(self, digests: Mapping[str, str]) -> None:
        """Take the digests of the values that the weights were just loaded from, by checkpoint key."""
        sizes = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in ("vision", "raw")}
        sizes["vision"] = self.config.vision.to_dict()
        self._fingerprint = combined_digest(json.dumps(sizes, sort_keys=True), digests)
        self._written = self._writes()

    @property
    def fingerprint(self) -> str:
        """Tells models apart whose object tokens do not fit each other: made of every weight and size.

        32 hexadecimal digits. Loading in another dtype does not change them. Writing into a weight does, except through
        `.data`, of which PyTorch tells nobody.
        """
        if self._fingerprint is None or self._written != self._writes():
            self.loaded({name: tensor_digest(tensor) for name, tensor in self.checkpoint_slots().items()})
        assert self._fingerprint is not None
        return self._fingerprint

    def _writes(self) -> list[tuple[int, int]]:
        """Which tensors the weights are, and how often each was written to."""
        # asked for with every request about encoded objects, and `parameters()` takes a millisecond for a small model
        if not self._tree or any(list(module._modules.values()) != own for module, own in self._tree):
            self._tree = [(module, list(module._modules.values())) for module in self.modules()]
        held = (p for module, _ in self._tree for p in module._parameters.values() if p is not None)
        return [(id(p), 0 if p.is_inference() else p._version) for p in held]

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes, by checkpoint key; views of this model's own memory."""
        slots = self.encoder.checkpoint_slots() | self.object_tokenizer.checkpoint_slots()
        slots |= self.projector.checkpoint_slots()
        slots |= dict(self.llm.named_parameters())  # tied embeddings are named once
        return slots

    # Plan: integers in host memory

    @stage("plan")
    def bind(
        self,
        media: Media,
        source: FrameSource,
        regions: object,
        options: EncodeOptions,
        first_region: int = 0,
    ) -> Request:
        """Regions bound to opened media.

        Args:
            media: what `media.open_media` returned.
            source: its frames.
            regions: anything `regions.as_regions` takes.
            options: which frames of a video PixelRefer sees whole.
            first_region: number of the first region in the caller's list.

        Raises:
            ValueError: naming the region, what was expected and what came.
        """
        marked = as_regions(regions)
        names = [f"region {number}" for number, _ in enumerate(marked, first_region)]
        marked = marked_by(self.segmenter, media, marked, names)
        frames = bind_regions(source, marked, first_region)
        self.check_frames(frames)
        return Request(source, marked, frames, self.whole_frames(media, options), first_region)

    def check_frames(self, frames: Sequence[tuple[int, ...]]) -> None:
        """Raise a ValueError where this model takes fewer frames per object."""

    def whole_frames(self, media: Media, options: EncodeOptions) -> list[int]:
        """The frames that the LLM sees whole."""
        return []

    @stage("plan")
    def plan(self, request: Request) -> ViewPlan:
        """A request's views; one whose tokens overflow the context ends before any mask is drawn.

        Raises:
            ValueError: naming the mark that cannot be planned, or too many marks.
        """
        least = request.num_marks * (self.config.mask_num if self.kind == "lite" else 1)
        if least >= self.decoder.context_length:
            raise ValueError(
                f"regions: expected fewer than {self.decoder.context_length} tokens in one request, got "
                f"{request.num_marks} marks that take at least {least}; ask about fewer, or describe them one by one"
            )
        plan = plan_request(self.config, request)
        for mark in plan.marks:
            if not mark.tokens:
                warnings.warn(f"{mark.name}: too small for this model, which sees no token of it", stacklevel=3)
        return plan

    @stage("plan")
    def select(self, plan: ViewPlan, starts: Starts) -> tuple[Selection, torch.Tensor]:
        """The feature rows that each mark reads, and its first centroids (M, n); both in host memory."""
        selection = select_patches(plan, self.backend)
        return selection, starts(selection.counts)

    # From pixels to object tokens: one packed pass for any number of requests

    @torch.inference_mode()
    def encode(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Starts,
        scenes: Sequence[tuple[int, ...]],
        kept: KeptFeatures | None = None,
    ) -> tuple[torch.Tensor, list[SceneTokens | None]]:
        """From pixels to object tokens and, in Full, vision tokens.

        Args:
            plan: the views of one or more requests.
            source: their pixels.
            starts: makes the first centroids.
            scenes: the views of each request's whole images or frames, in order; empty where none is wanted.
            kept: what it knows of the views is not encoded again, and it learns the rest.

        Returns:
            Object tokens (T, C) of all marks, and the vision tokens of each request.

        Raises:
            ValueError: a frame that cannot be read, a k-means start that does not fit.
        """
        on_host, centroids = self.select(plan, starts)
        known = {} if kept is None else kept.find(plan, source, on_host, (self.backend, *self.encoder.state()))
        fresh = [v for v in range(len(plan.views)) if v not in known]
        rest = plan.only(fresh)
        packed, selection, centroids = self.views(rest, source, on_host, centroids)
        features = self.features(packed, rest.grids, selection.reads_of(plan, fresh))
        if kept is not None:
            features = kept.complete(plan, source, selection, features, known)
        tokens = self.object_tokens(features, selection, centroids)
        patches = dict(zip(fresh, packed.split([plan.views[v].patches for v in fresh]), strict=True))
        return tokens, self.scene_tokens(plan, scenes, selection, patches, features)

    @stage("views")
    def views(
        self, plan: ViewPlan, source: FrameSource, selection: Selection, starts: torch.Tensor
    ) -> tuple[torch.Tensor, Selection, torch.Tensor]:
        """Packed patches (P, 588) of all views, and the tables of the selection, on the device."""
        patches = pack_patches(plan, source, self.device, self.backend)
        (starts,) = upload([starts], self.device)
        return patches, selection.to(self.device), starts

    @stage("encoder")
    def features(
        self, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]], reads: torch.Tensor
    ) -> torch.Tensor:
        """(F, D) features of the patches that anybody reads."""
        return self.encoder(patches, grids, reads, self.backend)

    def object_tokens(self, features: torch.Tensor, selection: Selection, starts: torch.Tensor) -> torch.Tensor:
        """Features (F, D) to object tokens (T, C) of all marks: pooling, in Lite infusion, and projection."""
        tokens, normed = self.pool(features, selection, starts)
        if self.kind == "lite":
            tokens = self.infuse(tokens, normed, features, selection)
        return self.project(tokens, selection)

    @stage("pooling")
    def pool(
        self, features: torch.Tensor, selection: Selection, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, n, D) pooled tokens of all marks and, in Lite, the first infusion step's norm of them."""
        return self.object_tokenizer.pool(features, selection, starts, self.backend)

    @stage("infusion")
    def infuse(
        self, pooled: torch.Tensor, normed: torch.Tensor, features: torch.Tensor, selection: Selection
    ) -> torch.Tensor:
        """Lite: (M, n, D) pooled tokens with the context of their views."""
        return self.object_tokenizer.infuse(pooled, normed, features, selection, self.backend)

    @stage("projector")
    def project(self, pooled: torch.Tensor, selection: Selection) -> torch.Tensor:
        """(M, n, D) tokens to object tokens (T, C), packed."""
        return self.object_tokenizer.project(pooled, selection)

    def scene_tokens(
        self,
        plan: ViewPlan,
        scenes: Sequence[tuple[int, ...]],
        selection: Selection,
        patches: Mapping[int, torch.Tensor],
        features: torch.Tensor,
    ) -> list[SceneTokens | None]:
        """Full: the vision tokens of each request's whole images or frames; `patches` of the frames of videos."""
        return [None] * len(scenes)

    def vision_tokens(self, features: torch.Tensor, frames: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Vision tokens of whole images or frames.

        Args:
            features: (F, D).
            frames: first and last row (exclusive) of each, and how many cells a side are merged: images have 1, frames
                of videos 2.

        Returns:
            (Z, C) of each. All of one merge are projected together.
        """
        tokens: dict[int, torch.Tensor] = {}
        for merge in sorted({merge for *_, merge in frames}):
            own = [i for i, frame in enumerate(frames) if frame[2] == merge]
            rows = [features[start:stop] for start, stop, _ in (frames[i] for i in own)]
            sizes = [len(row) // merge**2 for row in rows]
            tokens |= zip(own, self.projector(torch.cat(rows), merge).split(sizes), strict=True)
        return [tokens[i] for i in range(len(frames))]

    def objects_of(
        self,
        request: Request,
        counts: Sequence[int],
        tokens: torch.Tensor,
        scene: SceneTokens | None,
        fingerprint: str,
    ) -> Objects:
        """A request's encoded objects: `tokens` (T, C), `counts` of each mark; `fingerprint` is this network's."""
        source = request.source
        times = source.times if scene is not None else None
        return Objects(
            self.kind,
            tokens,
            request.object_tokens(counts),
            None if times is None else tuple(times[f] for f in request.scene),
            scene,
            {
                "model": fingerprint,
                "library": __version__,
                "source": source.name,
                "height": source.sizes[0][0],
                "width": source.sizes[0][1],
                "video": source.video,
                "regions": [r.to_json() for r in request.regions],
            },
        )

    def own_objects(self, objects: Objects) -> Objects:
        """Encoded objects, which are this model's or refused with a ValueError."""
        given = objects.provenance.get("model")
        if objects.kind != self.kind or given != self.fingerprint:
            raise ValueError(
                f"objects: expected object tokens of this model ({self.kind}, {self.fingerprint}), "
                f"got {objects.kind}, {given}"
            )
        width = self.config.llm["hidden_size"]
        if objects.tokens.shape[1] != width:
            raise ValueError(f"objects: expected tokens of width {width}, got {objects.tokens.shape[1]}")
        return objects

    # Prompt

    @stage("prompt")
    def build_prompt(self, question: str, objects: Objects) -> Prompt:
        """Token ids of a question about encoded objects, with the places of their tokens.

        Raises:
            ValueError: the question does not fit the objects, or the prompt the context.
        """
        scene = None if objects.scene is None else objects.scene.counts
        # dropped vision tokens leave the sequence before the LLM sees it
        dropped = 0 if objects.scene is None else int((~objects.scene.kept).sum())
        room = self.decoder.context_length - 1 + dropped
        return build_prompt(self.tokenizer, question, objects.objects, scene, objects.times, room)

    @stage("prompt")
    @torch.inference_mode()
    def embed_prompt(self, prompt: Prompt, objects: Objects) -> torch.Tensor:
        """Prompt embeddings (L', C): text, object tokens, and the vision tokens that were kept."""
        ids = prompt.input_ids.clone()
        # placeholders may lie beyond the embedding table when their tokens were added by us
        ids[prompt.region_slots] = 0
        ids[prompt.image_slots] = 0
        tokens, slots = objects.tokens, prompt.region_slots
        keep = torch.ones(len(ids), dtype=torch.bool)
        if objects.scene is not None:
            kept = objects.scene.kept.cpu()
            tokens = torch.cat([tokens.to(self.device), objects.scene.tokens.to(self.device)])
            slots = torch.cat([slots, prompt.image_slots[kept]])
            keep[prompt.image_slots] = kept
        ids, slots, places = upload([ids, slots, places_of(keep)], self.device)
        embeds = self.llm.get_input_embeddings()(ids)
        ops.scatter_tokens(embeds, tokens.to(embeds), slots, backend=self.backend)
        return embeds if len(places) == len(ids) else embeds[places]


class LiteNetwork(Network):
    """Object-Only: the LLM sees text and object tokens, into which context has been infused."""

    kind = "lite"


class FullNetwork(Network):
    """Vision-Object: the LLM sees text, the vision tokens of whole images or frames, and object tokens."""

    kind = "full"

    def check_frames(self, frames: Sequence[tuple[int, ...]]) -> None:
        for i, own in enumerate(frames):
            if len(own) != 1:
                raise ValueError(f"region {i}: expected one marked frame (PixelRefer takes one mask), got {own}")

    def whole_frames(self, media: Media, options: EncodeOptions) -> list[int]:
        if not isinstance(media, Video):
            return [0]
        if options.frames is None:
            return media.sample(options.fps, options.max_frames)
        frames = plain_list(options.frames, "frames")
        if frames[-1] >= len(media):
            raise ValueError(f"frames: expected numbers from 0 to {len(media) - 1}, got {frames[-1]}")
        return frames

    @stage("projector")
    def scene_tokens(
        self,
        plan: ViewPlan,
        scenes: Sequence[tuple[int, ...]],
        selection: Selection,
        patches: Mapping[int, torch.Tensor],
        features: torch.Tensor,
    ) -> list[SceneTokens | None]:
        rows = selection.first_rows
        views = sorted({v for scene in scenes for v in scene})
        frames = [(rows[v], rows[v + 1], plan.views[v].merge) for v in views]
        projected = dict(zip(views, self.vision_tokens(features, frames), strict=True))
        videos = {s for s in scenes if len(s) > 1 and plan.views[s[0]].merge > 1}
        kept = kept_tokens(plan, videos, patches)
        made: dict[tuple[int, ...], SceneTokens | None] = {(): None}
        for scene in scenes:
            if scene not in made:
                with torch.inference_mode(False):  # a tensor that tells whether it was written to, as object tokens do
                    tokens = torch.cat([projected[v] for v in scene])
                    everything = torch.ones(len(tokens), dtype=torch.bool)
                    if scene in kept:
                        (places,) = upload([places_of(kept[scene])], tokens.device)
                        tokens = tokens[places]
                counts = tuple(len(projected[v]) for v in scene)
                made[scene] = SceneTokens(tokens, kept.get(scene, everything), counts)
        return [made[scene] for scene in scenes]


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask in host memory is true, int64: on a device a mask as an index is a wait."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
