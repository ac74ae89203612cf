"""A judge behind an endpoint: what is sent, what is tried again, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_stub import JudgeStub, Messages, judging, text_of

from pixelrefer_fast.evaluating.judging.endpoint import KEY_VARIABLE, Endpoint, JudgeError
from pixelrefer_fast.evaluating.judging.judge import REFUSALS, Judge


def question(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def shout(messages: Messages) -> str:
    return text_of(messages).upper()


def endpoint(stub: JudgeStub, model: str = "m") -> Endpoint:
    return Endpoint(stub.url, model, pause=0)


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with judging(shout) as stub:
        reply = Endpoint(stub.url + "/", "m").ask(question("hello"))
        assert stub.requests == [{"model": "m", "messages": question("hello"), "temperature": 0}]
        assert stub.keys == ["Bearer secret"]
        monkeypatch.delenv(KEY_VARIABLE)
        endpoint(stub).ask(question("x"))
        assert stub.keys[1] is None
    assert (reply.text, reply.model, reply.attempts, reply.usage) == ("HELLO", "m-of-today", 1, {"total_tokens": 3})


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with judging(shout) as stub:
        stub.failures = [status, status]
        assert endpoint(stub).ask(question("x")).attempts == 3


def test_attempts_are_bounded() -> None:
    with judging(shout) as stub:
        stub.failures = [503] * 9
        with pytest.raises(JudgeError, match="no answer after 5 attempts: 503"):
            endpoint(stub).ask(question("x"))
        assert len(stub.requests) == 5


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_final_and_says_why(status: int) -> None:
    with judging(shout) as stub:
        stub.failures = [status]
        with pytest.raises(JudgeError, match=f"refused: {status} .*not now"):
            endpoint(stub).ask(question("x"))
        assert len(stub.requests) == 1


def test_a_redirection_takes_the_key_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with judging(shout) as stub:
        stub.failures = [302]
        with pytest.raises(JudgeError, match="refused: 302"):
            endpoint(stub).ask(question("x"))


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}']
)
def test_what_is_no_completion_is_tried_again(body: bytes) -> None:
    with judging(lambda _: body) as stub:
        with pytest.raises(JudgeError, match="no answer after 5 attempts"):
            endpoint(stub).ask(question("x"))
        assert len(stub.requests) == 5


def test_nobody_there(tmp_path: Path) -> None:
    with judging(shout) as stub:
        pass
    with pytest.raises(JudgeError, match="no answer after 2 attempts"):
        Endpoint(stub.url, "m", attempts=2, pause=0).ask(question("x"))
    with pytest.raises(ValueError, match="--judge-url: expected an address"):
        Endpoint("localhost:8000/v1", "m")


def test_every_reply_is_kept_and_asked_for_once(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    questions = [question(text) for text in ("a", "b", "a", "c")]
    with judging(shout) as stub:
        judge = Judge(endpoint(stub), path)
        told: list[tuple[int, int]] = []
        assert judge.ask(questions, lambda done, all_of: told.append((done, all_of))) == ["A", "B", "A", "C"]
        assert told == [(1, 3), (2, 3), (3, 3)]
        assert len(stub.requests) == 3
        again = Judge(endpoint(stub), path)
        assert again.ask([*questions, question("d")]) == ["A", "B", "A", "C", "D"]
        assert len(stub.requests) == 4
        assert (again.name()["asked"], again.name()["reused"]) == (1, 3)
        other = Judge(endpoint(stub, "other"), path)
        assert other.ask([question("a")]) == ["A"]  # another judge's word is not taken for its own
        assert len(stub.requests) == 5
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(record["reply"] for record in records) == ["A", "A", "B", "C", "D"]
    assert {record["answered_by"] for record in records} == {"m-of-today", "other-of-today"}
    assert all(record["messages"][0]["content"] for record in records)
    name = again.name()
    assert (name["model"], name["answered_by"], name["temperature"]) == ("m", ["m-of-today"], 0)


def test_what_a_kill_tears_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with judging(shout) as stub:
        Judge(endpoint(stub), path, workers=1).ask([question("a"), question("b")])
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        assert Judge(endpoint(stub), path).ask([question("a"), question("b")]) == ["A", "B"]
        assert len(stub.requests) == 3
    assert path.read_bytes().count(b"\n") == 2
    path.write_bytes(b"[]\n" + whole)
    with pytest.raises(ValueError, match="line 1: expected a judge's reply"):
        Judge(endpoint(stub), path)


def test_one_failure_leaves_the_other_replies(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with judging(shout) as stub:
        stub.failures = [400]
        with pytest.raises(JudgeError, match="1 of 4 questions without an answer, which the same command asks again"):
            Judge(endpoint(stub), path, workers=1).ask([question(text) for text in "abcd"])
        assert path.read_bytes().count(b"\n") == 3
        assert Judge(endpoint(stub), path).ask([question(text) for text in "abcd"]) == list("ABCD")


def test_a_judge_who_refuses_everything_is_left_alone(tmp_path: Path) -> None:
    with judging(shout) as stub:
        stub.failures = [401] * 100
        with pytest.raises(JudgeError, match="100 of 100 questions"):
            Judge(endpoint(stub), tmp_path / "judge.jsonl", workers=1).ask([question(str(i)) for i in range(100)])
        assert len(stub.requests) <= REFUSALS + 1


def test_questions_are_under_way_together(tmp_path: Path) -> None:
    import threading

    together = threading.Barrier(4, timeout=30)

    def wait(messages: Messages) -> str:
        together.wait()  # breaks unless four are asked at one time
        return text_of(messages)

    with judging(wait) as stub:
        judge = Judge(endpoint(stub), tmp_path / "judge.jsonl", workers=4)
        assert judge.ask([question(text) for text in "abcd"]) == list("abcd")
