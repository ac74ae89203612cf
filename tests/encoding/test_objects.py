"""Encoded objects on disk: what is saved loads again, and nothing else does."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pixelrefer_fast.encoding.objects import FORMAT, Objects, SceneTokens, checksum
from pixelrefer_fast.planning.request import ObjectTokens

PROVENANCE = {"model": "abc", "video": False, "regions": [{"box": [1, 2, 3, 4]}], "size": [480, 640]}


def _objects(name: str) -> Objects:
    if name == "lite image":
        objects = (ObjectTokens((8,)), ObjectTokens((8,)))
        return Objects("lite", torch.randn(16, 5), objects, None, None, PROVENANCE)
    if name == "lite video":
        objects = (ObjectTokens((8, 8), (0.0, 1 / 3)), ObjectTokens((8,), (7.25,)))
        return Objects("lite", torch.randn(24, 5).bfloat16(), objects, None, None, PROVENANCE)
    kept = torch.tensor([True, False, True, True, False])
    objects = (ObjectTokens((3,)), ObjectTokens((0,)))
    if name == "full image":
        scene = SceneTokens(torch.randn(5, 5), torch.ones(5, dtype=torch.bool), (5,))
        return Objects("full", torch.randn(3, 5), objects, None, scene, PROVENANCE)
    scene = SceneTokens(torch.randn(3, 5), kept, (2, 3))
    return Objects("full", torch.randn(3, 5), objects, (0.0, 1 / 3), scene, PROVENANCE)


NAMES = ("lite image", "lite video", "full image", "full video")


@pytest.fixture(params=NAMES)
def objects(request: pytest.FixtureRequest) -> Objects:
    return _objects(request.param)


def _check_equal(a: Objects, b: Objects) -> None:
    assert (a.kind, a.objects, a.times, a.provenance) == (b.kind, b.objects, b.times, b.provenance)
    assert a.tokens.dtype == b.tokens.dtype
    assert torch.equal(a.tokens, b.tokens)
    assert (a.scene is None) == (b.scene is None)
    if a.scene is not None and b.scene is not None:
        assert torch.equal(a.scene.tokens, b.scene.tokens)
        assert torch.equal(a.scene.kept, b.scene.kept)
        assert a.scene.counts == b.scene.counts


def test_saved_objects_load_again(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    objects.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["cat.safetensors"]
    _check_equal(Objects.load(path), objects)
    _check_equal(Objects.load(str(path)), objects)


def test_length(objects: Objects) -> None:
    assert len(objects) == 2


def test_no_objects(tmp_path: Path) -> None:
    Objects("lite", torch.zeros(0, 5), (), None, None).save(tmp_path / "none")
    assert "expected at least one object, got none" in _refused(tmp_path / "none")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    replace(_objects("lite image"), tokens=torch.full((16, 5), float("nan"))).save(tmp_path / "nan")
    assert "object_tokens: expected finite values" in _refused(tmp_path / "nan")


def test_a_header_that_takes_all_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(struct.pack("<Q", 9 << 20) + b" " * (9 << 20))
    assert "expected a header of at most" in _refused(path)


@pytest.mark.parametrize("path", [None, 3, b"x", ["x"]])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(ValueError, match="path: expected a path"):
        Objects.load(path)
    with pytest.raises(ValueError, match="path: expected a path"):
        _objects("lite image").save(path)


def test_objects_are_compared_by_identity() -> None:
    assert len({_objects("lite image"), _objects("lite image")}) == 2


def test_tensors_that_are_views_or_lie_elsewhere(tmp_path: Path) -> None:
    wide = torch.randn(16, 10)
    objects = replace(_objects("lite image"), tokens=wide[:, ::2])
    objects.save(tmp_path / "view")
    assert torch.equal(Objects.load(tmp_path / "view").tokens, wide[:, ::2])


def test_what_the_model_encodes_answers_the_same_from_disk(lite: Any, assets: Path, tmp_path: Path) -> None:
    objects = lite.encode(assets / "cat.jpg", [[30, 40, 160, 190]])
    objects.save(tmp_path / "cat")
    loaded = Objects.load(tmp_path / "cat")
    _check_equal(loaded, objects)
    question = "What is <region>?"
    assert lite.ask(loaded, question, max_new_tokens=4) == lite.ask(objects, question, max_new_tokens=4)


# Saving


def test_saving_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cat"
    _objects("full video").save(path)
    newer = _objects("lite image")
    newer.save(path)
    _check_equal(Objects.load(path), newer)


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "no" / "cat"
    with pytest.raises(ValueError, match=r"cat: expected an existing folder to write to, got .*no$"):
        _objects("lite image").save(path)
    assert not path.parent.exists()


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    path = tmp_path / "cat"
    path.mkdir()
    with pytest.raises(ValueError, match=r"cat: expected the name of a file to write, got a folder"):
        _objects("lite image").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]


def test_provenance_that_is_not_json(tmp_path: Path) -> None:
    _objects("lite image").save(tmp_path / "cat")
    before = (tmp_path / "cat").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(_objects("lite image"), provenance={"model": object()}).save(tmp_path / "cat")
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]
    assert (tmp_path / "cat").read_bytes() == before


@pytest.mark.parametrize("fails", ["writing", "renaming"])
def test_an_interrupted_save_leaves_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat"
    path.write_bytes(b"before")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    def write_half(part: Path, tensors: Any, metadata: Any) -> None:
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    if fails == "writing":
        monkeypatch.setattr("pixelrefer_fast.checkpoint.safetensors_file.write_safetensors", write_half)
    else:
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _objects("lite image").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]
    assert path.read_bytes() == b"before"


# Loading what is damaged or something else


def _rewrite(path: Path, change: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> None:
    """Change fields of the header and tensors of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.dumps(json.loads(metadata["objects"]) | (change or {}))
    content = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    save_file(content, path, metadata | {"objects": header, "checksum": checksum(header, content)})


