"""The cost model against what is counted while the models run, and what it makes of GPUs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from counted_steps import counted_step
from plain_memory import plain_memory

from pixelrefer_fast.bench.estimate import costs, gpus
from pixelrefer_fast.bench.estimate.costs import Machine
from pixelrefer_fast.bench.estimate.estimate import (
    Estimate,
    config_of,
    estimate,
    other_kind,
    paper_flops,
)
from pixelrefer_fast.bench.estimate.gpus import Gpu
from pixelrefer_fast.bench.estimate.planned import plan_of, sizes_of
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.bench.measure import memory
from pixelrefer_fast.bench.run import loads, stages, workloads
from pixelrefer_fast.bench.run.askers import Ours, as_measured, counting_stages
from pixelrefer_fast.checkpoint.config import VisionConfig
from pixelrefer_fast.checkpoint.embedded import embedded_folder
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer, kmeans_starts
from pixelrefer_fast.encoding.projector import VisionProjector
from pixelrefer_fast.media import open_media
from pixelrefer_fast.planning.selection import select_patches

CPU = Machine("cpu", 4)


def asked(workload: Workload) -> tuple[Any, list[Any], str]:
    """Media, regions and a question of a workload: boxes as they are given by hand."""
    size, boxes = (workload.height, workload.width), workload.boxes()
    question = "What is " + " and ".join(["<region>"] * workload.objects) + "?"
    if workload.frames is None:
        return workloads.picture(*size, 0), boxes, question
    video = open_media(
        list(workloads.video(workload.frames, *size, 0)), times=[float(i) for i in range(workload.frames)]
    )
    return video, [dict.fromkeys(workload.frames_marked(), box) for box in boxes], question


def named(value: Any) -> str:
    """A workload in few words."""
    if not isinstance(value, Workload):
        return str(value)
    return f"{value.objects} of {value.frames or 1} frames {value.height}x{value.width} box {value.marked_box}"


IMAGES = [
    Workload(height=168, width=168, answer=3),
    Workload(objects=3, height=300, width=500, answer=4),
    Workload(objects=2, height=97, width=260, box=(90, 31), answer=2),
    Workload(objects=5, height=400, width=224, box=(7, 5), answer=1),
]
VIDEOS = [
    Workload(objects=2, frames=5, height=168, width=168, answer=3),
    Workload(objects=1, frames=3, marked=3, height=200, width=300, box=(100, 120), answer=20),
]


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        *((name, workload) for name in ("embedded:lite", "embedded:full") for workload in IMAGES + VIDEOS),
        ("lite", IMAGES[1]),
        ("lite", VIDEOS[1]),
        ("full", IMAGES[1]),
        ("full", VIDEOS[0]),
    ],
    ids=named,
)
def test_tokens_and_flops_are_those_that_are_counted(models: dict[str, Any], name: str, workload: Workload) -> None:
    model = models[name]
    if model.kind == "full":
        workload = dataclasses.replace(workload, marked=1)
    media, regions, question = asked(workload)
    with as_measured(model), stages.asked(model, media, question, regions, workload.answer) as own:
        counts = dict(stages.count(own))
        found = {stage: own.sizes(stage) for stage in own.names}
        scene = own.objects.scene
        kept = len(scene.tokens) if scene is not None else 0
        prompt, objects = len(own.embeds), len(own.objects.tokens)
    sizes, tokens = sizes_of(model.config, dataclasses.replace(workload, text=prompt - objects - kept))
    assert (tokens["patches"], tokens["object"], tokens["vision"], tokens["prompt"]) == (
        found["encoder"]["patches"],
        objects,
        kept,
        prompt,
    )
    works = costs.stages(model.config, sizes, CPU)
    assert set(works) == set(counts) - {"plan", "prompt"}
    flops = {stage: sum(w.flops * w.times for w in own) for stage, own in works.items()}
    assert flops == {stage: counts[stage].flops for stage in works}
    for stage in set(works) - {"views"}:  # which NumPy cuts, unseen
        moved = sum(w.moved * w.times for w in works[stage])
        # of small stages tables and checks, which nobody models, are a good part
        assert moved == pytest.approx(counts[stage].moved, rel=0.05, abs=3e5), stage
        launches = sum(w.launches * w.times for w in works[stage])
        assert launches == pytest.approx(counts[stage].launches.total(), rel=0.15, abs=20), stage


@pytest.mark.parametrize("name", ["embedded:lite", "embedded:full"])
def test_objects_with_a_question_each_and_batches(models: dict[str, Any], name: str) -> None:
    model = models[name]
    for load, workload in (
        (loads.image_load("", (168, 200), 3), Workload(objects=3, height=168, width=200, each=True)),
        (loads.batch_load("", (168, 168), 3), Workload(height=168, width=168, batch=3, each=True)),
    ):
        workload = dataclasses.replace(workload, ellipses=True, seed=0, answer=3, shared=False)
        ours = Ours(model)

        def ask(tokens: int, load: Any = load, ours: Ours = ours) -> Any:
            return ours.answers(load.requests, tokens, load.batch_size)

        with as_measured(model):
            prompts = sum(answer.prompt_tokens for answer in ask(1))
            with counting_stages("cpu") as counts:
                ask(workload.answer)
        seen = sizes_of(model.config, dataclasses.replace(workload, text=0))[1]["prompt"]
        workload = dataclasses.replace(workload, text=(prompts - seen) // 3)
        works = costs.stages(model.config, sizes_of(model.config, workload)[0], CPU)
        flops = {stage: sum(w.flops * w.times for w in own) for stage, own in works.items()}
        assert flops["encoder"] == counts["encoder"].flops
        assert flops["pooling"] + flops.get("infusion", 0) + flops["projector"] == sum(
            counts[stage].flops for stage in ("pooling", "infusion", "projector")
        )
        assert (flops["prefill"], flops["decode"]) == (counts["prefill"].flops, counts["decode"].flops)


def test_questions_about_one_image_share_its_vision_tokens(models: dict[str, Any]) -> None:
    model = models["embedded:full"]
    load, ours = loads.image_load("", (168, 200), 3), Ours(model)
    with as_measured(model):
        model.decoder.prefix_bytes = 2**20
        prompts = sum(answer.prompt_tokens for answer in ours.answers(load.requests, 1))
        model.decoder.clear()
        with counting_stages("cpu") as counts:
            ours.answers(load.requests, 1)
    workload = Workload(objects=3, height=168, width=200, ellipses=True, seed=0, each=True, answer=1)
    seen = sizes_of(model.config, dataclasses.replace(workload, text=0))[1]["prompt"]
    workload = dataclasses.replace(workload, text=(prompts - seen) // 3)
    shared, alone = (
        sum(w.flops * w.times for w in costs.prefill(model.config, sizes_of(model.config, own)[0], CPU))
        for own in (workload, dataclasses.replace(workload, shared=False))
    )
    # how many tokens of text stand before the vision tokens depends on the tokenizer: a token or two more or less
    assert shared == pytest.approx(counts["prefill"].flops, rel=0.02)
    assert alone > 1.5 * shared


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("embedded:lite", Workload(objects=4, height=300, width=400, answer=4)),
        ("embedded:full", Workload(objects=2, height=300, width=400, answer=4)),
        ("embedded:lite", Workload(frames=4, marked=4, height=168, width=168, answer=4)),
        ("embedded:full", Workload(frames=4, height=168, width=168, answer=4)),
    ],
    ids=named,
)
def test_memory_is_that_of_a_question(models: dict[str, Any], name: str, workload: Workload) -> None:
    model = models[name]
    media, regions, question = asked(workload)
    with as_measured(model), plain_memory():
        model.ask(media, question, regions, max_new_tokens=1)
        model.decoder.clear()
        with memory.watching("cpu", [*model.parameters(), *model.buffers()]) as watched:
            model.ask(media, question, regions, max_new_tokens=workload.answer)
    guess = costs.memory(model.config, sizes_of(model.config, workload)[0], CPU)
    assert guess["weights"] == sum(p.nbytes for p in model.parameters())
    assert guess["peak"] == pytest.approx(watched.peak, rel=0.08)
    assert guess["peak"] - guess["weights"] == pytest.approx(watched.peak - guess["weights"], rel=0.15)


@pytest.mark.parametrize("name", workloads.NAMES)
def test_weights_of_released_models(name: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = config_of(name)
    with torch.device("meta"):
        parts = [VisionEncoder(config.vision), ObjectTokenizer(config), Qwen2ForCausalLM(Qwen2Config(**config.llm))]
        parts.append(VisionProjector(config.vision.hidden_size, config.hidden_size))
    assert sum(costs.weights(config).values()) == sum(p.numel() for part in parts for p in part.parameters())


@pytest.mark.kernel
@pytest.mark.parametrize(("name", "objects"), [("lite-2b", 1), ("lite-2b", 12), ("full-2b", 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_s_region_stage_and_encoder(
    name: str, objects: int, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    """With the kernels, counted by what they declare and not run."""
    vision = VisionConfig(hidden_size=96, num_layers=2, num_heads=4, intermediate_size=192)
    config = dataclasses.replace(config_of(name), vision=vision)
    config.llm["hidden_size"] = 128
    workload = Workload(objects=objects, height=300, width=420)
    plan = plan_of(config, workload)
    selection = select_patches(plan)
    tokenizer, encoder = (
        part.to(kernel_device, dtype).requires_grad_(False) for part in (ObjectTokenizer(config), VisionEncoder(vision))
    )
    features = torch.randn(selection.first_rows[-1], 96).to(kernel_device, dtype)
    patches = torch.randn(plan.first_rows[-1], 588, device=kernel_device)
    starts = kmeans_starts(selection.counts, config.mask_num).to(kernel_device)
    with plain_memory(), torch.inference_mode():
        with counting(kernel_device.type, dry=True):  # makes what follows from weights alone
            tokenizer(features, selection.to(kernel_device), starts, "triton")
        with counting(kernel_device.type, dry=True) as region:
            tokenizer(features, selection.to(kernel_device), starts, "triton")
        with counting(kernel_device.type, dry=True) as encoded:
            encoder(patches, plan.grids, selection.reads, "triton")
    sizes, _ = sizes_of(config, workload)
    machine = Machine("cuda", dtype.itemsize)
    lite = config.kind == "lite"
    own = costs.pooling(config, sizes, machine) + costs.infusion(config, sizes, machine)
    # of Full's tokens the packing is counted apart; of the projector those of objects are this stage's
    own += [w for w in costs.projector(config, sizes, machine) if lite or w.what == "object tokens"]
    assert sum(w.flops * w.times for w in own) == region.flops
    if lite:
        assert sum(w.launches * w.times for w in own) == region.launches.total() <= 14
        assert sum(w.moved * w.times for w in own) == pytest.approx(region.moved, rel=0.02)
    works = costs.encoder(config, sizes, machine)
    # a kernel knows the longest view only: it declares as if all were as long
    longest, last = max(p for p, _ in sizes.views), [(p, f) for p, f in sizes.views]
    more = sum(4 * 96 * (longest - p) * (p + f) for p, f in last)
    assert sum(w.flops * w.times for w in works) + more == encoded.flops
    kernels = {name: n for name, n in encoded.launches.items() if "." in name and not name.startswith("aten")}
    assert sum(kernels.values()) == sum(w.times for w in works if w.what in ("rope2d", "varlen_attention", "add_norm"))


@pytest.mark.kernel
@pytest.mark.parametrize("sequences", [1, 64])
def test_a_step_of_kernels_is_the_one_that_is_counted(sequences: int) -> None:
    """Of two layers of Lite-2B with few tokens: bytes and launches; kernels do not count the keys that they read."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = config_of("lite-2b")
    config = dataclasses.replace(config, llm={**config.llm, "num_hidden_layers": 2, "vocab_size": 300})
    llm = Qwen2ForCausalLM(Qwen2Config(**config.llm)).to(torch.bfloat16).requires_grad_(False)
    counts = counted_step(llm, sequences, Generation(top_k=0, repetition_penalty=1.0))
    machine = Machine("cuda", 2)
    works = costs.step(config, sequences, 2, machine)
    read = sequences * 2 * 64 * 2 * 2 * 256 * 2  # of two blocks of keys and values in two layers
    assert sum(w.moved * w.times for w in works) - read == pytest.approx(counts.moved, rel=0.002)
    assert sum(w.launches * w.times for w in works) == counts.launches.total()
    # wider tables of blocks cost what is read of them, and nothing is copied
    wider = costs.step(config, sequences, 3, machine)
    assert sum((a.moved - b.moved) * a.times for a, b in zip(wider, works, strict=True)) == read // 2


