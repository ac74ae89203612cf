"""What annotation tools want: a text for each of many regions, masks, and objects that are encoded once."""

from __future__ import annotations

from fastapi import APIRouter, Request

from pixelrefer_fast.batching import Answer, Ask
from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.segmenting import Segment
from pixelrefer_fast.serving import completions
from pixelrefer_fast.serving.admission import Room
from pixelrefer_fast.serving.asking import read_marked, read_media, read_options
from pixelrefer_fast.serving.schemas import EncodeRequest, RegionsRequest, SegmentRequest
from pixelrefer_fast.serving.state import Model, State, state_of

router = APIRouter()


@router.post("/v1/regions")
async def regions(request: Request, asked: RegionsRequest) -> dict[str, object]:
    """A text for each region of one image or video, all in one batch; one that fails has an error instead."""
    state = state_of(request)
    model = state.model(asked.model)
    with state.gate.admitted(len(asked.regions)) as room:
        answers = await state.answered(request, _answers(state, model, asked, room))
    prompt, tokens, cached = (
        sum(answer.prompt_tokens for answer in answers),
        sum(len(answer.tokens) for answer in answers),
        sum(answer.cached_tokens for answer in answers),
    )
    completions.count(state.metrics, prompt, tokens, cached)
    data = [
        {
            "index": answer.index,
            "text": answer.text,
            "finish_reason": completions.FINISH.get(answer.finish, answer.finish),
            "error": answer.error,
        }
        for answer in answers
    ]
    return {"object": "list", "model": asked.model, "data": data, "usage": completions.usage(prompt, tokens, cached)}


async def _answers(state: State, model: Model, asked: RegionsRequest, room: Room) -> list[Answer]:
    options = read_options(asked, state.limits.tokens)
    media, marked = await state.work(room, lambda: read_marked(state, asked, asked.regions))
    asks = []
    for number, region in enumerate(marked):
        asks.append(Ask(media, asked.question, [region]))
        asks[-1].first_region = number
    found = [answer async for answer in model.ask_iter_async(asks, ordered=True, **options)]
    if found and not any(answer.ok for answer in found):
        raise ValueError(found[0].error)
    return found


@router.post("/v1/segment")
async def segment(request: Request, asked: SegmentRequest) -> dict[str, object]:
    """Masks of what is clicked, boxed or named; each goes into `regions` as it is."""
    state = state_of(request)

    def masks() -> list[Segment]:
        opened = state.segmenter.open(read_media(state, asked).media)
        return opened.masks(asked.points, asked.labels, asked.boxes, asked.text, asked.frame)

    with state.gate.admitted() as room:
        found = await state.answered(request, state.work(room, masks))
    data = [{"region": one.region.to_json(), "score": one.score, "rough": one.rough} for one in found]
    return {"object": "list", "segmenter": state.segmenter.name, "data": data}


@router.post("/v1/encode")
async def encode(request: Request, asked: EncodeRequest) -> dict[str, object]:
    """Encodes objects once; their id goes into `objects` of chat completions while it is kept."""
    state = state_of(request)
    model = state.model(asked.model)
    options = {name: value for name in ("fps", "max_frames", "frames") if (value := getattr(asked, name)) is not None}

    def encoded() -> Objects:
        return model.encode(*read_marked(state, asked, asked.regions), **options)

    with state.gate.admitted(len(asked.regions)) as room:
        objects = await state.answered(request, state.work(room, encoded))
    return {
        "id": state.encoded.keep(asked.model, objects),
        "object": "encoded_objects",
        "model": asked.model,
        "objects": len(objects),
        "tokens": len(objects.tokens),
        "seconds": state.limits.encoded_seconds,
    }
