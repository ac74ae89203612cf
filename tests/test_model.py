"""The public API on the bundled checkpoints (random weights, so texts are compared, not read)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.batching.memory import Budget
from pixelrefer_fast.regions import Region

ASSETS = Path(__file__).parents[1] / "pixelrefer_fast" / "assets"
CAT = ASSETS / "cat.jpg"  # 451 x 300
BOXES = [[10, 20, 120, 150], [150, 60, 330, 260], [300, 10, 440, 90]]
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def lite() -> pf.PixelReferLite:
    model = pf.load(ASSETS / "lite", device="cpu")
    assert isinstance(model, pf.PixelReferLite)
    return model


@pytest.fixture(scope="module")
def full() -> pf.PixelRefer:
    model = pf.load(ASSETS / "full", device="cpu")
    assert isinstance(model, pf.PixelRefer)
    return model


@pytest.fixture(scope="module", params=["lite", "full"])
def model(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Six frames of a window moving over the photograph."""
    image = pf.load_image(CAT)
    return [np.ascontiguousarray(image[5 * i : 5 * i + 200, 8 * i : 8 * i + 260]) for i in range(6)]


def test_describe_gives_each_region_the_text_it_gets_alone(model) -> None:
    texts = model.describe(CAT, BOXES, **SHORT)
    assert len(texts) == 3
    alone = [model.ask(CAT, "Please describe <region> in detail.", [box], **SHORT) for box in BOXES]
    assert texts == alone


def test_regions_get_texts_of_their_own(lite) -> None:
    assert len(set(lite.describe(CAT, BOXES, **SHORT))) > 1


def test_describe_in_batches_is_the_same(model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = model.describe(CAT, BOXES, kmeans_seed=5, **SHORT)
    monkeypatch.setattr(model.requests, "_budget", Budget(2, 1 << 20, 1 << 20))
    assert model.describe(CAT, BOXES, kmeans_seed=5, **SHORT) == texts


def test_a_bad_region_is_told_before_any_answer(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.network), "encode", lambda *args, **kwargs: pytest.fail("something was encoded"))
    with pytest.raises(ValueError, match="region 2"):
        model.describe(CAT, [*BOXES[:2], [900, 900, 950, 950]])
    with pytest.raises(ValueError, match="kmeans_start: expected an entry for each of the 3 marks, got 4"):
        model.describe(CAT, BOXES, kmeans_start=[None] * 4)


def test_describe_takes_a_question(model) -> None:
    question = "What colour is <region>?"
    assert model.describe(CAT, BOXES[:1], question, **SHORT) == [model.ask(CAT, question, BOXES[:1], **SHORT)]
    with pytest.raises(ValueError, match="expected one <region> tag, got 0"):
        model.describe(CAT, BOXES[:1], "What colour is it?")


def test_objects_answer_like_the_image(model, tmp_path: Path) -> None:
    question = "What lies between <region> and <region>?"
    direct = model.ask(CAT, question, BOXES[:2], **SHORT)
    objects = model.encode(CAT, BOXES[:2])
    objects.save(tmp_path / "objects.safetensors")
    again = pf.Objects.load(tmp_path / "objects.safetensors")
    assert model.ask(objects, question, **SHORT) == direct
    assert model.ask(again, question, **SHORT) == direct
    assert "".join(model.stream(again, question, **SHORT)) == direct
    assert again.provenance["source"] == str(CAT)
    assert [Region.from_json(r) for r in again.provenance["regions"]] == [Region.of(b) for b in BOXES[:2]]


def test_objects_answer_a_question_without_tags(model) -> None:
    one, two = model.encode(CAT, BOXES[:1]), model.encode(CAT, BOXES[:2])
    named = "There is one object in the image: <region>.\nIs it moving?"
    assert model.ask(one, "Is it moving?", **SHORT) == model.ask(one, named, **SHORT)
    named = "There are 2 objects in the image: <object0><region>, <object1><region>.\nWhich is larger?"
    assert model.ask(two, "Which is larger?", **SHORT) == model.ask(two, named, **SHORT)
    with pytest.raises(ValueError, match=r"expected a <region> tag for each of the 2 region\(s\), got 1"):
        model.ask(two, "Is <region> large?")


