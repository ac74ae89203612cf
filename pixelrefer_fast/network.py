"""The weights in the order in which a question passes them: plan -> patches -> features -> object tokens -> prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from pixelrefer_fast import ops
from pixelrefer_fast._version import __version__
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checkpoint.digests import model_fingerprint, tensor_digest
from pixelrefer_fast.decoding import Decoder
from pixelrefer_fast.decoding.prompt import Prompt, build_prompt
from pixelrefer_fast.device.stages import stage
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.device.weights import WatchedWeights, WeightsState
from pixelrefer_fast.encoding.kept_features import KeptFeatures
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.encoding.vision import VisionSide, places_of
from pixelrefer_fast.media import Media
from pixelrefer_fast.planning.binding import bind_request, plan_within
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import ViewPlan
from pixelrefer_fast.segmenting import Segmenter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Network(VisionSide):
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
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from pixelrefer_fast.segmenting.grabcut import GrabCut  # brings OpenCV, which an import of the package does not

        ops.check_backend(backend)
        super().__init__(config, backend)
        self.tokenizer = tokenizer
        self.generation = dict(generation)
        self.quantization: str | None = None
        self.segmenter: Segmenter = GrabCut()
        self.kept_features: KeptFeatures | None = None
        self.llm = Qwen2ForCausalLM(Qwen2Config(**config.llm))
        self.decoder = Decoder(self.llm, tokenizer, self.generation, backend)
        self._fingerprint: str | None = None
        self._watched: WatchedWeights | None = None
        self._written: WeightsState = ()
        self.eval().requires_grad_(False)

    def loaded(self, digests: Mapping[str, str]) -> None:
        """Take the digests of the values that the weights were just loaded from, by checkpoint key."""
        if self.object_tokenizer.infusion is not None:
            self.object_tokenizer.infusion.prepare()
        self._fingerprint = model_fingerprint(self.config, digests)
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

    def _writes(self) -> WeightsState:
        """Where the weights are, and how often each was written to."""
        if self._watched is None:
            self._watched = WatchedWeights([self])
        return self._watched.state()

    def capture(self, graph_bytes: int | None = None) -> None:
        """Capture passes from patches to object tokens, prompts and steps, anew where they were.

        Args:
            graph_bytes: of device memory that those to object tokens may keep, and as much that the others may; 0:
                nothing is captured; None: 1 GiB where kernels compute on a CUDA device, 0 elsewhere.

        Raises:
            ValueError: there are no CUDA graphs where this model is.
            RuntimeError: something is being decoded.
        """
        self.capture_passes(graph_bytes)
        self.decoder.graph_bytes = graph_bytes
        self.decoder.warmup()

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes, by checkpoint key; views of this model's own memory."""
        return self.vision_slots() | dict(self.llm.named_parameters())  # tied embeddings are named once

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
        return bind_request(self.kind, self.segmenter, media, source, regions, options, first_region)

    @stage("plan")
    def plan(self, request: Request) -> ViewPlan:
        """A request's views; one whose tokens overflow the context ends before any mask is drawn.

        Raises:
            ValueError: naming the mark that cannot be planned, or too many marks.
        """
        return plan_within(self.config, request, self.decoder.context_length)

    # Objects

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
                "regions": [r.written() for r in request.regions],
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
