"""The commands of `pixelrefer-fast`. Libraries that take long to import are imported inside the commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pixelrefer_fast._version import __version__
from pixelrefer_fast.checks.printable import safe_text, write_json
from pixelrefer_fast.cli.batch.options import BATCH_HELP, BatchFile, BatchOut, BatchSize, check_batch_options
from pixelrefer_fast.cli.bench.command import EXAMPLES as BENCH_EXAMPLES
from pixelrefer_fast.cli.bench.command import bench
from pixelrefer_fast.cli.estimate.command import EXAMPLES as ESTIMATE_EXAMPLES
from pixelrefer_fast.cli.estimate.command import estimate
from pixelrefer_fast.cli.interrupts import clean_end
from pixelrefer_fast.cli.options import (
    AsJson,
    Backend,
    Device,
    Dtype,
    Fps,
    Frames,
    MaxFrames,
    MaxNewTokens,
    Model,
    OptionalSource,
    Seed,
    Source,
    Temperature,
    TopP,
    chosen_model,
    examples,
)
from pixelrefer_fast.cli.output import print_texts, progress_bar, reserved_stdout
from pixelrefer_fast.cli.profile.command import EXAMPLES as PROFILE_EXAMPLES
from pixelrefer_fast.cli.profile.command import profile
from pixelrefer_fast.cli.regions import (
    Boxes,
    FrameNumber,
    InOrder,
    Marked,
    Masks,
    Polygons,
    RegionFiles,
    RLEs,
    Scribbles,
    SizedBoxes,
    given_regions,
)
from pixelrefer_fast.cli.targets import check_target
from pixelrefer_fast.cli.training_commands import (
    EVAL_EXAMPLES,
    TRAIN_EXAMPLES,
    WORLD_EXAMPLES,
    evaluate,
    train,
    world,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask PixelRefer and PixelRefer-Lite about marked objects in images and videos.",
    epilog="Exit codes: 0 fine, 1 failure, 2 bad input. PIXELREFER_FAST_TRACEBACK=1 shows where an error was raised.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pixelrefer-fast {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    cls=InOrder,
    epilog=examples(
        "describe cat.jpg --box 60,50,360,275 --mask eye.png --model Alibaba-DAMO-Academy/PixelRefer-Lite-2B",
        'describe cat.jpg --polygon "10,10 90,20 50,80" --save cat-described.png --model ./PixelRefer-2B',
        "describe clip.mp4 --frame 12 --box 100,80,220,300 --save sheet.png --json --model ./PixelRefer-Lite-7B",
        "describe --batch requests.jsonl --out answers.jsonl --model ./PixelRefer-Lite-2B",
    )
    + BATCH_HELP,
)
def describe(
    ctx: typer.Context,
    source: OptionalSource = None,
    boxes: Boxes = None,
    sized_boxes: SizedBoxes = None,
    masks: Masks = None,
    rles: RLEs = None,
    polygons: Polygons = None,
    scribbles: Scribbles = None,
    region_files: RegionFiles = None,
    frame: FrameNumber = None,
    model: Model = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="Q", help="Asked of each region, with one <region> in it.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="OUT.png", help="Picture with regions outlined, numbered and captioned."),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    frames: Frames = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: AsJson = False,
    batch: BatchFile = None,
    out_file: BatchOut = None,
    batch_size: BatchSize = None,
) -> None:
    """Describe each marked region: a text per region. With --batch: those of each line of a file."""
    with reserved_stdout() as out:
        if check_batch_options(ctx):
            from pixelrefer_fast.cli.batch.run import answer_file

            name, options = chosen_model(model), _options(ctx)
            loaded, loading = _load(name, device, dtype, backend)
            report, line, code = answer_file(loaded, ctx, options)
            if as_json:
                report |= {"model": name}
                report["seconds"] |= {"load": loading}
                write_json(report, out)
            else:
                print(line, file=out)
            raise typer.Exit(code)
        if source is None:
            raise ValueError("expected an image or a video, or --batch FILE.jsonl, got none")
        if save is not None:
            check_target(ctx, "--save", save)
        name = chosen_model(model)
        media, regions = _marked_media(ctx, source, frame)
        options = _options(ctx)
        loaded, loading = _load(name, device, dtype, backend)
        start = time.perf_counter()
        texts = loaded.describe(media, [one.region for one in regions], question, **options)
        answering = time.perf_counter() - start
        if save is not None:
            from pixelrefer_fast.pictures import answers

            answers.save(answers.answers(media, [one.region for one in regions], texts), save)
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name}
            document |= {"question": question}
            document |= {"regions": _listed(regions, texts)}
            write_json(document | {"saved": save, "seconds": {"load": loading, "describe": answering}}, out)
        else:
            print_texts(texts, out)


@app.command(
    cls=InOrder,
    epilog=examples(
        'ask street.jpg "What does <region> give <region>?" --box 10,20,90,180 --mask man.png --model ./PixelRefer-2B',
        'ask clip.mp4 "Where does <region> go?" --frame 0 --box 10,20,90,180 --stream --model ./PixelRefer-Lite-2B',
        'ask objects.safetensors "What colour is it?" --model ./PixelRefer-Lite-2B',
    ),
)
def ask(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE_OR_VIDEO|OBJECTS.safetensors",
            help="An image, a video, a folder of frames, or what `encode` wrote (regions included).",
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="With a <region> for each region, in order.")],
    boxes: Boxes = None,
    sized_boxes: SizedBoxes = None,
    masks: Masks = None,
    rles: RLEs = None,
    polygons: Polygons = None,
    scribbles: Scribbles = None,
    region_files: RegionFiles = None,
    frame: FrameNumber = None,
    model: Model = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is written.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    frames: Frames = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask one question about all marked regions."""
    with reserved_stdout() as out:
        if stream and as_json:
            raise ValueError("--stream: expected without --json, whose one document comes at the end")
        name = chosen_model(model)
        media: Any
        if source.lower().endswith(".safetensors"):
            media, regions = _encoded(ctx, source), None
        else:
            media, regions = _marked_media(ctx, source, frame)
        options = _options(ctx)
        loaded, loading = _load(name, device, dtype, backend)
        marked = None if regions is None else [one.region for one in regions]
        start = time.perf_counter()
        if stream:
            for piece in loaded.stream(media, question, marked, **options):
                print(safe_text(piece), end="", file=out, flush=True)
            print(file=out)
            return
        answer = loaded.ask(media, question, marked, **options)
        answering = time.perf_counter() - start
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name}
            document |= {"question": question, "answer": answer}
            document |= {"regions": None if regions is None else _listed(regions)}
            write_json(document | {"seconds": {"load": loading, "ask": answering}}, out)
        else:
            print(safe_text(answer), file=out)


