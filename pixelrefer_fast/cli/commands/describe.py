"""`describe`: a text per region."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from pixelrefer_fast.checks.printable import marked_text, write_json
from pixelrefer_fast.cli.batch.options import BATCH_HELP, STANDARD, BatchFiles, batch_paths
from pixelrefer_fast.cli.models import chosen_model
from pixelrefer_fast.cli.options import AsJson, Computing, Marks, Model, SeenFrames, Writing, examples
from pixelrefer_fast.cli.output import print_texts, reserved_stdout
from pixelrefer_fast.cli.regions import listed, marked_media
from pixelrefer_fast.cli.targets import check_target

EXAMPLES = (
    examples(
        "describe cat.jpg --box 60,50,360,275 --mask eye.png --model Alibaba-DAMO-Academy/PixelRefer-Lite-2B",
        'describe cat.jpg --polygon "10,10 90,20 50,80" --save cat-described.png --model ./PixelRefer-2B',
        "describe clip.mp4 --frame 12 --box 100,80,220,300 --save sheet.png --json --model ./PixelRefer-Lite-7B",
        "describe --batch requests.jsonl --out answers.jsonl --model ./PixelRefer-Lite-2B",
    )
    + BATCH_HELP
)


def describe(
    ctx: typer.Context,
    *,
    source: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE_OR_VIDEO", help="An image, a video or a folder of frames.", show_default=False),
    ] = None,
    marks: Marks,
    model: Model = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="Q", help="Asked of each region, with one <region> in it.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Picture with regions outlined, numbered and captioned."),
    ] = None,
    writing: Writing,
    seen: SeenFrames,
    computing: Computing,
    as_json: AsJson = False,
    files: BatchFiles,
) -> None:
    """Describe each marked region: a text per region. With --batch: those of each line of a file."""
    with reserved_stdout() as out:
        if (paths := batch_paths(ctx, files)) is not None:
            name, options = chosen_model(model), writing.given() | seen.given()
            if files.ray is not None:
                from pixelrefer_fast.cli.batch.cluster import ClusterRun

                run = ClusterRun(files.ray, *paths, name, question, options, vars(computing), files.batch_size)
                report, line, code = run.answer()
            else:
                from pixelrefer_fast.cli.batch.run import answer_file, answer_pipe

                loaded, loading = computing.load(name)
                if paths[0] == STANDARD:
                    raise typer.Exit(answer_pipe(loaded, sys.stdin.buffer, out, files.batch_size, question, options))
                report, line, code = answer_file(loaded, *paths, files.batch_size, question, options)
                report["seconds"] |= {"load": loading}
            if as_json:
                report |= {"model": name}
                write_json(report, out)
            else:
                print(line, file=out)
            raise typer.Exit(code)
        if source is None:
            raise ValueError("expected an image or a video, or --batch FILE.jsonl, got none")
        if save is not None:
            check_target(ctx, "--save", save)
        name = chosen_model(model)
        media, regions = marked_media(ctx, source, marks, seen)
        options = writing.given() | seen.given()
        loaded, loading = computing.load(name)
        start = time.perf_counter()
        found = loaded.describe(media, [one.region for one in regions], question, details=True, **options)
        answering = time.perf_counter() - start
        texts = [marked_text(answer.text or "", answer.finish_reason) for answer in found]
        if save is not None:
            from pixelrefer_fast.pictures import answers

            answers.save(answers.answers(media, [one.region for one in regions], texts), save)
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name}
            document |= {"question": question}
            document |= {"regions": listed(regions, found)}
            write_json(document | {"saved": save, "seconds": {"load": loading, "describe": answering}}, out)
        else:
            print_texts(texts, out)
