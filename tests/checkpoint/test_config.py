"""What a checkpoint's configuration files may say, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pixelrefer_fast.checkpoint.config import VISION_PREFIX, ModelConfig, VisionConfig, read_generation
from pixelrefer_fast.checks.safe_files import MAX_CONFIG_BYTES, parse_json

ASSETS = Path(str(files("pixelrefer_fast.assets")))
RAW = json.loads((ASSETS / "lite/config.json").read_text())
VISION = VisionConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128)
PATCHES = f"{VISION_PREFIX}embeddings.patch_embedding.weight"
MLP = f"{VISION_PREFIX}encoder.layers.{{}}.mlp.fc1.weight"


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the configuration files of the bundled Lite checkpoint, no weights."""
    (tmp_path / "vision_encoder").mkdir()
    for name in ("config.json", "generation_config.json", "vision_encoder/config.json"):
        shutil.copyfile(ASSETS / "lite" / name, tmp_path / name)
    return tmp_path


def change(path: Path, **values: object) -> None:
    raw = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_bundled_checkpoints(kind):
    config = ModelConfig.from_folder(ASSETS / kind, shapes_of(ASSETS / kind))
    assert config.kind == kind
    assert config.vision == VISION
    assert config.vision.head_dim == 16
    assert (config.mask_num, config.mm_max_length, config.spatial_merge_size) == (8, 1024, 2)
    assert (config.hidden_size, config.tied) == (48, False)
    assert config.raw == json.loads((ASSETS / kind / "config.json").read_text())


def test_context_views_are_as_large_as_the_released_ones_unless_said_otherwise():
    config = ModelConfig.from_dict(RAW, VISION)
    assert (config.global_view_size, config.local_view_size) == (336, 224)
    small = ModelConfig.from_dict({**RAW, "global_view_size": 112, "local_view_size": 56}, VISION)
    assert (small.global_view_size, small.local_view_size) == (112, 56)
    assert small.to_dict()["global_view_size"] == 112


def test_old_field_names_make_a_transformers_5_config():
    from transformers import Qwen2Config

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Qwen2Config(**ModelConfig.from_dict(RAW, VISION).llm)
    assert made.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert (made.hidden_size, made.num_hidden_layers, made.num_key_value_heads, made.vocab_size) == (48, 2, 2, 267)
    assert made.rms_norm_eps == 1e-6
    assert made.layer_types == ["full_attention"] * 2


@pytest.mark.parametrize(
    ("given_fields", "expected"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": ...}, {"rope_theta": 5e5}),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
    ],
)
def test_rope_forms(given_fields, expected):
    from transformers import Qwen2Config

    raw = {key: value for key, value in {**RAW, **given_fields}.items() if value is not ...}
    parameters = Qwen2Config(**ModelConfig.from_dict(raw, VISION).llm).rope_parameters
    assert parameters == {"rope_type": "default"} | expected


@pytest.mark.parametrize(("merge", "expected"), [(2, 2369), (1, 9477), (3, 1053)])
def test_defaults_are_the_references(merge, expected):
    raw = {**RAW, "spatial_merge_size": merge, "mask_num": None}
    del raw["mm_max_length"]
    config = ModelConfig.from_dict(raw, VISION)
    assert (config.mask_num, config.mm_max_length) == (32, expected)


BAD = [
    ("model_type", "qwen2"),
    ("model_type", ["pixelrefer_qwen2"]),
    ("mm_projector_type", "linear"),
    ("mm_projector_type", ...),
    ("use_token_compression", False),
    ("spatial_merge_size", ...),
    ("spatial_merge_size", 0),
    ("mask_num", -1),
    ("mask_num", 10**9),
    ("mask_num", 8.0),
    ("mask_num", True),
    ("mm_max_length", 0),
    ("global_view_size", 335),
    ("global_view_size", 42),
    ("local_view_size", 224.0),
    ("local_view_size", 14 * 10**6),
    ("vocab_size", 10**12),
    ("hidden_size", "48"),
    ("hidden_size", -48),
    ("intermediate_size", None),
    ("num_hidden_layers", 10**6),
    ("num_attention_heads", 5),
    ("num_key_value_heads", 3),
    ("hidden_act", "relu"),
    ("head_dim", 64),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", "1e-6"),
    ("rope_theta", ...),
    ("rope_theta", -1.0),
    ("rope_scaling", "yarn"),
    ("rope_scaling", {"type": "unheard", "factor": 2}),
    ("rope_scaling", {"type": "yarn", "factor": -2}),
    ("rope_scaling", {"type": "yarn", "factor": 10**400}),
    ("rope_scaling", {"type": "yarn", "factor": [2]}),
    ("tie_word_embeddings", "false"),
    ("eos_token_id", 267),
    ("eos_token_id", [1, -1]),
    ("layer_types", ["full_attention"]),
    ("sliding_window", -1),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_values_name_file_key_expected_and_given(folder, key, value):
    change(folder / "config.json", **{key: value})
    with pytest.raises(ValueError, match=r"expected .*, got ") as caught:
        ModelConfig.from_folder(folder, {})
    message = str(caught.value)
    assert message.startswith(str(folder / "config.json"))
    assert key in message
    assert len(message) < 600
    assert "\n" not in message


def test_token_compression_matters_to_the_full_model_only():
    raw = {key: value for key, value in RAW.items() if key != "use_token_compression"}
    assert ModelConfig.from_dict(raw, VISION).kind == "lite"
    with pytest.raises(ValueError, match="use_token_compression: expected True, got nothing"):
        ModelConfig.from_dict({**raw, "model_type": "pixelrefer_qwen2"}, VISION)


def test_vision_config_inside_beside_or_absent(folder):
    shapes = {PATCHES: (144, 3, 14, 14)} | {MLP.format(i): (512, 144) for i in range(3)}
    derived = VisionConfig(hidden_size=144, num_layers=3, num_heads=2, intermediate_size=512)
    (folder / "vision_encoder/config.json").unlink()
    assert ModelConfig.from_folder(folder, shapes).vision == derived

    four_heads = VisionConfig(hidden_size=144, num_layers=3, num_heads=4, intermediate_size=512, layer_norm_eps=1e-5)
    (folder / "vision_encoder/config.json").write_text(json.dumps(four_heads.to_dict()))
    assert ModelConfig.from_folder(folder, shapes).vision == four_heads

    change(folder / "config.json", vision_config=derived.to_dict())
    config = ModelConfig.from_folder(folder, shapes)
    assert config.vision == derived
    assert config.to_dict() == config.raw


def test_absent_vision_config_that_cannot_be_derived_says_what_is_missing(folder):
    (folder / "vision_encoder/config.json").unlink()
    shapes = {PATCHES: (64, 3, 14, 14), MLP.format(0): (128, 64)}
    with pytest.raises(ValueError, match=r"heads .* is missing: expected vision_encoder/config.json .* width of 64"):
        ModelConfig.from_folder(folder, shapes)
    with pytest.raises(ValueError, match=r"expected the vision encoder's sizes in .*, got none"):
        ModelConfig.from_folder(folder, {PATCHES: (72, 3, 14, 14)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 80),
        ("intermediate_size", 127),
        ("patch_size", 16),
        ("num_attention_heads", 3),
        ("num_attention_heads", 32),
        ("num_hidden_layers", -1),
        ("hidden_act", "relu"),
        ("num_channels", 4),
        ("layer_norm_eps", 2),
        ("hidden_size", ...),
    ],
)
def test_bad_vision_values(folder, key, value):
    path = folder / "vision_encoder/config.json"
    change(path, **{key: value})
    with pytest.raises(ValueError, match=r"expected .*, got ") as caught:
        ModelConfig.from_folder(folder, shapes_of(ASSETS / "lite"))
    assert str(caught.value).startswith(str(path))
    assert key in str(caught.value)


