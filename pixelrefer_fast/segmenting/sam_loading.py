"""A folder or a hub id -> a model of SAM's family."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixelrefer_fast.checks.safe_files import brief
from pixelrefer_fast.segmenting.sam import Input, Sam, WordFinder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Family:
    """How the models of one kind are loaded.

    Attributes:
        name: of the class in transformers that takes points and boxes.
        normal: mean and standard deviation of its pictures.
        keeps_shape: see `Input`.
        words: name of the class that takes text, if there is one.
    """

    name: str
    normal: tuple[tuple[float, float, float], tuple[float, float, float]] = _OF_IMAGENET
    keeps_shape: bool = False
    words: str | None = None


_SAM3 = Family("Sam3TrackerModel", _HALVES, words="Sam3Model")
FAMILIES = {
    "sam": Family("SamModel", keeps_shape=True),
    "sam2": Family("Sam2Model"),
    "sam2_video": Family("Sam2Model"),
    "edgetam": Family("EdgeTamModel"),
    "edgetam_video": Family("EdgeTamModel"),
    "sam3": _SAM3,
    "sam3_video": _SAM3,
    "sam3_tracker": Family("Sam3TrackerModel", _HALVES),
    "sam3_tracker_video": Family("Sam3TrackerModel", _HALVES),
}
"""By `model_type` of a config.json; released checkpoints name the class that holds all their weights."""


def load_sam(path_or_hub_id: str | Path, device: str = "auto") -> Sam:
    """Load a model in transformers' format.

    Args:
        path_or_hub_id: a folder or a hub id.
        device: "auto" (a CUDA device if there is one, else the CPU) or a device.

    Raises:
        ValueError: it cannot be loaded, or is no SAM; one line that says why.
    """
    name = os.fspath(path_or_hub_id)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    from transformers import AutoConfig

    kind = _loaded(name, AutoConfig.from_pretrained, name).model_type
    family = FAMILIES.get(kind)
    if family is None:
        raise ValueError(f"{brief(name)}: expected a segmenter ({', '.join(FAMILIES)}), got a model of type {kind!r}")
    model = _model(name, family.name, device)
    return sam_of(name, model, family, device)


def sam_of(name: str, model: PreTrainedModel, family: Family, device: str = "cpu") -> Sam:
    """A loaded model as a segmenter."""
    like = Input(input_side(model), *family.normal, family.keeps_shape)

    def words() -> WordFinder:
        from transformers import AutoTokenizer

        assert family.words is not None
        tokenizer = _loaded(name, AutoTokenizer.from_pretrained, name)
        return WordFinder(_model(name, family.words, device).eval().requires_grad_(False), tokenizer)

    return Sam(name, model, like, words if family.words else None)


def input_side(model: PreTrainedModel) -> int:
    """Side of the square that the model sees, as its prompt encoder has it."""
    return int(model.config.prompt_encoder_config.image_size)


def _model(name: str, class_name: str, device: str) -> PreTrainedModel:
    import transformers

    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise ValueError(
            f"{brief(name)}: expected a transformers that has {class_name}, got {transformers.__version__}"
        )
    loaded = _loaded(name, model_class.from_pretrained, name, dtype=torch.float32)
    try:
        return loaded.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected 'auto' or a device that is here, got {device!r} ({brief(str(error))})"
        ) from None


def _loaded(name: str, load: Any, *arguments: Any, **options: Any) -> Any:
    """What a loader of transformers returns; its many errors as one line."""
    try:
        return load(*arguments, **options)
    except ImportError as error:
        raise ValueError(f"{brief(name)}: expected the libraries that it needs, but {brief(str(error))}") from None
    except Exception as error:  # of transformers, of safetensors and of whichever HTTP library the hub uses
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{brief(name)}: expected grabcut, a folder or a hub id of a SAM in transformers' format, but "
            f"{type(error).__name__}: {brief(reason)}"
        ) from None
