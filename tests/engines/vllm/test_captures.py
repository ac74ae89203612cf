"""Within vLLM the vision side is captured as its weights are loaded, where vLLM captures. A stand-in captures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_requests import mixed_requests
from recorded_graphs import Recorder
from vllm_requests import ASSETS, SMALL

import pixelrefer_fast as pf
from pixelrefer_fast import ops
from pixelrefer_fast.device import graphs as graphs_module
from pixelrefer_fast.encoding import infusion as infusion_module
from pixelrefer_fast.encoding.pass_sizes import LADDER
from pixelrefer_fast.engines.prompts import chat_prompt
from pixelrefer_fast.engines.writer import PromptWriter
from pixelrefer_fast.planning.options import EncodeOptions, read_options


class Told(Recorder):
    """Notes which dtype is the default where it captures."""

    def capture(self, run: Any, device: torch.device) -> Any:
        assert torch.get_default_dtype() == torch.float32
        return super().capture(run, device)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a worker sets up before it loads a model."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    place = tmp_path_factory.mktemp("processes") / "place"
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, f"file://{place}", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
    yield
    parallel_state.cleanup_dist_env_and_memory()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Captures where a CUDA device would."""
    recorder = Told()
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: recorder)
    monkeypatch.setattr(ops, "kernels_serve", lambda device, backend: True)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)  # vLLM's CPU worker puts such a one in
    monkeypatch.setattr(infusion_module, "is_projected", lambda *given: False)  # a larger pass may find that cheaper
    return recorder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models. Their products round alike with and without padding on a CPU, which trained ones' do not."""
    parent = tmp_path_factory.mktemp("small")
    cases = shutil.ignore_patterns("case_*")  # vLLM reads whatever is called .safetensors
    return {kind: shutil.copytree(ASSETS / kind, parent / kind, ignore=cases) for kind in ("lite", "full")}


def loaded(folder: Path, **options: Any) -> Any:
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    config = EngineArgs(model=str(folder), **{**SMALL, **options}).create_engine_config()
    with set_current_vllm_config(config):
        return get_model(vllm_config=config)


def test_steps_are_replayed_bit_for_bit(
    kind: str, folders: dict[str, Path], one_process: None, recorder: Recorder, request: pytest.FixtureRequest
) -> None:
    own = request.getfixturevalue(kind)
    model = loaded(folders[kind], enforce_eager=False)
    store = model.vision.captured.store
    assert len(recorder.captured) == store.counts()["graphs"] == len(LADDER)
    writer = PromptWriter(own.config, own.tokenizer, 4096)
    for ask in mixed_requests(kind, 4, seed=5):
        encode = read_options({k: v for k, v in ask.options.items() if k != "max_new_tokens"}, EncodeOptions)
        items = writer.write(chat_prompt(ask.question or ""), pf.open_media(ask.media), ask.regions, encode)[1]
        tensors = [item.to_tensors() for item in items]
        fields = {name: [item[name] for item in tensors] for name in tensors[0]}
        replays = store.counts()["replays"]
        captured, tokens = model.vision.captured, model.embed_multimodal(**fields)
        assert store.counts()["replays"] == replays + 1
        model.vision.captured = None
        for one, same in zip(tokens, model.embed_multimodal(**fields), strict=True):
            assert torch.equal(one, same)
        model.vision.captured = captured
    assert len(recorder.captured) == len(LADDER)  # none within a step


def test_where_vllm_captures_nothing(folders: dict[str, Path], one_process: None, recorder: Recorder) -> None:
    assert loaded(folders["lite"], enforce_eager=True).vision.captured is None
    assert recorder.tries == 0


def test_the_models_dtype_is_not_the_default_meanwhile(
    folders: dict[str, Path], one_process: None, recorder: Recorder
) -> None:
    model = loaded(folders["lite"], enforce_eager=False, dtype="bfloat16")
    assert model.vision.captured.store.refused == {}
    assert recorder.tries == len(LADDER)
