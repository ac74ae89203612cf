"""A folder or a hub id -> a model of SAM's family."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixelrefer_fast.checks.safe_files import brief
from pixelrefer_fast.segmenting.pixels import Input
from pixelrefer_fast.segmenting.sam import Sam
from pixelrefer_fast.segmenting.tracking import Tracker
from pixelrefer_fast.segmenting.words import WordFinder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """How the models of one kind are loaded, by the names of their classes in transformers.

    Attributes:
        points: takes points and boxes in pictures.
        tracker: follows objects, and the class of its sessions; None: the weights of it are not there.
        words: takes text; None: no weights for it either.
        mean, std: of its pictures.
        keeps_shape: see `Input`.
    """

    points: str
    tracker: tuple[str, str] | None = None
    words: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    keeps_shape: bool = False


_HALVES = (0.5, 0.5, 0.5)
_SAM2_TRACKER = "Sam2VideoModel", "Sam2VideoInferenceSession"
_EDGETAM_TRACKER = "EdgeTamVideoModel", "EdgeTamVideoInferenceSession"
_SAM3_TRACKER = "Sam3TrackerVideoModel", "Sam3TrackerVideoInferenceSession"
FAMILIES = {
    "sam": Family("SamModel", keeps_shape=True),
    "sam2": Family("Sam2Model"),
    "sam2_video": Family("Sam2Model", _SAM2_TRACKER),
    "edgetam": Family("EdgeTamModel"),
    "edgetam_video": Family("EdgeTamModel", _EDGETAM_TRACKER),
    "sam3": Family("Sam3TrackerModel", None, "Sam3Model", _HALVES, _HALVES),
    "sam3_video": Family("Sam3TrackerModel", _SAM3_TRACKER, "Sam3Model", _HALVES, _HALVES),
    "sam3_tracker": Family("Sam3TrackerModel", None, None, _HALVES, _HALVES),
    "sam3_tracker_video": Family("Sam3TrackerModel", _SAM3_TRACKER, None, _HALVES, _HALVES),
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
    model = _model(name, family.points, device)
    like = Input(int(model.config.prompt_encoder_config.image_size), family.mean, family.std, family.keeps_shape)
    words, tracker = family.words, family.tracker
    return Sam(
        name,
        model,
        like,
        None if words is None else lambda: _word_finder(name, words, like, device),
        None if tracker is None else lambda: _tracker(name, *tracker, like, device),
    )


def _word_finder(name: str, words: str, like: Input, device: str) -> WordFinder:
    from transformers import AutoTokenizer

    tokenizer = _loaded(name, AutoTokenizer.from_pretrained, name)
    return WordFinder(_model(name, words, device), tokenizer, like)


def _tracker(name: str, model: str, session: str, like: Input, device: str) -> Tracker:
    return Tracker(_model(name, model, device), _class(name, session), like)


def _model(name: str, class_name: str, device: str) -> PreTrainedModel:
    kind = _class(name, class_name)
    config = _loaded(name, kind.config_class.from_pretrained, name)
    _mend(config)
    loaded, report = _loaded(
        name, kind.from_pretrained, name, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:  # transformers draws them at random, with a warning only
        raise ValueError(
            f"{brief(name)}: expected all weights of {class_name}, got none for {len(missing)} ({brief(missing[0])})"
        )
    try:
        return loaded.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected 'auto' or a device that is here, got {device!r} ({brief(str(error))})"
        ) from None


def _mend(config: PreTrainedConfig) -> None:
    """transformers before 5.20 reads the mask decoder of SAM 2's tracker as a prompt encoder."""
    part, kind = getattr(config, "mask_decoder_config", None), config.sub_configs.get("mask_decoder_config")
    if part is not None and kind is not None and not isinstance(part, kind):
        config.mask_decoder_config = kind(**part.to_dict())


def _class(name: str, class_name: str) -> Any:
    import transformers

    found = getattr(transformers, class_name, None)
    if found is None:
        raise ValueError(
            f"{brief(name)}: expected a transformers that has {class_name}, got {transformers.__version__}"
        )
    return found


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
