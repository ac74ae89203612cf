"""The weight files of a checkpoint folder."""

from __future__ import annotations

import re
from pathlib import Path

from pixelrefer_fast.checkpoint.pickle_file import PickleFile
from pixelrefer_fast.checkpoint.safetensors_file import MAX_TENSORS, SafetensorsFile
from pixelrefer_fast.checks.safe_files import MAX_INDEX_BYTES, brief, file_in, listed, name_of, read_json

MAX_SHARDS = 1024
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# in the order in which transformers looks for them; safetensors first, so that no pickle is opened without need
_LAYOUTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}")

WeightFile = SafetensorsFile | PickleFile


def open_weights(folder: Path) -> list[WeightFile]:
    """The weight files of the checkpoint in the resolved `folder`, with the tensors of each listed; no values are read.

    Raises:
        ValueError: there are none, one is damaged or outside the folder, or the index does not fit the files.
    """
    for name in _LAYOUTS:
        path = file_in(folder, name)
        if path is None:
            continue
        files = _open_indexed(folder, path) if path.suffix == ".json" else [_open(path)]
        if not any(file.tensors for file in files):
            raise ValueError(f"{path}: expected weights, got no tensor")
        return files
    raise ValueError(f"{folder}: expected weights in one of {', '.join(_LAYOUTS)}, found none of them")


def _open(path: Path) -> WeightFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def _open_indexed(folder: Path, index: Path) -> list[WeightFile]:
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map: expected an object of tensor names and files, got {brief(weight_map)}")
    if len(weight_map) > MAX_TENSORS:
        raise ValueError(f"{index}: weight_map: expected at most {MAX_TENSORS} tensors, got {len(weight_map)}")
    suffix = ".safetensors" if index.name == INDEX else ".bin"
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise ValueError(f"{index}: weight_map: expected names of {suffix} files in its folder, got {brief(shard)}")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise ValueError(f"{index}: weight_map: expected at most {MAX_SHARDS} files, got {len(names)}")
    paths = {name: file_in(folder, name) for name in names}
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise ValueError(f"{index}: expected the {len(names)} files it names, missing {len(absent)}: {listed(absent)}")
    files = {name: _open(path) for name, path in paths.items() if path is not None}
    _check_index(index, weight_map, files)
    return list(files.values())


def _check_index(index: Path, weight_map: dict[str, str], files: dict[str, WeightFile]) -> None:
    holder: dict[str, str] = {}
    for name, file in files.items():
        for key in file.tensors:
            if key in holder:
                raise ValueError(f"{index}: tensor {name_of(key)}: expected in one file, got {holder[key]} and {name}")
            holder[key] = name
    wrong = [name_of(key) for key, name in weight_map.items() if holder.get(key) != name]
    if wrong:
        raise ValueError(
            f"{index}: expected every tensor in the file it names; {len(wrong)} missing there: {listed(wrong)}"
        )
