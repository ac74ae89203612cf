"""transformers' Auto classes: what they load, and that what they generate is what `ask` answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed_requests import CAT, mixed_requests
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
    pipeline,
)

import pixelrefer_fast as pf

ASSETS = Path(pf.__file__).parent / "assets"
FOLDERS = {"lite": ASSETS / "PixelRefer-Lite-mini", "full": ASSETS / "PixelRefer-mini"}
BOXES = [[60, 50, 360, 275], [10, 20, 120, 150]]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module", params=["lite", "full"])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    folder = FOLDERS[request.param]
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture
def processor(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


def _new(inputs: Any, tokens: torch.Tensor) -> list[list[int]]:
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def _media(ask: pf.Ask) -> dict[str, Any]:
    return {"videos" if isinstance(ask.media, list) else "images": ask.media}


def test_the_import_costs_nothing_and_the_order_does_not_matter() -> None:
    lite, full = (repr(str(folder)) for folder in FOLDERS.values())
    load = f"AutoProcessor.from_pretrained({lite}); AutoConfig.from_pretrained({full})"
    script = "import sys\nimport pixelrefer_fast\nassert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    for code in (
        f"{script}from transformers import AutoConfig, AutoProcessor\n{load}",
        f"{script}from transformers.models.auto.modeling_auto import AutoModelForImageTextToText as model\n"
        "assert {'PixelReferConfig', 'PixelReferLiteConfig'} <= {c.__name__ for c in model._model_mapping.keys()}",
        f"from transformers import AutoConfig, AutoProcessor\nimport pixelrefer_fast\n{load}",
        f"import pixelrefer_fast\nfrom transformers import AutoConfig\nAutoConfig.from_pretrained({full})\n"
        f"from transformers import AutoModelForImageTextToText as model\nmodel.from_pretrained({lite})",
    ):
        subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, capture_output=True)


def test_configs_keep_the_fields_of_the_checkpoint(model: Any) -> None:
    folder = FOLDERS[model.pixelrefer.kind]
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is type(model.config)
    assert config.mask_num == model.pixelrefer.config.mask_num
    assert config.hidden_size == model.pixelrefer.config.llm["hidden_size"]
    assert model.device == torch.device("cpu")
    assert model.can_generate()


def test_generate_answers_as_ask_does(processor: Any, model: Any) -> None:
    """A hundred requests of all kinds, in batches of prompts of several lengths."""
    asks = mixed_requests(model.pixelrefer.kind, 100, seed=7)
    answers = model.pixelrefer.ask_batch(asks)
    for ask, answer in zip(asks, answers, strict=True):
        options = {k: v for k, v in ask.options.items() if k != "max_new_tokens"}
        inputs = processor(**_media(ask), text=ask.question, regions=ask.regions, return_tensors="pt", **options)
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=ask.options["max_new_tokens"])
        assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        assert _new(inputs, tokens) == [list(answer.tokens)], ask
        text = processor.batch_decode(_new(inputs, tokens), skip_special_tokens=True)[0]
        assert text.strip() == answer.text
        assert inputs["input_ids"].shape[1] == answer.prompt_tokens


def test_a_batch_pads_on_the_left_and_changes_no_answer(processor: Any, model: Any) -> None:
    asks = [ask for ask in mixed_requests(model.pixelrefer.kind, 40, seed=3) if not isinstance(ask.media, list)][:6]
    inputs = processor(
        images=[ask.media for ask in asks],
        text=[ask.question for ask in asks],
        regions=[ask.regions for ask in asks],
        return_tensors="pt",
    )
    assert (inputs["attention_mask"] == 0).any()
    answers = processor.batch_decode(_new(inputs, model.generate(**inputs, **GREEDY)), skip_special_tokens=True)
    for ask, answer in zip(asks, answers, strict=True):
        assert answer.strip() == model.pixelrefer.ask(ask.media, ask.question, ask.regions, max_new_tokens=12)


def test_generation_is_that_of_transformers(processor: Any, model: Any) -> None:
    inputs = processor(images=CAT, text="What is <region>?", regions=BOXES[:1], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    greedy = model.generate(**inputs, **GREEDY)
    beams = model.generate(**inputs, **GREEDY, num_beams=3, num_return_sequences=2)
    assert beams.shape[0] == 2
    assert torch.equal(beams[:, :length], inputs["input_ids"].repeat(2, 1))
    drawn = model.generate(**inputs, do_sample=True, max_new_tokens=4, num_return_sequences=3)
    assert drawn.shape[0] == 3
    details = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(details.sequences, greedy)
    assert len(details.scores) == greedy.shape[1] - length
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, **GREEDY, streamer=streamer)
    text = "".join(streamer).strip()
    assert text == model.pixelrefer.ask(CAT, "What is <region>?", BOXES[:1], max_new_tokens=12)
    first = text[0]
    stop = StoppingCriteriaList([StopStringCriteria(processor.tokenizer, [first])])
    assert model.generate(**inputs, **GREEDY, stopping_criteria=stop).shape[1] <= greedy.shape[1]
    config = model.generation_config
    assert set(config.eos_token_id) == set(model.pixelrefer.decoder.end_ids)


def test_logits_of_a_prompt(processor: Any, model: Any) -> None:
    inputs = processor(images=CAT, text="What is <region>?", regions=BOXES[:1], return_tensors="pt")
    logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    greedy = model.generate(**inputs, **GREEDY)
    assert int(logits[0, -1].argmax()) == int(greedy[0, inputs["input_ids"].shape[1]])


def test_chats_with_region_parts(processor: Any, model: Any) -> None:
    image = Image.open(CAT)
    asked = "Is <region> larger than <region>?"
    parts = [
        {"type": "image", "image": image},
        {"type": "text", "text": "Is "},
        {"type": "region", "region": BOXES[0]},
        {"type": "text", "text": " larger than "},
        {"type": "region", "region": BOXES[1]},
        {"type": "text", "text": "?"},
    ]
    chat = [{"role": "user", "content": parts}]
    tagged = [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(CAT), "regions": BOXES}, {"type": "text", "text": asked}],
        }
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    wanted = processor(images=CAT, text=asked, regions=BOXES, return_tensors="pt")["input_ids"]
    for one in (chat, tagged):
        inputs = processor.apply_chat_template(
            one, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(inputs["input_ids"], wanted)
    answer = processor.batch_decode(_new(inputs, model.generate(**inputs, **GREEDY)), skip_special_tokens=True)[0]
    assert answer.strip() == model.pixelrefer.ask(CAT, asked, BOXES, max_new_tokens=12)
    further = [*chat, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    assert processor.apply_chat_template(further).count("<|im_start|>") == 3
    many = processor.apply_chat_template(
        [chat, tagged], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(many["input_ids"], wanted.repeat(2, 1))


def test_the_pipeline(model: Any) -> None:
    folder = str(FOLDERS[model.pixelrefer.kind])
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.open(CAT)},
                {"type": "text", "text": "What is "},
                {"type": "region", "region": BOXES[0]},
                {"type": "text", "text": "?"},
            ],
        }
    ]
    said = pipeline("image-text-to-text", model=folder)(text=chat, max_new_tokens=8, return_full_text=False)
    assert said[0]["generated_text"].strip() == model.pixelrefer.ask(
        CAT, "What is <region>?", BOXES[:1], max_new_tokens=8
    )


def test_saved_and_loaded_again(processor: Any, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert again.pixelrefer.fingerprint == model.pixelrefer.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "What is <region>?", "regions": []}, "regions: expected at least one"),
        ({"text": "What is it?", "regions": BOXES}, "expected a <region> tag for each"),
        ({"text": "<region>", "regions": [[900, 900, 950, 950]]}, "region 0"),
        ({"text": None, "regions": BOXES}, "text: expected a question"),
        ({"text": ["<region>", "<region>"], "regions": [BOXES[:1]]}, "expected a list with an entry for each of 2"),
        ({"text": "<region>", "regions": BOXES[:1], "fpss": 1}, "did you mean fps"),
        ({"text": "<region>", "regions": BOXES[:1], "return_tensors": "np"}, "return_tensors: expected 'pt'"),
        ({"text": "<region>", "regions": BOXES[:1], "videos": [np.zeros((30, 30, 3), np.uint8)]}, "either images or"),
    ],
)
def test_bad_input_is_named(processor: Any, given: dict[str, Any], message: str) -> None:
    images = [CAT, CAT] if isinstance(given["text"], list) else CAT
    with pytest.raises(ValueError, match=message) as caught:
        processor(images=images, **given)
    assert len(str(caught.value)) <= 320


def test_the_same_region_twice(processor: Any, model: Any) -> None:
    same = [BOXES[0], BOXES[0]]
    asked = "Is <region> larger than <region>?"
    inputs = processor(images=CAT, text=asked, regions=same, return_tensors="pt")
    answer = processor.batch_decode(_new(inputs, model.generate(**inputs, **GREEDY)), skip_special_tokens=True)[0]
    assert answer.strip() == model.pixelrefer.ask(CAT, asked, same, max_new_tokens=12)


def test_items_of_another_prompt_are_refused(processor: Any, model: Any) -> None:
    one = processor(images=CAT, text="<region>", regions=BOXES[:1], return_tensors="pt")
    two = processor(images=CAT, text="<region> <region>", regions=BOXES, return_tensors="pt")
    with pytest.raises(ValueError, match="items: expected"):
        model.generate(one["input_ids"], items=two["items"], max_new_tokens=1)
    with pytest.raises(ValueError, match="items: expected"):
        model.generate(one["input_ids"], max_new_tokens=1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "url": "https://example.com/a.png"}, "nothing is fetched"),
        ({"type": "image"}, "expected image, path or url"),
        ({"type": "region", "box": [1, 2, 3, 4]}, "expected parts of text"),
        ({"type": "audio", "audio": 1}, "expected parts of text"),
        ("text", "expected parts of text"),
    ],
)
def test_bad_parts_of_a_chat(processor: Any, part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([{"role": "user", "content": [part]}])


def test_unknown_options_of_loading_are_told() -> None:
    with pytest.raises(ValueError, match=r"expected options of pixelrefer_fast\.load"):
        AutoModelForImageTextToText.from_pretrained(FOLDERS["lite"], backends="torch")
    with pytest.raises(ValueError, match="device_map: expected one device"):
        AutoModelForImageTextToText.from_pretrained(FOLDERS["lite"], device_map={"": 0})