def test_objects_of_another_model_are_refused(lite, full, tmp_path: Path) -> None:
    objects = lite.encode(CAT, BOXES[:1])
    with pytest.raises(ValueError, match="expected object tokens of this model"):
        full.ask(objects, "What is <region>?")
    with pytest.raises(ValueError, match="expected None with encoded objects"):
        lite.ask(objects, "What is <region>?", BOXES[:1])
    with pytest.raises(ValueError, match="expected none of encoding with encoded objects"):
        lite.ask(objects, "What is <region>?", fps=2.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_objects_fit_the_same_model_in_another_dtype(lite, dtype: str) -> None:
    other = pf.load(ASSETS / "lite", device="cpu", dtype=dtype)
    assert other.fingerprint == lite.fingerprint
    assert isinstance(other.ask(lite.encode(CAT, BOXES[:1]), "What is <region>?", **SHORT), str)


def test_numpy_numbers_are_options(lite) -> None:
    options = {"max_new_tokens": np.int64(3), "seed": np.int64(1), "temperature": np.float32(0.5)}
    plain = {"max_new_tokens": 3, "seed": 1, "temperature": 0.5}
    objects = lite.encode(CAT, BOXES[:1], kmeans_seed=np.int64(4))
    assert lite.ask(objects, "<region>?", **options) == lite.ask(objects, "<region>?", **plain)


def test_messages_stay_short(lite) -> None:
    with pytest.raises(ValueError, match="<region> tag") as error:
        lite.ask(CAT, "a" * 100_000, BOXES[:1])
    assert len(str(error.value)) < 500


def test_answers_repeat_and_a_seed_draws_others(model) -> None:
    first, second = (model.encode(CAT, BOXES).tokens for _ in range(2))
    assert torch.equal(first, second)
    seeded, again, other = (model.encode(CAT, BOXES, kmeans_seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(seeded, again)
    assert not torch.equal(seeded, other)


def test_given_kmeans_starts(lite) -> None:
    objects = lite.encode(CAT, BOXES[:1])
    n = lite.config.mask_num
    counts: list[int] = []
    with pytest.raises(ValueError, match=f"mark 0: expected {n} ranks from 0 to") as error:
        lite.encode(CAT, BOXES[:1], kmeans_start=[[0] * (n - 1)])
    counts.append(int(str(error.value).split(" to ")[1].split(",")[0]) + 1)
    evenly = [i * counts[0] // n for i in range(n)]
    assert torch.equal(lite.encode(CAT, BOXES[:1], kmeans_start=[evenly]).tokens, objects.tokens)
    with pytest.raises(ValueError, match="expected one of them, got both"):
        lite.encode(CAT, BOXES[:1], kmeans_start=[evenly], kmeans_seed=1)
    with pytest.raises(ValueError, match="expected an entry for each of the 1 marks, got 2"):
        lite.encode(CAT, BOXES[:1], kmeans_start=[evenly, evenly])


def test_views_of_an_image_are_encoded_once(lite, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[list[tuple[int, int, int]]] = []
    forward = type(lite.network.encoder).forward

    def counting(self, patches, grids, *args):
        passes.append(list(grids))
        return forward(self, patches, grids, *args)

    monkeypatch.setattr(type(lite.network.encoder), "forward", counting)
    monkeypatch.setattr(lite.network, "kept_features", None)  # nothing is known from another pass
    lite.encode(CAT, BOXES)
    assert len(passes) == 1
    # three crops, one global and one local view; with a budget for three objects the global view is 18 x 18
    assert len(passes[0]) == 5
    passes.clear()
    lite.describe(CAT, BOXES, **SHORT)
    assert len(passes) == 1
    # each region has its own local view here, the whole image is one for all
    assert [g for g in passes[0] if g[:2] == (24, 24)] == [(24, 24, 1)]
    assert len([g for g in passes[0] if g[:2] == (16, 16)]) == 3


def test_stream_joins_to_the_answer(model) -> None:
    question = "Describe <region>."
    pieces = list(model.stream(CAT, question, BOXES[1:2], max_new_tokens=24))
    assert "".join(pieces) == model.ask(CAT, question, BOXES[1:2], max_new_tokens=24)
    with pytest.raises(ValueError, match="<region> tag"):
        model.stream(CAT, "no tag", BOXES[:1])


def test_sampling_repeats_with_its_seed(model) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.95}
    objects = model.encode(CAT, BOXES[:1])
    texts = [model.ask(objects, "What is <region>?", seed=s, **options) for s in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("regions", "question", "message"),
    [
        ([], "What?", "regions: expected at least one, got none"),
        (BOXES[:2], "What is <region>?", r"expected a <region> tag for each of the 2 region\(s\), got 1"),
        (BOXES[:1], "What is <region> and <region>?", "got 2"),
        (BOXES[:1], " ", "expected a text that is not empty"),
        (BOXES[:1], 5, "question: expected a text that is not empty, got 5"),
        (BOXES[:1], "<region> \ud800", "half a character at position 9"),
        (BOXES[:1], "<region>" + "a" * (1 << 18), "question: expected at most 262144 characters"),
        (BOXES[:1], "<region>" + "a" * 5000, "prompt: expected at most 4095 tokens"),
        (BOXES[:1], "<REGION> <region>", "<REGION> is reserved"),
        ([BOXES[0], [900, 900, 950, 950]], "<region> <region>", "region 1"),
        ([BOXES[0], np.zeros((300, 451), dtype=bool)], "<region> <region>", "region 1"),
        ([BOXES[0], np.ones((10, 10), dtype=bool)], "<region> <region>", "region 1.*300x451"),
        ([np.full((300, 451), np.nan)], "<region>", "region 0"),
        ([Region.from_frames({0: BOXES[0]})], "<region>", "region 0: expected a region of an image"),
    ],
)
def test_bad_regions(model, regions, question: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.ask(CAT, question, regions)


def test_bad_options(model) -> None:
    for option, message in (
        ({"max_new_token": 3}, r"got \['max_new_token'\]"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"fps": "abc"}, "fps: expected a number above 0"),
        ({"fps": 0}, "fps: expected a number above 0"),
        ({"max_frames": -3}, "max_frames: expected an integer"),
        ({"frames": "zzz"}, "frames: expected a list"),
        ({"frames": [3, 1]}, "frames: expected rising numbers"),
        ({"kmeans_start": 3}, "kmeans_start: expected a list"),
        ({"kmeans_seed": 1.5}, "kmeans_seed: expected an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            model.ask(CAT, "<region>", BOXES[:1], **option)


def test_ten_thousand_regions_end_before_any_mask_is_drawn(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Region, "mask", lambda *args, **kwargs: pytest.fail("a mask was drawn"))
    boxes = np.tile([[10, 20, 120, 150]], (10_000, 1)).tolist()
    with pytest.raises(ValueError, match="10000 marks"):
        model.encode(CAT, boxes)


def test_scattered_pixels_that_ask_for_a_gigantic_crop(model) -> None:
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[0, 0] = mask[-1, -1] = True
    with pytest.raises(ValueError, match="region 0: expected marked pixels that lie together"):
        model.encode(np.zeros((3000, 4000, 3), dtype=np.uint8), [mask])


def test_one_pixel_and_whole_image(model) -> None:
    pixel = np.zeros((300, 451), dtype=bool)
    pixel[150, 200] = True
    texts = model.describe(CAT, [pixel, np.ones((300, 451), dtype=bool)], **SHORT)
    assert len(texts) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5), (700, 20)])
def test_tiny_and_long_images_lite(lite, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tokens = lite.encode(image, [np.ones(size, dtype=bool)]).tokens
    assert tokens.shape == (lite.config.mask_num, 48)
    assert torch.isfinite(tokens).all()


def test_full_needs_two_pixels_a_side(full) -> None:
    with pytest.raises(ValueError, match="region 0: expected an image of at least 2x2 pixels, got 1x40"):
        full.encode(np.zeros((1, 40, 3), dtype=np.uint8), [[0, 0, 5, 1]])


def test_full_warns_of_an_object_without_tokens(full) -> None:
    corner = np.zeros((300, 451), dtype=bool)
    corner[-1, -1] = True  # the crop leaves out its last row and column
    with pytest.warns(UserWarning, match="region 1: too small for this model"):
        objects = full.encode(CAT, [BOXES[0], corner])
    assert [sum(o.counts) for o in objects.objects] == [8, 0]
    assert full.network.build_prompt("<region> or <region>?", objects).region_slots.shape == (8,)


def test_video_with_several_marked_frames_lite(lite, frames) -> None:
    times = [0.0, 0.4, 0.81, 1.2, 1.6, 2.0]
    video = pf.open_media(frames, times=times)
    marks = [{0: [10, 20, 100, 120], 3: [20, 20, 110, 120]}, {5: [100, 50, 200, 150]}]
    objects = lite.encode(video, marks)
    assert [o.counts for o in objects.objects] == [(8, 8), (8,)]
    assert [o.times for o in objects.objects] == [(0.0, 1.2), (2.0,)]
    prompt = lite.network.build_prompt("What do <region> and <region> do?", objects)
    text = lite.tokenizer.decode(prompt.input_ids)
    region = "<REGION>" * 8
    assert f"[Time 0.0:{region},Time 1.2:{region}] and [Time 2.0:{region}]" in text
    answer = lite.ask(video, "What do <region> and <region> do?", marks, **SHORT)
    assert answer == lite.ask(objects, "What do <region> and <region> do?", **SHORT)


def test_video_full_sees_the_sampled_frames(full, frames) -> None:
    video = pf.open_media(frames, fps=2.0)
    marks = [{2: [10, 20, 100, 120]}]
    objects = full.encode(video, marks, fps=1.0)
    sampled = video.sample(1.0)
    assert objects.scene is not None
    assert objects.times == tuple(video.times[i] for i in sampled)
    assert len(objects.scene.counts) == len(sampled) < len(frames)
    assert 2 not in sampled  # the marked frame need not be among them
    assert len(objects.scene.tokens) == int(objects.scene.kept.sum()) <= sum(objects.scene.counts)
    with pytest.raises(ValueError, match=r"region 0: expected one marked frame .*got \(0, 1\)"):
        full.encode(video, [{0: [0, 0, 9, 9], 1: [0, 0, 9, 9]}])


def test_video_full_with_frames_given(full, frames) -> None:
    video = pf.open_media(frames, fps=2.0)
    objects = full.encode(video, [{1: [10, 20, 100, 120]}], frames=[0, 3, 4])
    assert objects.times == (0.0, 1.5, 2.0)
    for wrong in ([], [3, 0], [0, 0], [0, 6], [-1, 2], [0.5], "01", 3):
        with pytest.raises(ValueError, match="frames: expected"):
            full.encode(video, [{1: [10, 20, 100, 120]}], frames=wrong)


def test_still_video_keeps_one_token_a_frame(full) -> None:
    still = [pf.load_image(CAT)[:200, :260]] * 3
    objects = full.encode(pf.open_media(still, fps=1.0), [{0: [10, 20, 100, 120]}])
    assert objects.scene is not None
    first, rest = objects.scene.counts[0], objects.scene.kept[objects.scene.counts[0] :]
    assert objects.scene.kept[:first].all()
    assert int(rest.sum()) == 2


def test_video_describe_equals_ask(model, frames) -> None:
    video = pf.open_media(frames, fps=2.0)
    marks = [{1: [10, 20, 100, 120]}, {4: [60, 20, 180, 120]}]
    question = "Please describe in detail the marked object <region> in the video."
    alone = [model.ask(video, question, [mark], **SHORT) for mark in marks]
    assert model.describe(video, marks, **SHORT) == alone


def test_video_region_errors(model, frames) -> None:
    with pytest.raises(ValueError, match="region 0: expected a mapping from frame to region for a video"):
        model.encode(frames, [BOXES[0]])
    with pytest.raises(ValueError, match="region 1: expected frames from 0 to 5, got 6"):
        model.encode(frames, [{0: [0, 0, 50, 50]}, {6: [0, 0, 50, 50]}])


def test_save_loads_again_bit_equal(model, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    again = pf.load(tmp_path / "copy", device="cpu")
    before, after = model.network.checkpoint_slots(), again.network.checkpoint_slots()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    assert again.describe(CAT, BOXES[:1], **SHORT) == model.describe(CAT, BOXES[:1], **SHORT)
    assert again.fingerprint == model.fingerprint
    with pytest.raises(ValueError, match="copy"):
        model.save(tmp_path / "copy")


def test_no_warning_in_ordinary_use(model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.describe(CAT, BOXES[:1], **SHORT)
