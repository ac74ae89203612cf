"""Ray Data: a table of marked images and videos -> the same table with answers, on as many GPUs as there are.

import ray
from pixelrefer_fast.engines.ray import describe_dataset

rows = ray.data.read_parquet("masks.parquet")  # id, image, regions
describe_dataset(rows, model="Alibaba-DAMO-Academy/PixelRefer-Lite-2B").write_parquet("texts")
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixelrefer_fast.batching import Answer
from pixelrefer_fast.batching.memory import DEFECTS, unexplained
from pixelrefer_fast.checkpoint.embedded import EMBEDDED_LITE
from pixelrefer_fast.checks.values import is_integer, shown
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.prompt import check_question
from pixelrefer_fast.engines.rows import ANSWERS, Columns, RowReader, answer_columns, rows_of
from pixelrefer_fast.engines.urls import Urls, is_url
from pixelrefer_fast.loading import load
from pixelrefer_fast.planning.options import EncodeOptions, split_options

if TYPE_CHECKING:
    from ray.data import Dataset

BATCH_SIZE = 64
TASK_RETRIES = 3  # of a batch whose worker died


class Describer:
    """One model in one worker, for `Dataset.map_batches`: columns of rows -> the same columns with those of answers.

    A row has `image` or `video` (a path, bytes, an array, or a URL of an allowed scheme) and `regions` (what `ask`
    takes, or the same as JSON text); it may have `question`, and `options` (an object, or JSON text). It gets `text`,
    `finish_reason`, `error` and `seconds`; a bad row has an `error`, "" else, and no text, and disturbs no other.

    Args:
        model: as `pf.load` takes it.
        question: of rows without one, with a `<region>` tag for each region; None: a description of the one region.
        options: of rows without them, as in `ask`.
        load_options: further arguments of `pf.load`, such as {"dtype": "bfloat16"}.
        keep: the columns that go on with the answers; None: all.
        url_schemes: of URLs that rows may name; no other is fetched.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        model: str = EMBEDDED_LITE,
        question: str | None = None,
        *,
        options: Mapping[str, object] | None = None,
        load_options: Mapping[str, object] | None = None,
        keep: Sequence[str] | None = None,
        url_schemes: Sequence[str] = (),
    ) -> None:
        self._options = dict(options or {})
        self._question = question
        self._keep = keep
        self._urls = Urls(url_schemes)
        _check_asking(question, self._options)
        self._model = load(model, **(load_options or {}))  # type: ignore[call-overload]  # load checks them
        self._defects = 0

    def __call__(self, batch: Columns) -> dict[str, Sequence[object] | np.ndarray]:
        """Answer a batch of rows.

        Raises:
            ValueError: a column has the name of an answer's, or one that is to be kept is missing.
            Exception: many answers in a row failed for no reason that rows or memory explain.
        """
        names = list(batch) if self._keep is None else list(self._keep)
        if taken := sorted(set(names) & set(ANSWERS)):
            raise ValueError(f"columns: expected none named as an answer's, got {shown(taken)}")
        if missing := sorted(set(names) - set(batch)):
            raise ValueError(f"keep: expected some of {shown(sorted(batch))}, got {shown(missing)}")
        begun = time.perf_counter()
        reader = RowReader(self._question, self._urls)
        requests = [reader.read(row) for row in rows_of(batch)]
        answers = self._model.ask_batch(requests, progress=False, **self._options)
        self._look_for_defects(answers)
        return {name: batch[name] for name in names} | answer_columns(answers, time.perf_counter() - begun)

    def _look_for_defects(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.ok:
                self._defects = 0
            elif answer.exception is not None and unexplained(answer.exception):
                self._defects += 1
                if self._defects >= DEFECTS:
                    raise answer.exception


def describe_dataset(
    ds: Dataset,
    question: str | None = None,
    *,
    model: str = EMBEDDED_LITE,
    options: Mapping[str, object] | None = None,
    load_options: Mapping[str, object] | None = None,
    keep: Sequence[str] | None = None,
    url_schemes: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    num_gpus: float | None = None,
    num_cpus: float = 1,
    concurrency: int | tuple[int, int] | None = None,
) -> Dataset:
    """Answers for a dataset's rows, computed by workers that each hold one model.

    Args:
        ds: rows as `Describer` takes them. Rows of one image that stand together share its encoding.
        question, model, options, load_options, keep, url_schemes: as in `Describer`.
        batch_size: rows that a worker is handed at one time; memory may divide them further.
        num_gpus: of a worker; default: 1 if the cluster has any, else 0.
        num_cpus: of a worker, which is also its number of threads.
        concurrency: workers, or the fewest and the most; default: one for each GPU, or one without.

    Returns:
        A dataset, computed when it is read or written, in no particular order. A worker that dies is started again and
        its batch is answered again, TASK_RETRIES times; then the run fails, and one with checkpoints goes on.

    Raises:
        ValueError: naming the argument.
        ImportError: Ray is not installed.
    """
    import ray

    _check_asking(question, dict(options or {}))
    Urls(url_schemes)
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer of at least 1, got {shown(batch_size)}")
    gpus = _gpus() if num_gpus is None or concurrency is None else 0.0
    each = (1.0 if gpus >= 1 else 0.0) if num_gpus is None else num_gpus
    workers = (max(1, int(gpus // each)) if each else 1) if concurrency is None else concurrency
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    return ds.map_batches(
        Describer,
        fn_constructor_args=(model, question),
        fn_constructor_kwargs={
            "options": options,
            "load_options": load_options,
            "keep": keep,
            "url_schemes": tuple(url_schemes),
        },
        batch_size=int(batch_size),
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=each,
        max_task_retries=TASK_RETRIES,
    )


@contextlib.contextmanager
def checkpoints(folder: str | Path, id_column: str = "id", *, keep: bool = False) -> Iterator[None]:
    """Inside, datasets that are read and written go on where a run with the same folder broke off.

    A row is answered at least once and written once. What a block of the input becomes is noted when it is written, so
    smaller blocks (`override_num_blocks` of a reader) lose less.

    Args:
        folder: of the notes; a path that all machines see, or an URL such as s3://bucket/notes.
        id_column: whose values are the rows' own; it must be among the columns that are kept.
        keep: whether the notes stay when a run is complete, so that the same run again does nothing.
    """
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    before = context.checkpoint_config, context.target_min_block_size, context.use_datasource_v2
    place = str(folder) if is_url(str(folder)) else str(Path(folder).absolute())
    context.checkpoint_config = CheckpointConfig(id_column, place, delete_checkpoint_on_success=not keep)
    context.use_datasource_v2 = False  # which makes one block of small files, whatever override_num_blocks says
    context.target_min_block_size = 1  # answers are short: a block of Ray's own least size would hold thousands
    try:
        yield
    finally:
        context.checkpoint_config, context.target_min_block_size, context.use_datasource_v2 = before


def _gpus() -> float:
    import ray

    if not ray.is_initialized():
        ray.init()
    return float(ray.cluster_resources().get("GPU", 0))


def _check_asking(question: str | None, options: Mapping[str, object]) -> None:
    if question is not None:
        check_question(question)
    split_options(options, EncodeOptions, Generation)
