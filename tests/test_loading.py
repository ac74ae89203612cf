"""Device, dtype and backend; every tensor of every released size has its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.loading import auto_device, auto_dtype

ASSETS = Path(__file__).parents[1] / "pixelrefer_fast" / "assets"
QWEN = {
    "2B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}


def released(kind: str, size: str) -> ModelConfig:
    raw = {
        **QWEN[size],
        "model_type": "pixelreferlite_qwen2" if kind == "lite" else "pixelrefer_qwen2",
        "num_key_value_heads": 2 if size == "2B" else 4,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": size == "2B",
        "rope_theta": 1e6,
        "mm_projector_type": "mlp2x_gelu",
        "spatial_merge_size": 2,
        "mask_num": 32,
        "mm_max_length": 16384,
        "use_token_compression": True,
    }
    return ModelConfig.from_dict(raw, VisionConfig(1152, 27, 16, 4304))


class Tokenizer:
    eos_token_id = 151645
    all_special_ids = (151645, 151643)


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize(("size", "billions"), [("2B", 2.0), ("7B", 8.05)])
def test_released_sizes_have_a_place_for_every_tensor(kind: str, size: str, billions: float) -> None:
    with torch.device("meta"):
        model = {"lite": pf.PixelReferLite, "full": pf.PixelRefer}[kind](released(kind, size), Tokenizer(), {})
    slots = model.network.checkpoint_slots()
    places = {k: tuple(v.shape) for k, v in slots.items()}
    vision = "model.vision_encoder.vision_encoder."
    assert places[f"{vision}embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert places[f"{vision}encoder.layers.26.self_attn.v_proj.weight"] == (1152, 1152)
    assert places[f"{vision}encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert places["model.mm_projector.readout.2.weight"] == (QWEN[size]["hidden_size"],) * 2
    assert ("model.region_encoder.fusion_attention_local.in_proj_weight" in places) == (kind == "lite")
    assert ("lm_head.weight" in places) == (size == "7B")
    assert f"model.layers.{QWEN[size]['num_hidden_layers'] - 1}.mlp.down_proj.weight" in places
    # nothing of the model is left out, nothing is named twice
    total = sum(p.numel() for p in model.parameters())
    assert sum(s.numel() for s in slots.values()) == total
    assert total / 1e9 == pytest.approx(billions, rel=0.05)


def test_bundled_checkpoints_fill_the_model() -> None:
    model = pf.load(ASSETS / "lite", device="cpu")
    assert model.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_other_dtypes_answer(dtype) -> None:
    model = pf.load(ASSETS / "full", device="cpu", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype) if isinstance(dtype, str) else dtype}
    assert model.network.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    texts = model.describe(ASSETS / "cat.jpg", [[10, 20, 100, 120]], max_new_tokens=3)
    assert len(texts) == 1


def test_auto_is_never_float16() -> None:
    assert auto_dtype("auto", torch.device("cpu")) == torch.float32
    assert auto_device("cpu") == torch.device("cpu")
    assert auto_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_dtype_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capability, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert auto_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu0"}, "device: expected 'auto' or a device that is here, got 'gpu0'"),
        ({"device": "meta"}, "device: expected .* got 'meta'"),
        ({"dtype": "float64"}, "dtype: expected 'auto' or one of"),
        ({"dtype": torch.int8}, "dtype: expected 'auto' or one of"),
        ({"backend": "best"}, "backend: expected one of .* got 'best'"),
        ({"feature_bytes": -1}, "feature_bytes: expected a number of bytes, 0 or more, got -1"),
        ({"feature_bytes": "1G"}, "feature_bytes: expected a number of bytes, 0 or more, got '1G'"),
        ({"graph_bytes": -1}, "graph_bytes: expected a number of bytes, 0 or more, got -1"),
        ({"graph_bytes": 1.5}, "graph_bytes: expected a number of bytes, 0 or more, got 1.5"),
        ({"graph_bytes": 2**20}, "graph_bytes: expected 0 on cpu, got 1048576: CUDA graphs exist on cuda only"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.load(ASSETS / "lite", **{"device": "cpu"} | options)


def test_a_cuda_device_that_is_not_here() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device: expected .* got '{absent}'"):
        pf.load(ASSETS / "lite", device=absent)
