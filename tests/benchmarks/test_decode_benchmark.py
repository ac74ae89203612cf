"""The decode benchmark runs on a CPU with small sizes, and its random models have the released shapes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pixelrefer_fast.bench.run import workloads

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ASSETS = Path(__file__).parents[2] / "pixelrefer_fast" / "assets"


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("decode")


def test_a_small_run_writes_every_row(decode, tmp_path, capsys):
    path = tmp_path / "decode.json"
    arguments = ["--model", str(ASSETS / "lite"), "--device", "cpu", "--smoke", "--repeats", "1", "--json", str(path)]
    assert decode.main(arguments) == 0
    (result,) = json.loads(path.read_text())
    (model,) = result["models"]
    cases = ["decode, 1", "decode, 2", "first token", "description", "objects", "ends"]
    assert [row["case"] for row in model["rows"]] == cases
    assert 0 < model["rows"][-1]["needed"] <= model["rows"][-1]["slot_steps"]
    assert all(row["values"]["median"] > 0 for row in model["rows"][2:])
    assert result["read_bandwidth"] is None
    assert model["captured"] == {"passes": 0, "prompts": 0, "steps": 0, "replays": 0, "refused": {}}
    assert {"commit", "dirty", "command", "libraries", "date"} <= result.keys()
    assert "objects" in capsys.readouterr().out


def test_slot_steps_beside_those_that_answers_need(monkeypatch, capsys):
    """On a device's settings: one step too many for each answer, whatever its length."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert importlib.import_module("slot_steps").main([]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    most = {"mixed short answers": 1.6, "64 masks": 1.6, "captions": 1.05}
    assert found.keys() == most.keys()
    for load, steps in found.items():
        assert 1 <= steps["run"] / steps["needed"] <= most[load], load


def test_random_models_are_of_the_released_sizes():
    sizes = {"2b": 1.54e9, "7b": 7.61e9}  # Qwen2.5-1.5B and -7B
    for name, wanted in sizes.items():
        config = {**workloads.COMMON, **workloads.LLMS[name]}
        width, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        narrow = width * config["num_key_value_heads"] // config["num_attention_heads"]
        tables = 1 if config["tie_word_embeddings"] else 2
        count = (
            layers * (2 * width * width + 2 * width * narrow + 3 * width * wide) + tables * width * config["vocab_size"]
        )
        assert abs(count / wanted - 1) < 0.01


def test_weights_that_a_step_reads_leave_out_an_untied_table(lite):
    everything, read = workloads.weight_bytes(lite)
    table = lite.network.llm.get_input_embeddings().weight
    llm = sum(p.numel() * p.element_size() for p in lite.network.llm.parameters())
    assert everything > llm > read
    assert llm - read == table.numel() * table.element_size()
    assert torch.is_tensor(table)