def test_the_paper_s_formula() -> None:
    """TFLOP of equation 9 with Qwen2.5's sizes and the paper's tokens, as worked out by hand before."""
    for name, vision, expected in (
        ("full-2b", 1408, 2.07),
        ("full-2b", 7185, 13.94),
        ("full-7b", 1408, 9.81),
        ("full-7b", 7185, 57.55),
    ):
        assert round(paper_flops(config_of(name), 32, vision) / 1e12, 2) == expected
    lite, full = config_of("lite-2b"), config_of("full-2b")
    # the infusion is little beside the layers, and there is one for each mark
    assert paper_flops(full, 32, 0) < paper_flops(lite, 32, 0) < 1.1 * paper_flops(full, 32, 0)
    assert paper_flops(lite, 64, 0, 2) == pytest.approx(2 * paper_flops(lite, 32, 0), rel=0.01)


def test_what_cannot_be_estimated() -> None:
    with pytest.raises(ValueError, match="marked: expected 1, in which PixelRefer takes an object, got 2"):
        estimate("full-2b", frames=4, marked=2)
    with pytest.raises(ValueError, match="prompt: expected fewer than 8192 tokens"):
        estimate("embedded:lite", question=9000, height=168, width=168)
    with pytest.raises(ValueError, match="dtype: expected one of"):
        estimate("lite-2b", dtype="int8")
    with pytest.raises(ValueError, match=r"no/such/thing.*lite-2b, .* need no file"):
        config_of("no/such/thing")
    with pytest.raises(ValueError, match="float16, float32 on NVIDIA T4, got bfloat16"):
        estimate("lite-2b", gpu=gpus.find("T4"))


