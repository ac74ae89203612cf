"""The model behind AutoModelForImageTextToText: this package's vision side, and transformers' own loop over the LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import Self

from pixelrefer_fast.checkpoint.tokenizer import IMAGE_TOKEN
from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.engines.configs import PixelReferConfig, PixelReferLiteConfig
from pixelrefer_fast.engines.items import PlannedItems
from pixelrefer_fast.engines.packed_pass import embed_items
from pixelrefer_fast.loading import load
from pixelrefer_fast.model import PixelRefer, PixelReferLite
from pixelrefer_fast.planning.request import REGION_TOKEN

# Options of transformers' `from_pretrained` that say nothing about this model, or what it does anyway.
_IGNORED = frozenset(
    {
        "_from_auto", "adapter_kwargs", "attn_implementation", "cache_dir", "force_download", "local_files_only",
        "low_cpu_mem_usage", "proxies", "revision", "subfolder", "token", "trust_remote_code", "use_safetensors",
    }
)  # fmt: skip


class _ForImageTextToText(PreTrainedModel):
    """A model of this package with transformers' `generate`.

    Args:
        config: of the checkpoint, as AutoConfig reads it.
        model: this package's, loaded; `model.ask` and all else goes on working.

    Attributes:
        pixelrefer: that model.
    """

    main_input_name = "input_ids"
    base_model_prefix = "pixelrefer"

    def __init__(self, config: Qwen2Config, model: PixelRefer | PixelReferLite) -> None:
        super().__init__(config)
        self.pixelrefer = model
        generation = GenerationConfig(**model.network.generation)
        generation.eos_token_id = ends = sorted(model.decoder.end_ids)
        if generation.pad_token_id is None and ends:
            generation.pad_token_id = ends[0]
        self.generation_config = generation
        ids = model.tokenizer.convert_tokens_to_ids([REGION_TOKEN, IMAGE_TOKEN])
        assert isinstance(ids, list)  # a single id is for a single token
        self._region_id, self._image_id = ids
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer options than transformers' own
        cls,
        pretrained_model_name_or_path: str | Path,
        *_: object,
        config: Qwen2Config | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint by `pixelrefer_fast.load`.

        Args:
            pretrained_model_name_or_path: its folder or hub id.
            config: as AutoConfig read it; it is read anew by default.
            dtype, torch_dtype: default: as `pixelrefer_fast.load` chooses ("auto").
            device_map: one device, or "auto"; default: the CPU, as transformers has it.
            options: others of `pixelrefer_fast.load`, such as backend.

        Raises:
            ValueError: the checkpoint or an option cannot be used.
        """
        if isinstance(device_map, dict):
            raise ValueError(f"device_map: expected one device, got {shown(device_map)}; vLLM shards a model")
        known = {name: value for name, value in options.items() if name not in _IGNORED}
        try:
            model = load(
                pretrained_model_name_or_path,
                device="cpu" if device_map is None else str(device_map),
                dtype=dtype or torch_dtype or "auto",
                **known,
            )
        except TypeError as error:
            raise ValueError(f"from_pretrained: expected options of pixelrefer_fast.load, got {error}") from None
        if config is None:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(pretrained_model_name_or_path)
        return cls(config, model)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]  # no options
        """Write one self-contained folder (`PixelRefer.save`)."""
        self.pixelrefer.save(save_directory)

    @property
    def device(self) -> torch.device:
        return self.pixelrefer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pixelrefer.dtype

    def can_generate(self) -> bool:  # type: ignore[override]  # a class method of transformers asks for a mixin
        return True

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, items: PlannedItems | None = None) -> torch.Tensor:
        """Prompt embeddings (B, L, C): text, and the tokens of what is marked and seen in the places of `items`.

        Args:
            input_ids: (B, L) int64 of the processor.
            items: of the processor: what stands at the placeholders of each row.

        Raises:
            ValueError: placeholders and items do not fit each other.
        """
        network = self.pixelrefer.network
        rows = [()] * len(input_ids) if items is None else items.rows
        if len(rows) != len(input_ids):
            raise ValueError(f"items: expected those of {len(input_ids)} prompts, got {len(rows)}")
        held = (input_ids == self._region_id) | (input_ids == self._image_id)
        # placeholders may lie beyond the embedding table when their tokens were added by us
        embeds = network.llm.get_input_embeddings()(input_ids.masked_fill(held, 0))
        flat = [item for row in rows for item in row]
        if flat:
            found = iter(embed_items(network, flat))
            for number, row in enumerate(rows):
                taken = {self._image_id: 0, self._region_id: 0}  # placeholders of each kind that are filled
                for item in row:
                    tokens = next(found)
                    own = self._image_id if item.plan.scene else self._region_id
                    places = (input_ids[number] == own).nonzero()[taken[own] : taken[own] + len(tokens), 0]
                    if len(places) != len(tokens):
                        raise ValueError(
                            f"items: expected {len(tokens)} placeholders in prompt {number}, got {len(places)}"
                        )
                    embeds[number, places] = tokens.to(embeds)
                    taken[own] += len(tokens)
        if int(held.sum()) != sum(item.tokens for item in flat):
            raise ValueError(
                f"items: expected {int(held.sum())} tokens for the placeholders, got {sum(i.tokens for i in flat)}"
            )
        return embeds

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        items: PlannedItems | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, V) of prompts, as transformers' Qwen2ForCausalLM gives them; `options` are its own."""
        embeds = self.embed(input_ids, items)
        return self.pixelrefer.network.llm(inputs_embeds=embeds, attention_mask=attention_mask, **options)

    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        items: PlannedItems | None = None,
        **options: Any,
    ) -> Any:
        """transformers' `generate` of the language model, from prompts with marked objects.

        Args:
            input_ids, attention_mask, items: of the processor.
            generation_config, options: as in transformers: streamer, stopping_criteria, num_beams, do_sample, ...
                Penalties of repetition count the answer alone, as `ask` and the reference do.

        Returns:
            (B, L + n) token ids, the prompts' before the answers'; or, with `return_dict_in_generate`, transformers'
            output with them as `sequences`.

        Raises:
            ValueError: there is no prompt, or it does not fit its items.
        """
        if input_ids is None:
            raise ValueError("input_ids: expected those of the processor, got none")
        llm = self.pixelrefer.network.llm
        llm.generation_config = self.generation_config
        if generation_config is not None:
            options["generation_config"] = generation_config
        given = llm.generate(
            inputs_embeds=self.embed(input_ids, items),
            attention_mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            **options,
        )
        answers = given if isinstance(given, torch.Tensor) else given.sequences
        prompts = input_ids.to(answers.device).repeat_interleave(len(answers) // len(input_ids), 0)
        whole = torch.cat([prompts, answers], 1)
        if isinstance(given, torch.Tensor):
            return whole
        given.sequences = whole
        return given


class PixelReferLiteForImageTextToText(_ForImageTextToText):
    """PixelRefer-Lite."""

    config_class = PixelReferLiteConfig


class PixelReferForImageTextToText(_ForImageTextToText):
    """PixelRefer."""

    config_class = PixelReferConfig


MODELS = (PixelReferLiteForImageTextToText, PixelReferForImageTextToText)
