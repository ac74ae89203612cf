"""PixelRefer and PixelReferLite: from an image or a video, marked regions and a question to text."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast._version import __version__
from pixelrefer_fast.checks import plain_list
from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.decoder import Decoder, Generation
from pixelrefer_fast.encoder import VisionEncoder
from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.object_tokenizer import ObjectTokenizer, kmeans_starts
from pixelrefer_fast.objects import Objects, Scene
from pixelrefer_fast.options import EncodeOptions, split_options
from pixelrefer_fast.patches import pack_patches
from pixelrefer_fast.projector import VisionProjector, kept_cells
from pixelrefer_fast.prompt import REGION_TAG, Prompt, build_prompt, check_question, check_tags
from pixelrefer_fast.regions import as_regions
from pixelrefer_fast.request import FrameSource, Request, bind_regions
from pixelrefer_fast.selection import Selection, select_patches
from pixelrefer_fast.transfers import upload
from pixelrefer_fast.views import ViewPlan, plan_views

DESCRIBE_IMAGE = f"Please describe {REGION_TAG} in detail."
DESCRIBE_VIDEO = f"Please describe in detail the marked object {REGION_TAG} in the video."
# Regions of `describe` that are encoded together: it bounds memory, a batch's crops are a few thousand patches.
DESCRIBE_BATCH = 64


class _Model(nn.Module):
    """What both models share."""

    kind: ClassVar[str]

    def __init__(self, config: ModelConfig, tokenizer: Any, generation: dict[str, Any], backend: str = "auto") -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        if config.kind != self.kind:
            raise ValueError(f"{type(self).__name__}: expected a checkpoint of kind {self.kind!r}, got {config.kind!r}")
        ops.check_backend(backend)
        self.config = config
        self.tokenizer = tokenizer
        self.generation = generation
        self.backend = backend
        self.encoder = VisionEncoder(config.vision)
        self.object_tokenizer = ObjectTokenizer(config)
        self.projector = VisionProjector(config.vision.hidden_size, config.llm["hidden_size"])
        self.llm = Qwen2ForCausalLM(Qwen2Config(**config.llm))
        self.decoder = Decoder(self.llm, tokenizer, generation)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.projector.first.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.first.weight.dtype

    @property
    def fingerprint(self) -> str:
        """Tells models apart whose object tokens do not fit each other.

        Made of signs, which loading in another dtype does not change.
        """
        digest = hashlib.sha256(self.kind.encode())
        for tensor in (
            self.encoder.post_norm.weight,
            self.object_tokenizer.pos_linear.weight,
            self.object_tokenizer.feat_linear.get_parameter("2.bias"),
            self.llm.model.norm.weight,
        ):
            digest.update(tensor.detach().signbit().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes, by checkpoint key; views of this model's own memory."""
        slots = self.encoder.checkpoint_slots() | self.object_tokenizer.checkpoint_slots()
        slots |= self.projector.checkpoint_slots()
        slots |= dict(self.llm.named_parameters())  # tied embeddings are named once
        return slots

    def save(self, folder: str | Path) -> None:
        """Write one self-contained folder in the released layout that loads again bit-equal.

        Raises:
            ValueError: the folder exists and is not empty, or cannot be written.
        """
        from pixelrefer_fast.checkpoint import save_checkpoint

        save_checkpoint(folder, self.checkpoint_slots(), self.config, self.tokenizer, self.generation)

    def encode(self, image_or_video: Any, regions: Any, **options: Any) -> Objects:
        """Object tokens of all regions of one image or video, encoded together.

        Args:
            image_or_video: anything `media.open_media` takes.
            regions: anything `regions.as_regions` takes; for a video each is bound to frames.
            options: fields of `EncodeOptions`.

        Returns:
            Objects, for any number of questions.

        Raises:
            ValueError: naming the region or the input, what was expected and what came.
        """
        encode, _ = split_options(options, EncodeOptions)
        return self._encode_request(self._request(image_or_video, regions, encode), encode)

    def ask(self, image_or_video: Any, question: str, regions: Any = None, **options: Any) -> str:
        """Answer a question about marked objects.

        Args:
            image_or_video: an image, a video, or `Objects` from `encode`.
            question: with a `<region>` tag for each region, in order. About `Objects` it may have no tag at all:
                they are then named before it.
            regions: what is marked; None with `Objects`.
            options: fields of `decoder.Generation` and `EncodeOptions`.

        Raises:
            ValueError: naming the input, what was expected and what came.
        """
        embeds, generation = self._prepare(image_or_video, question, regions, options)
        return self._answer(embeds, generation)

    def stream(self, image_or_video: Any, question: str, regions: Any = None, **options: Any) -> Iterator[str]:
        """`ask` in pieces of text that join to the same answer; bad input raises before the first piece."""
        embeds, generation = self._prepare(image_or_video, question, regions, options)
        return self.decoder.stream(embeds, generation)

    def describe(self, image_or_video: Any, regions: Any, question: str | None = None, **options: Any) -> list[str]:
        """One text per region; each region is a request of its own, so its text does not depend on the others.

        Args:
            image_or_video: an image or a video.
            regions: what is marked.
            question: asked of each region, with one `<region>` tag; default: describe it in detail.
            options: fields of `decoder.Generation` and `EncodeOptions`.
        """
        encode, generation = split_options(options, EncodeOptions, Generation)
        request = self._request(image_or_video, regions, encode)
        if question is None:
            question = DESCRIBE_VIDEO if request.source.video else DESCRIBE_IMAGE
        check_question(question)
        if question.count(REGION_TAG) != 1:
            raise ValueError(f"question: expected one {REGION_TAG} tag, got {question.count(REGION_TAG)}")
        texts: list[str] = []
        for objects in self._encode_each(request, encode):
            texts.append(self._answer(self.embed_prompt(self.build_prompt(question, objects), objects), generation))
        return texts

    def build_prompt(self, question: str, objects: Objects) -> Prompt:
        """Token ids of a question about encoded objects, with the places of their tokens."""
        scene = None if objects.scene is None else objects.scene.counts
        # dropped vision tokens leave the sequence before the LLM sees it
        dropped = 0 if objects.scene is None else int((~objects.scene.kept).sum())
        room = self.decoder.context_length - 1 + dropped
        return build_prompt(self.tokenizer, question, objects.objects, scene, objects.times, room)

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
        ids, slots, places = upload([ids, slots, _places(keep)], self.device)
        embeds = self.llm.get_input_embeddings()(ids)
        ops.scatter_tokens(embeds, tokens.to(embeds), slots, backend=self.backend)
        return embeds if len(places) == len(ids) else embeds[places]

    def _prepare(
        self, media: Any, question: str, regions: Any, options: dict[str, Any]
    ) -> tuple[torch.Tensor, Generation]:
        encode, generation = split_options(options, EncodeOptions, Generation)
        check_question(question)
        if isinstance(media, Objects):
            if regions is not None:
                raise ValueError("regions: expected None with encoded objects, which have theirs")
            if encode != EncodeOptions():
                raise ValueError(f"options: expected none of encoding with encoded objects, got {encode}")
            objects = self._own(media)
            if REGION_TAG not in question:
                question = _name_objects(question, objects)
        else:
            request = self._request(media, regions, encode)
            check_tags(question, len(request.regions))  # before anything is encoded
            objects = self._encode_request(request, encode)
        return self.embed_prompt(self.build_prompt(question, objects), objects), generation

    def _answer(self, embeds: torch.Tensor, generation: Generation) -> str:
        return self.decoder.text(step.token for step in self.decoder.steps(embeds, generation))

    def _own(self, objects: Objects) -> Objects:
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

    def _request(self, image_or_video: Any, regions: Any, options: EncodeOptions) -> Request:
        media = open_media(image_or_video)
        name = str(image_or_video) if isinstance(image_or_video, (str, Path)) else None
        source = FrameSource.of(media, name)
        marked = as_regions(regions)
        frames = bind_regions(source, marked)
        self._check_frames(frames)
        return Request(source, marked, frames, self._scene(media, options))

    def _check_frames(self, frames: Sequence[tuple[int, ...]]) -> None:
        """Raise a ValueError where this model takes fewer frames per object."""

    def _scene(self, media: np.ndarray | Video, options: EncodeOptions) -> list[int]:
        """The frames that the LLM sees whole."""
        return []

    def _encode_request(self, request: Request, options: EncodeOptions) -> Objects:
        plan = self._plan(request, request.scene, ViewPlan())
        tokens, scene = self.encode_plan(plan, request.source, options)
        return self._objects(request, [m.tokens for m in plan.marks], tokens, scene)

    def _encode_each(self, request: Request, options: EncodeOptions) -> Iterator[Objects]:
        """Each region as a request of its own, in batches that share their views and one encoder pass."""
        scene: Scene | None = None
        given = options.kmeans_start
        if given is not None and len(given) != request.num_marks:
            raise ValueError(
                f"kmeans_start: expected an entry for each of the {request.num_marks} marks, got {len(given)}"
            )
        if len(request.regions) > DESCRIBE_BATCH:
            for _ in request.marks():
                pass  # draws every mask once, so that a bad region is told before the first batch is answered
        first_mark = 0
        for first in range(0, len(request.regions), DESCRIBE_BATCH):
            singles = [request.single(i) for i in range(first, min(first + DESCRIBE_BATCH, len(request.regions)))]
            plan = ViewPlan()
            for single in singles:
                # the scene is encoded with the first batch only
                self._plan(single, () if plan.scene or scene else request.scene, plan)
            sizes = [single.num_marks for single in singles]
            starts = None if given is None else given[first_mark : first_mark + sum(sizes)]
            first_mark += sum(sizes)
            tokens, own_scene = self.encode_plan(
                plan, request.source, replace(options, kmeans_start=starts), per_request=sizes
            )
            scene = scene or own_scene
            counts = [m.tokens for m in plan.marks]
            mark = row = 0
            for single, size in zip(singles, sizes, strict=True):
                own = counts[mark : mark + size]
                yield self._objects(single, own, tokens[row : row + sum(own)], scene)
                mark, row = mark + size, row + sum(own)

    def _objects(self, request: Request, counts: Sequence[int], tokens: torch.Tensor, scene: Scene | None) -> Objects:
        source = request.source
        times = source.times if scene is not None else None
        return Objects(
            self.kind,
            tokens,
            request.object_tokens(counts),
            None if times is None else tuple(times[f] for f in request.scene),
            scene,
            {
                "model": self.fingerprint,
                "library": __version__,
                "source": source.name,
                "height": source.sizes[0][0],
                "width": source.sizes[0][1],
                "video": source.video,
                "regions": [r.to_json() for r in request.regions],
            },
        )

    def _plan(self, request: Request, scene: Sequence[int], plan: ViewPlan) -> ViewPlan:
        """Add a request's views to a plan; one whose tokens overflow the context ends before any mask is drawn."""
        least = request.num_marks * (self.config.mask_num if self.kind == "lite" else 1)
        if least >= self.decoder.context_length:
            raise ValueError(
                f"regions: expected fewer than {self.decoder.context_length} tokens in one request, got "
                f"{request.num_marks} marks that take at least {least}; ask about fewer, or describe them one by one"
            )
        source = request.source
        merge = self.config.spatial_merge_size if source.video else 1
        first = len(plan.marks)
        plan_views(self.config, source.sizes, request.marks(), request.num_marks, scene, merge, into=plan)
        for mark in plan.marks[first:]:
            if not mark.tokens:
                warnings.warn(f"{mark.name}: too small for this model, which sees no token of it", stacklevel=2)
        return plan

    @torch.inference_mode()
    def encode_plan(
        self, plan: ViewPlan, source: FrameSource, options: EncodeOptions, per_request: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, Scene | None]:
        """From pixels to object tokens (T, C) and, in Full, the scene's vision tokens: one packed pass.

        Args:
            plan: the views of one or more requests.
            source: their pixels.
            options: k-means starts.
            per_request: marks of each request of the plan when there are several: a seed then starts anew for each.
        """
        selection = select_patches(plan, self.backend)
        starts = _starts(selection.counts, self.config.mask_num, options, per_request)
        patches = pack_patches(plan, source, self.device, self.backend)
        features = self.encoder(patches, plan.grids, selection.reads, self.backend)
        (starts,) = upload([starts], self.device)
        tokens = self.object_tokenizer(features, selection.to(self.device), starts, backend=self.backend)
        return tokens, self.encode_scene(plan, selection, patches, features)

    def encode_scene(
        self, plan: ViewPlan, selection: Selection, patches: torch.Tensor, features: torch.Tensor
    ) -> Scene | None:
        """Full: the vision tokens of the plan's scene."""
        return None


