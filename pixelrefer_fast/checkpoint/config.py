"""The configuration of a model: `config.json`, the vision encoder's config, and the shapes of the weights.

The keys are those of the released models. All values are checked here, so that later code can trust the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pixelrefer_fast.checks.fields import MISSING, Fields
from pixelrefer_fast.checks.safe_files import brief, file_in, read_json

Shapes = Mapping[str, tuple[int, ...]]

KINDS = {"pixelrefer_qwen2": "full", "pixelreferlite_qwen2": "lite"}
VISION_FILE = "vision_encoder/config.json"
VISION_KEY = "vision_config"
VISION_PREFIX = "model.vision_encoder.vision_encoder."
_PATCHES = f"{VISION_PREFIX}embeddings.patch_embedding.weight"
_MLP = f"{VISION_PREFIX}encoder.layers.0.mlp.fc1.weight"
PATCH_SIZE = 14
GLOBAL_VIEW = 336  # sides of the context views of the released models
LOCAL_VIEW = 224
SMALLEST_VIEW = 56  # the image processor enlarges what is smaller
LARGEST_VIEW = 1 << 13
HEAD_SIZE = 72  # of the released vision encoder, the only one met without a config file of its own
INFUSION_HEADS = 8
MAX_WIDTH = 1 << 18
MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 24
ROPE_TYPES = ("default", "linear", "dynamic", "yarn")


class _Fields(Fields):
    """The values of one JSON object."""

    def number(self, key: str, high: float, default: float = MISSING) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float) or not 0 < value <= high:
            raise self.error(key, f"a number above 0, at most {high:g}")
        return float(value)

    def must_be(self, key: str, expected: object, *, required: bool = False) -> None:
        if (required or self.given(key)) and self.values.get(key) != expected:
            raise self.error(key, brief(expected))

    def token_ids(self, key: str, vocabulary: int) -> int | list[int] | None:
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int or not 0 <= i < vocabulary for i in ids):
            raise self.error(key, f"token ids from 0 to {vocabulary - 1}")
        return value


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of the vision encoder (VL3-SigLIP-NaViT).

    Attributes:
        hidden_size: width D of the features.
        num_layers: transformer layers; all of them run.
        num_heads: attention heads of `head_dim` channels each.
        intermediate_size: width inside the MLPs.
        patch_size: side of a patch in pixels; always 14, which the planning of crops and views assumes.
        layer_norm_eps: epsilon of every LayerNorm of the encoder.

    Raises:
        ValueError: a size is impossible for such an encoder.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    patch_size: int = PATCH_SIZE
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_vision("VisionConfig", self.to_dict())

    @property
    def head_dim(self) -> int:
        """Channels of one attention head, a multiple of 4."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> VisionConfig:
        """From the fields of the vision encoder's `config.json`, which `source` names in errors (ValueError)."""
        _check_vision(source, values)
        return cls(
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            intermediate_size=values["intermediate_size"],
            patch_size=_Fields(source, values).integer("patch_size", PATCH_SIZE, PATCH_SIZE, default=PATCH_SIZE),
            layer_norm_eps=_Fields(source, values).number("layer_norm_eps", high=1.0, default=1e-6),
        )

    @classmethod
    def from_shapes(cls, shapes: Shapes, source: str) -> VisionConfig:
        """Take the sizes from the shapes of the weights. Heads leave no trace there and are assumed to have 72
        channels.

        Raises:
            ValueError: `shapes` (of the checkpoint named by `source`) lack the encoder's first layers, or the width is
                not a multiple of 72.
        """
        patches, mlp = shapes.get(_PATCHES, ()), shapes.get(_MLP, ())
        if len(patches) != 4 or len(mlp) != 2:
            raise ValueError(
                f"{source}: expected the vision encoder's sizes in {VISION_FILE}, in config.json under "
                f"{VISION_KEY!r} or in the shapes of {_PATCHES} and {_MLP}, got none of them"
            )
        if patches[0] == 0 or patches[0] % HEAD_SIZE:
            raise ValueError(
                f"{source}: the number of attention heads of the vision encoder is missing: expected {VISION_FILE} "
                f"or {VISION_KEY!r} in config.json, or a width that is a multiple of {HEAD_SIZE}, got a width of "
                f"{patches[0]}"
            )
        prefix = f"{VISION_PREFIX}encoder.layers."
        layers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
        values = {
            "hidden_size": patches[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": patches[0] // HEAD_SIZE,
            "intermediate_size": mlp[0],
            "patch_size": patches[2],
        }
        return cls.from_dict(values, f"{source}: the shapes of the vision encoder's weights")

    def check_shapes(self, shapes: Shapes, source: str) -> None:
        """Raise ValueError (its message starts with `source`) if the weights have other sizes."""
        for name, expected, keys in (
            (_PATCHES, (self.hidden_size, 3, self.patch_size, self.patch_size), "hidden_size and patch_size"),
            (_MLP, (self.intermediate_size, self.hidden_size), "intermediate_size and hidden_size"),
        ):
            if name in shapes and shapes[name] != expected:
                raise ValueError(
                    f"{source}: {keys}: expected values that fit the weights, got values that make {name} "
                    f"{expected}; it is {shapes[name]}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields under their names in the released `config.json` files."""
        return {
            "model_type": "damovl",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "patch_size": self.patch_size,
            "layer_norm_eps": self.layer_norm_eps,
        }


def _check_vision(source: str, values: Mapping[str, Any]) -> None:
    fields = _Fields(source, values)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    heads = fields.integer("num_attention_heads", 1, MAX_WIDTH)
    fields.integer("intermediate_size", 1, MAX_WIDTH)
    fields.integer("patch_size", PATCH_SIZE, PATCH_SIZE, default=PATCH_SIZE)
    fields.number("layer_norm_eps", high=1.0, default=1e-6)
    if hidden % heads or hidden // heads % 4:
        # the two axes of the rotary position each turn pairs of channels
        raise fields.error("num_attention_heads", f"a divisor of {hidden} that leaves heads of a multiple of 4")
    fields.must_be("hidden_act", "gelu_pytorch_tanh")
    fields.must_be("num_channels", 3)


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a model, from `config.json` and the files beside it.

    Attributes:
        kind: "full" (PixelRefer) or "lite" (PixelRefer-Lite).
        vision: sizes of the vision encoder.
        llm: fields for `transformers.Qwen2Config(**llm)`, named as in transformers 5.
        mask_num: object tokens n per object (in Lite, per object and frame).
        mm_max_length: pixel budget of one call of the vision encoder, in patches of the downsampled grid.
        spatial_merge_size: side of the square of patches that are merged in videos; PixelRefer only.
        global_view_size, local_view_size: sides in pixels of Lite's two square context views.
        raw: `config.json` as it was read.
    """

    kind: Literal["lite", "full"]
    vision: VisionConfig
    llm: dict[str, Any]
    mask_num: int
    mm_max_length: int
    spatial_merge_size: int
    raw: dict[str, Any] = field(repr=False)
    global_view_size: int = GLOBAL_VIEW
    local_view_size: int = LOCAL_VIEW

    @property
    def hidden_size(self) -> int:
        """Width of the LLM and of the object tokens."""
        return int(self.llm["hidden_size"])

    @property
    def tied(self) -> bool:
        """Whether `lm_head.weight` is `model.embed_tokens.weight`."""
        return bool(self.llm["tie_word_embeddings"])

    @classmethod
    def from_folder(cls, folder: str | Path, shapes: Shapes) -> ModelConfig:
        """Read the configuration of the checkpoint in `folder`.

        The vision encoder's sizes come from `config.json` (key "vision_config", which `save_checkpoint` writes), else
        from `vision_encoder/config.json`, else from `shapes`. In every case they must fit `shapes`.

        Args:
            folder: contains `config.json`.
            shapes: the shape of every tensor of the checkpoint by its name.

        Raises:
            ValueError: a file is missing or broken, or a value is missing, impossible, or of an unsupported model. The
                message names the file, the key, what was expected and what was given.
        """
        folder = Path(folder).resolve()
        path, raw = read_config(folder)
        vision_values, vision_source = raw.get(VISION_KEY), f"{path}: {VISION_KEY}"
        if vision_values is None:
            beside = file_in(folder, VISION_FILE)
            if beside is not None:
                vision_values, vision_source = read_json(beside), str(beside)
        elif not isinstance(vision_values, dict):
            raise ValueError(f"{vision_source}: expected an object, got {brief(vision_values)}")
        if vision_values is None:
            vision, vision_source = VisionConfig.from_shapes(shapes, str(folder)), str(folder)
        else:
            vision = VisionConfig.from_dict(vision_values, vision_source)
        vision.check_shapes(shapes, vision_source)
        return cls.from_dict(raw, vision, str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], vision: VisionConfig, source: str = "config.json") -> ModelConfig:
        """From the fields of `config.json`, which `source` names in errors (ValueError), and the vision sizes."""
        kind = check_kind(raw, source)
        fields = _Fields(source, raw)
        fields.must_be("mm_projector_type", "mlp2x_gelu", required=True)
        # Lite has no vision tokens to compress
        fields.must_be("use_token_compression", True, required=kind == "full")
        merge = fields.integer("spatial_merge_size", 1, 64)
        if kind == "lite" and vision.hidden_size % INFUSION_HEADS:
            raise ValueError(
                f"{source}: expected a vision encoder with a width that is a multiple of {INFUSION_HEADS} (the "
                f"infusion's heads), got {vision.hidden_size}"
            )
        return cls(
            kind=kind,
            vision=vision,
            llm=_llm_fields(fields),
            mask_num=fields.integer("mask_num", 1, 1 << 16, default=32),
            mm_max_length=fields.integer("mm_max_length", 1, 1 << 24, default=9477 // merge**2),
            spatial_merge_size=merge,
            raw=dict(raw),
            global_view_size=_view_size(fields, "global_view_size", GLOBAL_VIEW),
            local_view_size=_view_size(fields, "local_view_size", LOCAL_VIEW),
        )

    def to_dict(self) -> dict[str, Any]:
        """`config.json` as it was read, with the vision encoder's sizes inside."""
        return {**self.raw, VISION_KEY: self.vision.to_dict()}


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Path and fields of `config.json` in the resolved `folder`; ValueError if it is not that of a supported model."""
    path = file_in(folder, "config.json")
    if path is None:
        raise ValueError(f"{folder}: expected a checkpoint folder with a config.json, found none")
    raw = read_json(path)
    check_kind(raw, str(path))
    return path, raw


def check_kind(raw: Mapping[str, Any], source: str) -> Literal["lite", "full"]:
    """The kind of model that the `model_type` of a `config.json` names; ValueError for any other."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise _Fields(source, raw).error("model_type", " or ".join(repr(name) for name in KINDS))
    return cast(Literal["lite", "full"], KINDS[model_type])


def _view_size(fields: _Fields, key: str, default: int) -> int:
    size = fields.integer(key, SMALLEST_VIEW, LARGEST_VIEW, default=default)
    if size % PATCH_SIZE:
        raise fields.error(key, f"a multiple of {PATCH_SIZE}")
    return size


def _llm_fields(fields: _Fields) -> dict[str, Any]:
    vocabulary = fields.integer("vocab_size", 1, MAX_VOCABULARY)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    heads = fields.integer("num_attention_heads", 1, MAX_WIDTH)
    kv_heads = fields.integer("num_key_value_heads", 1, heads)
    if hidden % heads or hidden // heads % 2:
        raise fields.error("num_attention_heads", f"a divisor of {hidden} that leaves heads of an even size")
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of {heads}, the number of attention heads")
    fields.must_be("hidden_act", "silu")
    fields.must_be("head_dim", hidden // heads)
    llm = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size", 1, MAX_WIDTH),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields.integer("max_position_embeddings", 1, 1 << 24, default=32768),
        "rms_norm_eps": fields.number("rms_norm_eps", high=1.0, default=1e-6),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=False),
        "rope_parameters": _rope_parameters(fields),
        "use_sliding_window": fields.flag("use_sliding_window", default=False),
        "max_window_layers": fields.integer("max_window_layers", 0, 1 << 16, default=28),
    }
    if fields.given("sliding_window"):
        llm["sliding_window"] = fields.integer("sliding_window", 1, 1 << 24)
    elif llm["use_sliding_window"]:
        raise fields.error("sliding_window", "an integer, as use_sliding_window is true")
    if fields.given("layer_types"):
        types = fields.values["layer_types"]
        allowed = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(kind not in allowed for kind in types):
            raise fields.error("layer_types", f"a list of {layers} of {' and '.join(allowed)}")
        llm["layer_types"] = types
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = fields.token_ids(key, vocabulary)
        if ids is not None:
            llm[key] = ids
    return llm


def _rope_parameters(fields: _Fields) -> dict[str, Any]:
    """The rotary position of the LLM as transformers 5 takes it, from its own field or the two older ones."""
    key = "rope_parameters" if fields.given("rope_parameters") else "rope_scaling"
    given = fields.values.get(key) or {}
    if not isinstance(given, dict):
        raise fields.error(key, "an object or null")
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise fields.error(key, f"rope_type {', '.join(ROPE_TYPES)}")
    for value in given.values():
        if type(value) in (int, float) and not 0 < value < 1e12:
            raise fields.error(key, "numbers above 0")
    theta = fields if "rope_theta" not in given else _Fields(f"{fields.source}: {key}", given)
    rest = {name: value for name, value in given.items() if name not in ("type", "rope_type", "rope_theta")}
    if any(type(value) not in (int, float, bool) for value in rest.values()):
        raise fields.error(key, "an object of numbers")
    return {**rest, "rope_type": rope_type, "rope_theta": theta.number("rope_theta", high=1e12)}


def read_generation(folder: Path, vocabulary: int) -> dict[str, Any]:
    """Read `generation_config.json` of the checkpoint in the resolved `folder`; {} if there is none.

    Raises:
        ValueError: a token id is outside the vocabulary, or a penalty, temperature, top_p or top_k is impossible.
    """
    path = file_in(folder, "generation_config.json")
    if path is None:
        return {}
    values = read_json(path)
    check_generation(values, vocabulary, str(path))
    return values


def check_generation(values: Mapping[str, Any], vocabulary: int, source: str) -> None:
    """Raise ValueError (its message starts with `source`) if generation settings cannot be used."""
    fields = _Fields(source, values)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields.token_ids(key, vocabulary)
    fields.number("repetition_penalty", high=1e3, default=1.0)
    if values.get("temperature") != 0:
        fields.number("temperature", high=1e3, default=1.0)
    fields.number("top_p", high=1.0, default=1.0)
    fields.integer("top_k", 0, MAX_VOCABULARY, default=50)
    fields.flag("do_sample", default=False)
