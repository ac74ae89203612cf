"""`describe_dataset` in a real Ray cluster of one machine: `make test-ray`, which has an environment of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pixelrefer_fast as pf
from pixelrefer_fast.engines.ray import checkpoints, describe_dataset

ray = pytest.importorskip("ray", reason="needs Ray: `make test-ray` installs it in an environment of its own")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES, ROWS, FILES = 50, 400, 10
QUESTIONS = ("What is <region>?", "What color is <region>?")
OPTIONS = {"max_new_tokens": 6}
LITE = str(Path(pf.__file__).parent / "assets" / "lite")


def row(number: int) -> dict[str, Any]:
    """A row of the table: eight of each image, boxes of any size, every fiftieth row a bad one."""
    generator = np.random.default_rng(number)
    x, y, wide, tall = generator.integers(1, 30, 4).tolist()
    regions = [[x, y, x + wide, y + tall]] if number % 50 != 49 else [[x, y]]
    return {
        "id": f"row {number}",
        "image": picture(number * IMAGES // ROWS),
        "regions": json.dumps(regions),
        "question": QUESTIONS[number % 2],
    }


def picture(number: int) -> bytes:
    import io

    from PIL import Image

    pixels = np.random.default_rng(1000 + number).integers(0, 256, (60 + number % 3, 70, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row(number) for number in range(ROWS)]


@pytest.fixture(scope="module")
def table(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rows in a folder of files."""
    import pyarrow

    folder = tmp_path_factory.mktemp("rows")
    for at in range(FILES):
        part = rows[at * ROWS // FILES : (at + 1) * ROWS // FILES]
        pq.write_table(pyarrow.Table.from_pylist(part), folder / f"{at:02}.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def expected(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What `ask` says of each row, nothing of a bad one."""
    model = pf.load(LITE, device="cpu", dtype="float32")

    def asked(one: dict[str, Any]) -> str:
        regions = json.loads(one["regions"])
        return "" if len(regions[0]) != 4 else model.ask(one["image"], one["question"], regions, **OPTIONS)

    return {one["id"]: asked(one) for one in rows}


def described(dataset: Any, **arguments: Any) -> Any:
    given = {"concurrency": 1, "num_cpus": 1, "num_gpus": 0, "batch_size": 20, "keep": ["id"]} | arguments
    return describe_dataset(dataset, model=LITE, options=OPTIONS, load_options={"dtype": "float32"}, **given)


def is_bad(name: str) -> bool:
    """Whether the row of this id is one of the bad ones."""
    return int(name.split()[1]) % 50 == 49


def check(found: list[dict[str, Any]], expected: dict[str, str]) -> None:
    """Every row is there once, with the answer of `ask` or an error."""
    assert Counter(one["id"] for one in found) == Counter(list(expected))
    assert {one["id"]: one["text"] for one in found} == expected
    bad = {one["id"] for one in found if one["finish_reason"] == "error"}
    assert bad == {own for own in expected if is_bad(own)}
    assert all(one["error"].startswith("regions: region 0: ") == (one["id"] in bad) for one in found)
    assert all(one["seconds"] > 0 for one in found)


class _Fails:
    """A later step that breaks down when it has seen some batches, and some of them are written."""

    def __init__(self, after: int, folder: str) -> None:
        self._left, self._folder = after, Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            until = time.monotonic() + 60
            while not list(self._folder.glob("*.parquet")) and time.monotonic() < until:
                time.sleep(0.1)
            raise RuntimeError("a forced failure")
        return batch


def test_a_run_that_failed_goes_on(cluster: None, table: str, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"

    # workers cannot import this file
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def run(after: int | None) -> None:
        with checkpoints(tmp_path / "checkpoints", keep=True):
            answers = described(ray.data.read_parquet(table, override_num_blocks=FILES))
            if after is not None:
                answers = answers.map_batches(
                    _Fails,
                    fn_constructor_args=(after, str(out)),
                    batch_size=20,
                    num_cpus=1,
                    compute=ray.data.ActorPoolStrategy(size=1),
                )
            answers.write_parquet(str(out))

    def written() -> list[dict[str, Any]]:
        return [one for file in sorted(out.glob("*.parquet")) for one in pq.read_table(file).to_pylist()]

    with pytest.raises(Exception, match="a forced failure"):
        run(after=8)
    before = written()
    assert 0 < len(before) < ROWS
    run(after=None)
    check(written(), expected)
    assert {one["id"] for one in before} <= {one["id"] for one in written()}
    files = len(list(out.glob("*.parquet")))
    run(after=None)  # nothing is left to be done
    assert len(list(out.glob("*.parquet"))) == files


def test_a_worker_that_dies_costs_no_row(cluster: None, table: str, expected: dict[str, str]) -> None:
    killed = []
    found = []
    for batch in described(ray.data.read_parquet(table, override_num_blocks=FILES)).iter_batches(batch_size=20):
        if not killed:
            killed = [pid for pid in workers() if os.kill(pid, signal.SIGKILL) is None]
        names = list(batch)
        found += [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    assert killed
    check(found, expected)


def workers() -> list[int]:
    """The processes that answer; Ray writes what they are into their names."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::") and b"Describer" in command:
            found.append(int(path.parent.name))
    return found


def test_two_workers_and_arrays(cluster: None, rows: list[dict[str, Any]], expected: dict[str, str]) -> None:
    """Images as arrays, regions as lists, questions by default: columns as Ray itself makes them."""
    some = [one for one in rows[::7] if not is_bad(one["id"]) and one["question"] == QUESTIONS[0]]
    arrays = [
        {"id": one["id"], "image": pf.load_image(one["image"]), "regions": json.loads(one["regions"])} for one in some
    ]
    dataset = ray.data.from_items(arrays, override_num_blocks=4)
    answers = describe_dataset(
        dataset,
        QUESTIONS[0],
        model=LITE,
        options=OPTIONS,
        load_options={"dtype": "float32"},
        keep=["id"],
        batch_size=4,
        concurrency=2,
    ).take_all()
    check(answers, {one["id"]: expected[one["id"]] for one in some})
