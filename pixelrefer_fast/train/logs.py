"""The log of a training: JSON lines, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class Log:
    """The entries of all stages of a training, in one file.

    Each line is an object with "stage", "step" and the values of that step, as `StageTrainer.log` gives them.
    """

    def __init__(self, path: Path, tensorboard: Path | None) -> None:
        self._path = path
        self._writer: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard))

    def rewind(self, stage: str, step: int) -> None:
        """Remove a stage's entries after a step, and everything after them: a resumed run writes them again."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a kill
                break
            if entry["stage"] == stage and entry["step"] > step:
                break
            kept.append(line + "\n")
        part = self._path.with_suffix(".part")
        part.write_text("".join(kept), encoding="utf-8")
        part.replace(self._path)

    def add(self, stage: str, step: int, entry: dict[str, float]) -> None:
        values = {k: v if v is None or math.isfinite(v) else None for k, v in entry.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if self._writer is not None:
            for key, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{stage}/{key}", value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
