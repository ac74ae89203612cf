"""Reads all files of a config through to the last pixel, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.train.config import Records, TrainConfig
from pixelrefer_fast.train.malformed import Malformed, MalformedLog
from pixelrefer_fast.train.records_source import RecordsSource

REASONS = 100  # of a file that a report has


def check_data(
    config: TrainConfig,
    say: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Read every sample of a config's files with its media and draw its masks.

    Args:
        config: the config.
        say: called with a line for every malformed sample.
        progress: called with a file's name, the number of samples read, and their total.

    Returns:
        {"files": [{"file", "samples", "malformed", "reasons"}]}, each file once. "malformed" is the number of samples
            that would be left out, "reasons" are {"index", "reason"} of the first hundred.

    Raises:
        ValueError: the checkpoint or a file cannot be read at all; or a sample is malformed and the config is strict.
    """
    model = open_checkpoint(config.model).config
    wanted = {str(r.records): r for stage in config.stages for r in stage.data if isinstance(r, Records)}
    return {"files": [_checked(r, model, config.strict, say, progress) for r in wanted.values()]}


def _checked(
    records: Records,
    model: ModelConfig,
    strict: bool,
    say: Callable[[str], None] | None,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    reasons: list[dict[str, Any]] = []
    count = 0

    def tell(malformed: Malformed) -> None:
        nonlocal count
        count += 1
        if len(reasons) < REASONS:
            reasons.append({"index": malformed.index, "reason": malformed.reason})
        if say is not None:
            say(str(malformed))

    log = MalformedLog(None, strict, tell)
    source = RecordsSource(records, model, log)
    for index in range(len(source)):
        try:
            for sample in source[index]:
                for _ in sample.request.marks():
                    pass
        except ValueError as error:
            log.add(source.malformed(index, str(error)))
        if progress is not None:
            progress(records.records.name, index + 1, len(source))
    return {"file": str(records.records), "samples": source.total, "malformed": count, "reasons": reasons}
