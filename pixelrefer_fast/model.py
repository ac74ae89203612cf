"""PixelRefer and PixelReferLite: from an image or a video, marked regions and a question to text."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast._version import __version__
from pixelrefer_fast.batching.asks import Ask, BatchError
from pixelrefer_fast.batching.calls import BatchCalls
from pixelrefer_fast.batching.encoding import Prepared, embedded_prompt, encode_prepared
from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO, Bound, MediaCache, prepare
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import labelled, plain_list
from pixelrefer_fast.decoding.decoder import Decoder
from pixelrefer_fast.decoding.options import Generation
from pixelrefer_fast.decoding.prompt import Prompt, build_prompt, check_question
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer, kmeans_starts
from pixelrefer_fast.encoding.objects import Objects, Scene
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.encoding.projector import VisionProjector, kept_cells
from pixelrefer_fast.media import Video
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.options import EncodeOptions, split_options
from pixelrefer_fast.planning.request import REGION_TAG, FrameSource, Request, bind_regions
from pixelrefer_fast.planning.selection import Selection, select_patches
from pixelrefer_fast.planning.views import ViewPlan
from pixelrefer_fast.regions import as_regions


class _Model(BatchCalls, nn.Module):
    """What both models share."""

    kind: ClassVar[str]
    quantization: str | None = None  # of the LLM's layers, as `load` was asked for

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
        self.decoder = Decoder(self.llm, tokenizer, generation, backend)
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
            ValueError: the folder exists and is not empty, or cannot be written; or the model's weights are quantised.
        """
        from pixelrefer_fast.checkpoint import save_checkpoint

        if self.quantization is not None:
            raise ValueError(f"save: expected weights as they were loaded, got {self.quantization} ones")

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
        with self.requests.exclusive():
            request = self._request(image_or_video, regions, encode)
            prepared = Prepared("", Generation(), request=request, plan=self.plan_request(request), encode=encode)
            return encode_prepared(self, [prepared])[0]

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
        return self._answer_one(_ask(image_or_video, question, regions, options), {})

    def stream(self, image_or_video: Any, question: str, regions: Any = None, **options: Any) -> Iterator[str]:
        """`ask` in pieces of text that join to the same answer; bad input raises before the first piece."""
        with self.requests.exclusive():
            prepared = prepare(self, _ask(image_or_video, question, regions, options), MediaCache(), MediaCache())
            (objects,) = encode_prepared(self, [prepared])
            prompt = embedded_prompt(self, prepared.question, objects)
        return self.decoder.stream(prompt, prepared.generation)

    def describe(self, image_or_video: Any, regions: Any, question: str | None = None, **options: Any) -> list[Any]:
        """One text per region; each region is a request of its own, so its text does not depend on the others.

        Args:
            image_or_video: an image or a video; or a list of them, with a list of regions for each.
            regions: what is marked. With a list of images or videos: a list as long, of lists of regions. (A list of
                images without that is a video of these frames, as everywhere.)
            question: asked of each region, with one `<region>` tag; default: describe it in detail.
            options: fields of `decoder.Generation` and `EncodeOptions`.

        Returns:
            A text per region; for a list of images and videos a list of texts for each.

        Raises:
            ValueError: naming the region, before anything is answered.
            BatchError: some requests of a list failed; its `answers` has what the others got.
        """
        if question is not None:
            check_question(question)
            if question.count(REGION_TAG) != 1:
                raise ValueError(f"question: expected one {REGION_TAG} tag, got {question.count(REGION_TAG)}")
        if _are_many(image_or_video, regions):
            return self._describe_many(image_or_video, regions, question, options)
        encode, generation = split_options(options, EncodeOptions, Generation)
        request = self._request(image_or_video, regions, encode)
        if question is None:
            question = DESCRIBE_VIDEO if request.source.video else DESCRIBE_IMAGE
        given = encode.kmeans_start
        if given is not None and len(given) != request.num_marks:
            raise ValueError(
                f"kmeans_start: expected an entry for each of the {request.num_marks} marks, got {len(given)}"
            )
        if len(request.regions) > 1:
            for _ in request.marks():
                pass  # draws every mask once, so that a bad region is told before the first batch is answered

        def singles() -> Iterator[Bound]:
            mark = 0
            for i in range(len(request.regions)):
                single = request.single(i)
                own = None if given is None else given[mark : mark + single.num_marks]
                mark += single.num_marks
                yield Bound(single, question, replace(encode, kmeans_start=own), generation)

        return [a.text for a in self._answer_all(singles(), None, len(request.regions)) if a.text is not None]

    def _describe_many(
        self, media: Sequence[Any], regions: Sequence[Any], question: str | None, options: dict[str, Any]
    ) -> list[list[str]]:
        split_options(options, EncodeOptions, Generation)
        marked = []
        for i, own in enumerate(regions):
            with labelled(f"image or video {i}"):
                marked.append(as_regions(own))

        def singles() -> Iterator[Ask]:
            for one, own in zip(media, marked, strict=True):
                for number, region in enumerate(own):
                    ask = Ask(one, question, [region])
                    ask.first_region = number
                    yield ask

        answers = self.ask_batch(singles(), **options)
        if not all(answer.ok for answer in answers):
            raise BatchError(answers)
        texts = iter([answer.text or "" for answer in answers])
        return [[next(texts) for _ in own] for own in marked]

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

    def _request(self, image_or_video: Any, regions: Any, options: EncodeOptions) -> Request:
        opened = MediaCache().open(image_or_video)
        return self.bind(opened.media, opened.source, regions, options)

    def bind(
        self,
        media: np.ndarray | Video,
        source: FrameSource,
        regions: Any,
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
        frames = bind_regions(source, marked, first_region)
        self._check_frames(frames)
        return Request(source, marked, frames, self._scene(media, options), first_region)

    def _check_frames(self, frames: Sequence[tuple[int, ...]]) -> None:
        """Raise a ValueError where this model takes fewer frames per object."""

    def _scene(self, media: np.ndarray | Video, options: EncodeOptions) -> list[int]:
        """The frames that the LLM sees whole."""
        return []

    def objects_of(self, request: Request, counts: Sequence[int], tokens: torch.Tensor, scene: Scene | None) -> Objects:
        """A request's encoded objects: `tokens` (T, C), `counts` of each mark."""
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

    def plan_request(self, request: Request) -> ViewPlan:
        """A request's views; one whose tokens overflow the context ends before any mask is drawn."""
        least = request.num_marks * (self.config.mask_num if self.kind == "lite" else 1)
        if least >= self.decoder.context_length:
            raise ValueError(
                f"regions: expected fewer than {self.decoder.context_length} tokens in one request, got "
                f"{request.num_marks} marks that take at least {least}; ask about fewer, or describe them one by one"
            )
        plan = plan_request(self.config, request)
        for mark in plan.marks:
            if not mark.tokens:
                warnings.warn(f"{mark.name}: too small for this model, which sees no token of it", stacklevel=2)
        return plan

    def encode_plan(
        self, plan: ViewPlan, source: FrameSource, options: EncodeOptions
    ) -> tuple[torch.Tensor, Scene | None]:
        """One request's plan to its object tokens (T, C) and, in Full, its scene's vision tokens."""

        def starts(counts: Sequence[int]) -> torch.Tensor:
            return kmeans_starts(counts, self.config.mask_num, options.kmeans_start, options.kmeans_seed)

        tokens, scenes = self.encode_views(plan, source, starts, [tuple(plan.scene)])
        return tokens, scenes[0]

    @torch.inference_mode()
    def encode_views(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Callable[[Sequence[int]], torch.Tensor],
        scenes: Sequence[tuple[int, ...]],
    ) -> tuple[torch.Tensor, list[Scene | None]]:
        """From pixels to object tokens and, in Full, vision tokens: one packed pass for any number of requests.

        Args:
            plan: the views of one or more requests.
            source: their pixels.
            starts: first centroids (M, n), from the numbers of selected patches of the plan's marks.
            scenes: the views of each request's whole images or frames, in order; empty where none is wanted.

        Returns:
            Object tokens (T, C) of all marks, and the scene of each request.
        """
        selection = select_patches(plan, self.backend)
        first = starts(selection.counts)
        patches = pack_patches(plan, source, self.device, self.backend)
        features = self.encoder(patches, plan.grids, selection.reads, self.backend)
        (first,) = upload([first], self.device)
        tokens = self.object_tokenizer(features, selection.to(self.device), first, backend=self.backend)
        return tokens, self.encode_scenes(plan, scenes, selection, patches, features)

    def encode_scene(
        self, plan: ViewPlan, selection: Selection, patches: torch.Tensor, features: torch.Tensor
    ) -> Scene | None:
        """Full: the vision tokens of the plan's scene, where it is one request's."""
        return self.encode_scenes(plan, [tuple(plan.scene)], selection, patches, features)[0]

    def encode_scenes(
        self,
        plan: ViewPlan,
        scenes: Sequence[tuple[int, ...]],
        selection: Selection,
        patches: torch.Tensor,
        features: torch.Tensor,
    ) -> list[Scene | None]:
        """Full: the vision tokens of each request's whole images or frames."""
        return [None] * len(scenes)


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

    def encode_scenes(
        self,
        plan: ViewPlan,
        scenes: Sequence[tuple[int, ...]],
        selection: Selection,
        patches: torch.Tensor,
        features: torch.Tensor,
    ) -> list[Scene | None]:
        first, rows = plan.first_rows, selection.first_rows
        # images have merge 1, frames of videos 2: a projection for either, each view in it once
        projected: dict[int, torch.Tensor] = {}
        for merge in sorted({plan.views[v].merge for scene in scenes for v in scene}):
            own = sorted({v for scene in scenes for v in scene if plan.views[v].merge == merge})
            tokens = self.projector(torch.cat([features[rows[v] : rows[v + 1]] for v in own]), merge)
            projected |= zip(own, tokens.split([plan.views[v].patches // merge**2 for v in own]), strict=True)
        kept = self._kept(plan, {s for s in scenes if len(s) > 1 and plan.views[s[0]].merge > 1}, patches, first)
        made: dict[tuple[int, ...], Scene | None] = {(): None}
        for scene in scenes:
            if scene not in made:
                tokens = torch.cat([projected[v] for v in scene])
                everything = torch.ones(len(tokens), dtype=torch.bool)
                if scene in kept:
                    (places,) = upload([_places(kept[scene])], tokens.device)
                    tokens = tokens[places]
                counts = tuple(len(projected[v]) for v in scene)
                made[scene] = Scene(tokens, kept.get(scene, everything), counts)
        return [made[scene] for scene in scenes]

    @staticmethod
    def _kept(
        plan: ViewPlan, scenes: Collection[tuple[int, ...]], patches: torch.Tensor, first: Sequence[int]
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Which vision tokens of videos are kept, in host memory."""
        order = sorted(scenes)
        if not order:
            return {}
        flags = [
            kept_cells([patches[first[v] : first[v + 1]] for v in scene], plan.views[scene[0]].merge) for scene in order
        ]
        # the one wait of a pass: the length of a video's prompt depends on its pixels
        together = torch.cat(flags).cpu()
        return dict(zip(order, together.split([len(f) for f in flags]), strict=True))


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask in host memory is true, int64: on a device a mask as an index is a wait."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _ask(media: Any, question: str, regions: Any, options: dict[str, Any]) -> Ask:
    check_question(question)
    ask = Ask(media, question, regions)
    ask.options = options
    return ask


def _are_many(media: Any, regions: Any) -> bool:
    """Whether `describe` is asked about a list of images and videos: regions of a video's frames are no lists."""
    if not isinstance(media, (list, tuple)) or not isinstance(regions, (list, tuple)) or len(media) != len(regions):
        return False
    return all(isinstance(own, (list, tuple)) for own in regions)