class PixelReferLite(_Model):
    """Object-Only: the LLM sees text and object tokens, into which context has been infused."""

    kind = "lite"


class PixelRefer(_Model):
    """Vision-Object: the LLM sees text, the vision tokens of whole images or frames, and object tokens."""

    kind = "full"

    def _check_frames(self, frames: Sequence[tuple[int, ...]]) -> None:
        for i, own in enumerate(frames):
            if len(own) != 1:
                raise ValueError(f"region {i}: expected one marked frame (PixelRefer takes one mask), got {own}")

    def _scene(self, media: np.ndarray | Video, options: EncodeOptions) -> list[int]:
        if not isinstance(media, Video):
            return [0]
        if options.frames is None:
            return media.sample(options.fps, options.max_frames)
        frames = plain_list(options.frames, "frames")
        if frames[-1] >= len(media):
            raise ValueError(f"frames: expected numbers from 0 to {len(media) - 1}, got {frames[-1]}")
        return frames

    def encode_scene(
        self, plan: ViewPlan, selection: Selection, patches: torch.Tensor, features: torch.Tensor
    ) -> Scene | None:
        if not plan.scene:
            return None
        views = [plan.views[v] for v in plan.scene]
        first, rows = plan.first_rows, selection.first_rows
        merge = views[0].merge
        counts = tuple(v.patches // merge**2 for v in views)
        tokens = self.projector(torch.cat([features[rows[v] : rows[v + 1]] for v in plan.scene]), merge)
        kept = torch.ones(len(tokens), dtype=torch.bool)
        if merge > 1 and len(views) > 1:
            # the one wait of a pass: the length of a video's prompt depends on its pixels
            kept = kept_cells([patches[first[v] : first[v + 1]] for v in plan.scene], merge).cpu()
            (places,) = upload([_places(kept)], tokens.device)
            tokens = tokens[places]
        return Scene(tokens, kept, counts)


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask in host memory is true, int64: on a device a mask as an index is a wait."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _starts(
    counts: Sequence[int], clusters: int, options: EncodeOptions, per_request: Sequence[int] | None
) -> torch.Tensor:
    if per_request is None or options.kmeans_start is not None:
        return kmeans_starts(counts, clusters, options.kmeans_start, options.kmeans_seed)
    parts, position = [], 0
    for size in per_request:
        parts.append(kmeans_starts(counts[position : position + size], clusters, None, options.kmeans_seed))
        position += size
    return torch.cat(parts)


def _name_objects(question: str, objects: Objects) -> str:
    """A question without tags, the objects named before it."""
    video = objects.times is not None or any(o.times is not None for o in objects.objects)
    where = "video" if video else "image"
    if len(objects) == 1:
        return f"There is one object in the {where}: {REGION_TAG}.\n{question}"
    names = ", ".join(f"<object{i}>{REGION_TAG}" for i in range(len(objects)))
    return f"There are {len(objects)} objects in the {where}: {names}.\n{question}"