def _refused(path: Path) -> str:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match="^" + str(path)) as error:
        Objects.load(path)
    assert error.type is ValueError
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    if before is not None:
        assert path.read_bytes() == before
    return str(error.value)


def test_no_file(tmp_path: Path) -> None:
    assert _refused(tmp_path / "no").endswith("expected a file of encoded objects, found none")
    assert _refused(tmp_path).endswith("expected a file of encoded objects, found none")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 64,
        b"PK\x03\x04 not a zip",
        b"\x80\x04\x95 pickle",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 9) + b'{"a":nul}',
        struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe",
    ],
    ids=range(10),
)
def test_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat"
    path.write_bytes(content)
    assert "not a file of encoded objects (" in _refused(path)


def test_another_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "cat"
    save_file({"object_tokens": torch.zeros(1, 2)}, path)
    assert _refused(path).endswith(f"(expected the format '{FORMAT}', got None)")
    save_file({"object_tokens": torch.zeros(1, 2)}, path, {"format": "pixelrefer_fast.objects/1"})
    assert _refused(path).endswith(f"(expected the format '{FORMAT}', got 'pixelrefer_fast.objects/1')")
    save_file({"object_tokens": torch.zeros(1, 2)}, path, {"format": FORMAT})
    _refused(path)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "null", "7", '"text"', "{}", "[" * 100_000, '{"kind": ' * 50_000]
)
def test_a_header_that_is_not_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cat"
    tensors = {"object_tokens": torch.zeros(1, 2)}
    save_file(tensors, path, {"format": FORMAT, "objects": text, "checksum": checksum(text, tensors)})
    assert "checksum" not in _refused(path)
    save_file(tensors, path, {"format": FORMAT, "objects": text})
    assert "its checksum is that of other contents" in _refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "huge"}, "expected kind 'lite' or 'full', got 'huge'"),
        ({"kind": ["full"]}, "expected kind 'lite' or 'full', got ['full']"),
        ({"objects": [{"counts": [2], "times": None}]}, "expected 2 object tokens, got (3, 5) of torch.float32"),
        ({"objects": []}, "expected at least one object, got none"),
        ({"objects": [{"counts": [-1, 4], "times": None}]}, "object 0: expected token counts of at least 0"),
        ({"objects": [{"counts": [3], "times": [0.0, 1.0]}]}, "object 0: expected a time for each token count"),
        ({"objects": [{"counts": [3]}]}, ""),
        ({"objects": [{"counts": 3, "times": None}]}, ""),
        ({"objects": [{"counts": ["x"], "times": None}]}, ""),
        ({"objects": [{"counts": [float("inf")], "times": None}]}, ""),
        ({"objects": [{"counts": [float("nan")], "times": None}]}, ""),
        ({"objects": [{"counts": [10**30], "times": None}]}, ""),
        ({"objects": [{"counts": [3], "times": [10**400]}]}, ""),
        ({"objects": [{"counts": [3], "times": ["soon"]}]}, ""),
        ({"objects": [[3]]}, ""),
        ({"objects": 3}, ""),
        ({"objects": None}, ""),
        ({"times": [0.0]}, "expected a time for each of 2 frames, got 1"),
        ({"times": [[0.0], [1.0]]}, ""),
        ({"times": 3}, ""),
        ({"scene_counts": None}, ""),
        ({"scene_counts": [2, 2]}, "expected a kept flag for 4 vision tokens, got (5,)"),
        ({"scene_counts": [-1, 6]}, "scene: expected token counts of at least 0"),
        ({"scene_counts": [5]}, "expected a time for each of 1 frames, got 2"),
        ({"scene_counts": [float("inf")]}, ""),
        ({"provenance": "text"}, ""),
        ({"provenance": 3}, ""),
        ({"provenance": None}, ""),
    ],
)
def test_a_damaged_header(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "cat"
    _objects("full video").save(path)
    _rewrite(path, change)
    assert message in _refused(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"object_tokens": None}, "object_tokens"),
        ({"vision_tokens": None}, "vision_tokens"),
        ({"vision_kept": None}, "vision_kept"),
        ({"object_tokens": torch.zeros(4, 5)}, "expected 3 object tokens, got (4, 5) of torch.float32"),
        ({"object_tokens": torch.zeros(3)}, "expected 3 object tokens, got (3,) of torch.float32"),
        (
            {"object_tokens": torch.zeros(3, 5, dtype=torch.int64)},
            "expected 3 object tokens, got (3, 5) of torch.int64",
        ),
        ({"object_tokens": torch.zeros(3, 5).to(torch.float8_e4m3fn)}, "object_tokens: expected one of torch.float16"),
        ({"vision_tokens": torch.zeros(3, 5).to(torch.float8_e5m2)}, "vision_tokens: expected one of torch.float16"),
        ({"vision_tokens": torch.zeros(4, 5)}, "expected vision tokens of shape (3, 5), got (4, 5)"),
        ({"vision_tokens": torch.zeros(3, 6)}, "expected vision tokens of shape (3, 5), got (3, 6)"),
        ({"vision_tokens": torch.zeros(3, 5, dtype=torch.int64)}, "vision tokens"),
        ({"vision_kept": torch.ones(5)}, "expected a kept flag for 5 vision tokens"),
        ({"vision_kept": torch.ones(5, 1, dtype=torch.bool)}, "expected a kept flag for 5 vision tokens, got (5, 1)"),
    ],
    ids=range(13),
)
def test_damaged_tensors(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "cat"
    _objects("full video").save(path)
    _rewrite(path, **tensors)
    assert message in _refused(path)


def test_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "cat"
    _objects("full video").save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        _refused(path)
    path.write_bytes(whole + b"\x00")
    _refused(path)


@given(data=st.data())
def test_flipped_bytes_load_or_are_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is damaged, the answer is a ValueError or, where nothing of the objects is, these objects."""
    path = tmp_path_factory.getbasetemp() / "flipped"
    objects = _objects("full video")
    objects.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = Objects.load(path)
    except ValueError:
        _refused(path)
    else:
        _check_equal(loaded, objects)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "cat"
    _objects("lite image").save(path)
    monkeypatch.setattr("pixelrefer_fast.checkpoint.safetensors_file.safe_open", refuse)
    assert "Permission denied" in _refused(path)
