"""Where a checkpoint comes from: a hub id, a folder, or neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from checkpoints import ASSETS, REFERENCE
from safetensors.torch import save_file

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.hub import checkpoint_folder
from pixelrefer_fast.loading import convert

HUB_SCRIPT = """
    import sys
    from pixelrefer_fast.checkpoint import open_checkpoint
    checkpoint = open_checkpoint("someone/a-model")
    assert len(checkpoint.keys) == 87 and "snapshots" in str(checkpoint.folder)
    assert len(checkpoint.tokenizer()) == 263
    try:
        open_checkpoint("someone/else")
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("shared_store", [False, True])
def test_hub_ids_offline(tmp_path, shared_store):
    repository = tmp_path / "models--someone--a-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    sources = [path for path in (ASSETS / "lite").rglob("*") if path.is_file()]
    for number, path in enumerate(sources):
        blob = repository / "blobs" / f"{number:040x}"
        link = snapshot / path.relative_to(ASSETS / "lite")
        for parent in (blob.parent, link.parent):
            parent.mkdir(parents=True, exist_ok=True)
        if shared_store:  # newer versions of huggingface_hub keep one copy for all repositories
            store = tmp_path / "blobs" / "ab" / f"{number:064x}"
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, store)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUB_SCRIPT)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "someone/else: no such folder here, and not to be had from the Hugging Face hub: "
        "it is not in the local cache (or not whole) and the hub cannot be reached"
    ]
    assert open_checkpoint(snapshot).folder == snapshot  # the snapshot by its path


def test_downloads_leave_code_and_needless_pickles_alone(folder, monkeypatch):
    import huggingface_hub

    calls = []

    def download(hub_id, allow_patterns, tqdm_class):
        calls.append((hub_id, allow_patterns, tqdm_class))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint_folder("someone/a-model", progress=True) == folder
    assert len(calls) == 1
    assert not any("bin" in pattern or ".py" in pattern or pattern == "*" for pattern in calls[0][1])
    assert calls[0][2] is None
    (folder / "model.safetensors").unlink()
    checkpoint_folder("someone/a-model", progress=False)
    assert "pytorch_model*.bin" in calls[2][1]
    bar = calls[1][2](total=3)
    assert bar.disable


def test_failed_downloads_are_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"^someone/a-model: .*ConnectionError") as caught:
        open_checkpoint("someone/a-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere", "/no/where", "./no/where", "a/b/c", "", "a\0b/c", "x" * 5000, 3, None])
def test_what_is_neither_folder_nor_hub_id(path):
    with pytest.raises(ValueError, match=r"expected (a checkpoint folder or a hub id|the path of)") as caught:
        open_checkpoint(path)
    assert len(str(caught.value)) < 400
    assert "\0" not in str(caught.value)


def test_folders_without_a_checkpoint(tmp_path, folder):
    with pytest.raises(ValueError, match=r"expected a checkpoint folder with a config\.json, found none"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="expected a checkpoint folder or a hub id"):
        open_checkpoint(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected weights in one of model\.safetensors, .* found none of them"):
        open_checkpoint(folder)
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    save_file(REFERENCE["lite"], folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt, found neither"):
        open_checkpoint(folder).tokenizer()
    with pytest.raises(ValueError, match="found neither"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
