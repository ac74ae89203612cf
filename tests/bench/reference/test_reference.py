"""The adapter for the reference's own code: with a checkout of it, and what can be said without one."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from recorded import recorded_cases

import pixelrefer_fast as pf
from pixelrefer_fast.bench.reference import Reference, RegionStage, find_package, with_released_views
from pixelrefer_fast.bench.reference.checkout import (
    OPTIONAL,
    import_reference,
    packed_attention,
    recorded_permutations,
    running_on,
)
from pixelrefer_fast.bench.reference.whole import Inputs, prepared, with_cache
from pixelrefer_fast.bench.report.results import relative_error
from pixelrefer_fast.engines.configs import PixelReferConfig
from pixelrefer_fast.verify.case import RecordedCase

VARIABLE = "PIXELREFER_REFERENCE"
KINDS = ("lite", "full")
PACKAGES = {"lite": "pixelreferlite", "full": "pixelrefer"}
LIMIT = 1e-4  # of object tokens, in float32
HEIGHT, WIDTH = 120, 168
CPU = torch.device("cpu")
TOWER = """
flash_attn_varlen_func = None
class VisionFlashAttention2: ...
DAMOVL_VISION_ATTENTION_CLASSES = {}
"""


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def image_request() -> tuple[Any, list[Any]]:
    return picture(0), [box(10 * i, 12 * i, 30 + 12 * i, 40 + 14 * i) for i in range(3)]


def video_request(kind: str) -> tuple[Any, list[Any]]:
    frames = pf.media.open_media([picture(i // 2) for i in range(5)], times=[0.0, 1.0, 2.05, 3.0, 4.0])
    if kind == "full":
        return frames, [{3: box(20, 20, 90, 90)}, {0: box(40, 60, 100, 150)}]
    return frames, [{0: box(20, 20, 90, 90), 3: box(24, 30, 94, 100)}, {3: box(40, 60, 100, 150)}]


def fake_checkout(folder: Path, kind: str, init: str = "", tower: str = TOWER) -> Path:
    """A folder with the modules that the adapter touches while it imports, and nothing in them."""
    package = folder / PACKAGES[kind]
    (package / "model" / "damovl_encoder").mkdir(parents=True)
    files = {
        "__init__.py": f"from . import model\nfrom .model.damovl_encoder import image_processing\n{init}",
        "model/__init__.py": "from .damovl_encoder import modeling_damovl_encoder",
        "model/region_encoder.py": "",
        "model/damovl_encoder/__init__.py": "",
        "model/damovl_encoder/modeling_damovl_encoder.py": tower,
        "model/damovl_encoder/image_processing.py": "def convert_to_rgb(image): return 'converted'",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    return folder


def not_installed() -> list[str]:
    return [name for name in OPTIONAL if importlib.util.find_spec(name.partition(".")[0]) is None]


@pytest.fixture
def as_before() -> Iterator[None]:
    """Whatever is imported, the interpreter and transformers are afterwards as they were."""
    modules, path = dict(sys.modules), list(sys.path)
    names = set(vars(transformers))
    yield
    passing = tuple(f"{name}." for name in (*PACKAGES.values(), *not_installed()))
    assert [n for n in sys.modules if n not in modules and f"{n}.".startswith(passing)] == []
    assert [n for n in modules if sys.modules.get(n) is not modules[n]] == []
    assert sys.path == path
    assert "TRANSFORMERS_CACHE" not in set(vars(transformers)) - names


class TestWithoutACheckout:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_folder_without_the_reference_is_named(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: expected {PACKAGES[kind]}/ or PixelRefer/"):
            find_package(tmp_path, kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_root_and_the_folder_in_it_are_both_found(self, tmp_path: Path, kind: str) -> None:
        inner = tmp_path / "PixelRefer"
        fake_checkout(inner, kind)
        assert find_package(tmp_path, kind) == find_package(str(inner), kind) == inner

    @pytest.mark.usefixtures("as_before")
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_stood_in_for_is_gone_afterwards(self, tmp_path: Path, kind: str) -> None:
        absent = not_installed()
        imports = "\n".join(f"import {name}" for name in OPTIONAL)
        init = (
            f"{imports}\nfrom transformers import TRANSFORMERS_CACHE\nfrom transformers.image_utils import VideoInput"
        )
        modules = import_reference(fake_checkout(tmp_path, kind, init), kind)
        for name in absent:
            stand_in = getattr(modules[""], name.partition(".")[0])
            assert isinstance(stand_in, types.ModuleType)
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
        assert sorted(modules) == [
            "",
            "model",
            "model.damovl_encoder",
            "model.damovl_encoder.image_processing",
            "model.damovl_encoder.modeling_damovl_encoder",
        ]

    @pytest.mark.usefixtures("as_before")
    def test_an_import_of_somebody_else_stays(self, tmp_path: Path) -> None:
        theirs = types.ModuleType("pixelrefer")
        with mock.patch.dict(sys.modules, {"pixelrefer": theirs}):
            modules = import_reference(fake_checkout(tmp_path, "full"), "full")
            assert sys.modules["pixelrefer"] is theirs
            assert modules[""] is not theirs

    @pytest.mark.usefixtures("as_before")
    def test_code_that_cannot_be_imported_is_told_in_one_line(self, tmp_path: Path) -> None:
        fake_checkout(tmp_path, "lite", "raise RuntimeError('no such luck')")
        with pytest.raises(ValueError, match=r"cannot be imported \(RuntimeError: no such luck\)$") as caught:
            import_reference(tmp_path, "lite")
        assert str(tmp_path) in str(caught.value)

    def test_it_registers_nothing_with_transformers(self, tmp_path: Path) -> None:
        init = "from transformers import AutoConfig, Qwen2Config\nAutoConfig.register('pixelrefer_qwen2', Qwen2Config)"
        import_reference(fake_checkout(tmp_path, "full", init), "full")
        assert transformers.CONFIG_MAPPING["pixelrefer_qwen2"] is PixelReferConfig  # that of this package stays

    def test_flash_attention_is_kept_where_it_is_installed(self, tmp_path: Path) -> None:
        name = "model.damovl_encoder.modeling_damovl_encoder"
        without = import_reference(fake_checkout(tmp_path / "without", "lite"), "lite")[name]
        assert without.flash_attn_varlen_func is packed_attention
        installed = TOWER.replace("= None", "= len")
        given = import_reference(fake_checkout(tmp_path / "with", "lite", tower=installed), "lite")[name]
        assert given.flash_attn_varlen_func is len

    def test_arrays_pass_the_conversion_to_rgb_untouched(self, tmp_path: Path) -> None:
        module = import_reference(fake_checkout(tmp_path, "lite"), "lite")["model.damovl_encoder.image_processing"]
        image = picture(0)
        assert module.convert_to_rgb(image) is image
        assert module.convert_to_rgb("a picture") == "converted"

    def test_attention_stays_within_its_sequence(self, generator: torch.Generator) -> None:
        q, k, v = (torch.randn(11, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
        cu = torch.tensor([0, 3, 10, 11], dtype=torch.int32)
        sequence = torch.bucketize(torch.arange(11), cu[1:], right=True)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
        scores = scores.masked_fill(sequence[:, None] != sequence[None], -torch.inf)
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        torch.testing.assert_close(packed_attention(q, k, v, cu, cu, 7, 7), expected)

    def test_casts_are_switched_off_in_float32_only(self) -> None:
        x = torch.zeros(2, dtype=torch.float64)
        with running_on(CPU, torch.float32):
            assert x.bfloat16().dtype == torch.float32
            assert x.cuda(non_blocking=True) is x
            assert torch.is_inference_mode_enabled()
        with running_on(CPU, torch.bfloat16):
            assert x.bfloat16().dtype == torch.bfloat16
        assert x.bfloat16().dtype == torch.bfloat16
        assert not torch.is_inference_mode_enabled()

    def test_permutations_are_recorded_as_drawn(self) -> None:
        torch.manual_seed(3)
        expected = [torch.randperm(5), torch.randperm(9)]
        torch.manual_seed(3)
        with recorded_permutations() as drawn:
            torch.randperm(5)
            torch.randperm(9)
        torch.randperm(4)
        assert [p.tolist() for p in drawn] == [p.tolist() for p in expected]

    def test_a_module_that_transformers_has_no_longer_can_be_imported_meanwhile(self, tmp_path: Path) -> None:
        wanted = "from transformers.modeling_attn_mask_utils import AttentionMaskConverter\nfound = True"
        modules = import_reference(fake_checkout(tmp_path, "lite", init=wanted), "lite")
        assert modules[""].found
        left = sys.modules.get("transformers.modeling_attn_mask_utils")
        assert left is None or left.__spec__ is not None

    def test_the_cache_is_handed_on_by_either_name(self) -> None:
        """Transformers says `cache` or, before, `past_key_values`; the reference's forward knows the latter alone."""

        class Theirs:
            def forward(self, input_ids: Any = None, past_key_values: Any = None, **dropped: Any) -> Any:
                return input_ids, past_key_values

        ours = with_cache(Theirs)
        assert ours().forward("ids", cache="kept") == ours().forward("ids", past_key_values="kept") == ("ids", "kept")
        assert ours().forward("ids", past_key_values=None, cache="kept") == ("ids", "kept")
        assert "input_ids" in inspect.signature(ours.forward).parameters

    def test_models_that_it_cannot_compute_are_refused(self, tmp_path: Path, assets: Path) -> None:
        fake_checkout(tmp_path, "lite")
        small = pf.load("embedded:lite", device="cpu", dtype="float32")
        with pytest.raises(ValueError, match=r"context views of 336 and 224 pixels.*got 168 and 112"):
            Reference(tmp_path, small)
        with (
            mock.patch.object(small.network, "quantization", "int8"),
            pytest.raises(ValueError, match="expected weights as they were loaded, got int8 ones"),
        ):
            Reference(tmp_path, with_released_views(small))
        halves = pf.load(assets / "lite", device="cpu", dtype="float16")
        with pytest.raises(ValueError, match=r"expected float32 or bfloat16.*got float16"):
            Reference(tmp_path, halves)

    def test_released_views_share_the_weights(self) -> None:
        model = pf.load("embedded:lite", device="cpu", dtype="float32")
        twin = with_released_views(model)
        assert (twin.config.global_view_size, twin.config.local_view_size) == (336, 224)
        assert (model.config.global_view_size, model.config.local_view_size) == (168, 112)
        own, others = dict(model.named_parameters()), dict(twin.named_parameters())
        assert own.keys() == others.keys()
        assert all(own[name] is others[name] for name in own)
        image, regions = image_request()
        assert twin.encode(image, regions).tokens.shape == model.encode(image, regions).tokens.shape


