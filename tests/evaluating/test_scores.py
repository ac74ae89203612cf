"""Scores of the committed texts: those of the authors' scripts to the last digit, and those worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge_stub import JudgeStub, text_of
from published_files import texts

from pixelrefer_fast.evaluating.benchmark import Scores, Tools
from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS, phrases
from pixelrefer_fast.evaluating.benchmarks.dlc import judged_description
from pixelrefer_fast.evaluating.benchmarks.ferret import review_pair
from pixelrefer_fast.evaluating.benchmarks.refl4 import clair_score
from pixelrefer_fast.evaluating.items import Json, Reply
from pixelrefer_fast.evaluating.judging.endpoint import Endpoint
from pixelrefer_fast.evaluating.judging.judge import Judge
from pixelrefer_fast.evaluating.paper import ROWS, number, row_of
from pixelrefer_fast.evaluating.scoring.captions import first_words
from pixelrefer_fast.evaluating.scoring.choices import chosen_index, gold_letter, letter_of, meant_letter
from pixelrefer_fast.evaluating.scoring.words import word_overlap


def replies(rows: list[Json], **keys: str) -> list[Reply]:
    """A reply a row: `pred` said, and gold by the names of `keys`."""
    return [Reply(str(i), {name: row[key] for name, key in keys.items()}, row["pred"]) for i, row in enumerate(rows)]


def scored(name: str, said: list[Reply], *corrections: str, judge: Judge | None = None) -> Scores:
    return BENCHMARKS[name].score(said, Tools(judge=judge, corrections=frozenset(corrections)))


@pytest.fixture
def judge(stub: JudgeStub, tmp_path: Path) -> Judge:
    return Judge(Endpoint(stub.url, "stub"), tmp_path / "judge.jsonl")


def test_word_overlap_is_the_recorded_one(recorded: Any) -> None:
    found = scored("lvis", replies(texts("categories"), category="Answer"))
    assert found.values["SIoU"] == recorded["categories"]["SIoU"]
    assert [own["SIoU"] for own in found.details.values()] == [own["SIoU"] for own in recorded["categories"]["items"]]
    assert found.values["SSim"] is None
    assert "--encoder" in found.unavailable["SSim"]


def test_word_overlap_by_hand() -> None:
    assert word_overlap("Dog_tail", "dog:tail") == 1
    assert word_overlap("a cat", "the cat") == 1 / 3
    assert word_overlap("", "cat") == 0
    assert word_overlap(" . ", "()") == 0  # neither has a word: the authors' script divides by zero


def test_choices_are_the_recorded_ones(recorded: Any) -> None:
    said = replies(texts("choices"), answer="Answer", options="options", type="type")
    found = scored("videorefer-q", said)
    assert found.values["accuracy"] == recorded["choices"]["accuracy"] == 4 / 7
    assert {name: own["accuracy"] for name, own in found.counts["types"].items()} == recorded["choices"]["types"]
    meant = scored("videorefer-q", said, "choice-letter")
    assert meant.values["accuracy"] == 6 / 7  # "The answer is D" and "It will stop" are right


@pytest.mark.parametrize(
    ("text", "recorded_letter", "meant"),
    [
        ("(B)", "b", "b"),
        ("b", "b", "b"),
        ("C) It sits", "c", "c"),
        (".D.", "d", "d"),
        ("The answer is D.", "t", "d"),
        ("A or B", "a", ""),
        ("it sits", "i", "c"),
        ("", "", ""),
        ("...", "", ""),
        ("nothing", "n", ""),
    ],
)
def test_letters(text: str, recorded_letter: str, meant: str) -> None:
    options = ["(A) It runs", "(B) It jumps", "(C) It sits", "(D) It turns"]
    assert letter_of(text) == recorded_letter
    assert meant_letter(text, options) == meant


def test_right_answers_are_a_letter_or_all_of_it() -> None:
    assert gold_letter("(A) A helmet") == "a"
    assert gold_letter("B") == "b"
    assert gold_letter("B) no") == "b) no"  # as the authors' script, which then never finds it


def test_ratings_are_the_recorded_ones(recorded: Any, judge: Judge, stub: JudgeStub) -> None:
    said = replies(texts("ratings"), caption="Answer")
    found = scored("videorefer-d", said, judge=judge)
    assert found.values == {name: recorded["ratings"][name] for name in ("SC", "AD", "TD", "HD", "Avg")}
    assert found.counts["rated"] == recorded["ratings"]["rated"]  # one is in bold, one has a number 4.5.
    assert found.details["0"] == {"SC": 5, "AD": 4, "TD": 3, "HD": 4}
    assert [message["role"] for message in stub.requests[0]["messages"]] == ["system", "user"]
    bold = scored("videorefer-d", said, "rating-marks", judge=judge)
    assert bold.values["SC"] == (5 + 4.5 + 0) / 3
    assert len(stub.requests) == 4  # the replies are not asked for again


def test_clair_is_the_recorded_one(recorded: Any, judge: Judge, stub: JudgeStub) -> None:
    said = replies(texts("clair"), caption="Answer")
    found = scored("refl4-clair", said, judge=judge)
    assert found.values["CLAIR"] == pytest.approx(recorded["clair"]["CLAIR"], rel=1e-15)  # threads summed there
    assert found.counts["unread"] == 1
    letters = next(text_of(r["messages"]) for r in stub.requests if "A red mug" in text_of(r["messages"]))
    assert "- a\n-  \n- r\n- e\n- d\n-  \n- m\n- u\n- g\n" in letters
    scored("refl4-clair", said, "clair-letters", judge=judge)
    assert "- a red mug\n" in text_of(stub.requests[-1]["messages"]) or len(stub.requests) == 10
    assert any("- a red mug\n" in text_of(request["messages"]) for request in stub.requests)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 85, "reason": "x"}', 85),
        ('Sure: {"score": "40"} {"score": 1}', 40),
        ('{"score": 0.5}', 0.5),
        ("0.5", 50),
        ('{"reason": "70 of 100"}', 70),
        ("{broken 12", 12),
        ("no idea", None),
    ],
)
def test_clair_scores(text: str, score: float | None) -> None:
    assert clair_score(text) == score


def test_reviews_are_the_recorded_ones(recorded: Any, judge: Judge, stub: JudgeStub) -> None:
    rows = texts("reviews")
    said = [
        Reply(
            str(i),
            {"context": f"c{i}", "question": "Why?", "answer": row["answer"], "rule": "Rate.", "role": "Assistant"},
            row["pred"],
        )
        for i, row in enumerate(rows)
    ]
    found = scored("ferret", said, judge=judge)
    assert found.values["score"] == recorded["reviews"]["score"]
    # by hand: (8 + 7 - 1 - 1 + 9.5) / 5 = 4.5 against (9 + 8 - 1 - 1 + 9) / 5 = 4.8
    assert found.values["score"] == round(4.5 / 4.8 * 100, 1)
    assert found.counts["unread"] == 2
    asked = "\n".join(text_of(request["messages"]) for request in stub.requests)
    assert "It keeps the rain off the driver." in asked
    assert "door [0.5, 0.5, 0.6, 0.6] open" in asked
    lenient = scored("ferret", said, "review-line", judge=judge)
    # 8 9, 7 8, 3 9, 9.5 9; "Assistant 1: 9, Assistant 2: 8" has four numbers
    assert lenient.values["score"] == round(round(27.5 / 4, 3) / round(35 / 4, 3) * 100, 1)
    scored("ferret", said, "review-boxes", judge=judge)
    assert any("It holds the door open." in text_of(request["messages"]) for request in stub.requests)


@pytest.mark.parametrize(
    ("text", "pair", "lenient"),
    [
        ("8 9", (8, 9), (8, 9)),
        ("8,9\nx", (8, 9), (8, 9)),
        ("8, 9", None, (8, 9)),
        ("8  9", None, (8, 9)),
        ("8/10 9/10", None, None),
        ("eight nine", None, None),
        ("", None, None),
    ],
)
def test_review_pairs(text: str, pair: Any, lenient: Any) -> None:
    assert review_pair(text) == pair
    assert review_pair(text, lenient=True) == lenient


def test_dlc_descriptions_are_the_recorded_ones(recorded: Any) -> None:
    for own, row in texts("dlc").items():
        first = {"type": "recognition", "choices": [["Yes", "correct"], ["No", "incorrect"]], "question": "What?"}
        found = judged_description([first, *row["questions"]], row["replies"])
        want = recorded["dlc"]["items"][own]
        assert {name: found[name] for name in ("Pos", "Neg", "recognised")} == want


def test_dlc_replies_that_name_no_choice_have_no_points() -> None:
    first = {"type": "recognition", "choices": [["Yes", "correct"], ["No", "incorrect"]], "question": "What?"}
    asked = {"type": "positive", "choices": [["Red", 1], ["Blue", -1]], "question": "Colour?"}
    found = judged_description([first, asked], ["yes", "well"])
    assert found == {"Pos": 0, "Neg": None, "recognised": True, "unread": 1}
    found = judged_description([first, asked], ["", "blue"])  # the authors' script ends here with an error
    assert found == {"Pos": -1, "Neg": None, "recognised": False, "unread": 1}
    with pytest.raises(ValueError, match="positive or negative, got 'other'"):
        judged_description([first, asked | {"type": "other"}], ["yes", "red"])


@pytest.mark.parametrize(
    ("reply", "choices", "index"),
    [
        ("Red", ["Red", "Blue"], 0),
        ("b", ["Red", "Blue"], 1),
        ("B. Blue", ["Red", "Blue"], 1),
        ("It is blue.", ["Red", "Blue"], 1),
        ("B. neither red nor blue", ["Red", "Blue"], 1),
        ("first red, then blue", ["Red", "Blue"], 1),
        ("dark red", ["Dark", "Dark red", "Blue"], 1),
        ("it is dark red", ["Dark", "Dark red"], 1),
        ("red", ["Dark red", "Very dark red"], 1),
        ("a\nbecause", ["One", "Two"], 0),
        ("E", ["One", "Two"], 0),  # a part of "one"
        ("E", ["Up", "Down"], None),
        ("e. five", ["One", "Two"], None),
        ("", ["One", "Two"], None),
        ("neither", ["One", "Two"], None),
    ],
)
def test_choices_of_judges(reply: str, choices: list[str], index: int | None) -> None:
    assert chosen_index(reply, choices) == index


def test_captions_are_cut_after_a_hundred_words(monkeypatch: pytest.MonkeyPatch, judge: Judge) -> None:
    given: list[Any] = []

    def capture(captions: Any, references: Any, wanted: Any) -> Any:
        given.append((captions, references, wanted))
        return dict.fromkeys(wanted, 0.5), [{} for _ in captions], {}

    monkeypatch.setattr(phrases, "caption_scores", capture)
    text = " ".join(str(i) for i in range(120))
    cut = " ".join(str(i) for i in range(100))
    said = [Reply("0", {"caption": "c", "phrases": ["p", "q"]}, text)]
    for name, right, metrics in (
        ("vg", ["c"], ["METEOR", "CIDEr"]),
        ("hcstvg", ["c"], ["METEOR", "CIDEr", "BLEU-4", "ROUGE-L", "SPICE"]),
    ):
        assert scored(name, said).values == dict.fromkeys(metrics, 0.5)
        scored(name, said, "caption-length")
        assert given == [([cut], [right], metrics), ([text], [right], metrics)]
        given.clear()
    scored("refl4", said, judge=judge)
    assert given == [(["0 1 2 3"], [["p", "q"]], ["METEOR", "CIDEr"])]  # condensed by the judge
    assert first_words("two  words") == "two  words"


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.judged])
def test_judged_benchmarks_ask_for_a_judge(name: str) -> None:
    with pytest.raises(ValueError, match="--judge-url, --judge-model: expected a judge"):
        BENCHMARKS[name].check(Tools())


def test_answers_that_failed_count_as_empty() -> None:
    said = [Reply("0", {"answer": "(A)", "options": [], "type": "x"}, None)]
    assert scored("videorefer-q", said).values["accuracy"] == 0


def test_rows_of_the_paper() -> None:
    assert row_of("Alibaba-DAMO-Academy/PixelRefer-Lite-2B") == "Lite-2B"
    assert row_of("./work/PixelRefer-7B/") == "7B"
    assert row_of("pixelrefer-lite-7b") == "Lite-7B"
    assert row_of("embedded:lite") is None
    assert row_of("PixelRefer-2Bx") is None
    assert number("lvis", "7B", "SSim") == 90.5
    assert number("hcstvg", "Lite-2B", "SPICE") == 31.2
    assert number("lvis", None, "SSim") is None
    for name, benchmark in BENCHMARKS.items():
        assert all(number(name, row, metric.name) is not None for metric in benchmark.metrics for row in ROWS)
