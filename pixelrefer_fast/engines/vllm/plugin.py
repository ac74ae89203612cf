"""What vLLM calls in each of its processes before it looks at a model (the entry point `vllm.general_plugins`)."""

from __future__ import annotations

from pathlib import Path

ARCHITECTURES = ("PixelreferliteQwen2ForCausalLM", "PixelreferQwen2ForCausalLM")
"""As the `config.json` of checkpoints names them."""
MODEL = "pixelrefer_fast.engines.vllm.model:PixelReferForVllm"
CHAT_TEMPLATE = Path(__file__).with_name("chat.jinja")


def register() -> None:
    """Let vLLM know the models, their configurations, and the chat template of checkpoints that have none."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.transformers_utils.chat_templates import registry as templates

    from pixelrefer_fast.engines.configs import CONFIGS

    for model_type, config in CONFIGS.items():
        AutoConfig.register(model_type, config, exist_ok=True)
        if templates.get_chat_template_fallback_path(model_type, "") is None:
            templates.register_chat_template_fallback_path(model_type, CHAT_TEMPLATE)
    known = ModelRegistry.get_supported_archs()
    for architecture in ARCHITECTURES:
        if architecture not in known:
            ModelRegistry.register_model(architecture, MODEL)
