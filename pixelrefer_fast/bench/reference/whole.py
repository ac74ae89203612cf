"""The reference as a whole model, on the weights of one of ours: pixels, masks and a question to tokens and text.

What runs is its own `mm_infer`, with what `checkout.py` lists, and:

* its vision encoder, which it loads from the hub by name, is made of our model's sizes; its image processor has the
  values of the released preprocessor_config.json;
* its language model is given the cache of current transformers by the name that it has for it;
* its tokenizer is a copy of our model's, with the `padding_side` that the released ones have in their files and that it
  takes out of them;
* for object tokens alone it runs up to the language model, which is left out; for answers of a fixed length its check
  for the end runs and is not obeyed;
* the random permutations that its clusterings start from are drawn from the same seed in every call.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from pixelrefer_fast.bench.reference.checkout import (
    PACKAGES,
    import_reference,
    recorded_permutations,
    running_on,
    unwarned,
)
from pixelrefer_fast.bench.reference.parts import fill, image_processor, restore_rotary, vision_tower
from pixelrefer_fast.checkpoint.config import GLOBAL_VIEW, LOCAL_VIEW, ModelConfig, VisionConfig
from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.planning.request import REGION_TAG, REGION_TOKEN, FrameSource, Request, bind_regions
from pixelrefer_fast.regions import as_regions

RELEASED_VIEWS = (GLOBAL_VIEW, LOCAL_VIEW)
SEED = 11  # of the clusterings' starts


@dataclass(frozen=True)
class Inputs:
    """One request as the reference's `mm_infer` takes it.

    Attributes:
        media: images; or frames, their times, and the frames that are marked.
        modal: "image" or "video".
        masks: (M, H, W) uint8 of 0 and 1.
        options: its other arguments about the masks.
    """

    media: Any
    modal: str
    masks: torch.Tensor
    options: dict[str, Any]


class Reference:
    """The reference's whole model, run by its own `mm_infer`.

    Its parameters lie in the memory of our model's, so that both fit where one does and the peak of each is its own.

    Its language model attends with flash-attention where that is installed and runs, as its authors have it; elsewhere
    with PyTorch's fused attention, which is what transformers chooses then.

    Args:
        folder: a checkout of the reference.
        model: one of ours. Its context views must have the released sizes, which the reference has as constants:
            `with_released_views` makes such a model.

    Raises:
        FileNotFoundError: no reference is in `folder`.
        ValueError: it cannot be imported, or cannot compute what `model` computes.
    """

    name = "reference"

    def __init__(self, folder: str | Path, model: PixelRefer | PixelReferLite) -> None:
        config = model.config
        if with_released_views(model) is not model:
            raise ValueError(
                f"model: expected context views of {GLOBAL_VIEW} and {LOCAL_VIEW} pixels, which the reference has as "
                f"constants, got {config.global_view_size} and {config.local_view_size}"
            )
        if model.quantization is not None:
            raise ValueError(f"model: expected weights as they were loaded, got {model.quantization} ones")
        if model.dtype == torch.float16:
            raise ValueError("dtype: expected float32 or bfloat16, which the reference casts to, got float16")
        self.kind = config.kind
        self.mask_num = config.mask_num
        self.device, self.dtype = model.device, model.dtype
        self._modules = import_reference(folder, config.kind)
        self._infer = self._modules[""].mm_infer
        self.tokenizer = copy.deepcopy(model.tokenizer)  # the reference sets its chat template
        # it expects the setting among those that were read from a file, where the released ones have it
        self.tokenizer.init_kwargs.setdefault("padding_side", self.tokenizer.padding_side)
        self.model = self._build(model)
        self._prepared: dict[tuple[int, ...], tuple[Any, Inputs]] = {}

    def weights(self) -> list[torch.Tensor]:
        """Its parameters and buffers."""
        return [*self.model.parameters(), *self.model.buffers()]

    def encode(self, media: Any, regions: Any) -> torch.Tensor:
        """Object tokens (T, C): its `mm_infer` up to where the language model begins.

        Args:
            media, regions: what `PixelRefer.encode` takes. They are brought into its form, which is not what is to be
                measured, at the first call that has these same objects.
        """
        made: list[torch.Tensor] = []
        nothing = torch.empty(1, 0, dtype=torch.int64)
        hook = self.model.model.region_encoder.register_forward_hook(lambda module, given, out: made.append(out))
        try:
            # its own `generate` embeds the prompt and calls that of transformers
            with mock.patch.object(Qwen2ForCausalLM, "generate", return_value=nothing):
                self._run(self._inputs(media, regions), " ".join([REGION_TAG] * len(as_regions(regions))), 1)
        finally:
            hook.remove()
        return made[0]

    def ask(self, media: Any, question: str, regions: Any, max_new_tokens: int) -> tuple[int, ...]:
        """Greedy tokens, exactly so many: its own check for the end runs after each and is not obeyed."""
        made: list[torch.Tensor] = []
        generate = self.model.generate

        def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
            made.append(generate(*args, **kwargs))
            return made[-1]

        class Unheard(self._modules[""].KeywordsStoppingCriteria):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> bool:
                super().__call__(*args, **kwargs)
                return False

        with (
            mock.patch.object(self.model, "generate", recorded),
            mock.patch.object(self.model.generation_config, "eos_token_id", None),
            mock.patch.object(self._modules[""], "KeywordsStoppingCriteria", Unheard),
        ):
            self._run(self._inputs(media, regions), question, max_new_tokens)
        return tuple(made[0][0].tolist())

    def answer(self, media: Any, question: str, regions: Any, max_new_tokens: int) -> str:
        """Its greedy text, as `mm_infer` gives it."""
        return self._run(self._inputs(media, regions), question, max_new_tokens)

    def starts(self, media: Any, regions: Any) -> list[list[int] | None]:
        """The first centroids of each mark, for `kmeans_start=` of ours, so that both cluster alike."""
        starts: list[list[int] | None] = []
        with recorded_permutations() as drawn:

            def pooled(*_: Any) -> None:  # at most one clustering a mark
                starts.append(drawn.pop()[: self.mask_num].tolist() if drawn else None)

            hook = self.model.model.region_encoder.mask_pooling.register_forward_hook(pooled)
            try:
                self.encode(media, regions)
            finally:
                hook.remove()
        return starts

    def _run(self, inputs: Inputs, question: str, max_new_tokens: int) -> str:
        torch.manual_seed(SEED)
        with running_on(self.device, self.dtype):
            return self._infer(
                inputs.media,
                question,
                self.model,
                self.tokenizer,
                modal=inputs.modal,
                masks=inputs.masks,
                max_new_tokens=max_new_tokens,
                **inputs.options,
            )

    def _inputs(self, media: Any, regions: Any) -> Inputs:
        parts = (media, *regions) if isinstance(regions, (list, tuple)) else (media, regions)
        key = tuple(map(id, parts))
        if key not in self._prepared:
            # the parts are kept, so that an id stays one object's
            self._prepared[key] = parts, prepared(self.kind, media, regions)
        return self._prepared[key][1]

    def _build(self, model: PixelRefer | PixelReferLite) -> Any:
        package, config = PACKAGES[self.kind], model.config
        module = self._modules[f"model.{package}_qwen2"]
        prefix = package.capitalize()
        halves = self.device.type == "cuda" and self.dtype != torch.float32
        settings = getattr(module, f"{prefix}Qwen2Config")(**config.llm)
        for name, value in _own_settings(config).items():
            setattr(settings, name, value)
        settings.region_token_index = model.tokenizer.convert_tokens_to_ids(REGION_TOKEN)
        with unwarned():
            settings.torch_dtype = self.dtype
        settings._attn_implementation = "flash_attention_2" if halves and _has_flash_attention() else "sdpa"
        with _given_tower(self._modules, config.vision), unwarned(), torch.device("meta"):
            built = with_cache(getattr(module, f"{prefix}Qwen2ForCausalLM"))(settings)
        built.generation_config = type(built.generation_config)(**model.network.generation)
        model.decoder.language_model.look_up()  # which would move weights at the first prompt, away from these
        fill(built, model.network.checkpoint_slots(), optional=["lm_head.weight"] if config.tied else [])
        if config.tied:
            built.lm_head.weight = built.model.embed_tokens.weight
        with self.device:  # what no checkpoint holds; float32 in any dtype, as transformers leaves it
            built.model.rotary_emb = type(built.model.rotary_emb)(settings)
        restore_rotary(built.model.vision_encoder.vision_encoder, config.vision, self.device)
        return built.eval().requires_grad_(False)


def with_cache(kind: Any) -> Any:
    """The reference's language model, which finds its cache under transformers' present name of it.

    `generate` of transformers 5.24 gives `cache` what earlier ones gave `past_key_values`. The reference drops what it
    does not know, so that each token would be made without those before it.
    """

    class WithCache(kind):
        @functools.wraps(kind.forward)  # transformers looks at the signature
        def forward(self, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
            if cache is not None:
                kwargs["past_key_values"] = cache
            return super().forward(*args, **kwargs)

    return WithCache


def with_released_views(model: PixelRefer | PixelReferLite) -> PixelRefer | PixelReferLite:
    """A model on the same weights, in the same memory, whose context views have the released sizes.

    That is `model` itself where it has them, or has no context views.
    """
    if model.kind == "full" or (model.config.global_view_size, model.config.local_view_size) == RELEASED_VIEWS:
        return model
    tensors = (*model.parameters(), *model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    twin.network.config = replace(model.config, global_view_size=GLOBAL_VIEW, local_view_size=LOCAL_VIEW)
    return twin


def prepared(kind: str, media: Any, regions: Any) -> Inputs:
    """A request of ours as the reference takes it.

    Args:
        kind: "lite" or "full".
        media, regions: what `PixelRefer.encode` takes.

    Raises:
        ValueError: naming the region or the input, what was expected and what came.
    """
    opened = open_media(media)
    source = FrameSource.of(opened)
    marked = as_regions(regions)
    frames = bind_regions(source, marked)
    masks = torch.from_numpy(np.stack([m.mask.full() for m in Request(source, marked, frames, ()).marks()]))
    if not isinstance(opened, Video):
        options = {"mask_ids": [0] * len(masks), "image_downsampling": 1}
        return Inputs([opened], "image", masks, options)
    used = sorted({f for own in frames for f in own})
    place = {frame: i for i, frame in enumerate(used)}
    pixels = list(opened.read(used))
    options = {"mask_ids": [place[f] for own in frames for f in own]}
    if kind == "lite":
        # it sees marked frames alone: their times stand in the question
        options["mask_ids_raw"] = [[place[f] for f in own] for own in frames]
        return Inputs((pixels, [opened.times[f] for f in used], pixels), "video", masks, options)
    seen = opened.sample()
    return Inputs((list(opened.read(seen)), [opened.times[f] for f in seen], pixels), "video", masks, options)


def _own_settings(config: ModelConfig) -> dict[str, Any]:
    """What the reference's configs have besides the fields of a Qwen2Config."""
    return {
        "mm_vision_encoder": "SigLIP-NaViT",  # which of its towers; this one is made by `_given_tower`
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": config.vision.hidden_size,
        "mask_num": config.mask_num,
        "mm_max_length": config.mm_max_length,
        "spatial_merge_size": config.spatial_merge_size,
        "use_token_compression": True,
    }


@contextlib.contextmanager
def _given_tower(modules: Mapping[str, ModuleType], vision: VisionConfig) -> Iterator[None]:
    """Its vision encoder is made of given sizes instead of loaded from the hub by its name."""
    made: dict[str, Callable[[], Any]] = {
        "DAMOVLVisionModel": lambda: vision_tower(modules, vision),
        "DAMOVLImageProcessor": lambda: image_processor(modules),
        "Qwen2VLVisionConfig": lambda: SimpleNamespace(hidden_size=vision.hidden_size),
    }
    with contextlib.ExitStack() as stack:
        for name, make in made.items():
            loader = SimpleNamespace(from_pretrained=lambda *args, make=make, **kwargs: make())
            stack.enter_context(mock.patch.object(modules["model.encoder"], name, loader))
        yield


def _has_flash_attention() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())
