"""Recorded behaviour of the reference is reproduced, and a stage that is off is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixelrefer_fast.verify import STAGES, TIE, verify

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "pixelrefer_fast" / "assets"
CASES = Path(__file__).parent / "data" / "cases"
GOLDEN = ROOT.parent / "shared" / "golden"


def verify_folder(tmp_path: Path, kind: str, *names: str) -> Path:
    folder = tmp_path / kind
    shutil.copytree(ASSETS / kind, folder)
    for path in (CASES / kind).glob("case_*.safetensors"):
        if not names or path.stem.removeprefix("case_") in names:
            shutil.copy(path, folder)
    return folder


def failing(report: dict) -> dict[str, list[str]]:
    return {c["name"]: [s for s, r in c["stages"].items() if not r["ok"]] for c in report["cases"] if not c["ok"]}


def change_case(path: Path, key: str, change) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_recorded_cases_hold(tmp_path: Path, kind: str) -> None:
    seen: list[str] = []
    report = verify(verify_folder(tmp_path, kind), progress=seen.append)
    assert failing(report) == {}
    assert report["ok"]
    assert len(report["cases"]) == len(list((CASES / kind).iterdir()))
    assert seen == [c["name"] for c in report["cases"]]
    for case in report["cases"]:
        assert tuple(case["stages"]) == STAGES
        # float32 on a CPU: two orders of magnitude inside the limits
        assert case["stages"]["object_tokens"]["error"] < 1e-5
        assert case["stages"]["logits"]["error"] < 1e-5
        assert case["stages"]["patches"]["error"] == 0
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_shared_golden_folder_holds(kind: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"the larger recorded cases lie beside the project in {GOLDEN}, which is not here")
    report = verify(GOLDEN / kind)
    assert failing(report) == {}
    assert len(report["cases"]) >= 6


def test_changed_weight_is_found_at_its_stage(tmp_path: Path) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    change_case(folder / "model.safetensors", "model.region_encoder.pos_linear.weight", lambda t: t * 1.05)
    report = verify(folder)
    assert failing(report)["case_image_one"][0] == "object_tokens"
    assert not report["ok"]


@pytest.mark.parametrize(
    ("key", "change", "stage"),
    [
        ("crop.0", lambda t: t ^ 1, "crops"),
        ("crop_mask.0", torch.zeros_like, "crops"),
        ("box_params", lambda t: t + 1, "crops"),
        ("mask_nums", lambda t: t - 1, "crops"),
        ("vision_patches_uint8.1", lambda t: t.flip(0), "patches"),
        ("vision_grid_thw.1", lambda t: t + 1, "patches"),
        ("vision_features.2", lambda t: t + 1e-2, "features"),
        ("object_tokens", lambda t: t * 1.001, "object_tokens"),
        ("kmeans_perm.0", lambda t: t[:-1], "object_tokens"),
        ("input_ids", lambda t: t.flip(1), "input_ids"),
        ("inputs_embeds", lambda t: t * 1.001, "inputs_embeds"),
        ("scores", lambda t: t + 1e-2, "logits"),
        ("output_ids", lambda t: t.flip(1), "text"),
    ],
)
def test_each_stage_can_fail(tmp_path: Path, key: str, change, stage: str) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    change_case(folder / "case_image_one.safetensors", key, change)
    assert stage in failing(verify(folder))["case_image_one"]


def test_nan_in_a_recording_fails(tmp_path: Path) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    change_case(folder / "case_image_one.safetensors", "vision_features.0", lambda t: t * float("nan"))
    report = verify(folder)
    assert failing(report)["case_image_one"] == ["features"]
    assert report["cases"][0]["stages"]["features"]["error"] is None
    json.dumps(report, allow_nan=False)


def test_a_tie_is_reported_not_judged(tmp_path: Path) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    case = folder / "case_image_one.safetensors"
    change_case(case, "object_tokens", lambda t: t + 0.5)
    change_case(case, "kmeans_gap", lambda t: torch.full_like(t, TIE / 2))
    stages = verify(folder)["cases"][0]["stages"]
    assert stages["object_tokens"]["ok"]
    assert "ties" in stages["object_tokens"]["note"]
    # the recorded tokens go on from there, so the embeddings now differ from the recorded ones
    assert not stages["inputs_embeds"]["ok"]


def test_bfloat16_is_within_its_limits(tmp_path: Path) -> None:
    report = verify(verify_folder(tmp_path, "lite", "image_one"), dtype="bfloat16")
    stages = report["cases"][0]["stages"]
    assert report["dtype"] == "bfloat16"
    assert stages["crops"]["ok"]
    assert stages["input_ids"]["ok"]
    assert 1e-4 < stages["features"]["error"] < stages["features"]["limit"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "expected a folder"),
        (lambda folder: [p.unlink() for p in folder.glob("case_*")], "expected at least one case_"),
        (lambda folder: (folder / "case_image_one.safetensors").write_bytes(b"x" * 100), "not a recorded case"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_bad_folders(tmp_path: Path, prepare, message: str) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    prepare(folder)
    with pytest.raises(ValueError, match=message):
        verify(folder)


def test_a_backend_asked_for_by_name_does_not_fall_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend 'triton' was asked for"):
        verify(verify_folder(tmp_path, "lite", "image_one"), backend="triton")
