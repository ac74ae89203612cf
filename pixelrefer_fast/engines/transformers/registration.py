"""Both models in transformers' Auto classes; `pixelrefer_fast._auto_classes` calls this when these are imported."""

from __future__ import annotations


def configs() -> None:
    from transformers import AutoConfig

    from pixelrefer_fast.engines.configs import CONFIGS

    for model_type, config in CONFIGS.items():
        AutoConfig.register(model_type, config, exist_ok=True)


def models() -> None:
    from transformers import AutoModelForImageTextToText

    from pixelrefer_fast.engines.transformers.modeling import MODELS

    for model in MODELS:
        AutoModelForImageTextToText.register(model.config_class, model, exist_ok=True)


def processors() -> None:
    from transformers import AutoProcessor

    from pixelrefer_fast.engines.configs import CONFIGS
    from pixelrefer_fast.engines.transformers.processing import PixelReferProcessor

    for config in CONFIGS.values():
        AutoProcessor.register(config, PixelReferProcessor, exist_ok=True)
