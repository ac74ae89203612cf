"""Recorded behaviour of the reference is reproduced, and a stage that is off is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from recorded import ASSETS, ROOT, recorded_cases
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixelrefer_fast.ops.extension import load as extension
from pixelrefer_fast.verify.replay import STAGES, Tolerances, verify

GOLDEN = ROOT.parent / "shared" / "golden"


def verify_folder(tmp_path: Path, kind: str, *names: str) -> Path:
    folder = tmp_path / kind
    shutil.copytree(ASSETS / kind, folder)
    for name, path in recorded_cases(kind).items():
        target = folder / path.name
        if names and name not in names:
            target.unlink(missing_ok=True)
        elif not target.exists():
            shutil.copy(path, target)
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
    assert len(report["cases"]) == len(recorded_cases(kind))
    assert seen == [c["name"] for c in report["cases"]]
    for case in report["cases"]:
        assert tuple(case["stages"]) == STAGES
        # float32 on a CPU: two orders of magnitude inside the limits
        assert case["stages"]["object_tokens"]["error"] < 1e-5
        assert case["stages"]["logits"]["error"] < 1e-5
        assert case["stages"]["patches"]["error"] == 0
    json.dumps(report, allow_nan=False)


def test_what_ships_holds_for_both_models() -> None:
    seen: list[str] = []
    report = verify(progress=seen.append)
    assert report["ok"], failing(report)
    shipped = {kind: sorted((ASSETS / kind).glob("case_*.safetensors")) for kind in ("lite", "full")}
    names = [f"{kind}/{path.stem}" for kind, paths in shipped.items() for path in paths]
    assert [case["name"] for case in report["cases"]] == names
    assert seen == [case["name"].partition("/")[2] for case in report["cases"]]
    assert all(shipped.values())


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("kind", "name"), [("lite", "under_patch"), ("full", "two_rows"), ("full", "video_cell_thresholds")]
)
def test_recorded_cases_hold_with_every_kernel(tmp_path: Path, kind: str, name: str, kernel_device) -> None:
    folder = verify_folder(tmp_path, kind, name)
    report = verify(folder, backend="triton", device=str(kernel_device), dtype="float32")
    assert failing(report) == {}
    assert [c["name"] for c in report["cases"]] == [f"case_{name}"]
    assert report["backend"] == "triton"


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_recorded_cases_hold_with_the_extension(tmp_path: Path, kind: str) -> None:
    if reason := extension.reason("cpu"):
        pytest.skip(reason)
    report = verify(verify_folder(tmp_path, kind), backend="cuda", device="cpu")
    assert failing(report) == {}


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
    change_case(case, "kmeans_gap", lambda t: torch.full_like(t, Tolerances.of(torch.float32).tie / 2))
    stages = verify(folder)["cases"][0]["stages"]
    assert stages["object_tokens"]["ok"]
    assert "ties" in stages["object_tokens"]["note"]
    # the recorded tokens go on from there, so the embeddings now differ from the recorded ones
    assert not stages["inputs_embeds"]["ok"]


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_is_within_its_rounding(tmp_path: Path, kind: str, dtype: str) -> None:
    report = verify(verify_folder(tmp_path, kind), dtype=dtype)
    assert report["dtype"] == dtype
    assert failing(report) == {}
    errors = [c["stages"]["features"]["error"] for c in report["cases"]]
    assert min(errors) > 1e-4  # it did compute in 16 bits


def test_16_bit_ties_are_told_and_not_everything(tmp_path: Path) -> None:
    stages = [c["stages"]["object_tokens"] for c in verify(verify_folder(tmp_path, "full"), dtype="float16")["cases"]]
    told = ["ties" in s.get("note", "") for s in stages]
    assert any(told)
    assert not all(told)


@pytest.mark.parametrize(
    "key",
    [
        *("crop.0", "crop_mask.0", "vision_patches_uint8.0", "vision_grid_thw.1", "vision_features.2", "kmeans_gap"),
        *("inputs_embeds", "scores", "output_ids", "masks", "mask_ids", "box_params", "object_tokens", "image.0"),
    ],
)
def test_what_is_compared_must_be_there(tmp_path: Path, key: str) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    path = folder / "case_image_one.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[key]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=rf"case_image_one.safetensors: not a recorded case: .*{key.split('.')[0]}"):
        verify(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("timestamps", '{"a": 1}', "modal: expected 'video'"),
        ("timestamps", "[1, 2, 3]", "modal: expected 'video'"),
        ("mask_ids_raw", "[[0]]", "mask_ids_raw: expected the frames"),
        ("mask_ids_raw", "5", "not a recorded case"),
        ("kind", "full", "metadata kind: expected 'lite', got 'full'"),
        ("modal", "video", "metadata modal"),
    ],
)
def test_metadata_that_contradicts(tmp_path: Path, key: str, value: str, message: str) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    path = folder / "case_image_one.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), key: value}
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=message):
        verify(folder)


@pytest.mark.parametrize("image", [-1, 1])
def test_masks_of_images_that_are_not_there(tmp_path: Path, image: int) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    change_case(folder / "case_image_one.safetensors", "mask_ids", lambda t: torch.full_like(t, image))
    with pytest.raises(ValueError, match="mask_ids: expected images from 0 to 0"):
        verify(folder)


def test_a_request_that_we_refuse_fails_alone(tmp_path: Path) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one", "under_patch")
    path = folder / "case_image_one.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "question": "a question without its tag"}
    save_file(load_file(path), path, metadata)
    report = verify(folder)
    assert list(failing(report)) == ["case_image_one"]
    assert failing(report)["case_image_one"] == ["input_ids", "inputs_embeds", "logits", "text"]
    assert "<region> tag" in report["cases"][0]["stages"]["input_ids"]["note"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "expected a folder"),
        (lambda folder: [p.unlink() for p in folder.glob("case_*")], "expected at least one case_"),
        (
            lambda folder: (folder / "case_image_one.safetensors").write_bytes(b"x" * 100),
            "case_image_one.safetensors: ",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_bad_folders(tmp_path: Path, prepare, message: str) -> None:
    folder = verify_folder(tmp_path, "lite", "image_one")
    prepare(folder)
    with pytest.raises(ValueError, match=message):
        verify(folder)


def test_a_backend_asked_for_by_name_does_not_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="backend 'triton' was asked for"):
        verify(verify_folder(tmp_path, "lite", "image_one"), backend="triton")
