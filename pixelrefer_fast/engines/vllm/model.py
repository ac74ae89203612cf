"""The model as vLLM runs it: this package's vision side, and vLLM's own Qwen2."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors
from vllm.utils.torch_utils import set_default_torch_dtype

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.tokenizer import IMAGE_TOKEN
from pixelrefer_fast.encoding.vision import VisionSide
from pixelrefer_fast.engines.items import VisionItem
from pixelrefer_fast.engines.packed_pass import embed_items
from pixelrefer_fast.engines.vllm.processor import RegionDummies, RegionInfo, RegionProcessor
from pixelrefer_fast.planning.request import REGION_TOKEN

LANGUAGE_MODEL = "Qwen2ForCausalLM"


@MULTIMODAL_REGISTRY.register_processor(RegionProcessor, info=RegionInfo, dummy_inputs=RegionDummies)
class PixelReferForVllm(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """PixelRefer and PixelRefer-Lite.

    The vision side's weights are held by every rank; vLLM shards those of the language model. Where vLLM captures CUDA
    graphs, the vision side's are captured too (`VisionSide.captured`), once its weights are loaded.
    """

    packed_modules_mapping = {  # noqa: RUF012  # as vLLM declares it
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    # names of a checkpoint's language model, and so of adapters that were made for it
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.layers.": "language_model.model.layers.", "lm_head.": "language_model.lm_head."}
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """None: the text of a prompt says itself where its regions are."""
        return None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config  # adapters look at it
        checkpoint = open_checkpoint(vllm_config.model_config.model)
        config, tokenizer = checkpoint.config, checkpoint.tokenizer()
        SupportsMultiModal.configure_mm_token_handling(
            self,
            vocab_size=config.llm["vocab_size"],
            mm_token_ids=tokenizer.convert_tokens_to_ids([REGION_TOKEN, IMAGE_TOKEN]),
        )
        with SupportsMultiModal._mark_tower_model(self, vllm_config, {"image", "video"}):
            self.vision = VisionSide(config)
        with SupportsMultiModal._mark_language_model(self, vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[LANGUAGE_MODEL],
            )
        own = vllm_config.model_config
        # only a first stage encodes; of the pool from which sleeping weights come, graphs must not take memory
        self._captures = not own.enforce_eager and not own.enable_cumem_allocator and get_pp_group().is_first_rank
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **fields: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The tokens (t, C) of each item of a step; `fields` have a tensor of each, as `VisionItem.to_tensors` names
        them."""
        if not fields:
            return []
        rows = zip(*fields.values(), strict=True)
        items = [VisionItem.from_tensors(dict(zip(fields, row, strict=True))) for row in rows]
        return embed_items(self.vision, items, self.vision.captured)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is not None:  # a later pipeline stage
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take a checkpoint's tensors.

        Raises:
            ValueError: one of the vision side is missing.
        """
        slots = self.vision.vision_slots()
        missing = set(slots)

        def others() -> Iterable[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name in slots:
                    with torch.no_grad():
                        slots[name].copy_(tensor)
                    missing.discard(name)
                else:
                    yield f"language_model.{name}", tensor

        loaded: set[str] = AutoWeightsLoader(self).load_weights(others())
        if missing:
            raise ValueError(f"checkpoint: expected all tensors of the vision side, missing {sorted(missing)[:3]}")
        if self._captures:
            # now, so that vLLM finds this memory taken when it measures what is left for its cache. Loaders make the
            # model's dtype the default, and what is captured must not learn of it
            with set_default_torch_dtype(torch.float32):
                self.vision.capture_passes()
        return loaded | {f"vision.{name}" for name, _ in self.vision.named_parameters()}
