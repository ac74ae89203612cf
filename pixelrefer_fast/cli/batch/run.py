"""`describe --batch FILE.jsonl --out OUT.jsonl`: a request a line, an answer a line, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, TextIO

from pixelrefer_fast.batching import Answer
from pixelrefer_fast.batching.memory import DEFECTS, unexplained
from pixelrefer_fast.cli.batch.lines import BadLine, RequestLine, parse_line, read_lines
from pixelrefer_fast.cli.batch.output import LineCounts, ResultFile
from pixelrefer_fast.cli.interrupts import clean_end

REPORT_SECONDS = 30.0  # between two lines about the progress where stderr is no terminal


@dataclass
class _Pending:
    """A line whose answers are on their way."""

    line: RequestLine | BadLine
    answers: list[Answer] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return len(self.line.asks) if isinstance(self.line, RequestLine) else 1

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"line": self.line.number}
        if self.line.id is not None:
            record["id"] = self.line.id
        if isinstance(self.line, RequestLine):
            record["texts"] = [answer.text for answer in self.answers]
            record["finish"] = [answer.finish for answer in self.answers]
            record["tokens"] = [len(answer.tokens) for answer in self.answers]
        failed = next((answer for answer in self.answers if not answer.ok), None)
        if failed is not None:
            record["error"] = failed.error
            record["failure"] = "input" if isinstance(failed.exception, ValueError) else "run"
        return record

    @property
    def defect(self) -> BaseException | None:
        """An exception that neither the input nor memory explains."""
        return next((a.exception for a in self.answers if a.exception is not None and unexplained(a.exception)), None)


def run_batch(
    model: Any, source: str, results: ResultFile, question: str | None, options: dict[str, Any], batch_size: int | None
) -> LineCounts:
    """Answer what is not answered yet, or failed for no reason of its own, and move the result to its place.

    Args:
        model: who answers.
        source: the input, lines of JSON.
        results: entered.
        question: of lines without one.
        options: of lines without them.
        batch_size: at most so many requests at one time.

    Returns:
        What the complete file holds.

    Raises:
        Exception: requests that can be answered fail one after the other; what was answered before stays.
    """

    def records(lines: Iterable[tuple[int, bytes | None]]) -> closing[Generator[dict[str, Any], None, None]]:
        return closing(_records(model, lines, results, question, options, batch_size))

    with open(source, "rb") as file, _progress(results) as tick, clean_end():
        if failed := set(results.failed):
            again = (line for line in read_lines(file) if line[0] in failed)
            with records(again) as answered:
                results.replace({record["line"]: record for record in answered})
            file.seek(0)
        if not results.complete:
            with records(read_lines(file, results.counts.last)) as answered:
                for record in answered:
                    results.write(record)
                    tick()
            results.finish()
    return results.counts


def _records(
    model: Any,
    lines: Iterable[tuple[int, bytes | None]],
    results: ResultFile | None,
    question: str | None,
    options: dict[str, Any],
    batch_size: int | None,
) -> Generator[dict[str, Any], None, None]:
    """The record of each line, in order; `results` is told which files they name."""
    pending: deque[_Pending] = deque()
    defects: list[dict[str, Any]] = []  # handed on once it is known that others are answered

    def requests() -> Iterator[Any]:
        for number, data in lines:
            try:
                line = parse_line(number, data, question)
            except BadLine as error:
                pending.append(_Pending(error))
                yield error
            else:
                if results is not None:
                    results.asked(number, line.files)
                pending.append(_Pending(line))
                yield from line.asks

    with closing(model.ask_iter(requests(), ordered=True, batch_size=batch_size, **options)) as answers:
        for answer in answers:
            first = pending[0]
            first.answers.append(answer)
            if len(first.answers) < first.wanted:
                continue
            pending.popleft()
            record = first.record()
            if (defect := first.defect) is not None:
                defects.append(record)
                if len(defects) >= DEFECTS:
                    raise defect
                continue
            yield from defects
            defects.clear()
            yield record
    yield from defects


@contextlib.contextmanager
def _progress(results: ResultFile) -> Iterator[Callable[[], None]]:
    """A function to call after each line; a bar on a terminal, else a line of text now and then."""
    from pixelrefer_fast.batching.progress import batch_progress

    start = reported = time.monotonic()
    with batch_progress("lines") as draw:

        def tick() -> None:
            nonlocal reported
            counts, now = results.counts, time.monotonic()
            draw(counts.last, results.total)
            if not sys.stderr.isatty() and now - reported >= REPORT_SECONDS:
                reported = now
                rate = (counts.lines - results.resumed) / (now - start)
                print(f"line {counts.last} of {results.total}, {_words(counts)}, {rate:.1f} lines/s", file=sys.stderr)

        try:
            yield tick
        except BaseException:
            if not results.complete:
                print(f"{results.part}: {_words(results.counts)}; the same command goes on from here", file=sys.stderr)
            raise


def answer_pipe(
    model: Any, source: BinaryIO, out: TextIO, size: int | None, question: str | None, options: dict[str, Any]
) -> int:
    """Run `describe --batch -`: each record is written as soon as it and those before it are known.

    Args:
        model: loaded.
        source: lines of JSON.
        out: where a line of JSON goes for each.
        size: at most so many requests at one time.
        question, options: of lines without them.

    Returns:
        The exit code, as for a file.
    """
    counts = LineCounts()
    with clean_end(), closing(_records(model, read_lines(source), None, question, options, size)) as answered:
        for record in answered:
            print(json.dumps(record), file=out, flush=True)
            counts.add(record)
    print(_words(counts), file=sys.stderr)
    return _exit_code(counts)


def _exit_code(counts: LineCounts) -> int:
    return 1 if counts.failed else 2 if counts.bad else 0


def answer_file(
    model: Any, source: str, target: str, size: int | None, question: str | None, options: dict[str, Any]
) -> tuple[dict[str, Any], str, int]:
    """Run `describe --batch`.

    Args:
        model: loaded.
        source, target, size: --batch, --out and --batch-size.
        question, options: of lines without them.

    Returns:
        The report for --json, the line for people, and the exit code: 0; 1 if requests failed that might not have, for
        memory for example; 2 if lines were bad.
    """
    start = time.perf_counter()
    run = {
        "model": model.fingerprint,
        "kind": model.kind,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "generation": model.generation,
        "question": question,
        "options": options,
    }
    with ResultFile(target, run, source) as results:
        if results.failed or not results.complete:
            run_batch(model, source, results, question, options, size)
        counts, resumed = results.counts, results.resumed
    seconds = time.perf_counter() - start
    report = {
        "batch": source,
        "out": target,
        **asdict(counts),
        "resumed": resumed,
        "seconds": {"describe": seconds},
    }
    new = counts.lines - resumed
    line = f"{target}: {_words(counts)}"
    line += f", {resumed} of them there before" if resumed else ""
    line += f", {new / seconds:.1f} lines/s" if new else ""
    return report, line, _exit_code(counts)


def _words(counts: LineCounts) -> str:
    words = [f"{counts.lines} lines", f"{counts.texts} texts"]
    if counts.bad:
        words.append(f"{counts.bad} bad lines")
    if counts.failed:
        words.append(f"{counts.failed} failed")
    return ", ".join(words)
