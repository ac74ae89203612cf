"""`eval run`, `eval score` and both at once, with the embedded models on published files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import one_error_line
from judge_stub import JudgeStub, judging, reply_from
from published_files import TEXTS, make_published

from pixelrefer_fast.batching import calls
from pixelrefer_fast.evaluating.folder import RunFolder

Run = Callable[..., SimpleNamespace]
FAST = ("--model", "embedded:lite", "--device", "cpu", "--backend", "torch", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def stub() -> Iterator[JudgeStub]:
    with judging(reply_from(TEXTS)) as found:
        yield found


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_benchmark_from_files_to_scores(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("eval", "videorefer-q", "--data", str(data), "--out", str(out), *FAST, "--row", "Lite-2B")
    assert result.code == 0, result.err
    assert "VideoRefer-Bench-Q: 7 items, embedded:lite" in result.out
    document = json.loads((out / "scores.json").read_text())
    accuracy = document["metrics"]["accuracy"]
    assert accuracy["paper"] == 65.7
    assert accuracy["difference"] == accuracy["ours"] - 65.7
    assert accuracy["ours"] == 100 * sum(own["right"] for own in lines(out / "details.jsonl")) / 7
    asked = document["asked"]
    assert (asked["kind"], asked["engine"], asked["items"], asked["limit"]) == ("lite", "native", 7, None)
    (digest,) = asked["files"].items()
    assert digest[0] == "benchmarks/VideoRefer-Bench-Q-allframe.json"
    assert len(digest[1]) == 64
    assert {"version", "commit", "libraries", "command"} <= set(document["provenance"])
    speed = document["speed"]
    assert (speed["items"], speed["objects"]) == (7, 14)
    assert speed["objects_a_second"] == pytest.approx(14 / speed["seconds"])
    assert speed["seconds_an_item"] == pytest.approx(speed["seconds"] / 7)
    assert "| accuracy |" in (out / "table.md").read_text()
    assert f"| {accuracy['difference']:+.1f} |" in (out / "table.md").read_text()
    answers = lines(out / "answers.jsonl")
    assert [answer["id"] for answer in answers] == [str(i) for i in range(7)]
    assert all(answer["texts"][0] for answer in answers)


def test_answers_and_scores_are_two_steps(run: Run, data: Path, tmp_path: Path, stub: JudgeStub) -> None:
    out = tmp_path / "out"
    ran = run("eval", "run", "videorefer-d", "--data", str(data), "--out", str(out), *FAST, "--limit", "3", "--json")
    assert (ran.code, json.loads(ran.out)["lines"]) == (0, 3)
    assert not (out / "scores.json").exists()
    score = ("eval", "score", "--out", str(out))
    one_error_line(run(*score), "--judge-url, --judge-model")
    for name in ("first", "second", "first"):
        result = run(*score, "--judge-url", stub.url, "--judge-model", name)
        assert result.code == 0, result.err
        assert f"judge: {name} at {stub.url}, own prompts" in result.out
        assert "of the first 3 items alone" in result.out
        document = json.loads((out / "scores.json").read_text())
        assert (document["judge"]["model"], document["judge"]["answered_by"]) == (name, [f"{name}-of-today"])
    assert len(stub.requests) == 6  # three of each judge: the first is not asked again
    assert len(lines(out / "judge.jsonl")) == 6
    assert all(request["temperature"] == 0 for request in stub.requests)
    assert document["metrics"]["SC"]["ours"] == (5 + 4.5) / 2
    bold = run(*score, "videorefer-d", "--judge-url", stub.url, "--judge-model", "first", "--correct", "all", "--json")
    one_error_line(bold, "--correct: expected missing-masks when the questions were asked")
    bold = run(*score, "--judge-url", stub.url, "--judge-model", "first", "--correct", "rating-marks", "--json")
    assert json.loads(bold.out)["metrics"]["SC"]["ours"] == (5 + 4.5 + 0) / 3
    assert json.loads(bold.out)["corrections"] == ["rating-marks"]
    one_error_line(run("eval", "score", "dlc", "--out", str(out)), "expected answers to dlc, got those to videorefer-d")


def test_a_judge_who_fails_leaves_answers_and_replies(run: Run, data: Path, tmp_path: Path, stub: JudgeStub) -> None:
    out = tmp_path / "out"
    both = ("eval", "ferret", "--data", str(data), "--out", str(out), *FAST)
    judged = ("--judge-url", stub.url, "--judge-model", "m", "--judge-workers", "1")
    stub.failures = [400]
    result = run(*both, *judged)
    assert result.code == 1
    assert "1 of 5 questions without an answer, which the same command asks again" in result.err
    assert len(lines(out / "judge.jsonl")) == 4
    assert not (out / "scores.json").exists()
    again = run(*both, *judged, "--resume")
    assert again.code == 0, again.err
    assert len(stub.requests) == 6


def test_a_run_that_breaks_off_goes_on(run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ("eval", "run", "lvis", "--data", str(data), *FAST, "--batch-size", "1")
    assert run(*command, "--out", str(whole)).code == 0

    real = calls.BatchCalls.ask_iter
    asked: list[Any] = []

    def breaking(self: Any, requests: Any, **options: Any) -> Any:
        def first() -> Iterator[Any]:
            for number, request in enumerate(requests):
                if number == 4 and len(asked) < 7:
                    raise KeyboardInterrupt
                asked.append(request)
                yield request

        return real(self, first(), **options)

    monkeypatch.setattr(calls.BatchCalls, "ask_iter", breaking)
    assert run(*command, "--out", str(out)).code == 130
    done = RunFolder(out).answered()
    assert 0 <= done <= 4
    assert not (out / "answers.jsonl").exists()
    one_error_line(run("eval", "score", "--out", str(out)), f"expected all answers, got {done}", "--resume")
    one_error_line(run(*command, "--out", str(out)), "--resume")
    asked.extend([None] * 7)
    assert run(*command, "--out", str(out), "--resume").code == 0
    assert (out / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    speed = RunFolder(out).speed()
    assert (speed["items"], speed["objects"]) == (7, 7)
    assert len(speed["sessions"]) == (2 if done else 1)


def test_another_run_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("eval", "run", "lvis", "--data", str(data), "--out", str(out), "--resume")
    assert run(*command, *FAST, "--limit", "2").code == 0
    one_error_line(run(*command, *FAST, "--limit", "3"), "expected the items it was begun with, 2, got 3")
    other = run(*command, *FAST[2:], "--model", "embedded:full", "--limit", "2")
    one_error_line(other, "expected the kind it was begun with, 'lite', got 'full'")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    one_error_line(run(*command, "--out", str(tmp_path / "full"), *FAST), "expected a folder that is new, empty")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lvis",), "--out"),
        (("lvis", "--out", "OUT"), "--data"),
        (("lvis", "--out", "OUT", "--data", "nowhere"), "--data nowhere: expected the folder"),
        (("lvis", "--out", "OUT", "--data", "DATA", "--split", "train"), "--split: expected one of val, got 'train'"),
        (
            ("lvis", "--out", "OUT", "--data", "DATA", "--engine", "x"),
            "--engine: expected one of native, vllm, got 'x'",
        ),
        (("lvis", "--out", "OUT", "--data", "DATA", "--correct", "x"), "--correct: expected some of all, got 'x'"),
        (("lvis", "--out", "OUT", "--data", "DATA", "--row", "3B"), "--row: expected one of Lite-2B"),
        (("lvis", "--out", "OUT", "--data", "DATA", "--encoder", "x"), "--encoder: expected a folder, got x"),
        (("lvis", "--out", "OUT", "--data", "DATA", "--judge-model", "x"), "expected both, got one"),
        (
            ("lvis", "--out", "OUT", "--data", "DATA", "--judge-model", "x", "--judge-url", "http://x"),
            "--judge-url: expected a benchmark that a judge scores, got lvis",
        ),
        (("dlc", "--out", "OUT", "--data", "DATA"), "--judge-url, --judge-model: expected a judge"),
        (("coco", "--out", "OUT", "--data", "DATA"), "BENCHMARK: expected one of lvis, paco, vg"),
        (("lvis", "paco"), "expected one benchmark, got lvis, paco"),
        (("--world", "lvis"), "expected one benchmark, got lvis, world"),
        (("run",), "eval run: expected a published benchmark"),
        (("run", "world"), "eval run: expected a published benchmark"),
        (("score",), "--out"),
        (("score", "--out", "OUT"), "expected the folder of a run, got one without run.json"),
        (("world", "--out", "OUT"), "--out: expected with a published benchmark, got world"),
    ],
)
def test_bad_options(
    run: Run, data: Path, tmp_path: Path, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelrefer_fast.load", lambda *_, **__: pytest.fail("a model was loaded"))
    places = {"OUT": str(tmp_path / "out"), "DATA": str(data)}
    one_error_line(run("eval", *(places.get(word, word) for word in arguments), "--model", "embedded:lite"), words)


def test_files_of_another_format(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "hc-stvg-val-allframe.json").write_text('[{"video": [], "masks": [], "conversations": []}]')
    result = run("eval", "run", "hcstvg", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *FAST)
    one_error_line(result, "hcstvg: item 0: expected the published format, got something else")


def test_a_region_that_marks_nothing_is_told_and_counts_as_empty(run: Run, data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "benchmarks/VideoRefer-Bench-Q-allframe.json").read_text())
    for marks in rows[0]["annotation"]:
        for mark in marks.values():
            mark["segmentation"] = None
    (tmp_path / "VideoRefer-Bench-Q-allframe.json").write_text(json.dumps(rows))
    (tmp_path / "data").symlink_to(data / "data")
    result = run("eval", "videorefer-q", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *FAST)
    assert result.code == 2
    assert "1 items without an answer count as empty" in result.out
    document = json.loads((tmp_path / "out/scores.json").read_text())
    assert (document["items"], document["without_answer"]) == (7, 1)
    assert "frames" in document["failures"][0]
