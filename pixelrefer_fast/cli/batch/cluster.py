"""`describe --batch FILES --out FOLDER --ray ADDRESS`: the rows of files, answered by a cluster.

The folder holds files of answers; `_run.json` says what they are made from, `_rows` has lines of JSON as rows, and
`_done` says which rows are written. The same command goes on behind them.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelrefer_fast.checks.safe_files import brief, read_json
from pixelrefer_fast.cli.batch.tables import ID_COLUMN, KEPT, files_of, webdataset_row, write_lines_as_rows
from pixelrefer_fast.engines.ray import BATCH_SIZE, checkpoints, describe_dataset

if TYPE_CHECKING:
    from ray.data import Dataset

LOCAL = "local"
STATE, ROWS, DONE, BAD = "_run.json", "_rows", "_done", "bad-lines.parquet"


@dataclass(frozen=True)
class ClusterRun:
    """What is asked of a cluster.

    Attributes:
        address: "local", which starts Ray on this machine; "auto" or host:port of a cluster that is there.
        source: a file or folder of requests.
        out: the folder of answers, which this command has to itself.
        model: as `pf.load` takes it.
        question: of rows without one.
        options: of rows without them.
        load_options: further arguments of `pf.load`.
        batch_size: rows that a worker is handed at one time.
    """

    address: str
    source: str
    out: str
    model: str
    question: str | None
    options: dict[str, Any]
    load_options: dict[str, Any]
    batch_size: int | None

    @property
    def _folder(self) -> Path:
        return Path(self.out).absolute()  # workers stand in folders of their own

    def answer(self) -> tuple[dict[str, Any], str, int]:
        """Answer the rows that are not answered yet.

        Returns:
            The report for --json, the line for people, and the exit code: 0; 2 if rows have an error.

        Raises:
            ValueError: files that cannot be read, or a folder with answers of another run.
        """
        import ray

        begun = time.perf_counter()
        kind, files = files_of(os.path.abspath(self.source))
        self._enter(files)
        ray.init(address=None if self.address == LOCAL else self.address, ignore_reinit_error=True)
        with checkpoints(self._folder / DONE, ID_COLUMN[kind], keep=True):
            described = describe_dataset(
                self._rows(kind, files),
                self.question,
                model=self.model,
                options=self.options,
                load_options=self.load_options,
                keep=KEPT[kind],
                batch_size=self.batch_size or BATCH_SIZE,
            )
            described.write_parquet(str(self._folder))
        rows, errors = count_answers(self._folder)
        report = {"batch": self.source, "out": self.out, "rows": rows, "errors": errors}
        report["seconds"] = {"describe": time.perf_counter() - begun}
        line = f"{self.out}: {rows} rows" + (f", {errors} of them with an error" if errors else "")
        return report, line, 2 if errors else 0

    def _rows(self, kind: str, files: list[str]) -> Dataset:
        import ray

        if kind == "webdataset":
            return ray.data.read_webdataset(files, decoder=None).map(webdataset_row)
        if kind == "parquet":
            return ray.data.read_parquet(files)
        folder = self._folder / ROWS
        return ray.data.read_parquet(str(folder), override_num_blocks=max(1, len(list(folder.iterdir()))))

    def _enter(self, files: list[str]) -> None:
        """Make the folder, or see that it is of this run; lines become rows once."""
        run = {
            "files": [[file, Path(file).stat().st_size] for file in files],
            "model": self.model,
            "question": self.question,
            "options": self.options,
            "load": self.load_options,
        }
        state = self._folder / STATE
        if state.exists():
            before = read_json(state)
            for key, value in run.items():
                if before.get(key) != value:
                    raise ValueError(
                        f"{self.out}: expected the {key} it was made with, {brief(before.get(key))}, got {brief(value)}"
                    )
            return
        if self._folder.exists() and any(file.name not in (ROWS, BAD) for file in self._folder.iterdir()):
            raise ValueError(f"--out {self.out}: expected a folder that is new or of this command, got one with files")
        rows = self._folder / ROWS
        rows.mkdir(parents=True, exist_ok=True)
        if files_of(os.path.abspath(self.source))[0] == "lines":
            write_lines_as_rows(files, rows, self._folder / BAD, self.question)
        state.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")  # last: what is before it is whole


def count_answers(folder: Path) -> tuple[int, int]:
    """Rows of the answers in a folder, and how many of them have an error."""
    from pyarrow import dataset

    files = sorted(str(file) for file in folder.glob("*.parquet"))
    if not files:
        return 0, 0
    answers = dataset.dataset(files)
    return answers.count_rows(), answers.count_rows(filter=dataset.field("finish_reason") == "error")
