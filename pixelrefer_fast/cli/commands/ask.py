"""`ask`: one question about all marked regions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelrefer_fast.checks.printable import marked_text, safe_text, write_json
from pixelrefer_fast.cli.models import chosen_model
from pixelrefer_fast.cli.options import AsJson, Computing, Marks, Model, SeenFrames, Writing, examples
from pixelrefer_fast.cli.output import reserved_stdout
from pixelrefer_fast.cli.regions import listed, marked_media
from pixelrefer_fast.cli.targets import check_target

if TYPE_CHECKING:
    import numpy as np

    from pixelrefer_fast.encoding.objects import Objects
    from pixelrefer_fast.media.video import Video
    from pixelrefer_fast.regions import Region

EXAMPLES = examples(
    'ask street.jpg "What does <region> give <region>?" --box 10,20,90,180 --mask man.png --save out.png',
    'ask clip.mp4 "Where does <region> go?" --frame 0 --box 10,20,90,180 --stream --model ./PixelRefer-Lite-2B',
    'ask objects.safetensors "What colour is it?" --model ./PixelRefer-Lite-2B',
)


def ask(
    ctx: typer.Context,
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE_OR_VIDEO|OBJECTS.safetensors",
            help="An image, a video, a folder of frames, or what `encode` wrote (regions included).",
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="With a <region> for each region, in order.")],
    marks: Marks,
    model: Model = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is written.")] = False,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Picture: regions outlined, the answer below."),
    ] = None,
    writing: Writing,
    seen: SeenFrames,
    computing: Computing,
    as_json: AsJson = False,
) -> None:
    """Ask one question about all marked regions."""
    with reserved_stdout() as out:
        if stream and as_json:
            raise ValueError("--stream: expected without --json, whose one document comes at the end")
        if save is not None:
            check_target(ctx, "--save", save)
        name = chosen_model(model)
        media: Any
        if source.lower().endswith(".safetensors"):
            if save is not None:
                raise ValueError(f"--save: expected an image or a video to draw, got encoded objects, {source}")
            media, regions = _encoded(source, marks, seen), None
        else:
            media, regions = marked_media(ctx, source, marks, seen)
        options = writing.given() | seen.given()
        loaded, loading = computing.load(name)
        marked = None if regions is None else [one.region for one in regions]
        start = time.perf_counter()
        if stream:
            text = ""
            for event in loaded.stream(media, question, marked, events=True, **options):
                print(safe_text(event.text), end="", file=out, flush=True)
                text += event.text
            said = marked_text(text, event.finish_reason)
            print(said.removeprefix(text), file=out)
            if save is not None and marked is not None:
                _save(media, marked, question, said, save)
            return
        answer = loaded.ask(media, question, marked, details=True, **options)
        answering = time.perf_counter() - start
        said = marked_text(answer.text or "", answer.finish_reason)
        if save is not None and marked is not None:
            _save(media, marked, question, said, save)
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name}
            document |= {"question": question, "answer": answer.text, "finish_reason": answer.finish_reason}
            document |= {"regions": None if regions is None else listed(regions)}
            write_json(document | {"saved": save, "seconds": {"load": loading, "ask": answering}}, out)
        else:
            print(safe_text(said), file=out)


def _save(media: np.ndarray | Video, regions: list[Region], question: str, text: str, path: str) -> None:
    from pixelrefer_fast.pictures import answers

    answers.save(answers.answers(media, regions, text, title=answers.numbered(question)), path)


def _encoded(source: str, marks: Marks, seen: SeenFrames) -> Objects:
    from pixelrefer_fast.encoding.objects import Objects

    if any(value for option, value in vars(marks).items() if option not in ("frame", "segmenter")):
        raise ValueError(f"{source}: holds its own regions, expected none on the command line")
    if marks.frame is not None:
        raise ValueError("--frame: expected a video, got encoded objects")
    seen.refuse("encoded objects")
    return Objects.load(source)