@app.command(
    cls=InOrder,
    epilog=examples(
        "encode street.jpg --box 10,20,90,180 --mask man.png --out street.safetensors --model ./PixelRefer-Lite-2B",
        'ask street.safetensors "Who is taller?" --model ./PixelRefer-Lite-2B',
    ),
)
def encode(
    ctx: typer.Context,
    source: Source,
    out_file: Annotated[str, typer.Option("--out", metavar="OBJECTS.safetensors", help="File to write.")],
    boxes: Boxes = None,
    sized_boxes: SizedBoxes = None,
    masks: Masks = None,
    rles: RLEs = None,
    polygons: Polygons = None,
    scribbles: Scribbles = None,
    region_files: RegionFiles = None,
    frame: FrameNumber = None,
    model: Model = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    frames: Frames = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode the marked regions once, for any number of questions."""
    with reserved_stdout() as out:
        check_target(ctx, "--out", out_file, (".safetensors",))
        name = chosen_model(model)
        _, regions = _marked_media(ctx, source, frame)
        options = _options(ctx)
        loaded, loading = _load(name, device, dtype, backend)
        start = time.perf_counter()
        objects = loaded.encode(source, [one.region for one in regions], **options)
        encoding = time.perf_counter() - start
        objects.save(out_file)
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name, "out": out_file}
            document |= {"regions": _listed(regions)}
            document |= {"tokens": len(objects.tokens), "bytes": Path(out_file).stat().st_size}
            write_json(document | {"seconds": {"load": loading, "encode": encoding}}, out)
        else:
            print(f"{out_file}: {len(objects)} region(s), {len(objects.tokens)} object tokens", file=out)


@app.command(epilog=examples("convert ./PixelRefer-2B ./PixelRefer-2B-one-folder"))
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint: a folder or a hub id.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Folder to write; must not exist or be empty.")],
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint as one self-contained safetensors folder."""
    with reserved_stdout() as out:
        from pixelrefer_fast.loading import convert as rewrite

        with clean_end():  # what is written by then may be as large as the weights
            report = rewrite(source, target)
        if as_json:
            write_json(report, out)
        else:
            print(f"{target}: written", file=out)
            for key, value in report.items():
                print(f"  {key}: {value}", file=out)


@app.command(
    epilog=examples(
        "verify ./golden/lite", "verify ./golden/full --device cuda --dtype float32 --backend triton --json"
    )
)
def verify(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A checkpoint with case_*.safetensors beside it.")],
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Replay recorded cases and compare every stage; exit 0 only if all hold."""
    with reserved_stdout() as out:
        from pixelrefer_fast.cli.verify import print_report
        from pixelrefer_fast.verify.replay import verify as replay

        with progress_bar("verify", sum(1 for _ in Path(folder).glob("case_*.safetensors"))) as progress:
            report = replay(folder, backend=backend, device=device, dtype=dtype, progress=progress)
        if as_json:
            write_json(report, out)
        else:
            print_report(report, out)
    if not report["ok"]:
        raise typer.Exit(1)


@app.command(epilog=examples("doctor", "doctor --json", "doctor --build"))
def doctor(
    as_json: AsJson = False,
    build: Annotated[bool, typer.Option("--build", help="Compile the extension of csrc/ here; no report.")] = False,
) -> None:
    """Report versions, devices, providers of every operation, caches and settings."""
    from pixelrefer_fast.doctor import probes as diagnosis

    if code := diagnosis.main(["--json"] * as_json + ["--build"] * build):
        raise typer.Exit(code)


@app.command(epilog=examples("demo", "demo --seed 7 --out /tmp --json"))
def demo(
    folder: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where the pictures go; made if missing.")
    ] = "out",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Of the scene and the video.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask both embedded models about a scene and a video that they were not trained on, and draw what they say."""
    from pixelrefer_fast.cli.demo.run import run_demo

    with reserved_stdout() as out:
        report = run_demo(Path(folder), seed, None if as_json else out)
        if as_json:
            write_json(report, out)


app.command("eval", epilog=EVAL_EXAMPLES)(evaluate)
app.command(epilog=BENCH_EXAMPLES)(bench)
app.command(epilog=ESTIMATE_EXAMPLES)(estimate)


app.command(cls=InOrder, epilog=PROFILE_EXAMPLES)(profile)
app.command(epilog=TRAIN_EXAMPLES)(train)
app.command(epilog=WORLD_EXAMPLES)(world)


def _marked_media(ctx: typer.Context, source: str, frame: int | None) -> tuple[Any, list[Marked]]:
    """The image array or the video, and the regions of the command line, each tried on it."""
    from pixelrefer_fast.media import open_media
    from pixelrefer_fast.media.video import Video

    media = open_media(source)
    regions = given_regions(ctx, media, frame)
    if not regions:
        raise ValueError("expected at least one region (--box, --mask, --polygon, ...), got none")
    if not isinstance(media, Video):
        for option in ("fps", "max_frames", "frames"):
            if ctx.params.get(option) is not None:
                raise ValueError(f"--{option.replace('_', '-')}: expected a video, got the image {source}")
    return media, regions


def _encoded(ctx: typer.Context, source: str) -> Any:
    from pixelrefer_fast.encoding.objects import Objects

    given = ("boxes", "sized_boxes", "masks", "rles", "polygons", "scribbles", "region_files")
    if any(ctx.params[name] for name in given):
        raise ValueError(f"{source}: holds its own regions, expected none on the command line")
    for option in ("frame", "fps", "max_frames", "frames"):
        if ctx.params[option] is not None:
            raise ValueError(f"--{option.replace('_', '-')}: expected a video, got encoded objects")
    return Objects.load(source)


def _options(ctx: typer.Context) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_p", "seed", "fps", "max_frames")
    options = {name: ctx.params[name] for name in names if ctx.params.get(name) is not None}
    if ctx.params.get("frames") is not None:
        try:
            options["frames"] = [int(number) for number in ctx.params["frames"].split(",")]
        except ValueError:
            raise ValueError(f"--frames: expected numbers like 0,12,24, got {ctx.params['frames']!r}") from None
    return options


def _load(name: str, device: str, dtype: str, backend: str) -> tuple[Any, float]:
    """The model and the seconds it took."""
    import pixelrefer_fast

    start = time.perf_counter()
    return pixelrefer_fast.load(name, device=device, dtype=dtype, backend=backend), time.perf_counter() - start


def _listed(regions: list[Marked], texts: list[str] | None = None) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for i, one in enumerate(regions):
        frames = one.region.frames
        listed.append({"region": i, "given": one.given, "frames": None if frames is None else list(frames)})
        if texts is not None:
            listed[-1]["text"] = texts[i]
    return listed