class TestInputs:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_an_image(self, kind: str) -> None:
        image, regions = image_request()
        given = prepared(kind, image, regions)
        assert given.modal == "image"
        assert len(given.media) == 1
        assert np.array_equal(given.media[0], image)
        assert np.array_equal(given.masks.numpy(), np.stack(regions))
        assert given.options == {"mask_ids": [0, 0, 0], "image_downsampling": 1}

    def test_of_a_video_for_lite_which_sees_marked_frames(self) -> None:
        video, regions = video_request("lite")
        given = prepared("lite", video, regions)
        frames, times, marked = given.media
        assert times == [0.0, 3.0]
        assert marked is frames
        assert [np.array_equal(f, picture(i)) for f, i in zip(frames, (0, 1), strict=True)] == [True, True]
        assert given.options == {"mask_ids": [0, 1, 1], "mask_ids_raw": [[0, 1], [1]]}
        assert given.masks.shape == (3, HEIGHT, WIDTH)

    def test_of_a_video_for_full_which_sees_frames_at_one_a_second(self) -> None:
        video, regions = video_request("full")
        given = prepared("full", video, regions)
        frames, times, marked = given.media
        assert times == [video.times[i] for i in video.sample()]
        assert len(frames) == len(times)
        assert len(marked) == 2
        assert given.options == {"mask_ids": [1, 0]}

    def test_bad_regions_are_named(self) -> None:
        with pytest.raises(ValueError, match="region 0"):
            prepared("lite", picture(0), [np.ones((3, 4), np.uint8)])


