"""Chat completions through the official client: every form of image, region and option; what is refused, and how."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from pycocotools import mask as coco
from served import get, png_url

from pixelrefer_fast.serving import guard

QUESTION = "What color is <region>?"
Say = Callable[..., Any]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


@pytest.fixture(scope="module")
def rle(scene: Any) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(scene.masks[0, 0].astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def test_each_form_of_a_region_is_answered_as_by_the_library(
    say: Say, lite: Any, scene: Any, picture: np.ndarray, url: str, box: list[int], rle: dict[str, Any]
) -> None:
    height, width = picture.shape[:2]
    mask = scene.masks[0, 0]
    x0, y0, x1, y1 = box
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    png = png_url((mask * 255).astype(np.uint8))
    middle = [(x0 + x1) // 2, (y0 + y1) // 2]
    relative = [x0 * 1000 / width, y0 * 1000 / height, x1 * 1000 / width, y1 * 1000 / height]
    forms: list[tuple[dict[str, Any], Any]] = [
        ({"rle": rle}, mask),
        ({"box": box}, box),
        ({"bbox_2d": relative}, [v * s / 1000 for v, s in zip(relative, [width, height] * 2, strict=True)]),
        ({"polygon": [corners]}, [corners]),
        ({"mask": png}, mask),
        ({"mask": png.partition(",")[2]}, mask),
        ({"points": [middle], "labels": [1]}, {"points": [middle]}),
        ({"type": "box", "xyxy": box}, box),
    ]
    for given, region in forms:
        expected = lite.ask(picture, QUESTION, [region])
        found = say(image(url, regions=[given]), text(QUESTION)).choices[0]
        assert (found.message.content, found.finish_reason) == (expected, "stop"), given
        assert found.message.role == "assistant"


def test_regions_stand_in_any_place(
    say: Say, lite: Any, scene: Any, picture: np.ndarray, url: str, box: list[int]
) -> None:
    boxed = lite.ask(picture, QUESTION, [box])
    own = {"box": box}
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = box
    parts_of_100 = [
        v * 100 / s for v, s in zip((x0, y0, x1 - x0, y1 - y0), (width, height, width, height), strict=True)
    ]
    for parts, more in (
        ([image(url), text(QUESTION)], {"extra_body": {"regions": [own]}}),
        ([{"type": "image_url", "image_url": {"url": url, "regions": [own]}}, text(QUESTION)], {}),
        ([{"type": "input_image", "image_url": url, "regions": [own]}, text(QUESTION)], {}),
        ([image(url), text("What color is "), {"type": "region", "region": own}, text("?")], {}),
        ([image(f"{url}#xywh={x0},{y0},{x1 - x0},{y1 - y0}"), text(QUESTION)], {}),
        ([image(f"{url}#xywh=percent:{','.join(f'{v:.9f}' for v in parts_of_100)}"), text(QUESTION)], {}),
    ):
        assert say(*parts, **more).choices[0].message.content == boxed
    transparent = np.dstack([picture, scene.masks[0, 0].astype(np.uint8) * 255])
    found = say(image(png_url(transparent)), text(QUESTION)).choices[0].message.content
    assert found == lite.ask(picture, QUESTION, [scene.masks[0, 0]])
    untagged = say(image(url, regions=[own]), text("What color is it?")).choices[0].message.content
    named = "There is one object in the image: <region>.\nWhat color is it?"
    assert untagged == lite.ask(picture, named, [box])
    described = say(image(url, regions=[own])).choices[0].message.content
    assert [described] == lite.describe(picture, [box])


def test_streams_join_to_the_answer_and_tell_its_end_and_usage(say: Say, url: str, box: list[int]) -> None:
    parts = image(url, regions=[{"box": box}]), text("Describe <region>.")
    whole = say(*parts)
    events = list(say(*parts, stream=True, stream_options={"include_usage": True}))
    *pieces, last = events
    assert "".join(event.choices[0].delta.content or "" for event in pieces) == whole.choices[0].message.content
    assert [event.choices[0].finish_reason for event in pieces][-1] == whole.choices[0].finish_reason
    assert all(event.choices[0].finish_reason is None for event in pieces[:-1])
    assert pieces[0].choices[0].delta.role == "assistant"
    assert len(pieces) > 3
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    several = list(say(*parts, stream=True, n=2))
    for index in (0, 1):
        own = [event.choices[0] for event in several if event.choices[0].index == index]
        assert "".join(one.delta.content or "" for one in own) == whole.choices[0].message.content


def test_options_are_those_of_the_library(say: Say, lite: Any, picture: np.ndarray, url: str, box: list[int]) -> None:
    parts, question = image(url, regions=[{"box": box}]), "Describe <region>."
    whole = lite.ask(picture, question, [box])
    short = say(parts, text(question), max_completion_tokens=3).choices[0]
    assert short.finish_reason == "length"
    assert short.message.content == lite.ask(picture, question, [box], max_new_tokens=3)
    word = whole.split()[2]
    stopped = say(parts, text(question), stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == lite.ask(picture, question, [box], stop=word)
    options = {"temperature": 1.5, "seed": 3}
    drawn = say(parts, text(question), n=3, **options).choices
    answers = lite.ask(picture, question, [box], n=3, details=True, **options)
    assert [one.message.content for one in drawn] == [answers.text, *(own.text for own in answers.others)]
    assert [one.index for one in drawn] == [0, 1, 2]
    listed = say(parts, text(question), logprobs=True, top_logprobs=2).choices[0].logprobs.content
    details = lite.ask(picture, question, [box], details=True, logprobs=True, top_logprobs=2)
    assert [one.logprob for one in listed] == pytest.approx(list(details.logprobs), abs=1e-4)
    assert all(len(one.top_logprobs) == 2 for one in listed)
    assert listed[0].token == lite.tokenizer.decode([details.tokens[0]])


def test_objects_are_encoded_once_and_asked_about_again(
    say: Say, client: Any, lite: Any, picture: np.ndarray, url: str, box: list[int]
) -> None:
    body = {"model": "lite", "image": url, "regions": [{"box": box}]}
    kept = client.post("/encode", body=body, cast_to=object)
    objects = lite.encode(picture, [box])
    assert (kept["objects"], kept["tokens"]) == (1, len(objects.tokens))
    for question in (QUESTION, "What shape is it?"):
        found = say(text(question), extra_body={"objects": kept["id"]}).choices[0].message.content
        assert found == lite.ask(objects, question)
    with pytest.raises(openai.NotFoundError, match="expected an id of /v1/encode"):
        say(text(QUESTION), extra_body={"objects": "obj-0"})


def test_many_regions_get_a_text_each(client: Any, lite: Any, picture: np.ndarray, url: str, box: list[int]) -> None:
    boxes = [box, [0, 0, 20, 20], [5, 9, 60, 50]]
    body = {"model": "lite", "image": url, "regions": [{"box": own} for own in boxes]}
    found = client.post("/regions", body=body, cast_to=object)
    assert [one["text"] for one in found["data"]] == lite.describe(picture, boxes)
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] > 0
    outside = {"box": [100_000, 0, 100_010, 9]}
    part = client.post("/regions", body=body | {"regions": [{"box": box}, outside]}, cast_to=object)["data"]
    assert part[0]["error"] is None
    assert part[1]["text"] is None
    assert "region 1: expected at least one marked pixel" in part[1]["error"]


def test_masks_are_made_and_go_into_a_question(
    say: Say, client: Any, lite: Any, picture: np.ndarray, url: str, box: list[int]
) -> None:
    (made,) = client.post("/segment", body={"image": url, "boxes": [box]}, cast_to=object)["data"]
    assert made["region"]["type"] == "rle"
    found = say(image(url, regions=[made["region"]]), text(QUESTION)).choices[0].message.content
    assert found == lite.ask(picture, QUESTION, [made["region"]])


def test_a_video_is_asked_about(say: Say, lite: Any, tmp_path: Any) -> None:
    from PIL import Image

    import pixelrefer_fast as pf
    from pixelrefer_fast.world import make_scene

    moving = make_scene(1001, "heldout", True)
    frames = [Image.fromarray(np.asarray(frame)) for frame in moving.frames]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=200)
    content = (tmp_path / "clip.gif").read_bytes()
    rows, columns = np.nonzero(moving.masks[0, 0])
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    video = {"url": "data:image/gif;base64," + base64.b64encode(content).decode()}
    regions = [{"frames": {"0": {"box": box}}}]
    found = say({"type": "video_url", "video_url": video, "regions": regions}, text(QUESTION))
    assert found.choices[0].message.content == lite.ask(pf.open_media(content), QUESTION, [{0: box}])
    middle = [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]
    video_of = pf.open_media(content)
    (cut,) = pf.segment(video_of, points=[middle], frame=2)
    regions = [{"frames": {"0": {"box": box}, "2": {"points": [middle]}}}]
    found = say({"type": "video_url", "video_url": {**video, "regions": regions}}, text(QUESTION))
    both = {0: box, 2: cut.region.mask(video_of.height, video_of.width, 2)}
    assert found.choices[0].message.content == lite.ask(video_of, QUESTION, [both])


def test_what_is_wrong_is_told(say: Say, client: Any, url: str, box: list[int]) -> None:
    own = {"box": box}
    bad: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((image(url, regions=[own, {"box": [5, 5, 5, 5]}]), text("<region> <region>")), {}, "region 1: box: expected"),
        ((image(url, regions=[{"bbox_2d": [0, 0, 1, 1001]}]),), {}, "region 0: bbox_2d: expected four numbers"),
        ((image(url, regions=[{"mask": "????"}]),), {}, "region 0: mask: expected base64"),
        ((image(url, regions=[{"box": box, "rle": {}}]),), {}, "region 0: expected"),
        ((image(url), text(QUESTION)), {}, "regions: expected at least one"),
        ((image(url, regions=[own]), text("<region> and <region>")), {}, "expected"),
        ((text(QUESTION),), {}, "expected an image_url or a video_url"),
        ((image(url), image(url), text("a")), {}, "expected one image or video"),
        ((image("http://127.0.0.1/x.png"),), {}, r"expected a data: URL \(this server fetches none\)"),
        ((image("file:///etc/passwd"),), {}, "a file that this server shares"),
        ((image("data:image/png;base64,AAAA"),), {}, "expected an image"),
        ((image(url + "#t=1"),), {}, "expected a fragment xywh"),
        ((image(url, regions=[own]), text(QUESTION)), {"max_tokens": 10**6}, "max_completion_tokens: expected at most"),
        ((image(url, regions=[own]), text(QUESTION)), {"temperature": -1}, "temperature: expected"),
        ((image(url, regions=[own]), text(QUESTION)), {"extra_body": {"region": [own]}}, "region: Extra inputs"),
        (
            (image(url, regions=[own]), text(QUESTION)),
            {"response_format": {"type": "json_object"}},
            "response_format: no option of this engine; vLLM follows grammars",
        ),
        ((image(url, regions=[own]), text(QUESTION)), {"extra_body": {"regions": [own]}}, "in one place"),
    ]
    for parts, options, message in bad:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=message) as told:
                say(*parts, stream=stream, **options)
            assert told.value.body["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(openai.NotFoundError, match="model: expected one of lite"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "a"}])


def test_models_keys_and_numbers(client: Any, address: str, say: Say, url: str, box: list[int]) -> None:
    assert [model.id for model in client.models.list()] == ["lite"]
    for key in ("no", "secre", "secret2", "", None):
        assert get(address, "/v1/models", key)[0] == 401
    assert get(address, "/metrics")[0] == 401
    for path in ("/health", "/ready"):
        assert get(address, path)[0] == 200
    say(image(url, regions=[{"box": box}]), text(QUESTION))
    numbers = get(address, "/metrics", "other")[1]
    assert 'pixelrefer_requests_total{endpoint="/v1/chat/completions",status="200"}' in numbers
    assert "pixelrefer_open_requests 0.0" in numbers
    for name in ("prompt_tokens_total", "answer_tokens_total", "cached_tokens_total"):
        assert re.search(rf"^pixelrefer_{name} \d", numbers, re.M), name
    for name in ("running", "waiting", "cache_used"):  # the batch that is decoded, the queue, keys and values
        assert re.search(rf'^pixelrefer_decoder_{name}{{model="lite"}} \d', numbers, re.M), name
    before = float(re.findall(r"^pixelrefer_time_to_first_token_seconds_count (.*)", numbers, re.M)[0])
    list(say(image(url, regions=[{"box": box}]), text(QUESTION), stream=True))
    assert f"pixelrefer_time_to_first_token_seconds_count {before + 1}" in get(address, "/metrics", "other")[1]
    assert "/v1/regions" in json.loads(get(address, "/openapi.json", "other")[1])["paths"]
    assert get(address, "/nothing", "other") == (
        404,
        '{"error":{"message":"Not Found","type":"not_found_error","param":null,"code":null}}',
    )


def test_a_key_is_compared_with_each_in_the_same_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    for key, status in (("secret", 200), ("none", 401)):
        compared.clear()
        assert get(address, "/v1/models", key)[0] == status
        assert compared == [b"secret", b"other"]