def test_a_folder_needs_no_more_than_its_configuration(tmp_path: Path) -> None:
    source = embedded_folder("embedded:full")
    shutil.copy(source / "config.json", tmp_path)
    found = estimate(str(tmp_path), height=168, width=168)
    assert found.flops == estimate("embedded:full", height=168, width=168).flops
    values = json.loads((source / "config.json").read_text())
    del values["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    # the released vision encoder is the one without a file of its own
    assert config_of(str(tmp_path)).vision == workloads.model_config("full-2b").vision


def test_of_a_hub_id_the_configuration_alone_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked_for: list[Any] = []

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked_for.append((hub_id, allow_patterns))
        return str(embedded_folder("embedded:lite"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert config_of("someone/some-model").kind == "lite"
    assert asked_for == [("someone/some-model", ["config.json", "vision_encoder/config.json"])]


def test_gpus_by_name() -> None:
    assert gpus.find("nvidia h200").name == gpus.find("H200").name == "H200"
    assert gpus.find("rtx 4090") is gpus.find("GeForce RTX-4090") is gpus.find("4090")
    with pytest.raises(ValueError, match=r"--gpu: expected this or one of H200, .*, got 'H300'"):
        gpus.find("H300")
    h200 = gpus.find("H200")
    assert (h200.copy, h200.rate("bfloat16")) == (4.3e12, 790e12)  # measured
    assert h200.rate("float32") == pytest.approx(67e12 * 790 / 989.4)  # a share of the data sheet's
    for gpu in gpus.GPUS.values():
        assert 0 < gpu.copy < gpu.bandwidth
        assert 0 < gpu.rate("float32") < gpu.rate("float16")
        assert gpu.source
        assert gpus.find(gpu.title) is gpu


def test_seconds_of_a_stage_are_its_roofline() -> None:
    """By hand: each launch takes the longer of its FLOPs and its bytes, and then there are the launches."""
    slow = Gpu(
        "slow", "slow", 10**12, 1e12, {"bfloat16": 1e12}, "here", measured={"copy": 1e12, "bfloat16": 1e12}, gap=1.0,
        issue=0.0,
    )  # fmt: skip
    found = estimate("lite-2b", gpu=slow, height=448, width=616, answer=3)
    decode = found.stage("decode")
    by_hand = sum(w.times * max(w.flops, w.moved) for w in decode.works) / 1e12 + decode.launches
    assert decode.seconds == pytest.approx(by_hand)
    assert (decode.limit, found.step) == ("launches", pytest.approx(by_hand / 2))
    busy = dataclasses.replace(slow, gap=0.0, issue=1.0, measured={"copy": 1e12, "bfloat16": 2e12})
    eager, captured = (
        estimate("lite-2b", gpu=busy, answer=3, graphs=graphs).stage("decode") for graphs in (False, True)
    )
    assert (eager.limit, eager.seconds) == ("host", eager.launches)
    assert captured.limit == "memory"
    # behind a causal mask half of the scores are not computed, though they are counted
    prefill = estimate("full-2b", gpu=dataclasses.replace(slow, gap=0.0)).stage("prefill")
    assert 0.6 * prefill.flops < (prefill.seconds or 0) * 1e12 < 0.95 * prefill.flops


def test_a_decode_step_reads_all_weights_of_the_llm() -> None:
    config = config_of("lite-7b")
    works = costs.step(config, 1, 2, Machine("cuda", 2))
    parts = costs.weights(config)
    read = 2 * (parts["llm"] + parts["head"])
    assert read < sum(w.moved * w.times for w in works) < 1.02 * read


def test_more_costs_more() -> None:
    h200 = gpus.find("H200")
    base = estimate("lite-2b", gpu=h200)

    def grows(what: str, other: Estimate) -> None:
        assert other.flops > base.flops, what
        assert (other.seconds or 0) > (base.seconds or 0), what
        assert other.memory["peak"] > base.memory["peak"], what

    grows("objects", estimate("lite-2b", gpu=h200, objects=8))
    grows("batch", estimate("lite-2b", gpu=h200, batch=8))
    grows("marks", estimate("lite-2b", gpu=h200, frames=8, marked=8))
    grows("Full", estimate(other_kind(config_of("lite-2b")), gpu=h200))
    grows("size", estimate("lite-7b", gpu=h200))
    video = estimate("full-2b", frames=20, height=448, width=616)
    still = estimate("full-2b", frames=20, height=448, width=616, kept=0.25)
    assert (video.tokens["vision"], still.tokens["vision"]) == (20 * 352, 352 + 19 * 88)
    assert still.flops < video.flops
    assert estimate("full-2b", frames=20, seen=5, height=448, width=616).tokens["vision"] == 5 * 352
    assert video.seconds is None
    assert estimate("lite-7b", gpu=gpus.find("RTX-4090")).fits
    assert not estimate("lite-7b", gpu=gpus.find("RTX-4090"), dtype="float32").fits


def test_an_estimate_as_json() -> None:
    document = json.loads(json.dumps(estimate("lite-2b", gpu=gpus.find("A100"), answer=2).to_json()))
    assert document["flops"] == sum(stage["flops"] for stage in document["stages"])
    assert document["gpu"]["used"] == {"copy": gpus.find("A100").copy, "bfloat16": gpus.find("A100").rate("bfloat16")}
    assert "an H200's shares" in document["gpu"]["basis"]