@pytest.fixture(scope="module")
def checkout() -> Path:
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no checkout of the reference, which this repository lacks")
    return Path(folder)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, checkout: Path) -> tuple[Any, Reference]:
    model = request.getfixturevalue(request.param)
    return model, Reference(checkout, model)


def ours(model: Any, media: Any, question: str, regions: Any, tokens: int, starts: Any) -> tuple[int, ...]:
    model.decoder.clear()
    with mock.patch.object(model.decoder, "end_ids", frozenset()):
        (answer,) = model.ask_batch([pf.Ask(media, question, regions)], max_new_tokens=tokens, kmeans_start=starts)
    model.decoder.clear()
    return tuple(answer.tokens)


class TestWithACheckout:
    @pytest.mark.usefixtures("as_before")
    @pytest.mark.parametrize("kind", KINDS)
    def test_its_code_is_imported_and_gone(self, checkout: Path, kind: str) -> None:
        modules = import_reference(checkout, kind)
        assert callable(modules[""].mm_infer)

    @pytest.mark.parametrize("what", ["image", "video"])
    def test_tokens_and_answers_are_ours(self, pair: tuple[Any, Reference], what: str) -> None:
        model, reference = pair
        media, regions = image_request() if what == "image" else video_request(model.kind)
        starts = reference.starts(media, regions)
        assert any(start is not None for start in starts)
        theirs = reference.encode(media, regions)
        own = model.encode(media, regions, kmeans_start=starts).tokens
        assert relative_error(own, theirs) <= LIMIT
        question = "What about " + " and ".join(["<region>"] * len(regions)) + "?"
        said = reference.ask(media, question, regions, 6)
        assert len(said) == 6
        assert said == ours(model, media, question, regions, 6, starts)
        text = reference.answer(media, question, regions, 6)
        assert text == model.ask(media, question, regions, max_new_tokens=6, kmeans_start=starts)

    @pytest.mark.parametrize("kind", KINDS)
    def test_trained_models_answer_alike(self, checkout: Path, kind: str) -> None:
        model = with_released_views(pf.load(f"embedded:{kind}", device="cpu", dtype="float32"))
        reference = Reference(checkout, model)
        image, regions = image_request()
        starts = reference.starts(image, regions)
        tokens = model.encode(image, regions, kmeans_start=starts).tokens
        assert relative_error(tokens, reference.encode(image, regions)) <= LIMIT
        question = "What are <region>, <region> and <region>?"
        text = reference.answer(image, question, regions, 12)
        assert text
        assert text == model.ask(image, question, regions, max_new_tokens=12, kmeans_start=starts)

    def test_other_starts_are_other_tokens(self, pair: tuple[Any, Reference]) -> None:
        model, reference = pair
        media, regions = image_request()
        theirs = reference.encode(media, regions)
        assert relative_error(model.encode(media, regions).tokens, theirs) > LIMIT

    def test_calls_repeat(self, pair: tuple[Any, Reference]) -> None:
        _, reference = pair
        media, regions = image_request()
        first = reference.encode(media, regions)
        reference.ask(media, "<region> <region> <region>", regions, 3)
        known = len(reference._prepared)
        assert torch.equal(reference.encode(media, list(regions)), first)
        assert len(reference._prepared) == known

    def test_its_weights_are_ours_in_our_memory(self, pair: tuple[Any, Reference]) -> None:
        model, reference = pair
        own = {tensor.data_ptr(): tensor for tensor in model.network.checkpoint_slots().values()}
        parameters = dict(reference.model.named_parameters())
        slots = model.network.checkpoint_slots()
        assert all(torch.equal(parameters[name], slots[name]) for name in parameters)
        shared = sum(p.data_ptr() in own for p in parameters.values())
        assert shared == len(parameters)
        assert len(reference.weights()) >= len(parameters)

    def test_ours_is_left_as_it_was(self, pair: tuple[Any, Reference]) -> None:
        model, reference = pair
        assert reference.tokenizer is not model.tokenizer
        assert reference.tokenizer.chat_template != model.tokenizer.chat_template
        assert not any(p.requires_grad for p in model.parameters())

    def test_recorded_behaviour_of_older_versions_holds(self, pair: tuple[Any, Reference]) -> None:
        model, reference = pair
        name = "image_one" if model.kind == "lite" else "video"
        case = RecordedCase.read(recorded_cases(model.kind)[name], model.kind)
        frames = [image.numpy() for image in case.series("image")]
        options: dict[str, Any] = {"mask_ids": case.tensors["mask_ids"].tolist()}
        if case.times is None:
            options["image_downsampling"] = 1
        media = frames if case.times is None else (frames, case.times, frames)
        inputs = Inputs(media, "image" if case.times is None else "video", case.tensors["masks"], options)
        made: list[torch.Tensor] = []
        hook = reference.model.model.region_encoder.register_forward_hook(lambda module, given, out: made.append(out))
        with mock.patch.object(torch, "randperm", side_effect=case.series("kmeans_perm")) as drawn:
            text = reference._run(inputs, case.question, case.tensors["output_ids"].shape[1])
        hook.remove()
        assert drawn.call_count == len(case.series("kmeans_perm"))
        assert relative_error(made[0], case.tensors["object_tokens"]) <= 1e-5
        assert text == case.text.strip()

    def test_the_region_stage_alone_is_the_same(self, checkout: Path, lite: Any) -> None:
        slots = lite.network.encoder.checkpoint_slots() | lite.network.object_tokenizer.checkpoint_slots()
        config = lite.config
        stage = RegionStage(checkout, slots, config.vision, config.mask_num, config.mm_max_length, CPU, torch.float32)
        image, regions = image_request()
        torch.manual_seed(11)
        tokens = stage.pixels_to_tokens(image, torch.from_numpy(np.stack(regions)))
        assert relative_error(tokens, Reference(checkout, lite).encode(image, regions)) <= 1e-6
