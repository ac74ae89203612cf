"""`eval run BENCHMARK`: the published files -> questions -> answers, by the machinery of `describe --batch`."""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelrefer_fast.cli.evaluating.options import PublishedFiles
from pixelrefer_fast.cli.options import Answering, Computing
from pixelrefer_fast.evaluating.benchmark import Benchmark, Kind, Reading
from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS
from pixelrefer_fast.evaluating.corrections import CORRECTIONS, chosen_corrections
from pixelrefer_fast.evaluating.folder import RunFolder, digest
from pixelrefer_fast.evaluating.layout import check_media, check_sources

if TYPE_CHECKING:
    from pixelrefer_fast.evaluating.items import BenchmarkItem


def named_benchmark(name: str) -> Benchmark:
    """The benchmark of this name; ValueError for another one."""
    if name not in BENCHMARKS:
        raise ValueError(f"BENCHMARK: expected one of {', '.join(BENCHMARKS)} or world, got {name!r}")
    return BENCHMARKS[name]


def out_folder(files: PublishedFiles) -> RunFolder:
    if files.out is None:
        raise ValueError("--out: expected a folder for answers and scores, got none")
    return RunFolder(files.out)


def answer_benchmark(
    name: str, split: str | None, model: str, files: PublishedFiles, computing: Computing, answering: Answering
) -> tuple[dict[str, Any], int]:
    """Ask every question of a benchmark that has no answer yet.

    Returns:
        A report, and the exit code: 0; 1 if questions failed that might not have, 2 if some cannot be asked.

    Raises:
        ValueError: bad options, missing files, or a folder of another run.
    """
    from pixelrefer_fast.cli.batch.run import answer_file

    benchmark, folder = named_benchmark(name), out_folder(files)
    answering.check(computing)
    if folder.begun and not files.resume:
        raise ValueError(f"--out {folder.path}: expected a new folder, or --resume to go on with the run in it")
    items, asked = _questions(benchmark, split, model, files, answering.engine)
    if folder.begun:
        folder.compare(asked)
    else:
        folder.begin(items, asked, files.max_new_tokens)
    loading = time.perf_counter()
    with answering.loaded(model, computing) as loaded:
        before, start = folder.answered(), time.perf_counter()
        try:
            report, line, code = answer_file(
                loaded, str(folder.questions), str(folder.answers), files.batch_size, None, {}
            )
        finally:
            after, seconds = folder.answered(), time.perf_counter() - start
            if after > before:
                folder.add_session(
                    {
                        "items": after - before,
                        "objects": folder.objects(before, after),
                        "seconds": seconds,
                        "load_seconds": start - loading,
                        "batch_size": files.batch_size,
                        "engine_options": answering.named_options(),
                        "device": str(loaded.device),
                        "dtype": str(loaded.dtype).removeprefix("torch."),
                    }
                )
    print(line, file=sys.stderr)
    return report, code


def _questions(
    benchmark: Benchmark, split: str | None, model: str, files: PublishedFiles, engine: str
) -> tuple[list[BenchmarkItem], dict[str, Any]]:
    """The items, and what tells this run from others."""
    from pixelrefer_fast.checkpoint import open_checkpoint

    if files.data is None:
        raise ValueError("--data: expected the folder with the published files, got none")
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise ValueError(f"--split: expected one of {', '.join(benchmark.splits)}, got {split!r}")
    corrections = chosen_corrections(files.correct or (), benchmark.corrections)
    kind: Kind = open_checkpoint(model).config.kind
    data = Path(files.data)
    sources = benchmark.sources(kind)
    check_sources(data, sources)
    reading = Reading(data, kind, split, corrections)
    items: list[BenchmarkItem] = []
    try:
        items.extend(islice(benchmark.items(reading), files.limit))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{benchmark.name}: item {len(items)}: expected the published format, got something else ({error!r})"
        ) from error
    if not items:
        raise ValueError(f"{benchmark.name}: expected items in the published files, got none")
    check_media(data, items, benchmark.media_origin)
    paths = [path for source in sources if (path := source.find(data)) is not None]
    return items, {
        "benchmark": benchmark.name,
        "split": split,
        "limit": files.limit,
        "items": len(items),
        "model": model,
        "kind": kind,
        "engine": engine,
        "max_new_tokens": files.max_new_tokens,
        "corrections": sorted(name for name in corrections if CORRECTIONS[name].asks),
        "files": {str(path.relative_to(data)): digest(path) for path in paths},
    }