def test_lite_needs_a_width_of_eight_heads():
    odd = VisionConfig(hidden_size=12, num_layers=1, num_heads=3, intermediate_size=8)
    assert ModelConfig.from_dict({**RAW, "model_type": "pixelrefer_qwen2"}, odd).vision == odd
    with pytest.raises(ValueError, match="multiple of 8"):
        ModelConfig.from_dict(RAW, odd)
    with pytest.raises(ValueError, match=r"VisionConfig: num_attention_heads"):
        VisionConfig(hidden_size=64, num_layers=2, num_heads=7, intermediate_size=128)


def test_generation(folder):
    path = folder / "generation_config.json"
    assert read_generation(folder, 267)["eos_token_id"] == 256
    path.unlink()
    assert read_generation(folder, 267) == {}
    good = {"eos_token_id": [256, 257], "repetition_penalty": 1.05, "temperature": 0, "top_p": 0.8, "top_k": 20}
    path.write_text(json.dumps(good))
    assert read_generation(folder, 267) == good
    for key, value in (("eos_token_id", 300), ("repetition_penalty", 0), ("temperature", -1), ("top_p", 1.5)):
        path.write_text(json.dumps({key: value}))
        with pytest.raises(ValueError, match=rf"generation_config.json: {key}: expected .*, got "):
            read_generation(folder, 267)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", "got \\[1\\]"),
        (b"{", "something else"),
        (b"\xff\xfe{}", "utf-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digit"),
        (b'{"a": ' + b"[" * 500_000, "nested deeper than 32"),
        (b'{"a": "' + b'\\"' * 500_000, "Unterminated"),
        (b'{"a": "' + b'\\"' * 500_000 + b"\\", "Unterminated"),
    ],
)
def test_json_that_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(data, "x.json")
    assert str(caught.value).startswith("x.json: expected a JSON object")


def test_json_that_is_read():
    assert parse_json('\ufeff{"[[[[": "\\"]é", "b": [1, 2.5, null]}'.encode(), "x") == {
        "[[[[": '"]é',
        "b": [1, 2.5, None],
    }
    assert parse_json(b'{"a":' * 32 + b"1" + b"}" * 32, "x")


def test_large_files_are_refused_before_they_are_read(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=rf"config.json: expected at most {MAX_CONFIG_BYTES} bytes, got {1 << 30}"):
        ModelConfig.from_folder(folder, {})


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """What `make` returns, or None and the message of its ValueError; other exceptions pass."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted({*RAW, "head_dim", "layer_types", "rope_parameters", "eos_token_id"})), v=JSON_VALUES)
def test_any_value_of_any_field_is_used_or_refused(key, v):
    config, refusal = attempt(lambda: ModelConfig.from_dict({**RAW, key: v}, VISION, "c.json"))
    if config is None:
        assert refusal.startswith("c.json: ")
    else:
        sizes = (config.mask_num, config.mm_max_length, config.spatial_merge_size, *config.llm.values())
        assert all(size > 0 for size in sizes[:9])


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | JSON_VALUES.map(lambda v: json.dumps({"a": v}).encode()))
def test_any_bytes_parse_or_are_refused(data):
    value, refusal = attempt(lambda: parse_json(data, "x"))
    assert refusal.startswith("x: ") if value is None else value == json.loads(data)
