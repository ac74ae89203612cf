"""`encode`: marked regions as object tokens in a file, for any number of questions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.cli.models import chosen_model
from pixelrefer_fast.cli.options import AsJson, Computing, Marks, Model, SeenFrames, Source, examples
from pixelrefer_fast.cli.output import reserved_stdout
from pixelrefer_fast.cli.regions import listed, marked_media
from pixelrefer_fast.cli.targets import check_target

EXAMPLES = examples(
    "encode street.jpg --box 10,20,90,180 --mask man.png --out street.safetensors --model ./PixelRefer-Lite-2B",
    'ask street.safetensors "Who is taller?" --model ./PixelRefer-Lite-2B',
)


def encode(
    ctx: typer.Context,
    *,
    source: Source,
    out_file: Annotated[str, typer.Option("--out", metavar="OBJECTS.safetensors", help="File to write.")],
    marks: Marks,
    model: Model = None,
    seen: SeenFrames,
    computing: Computing,
    as_json: AsJson = False,
) -> None:
    """Encode the marked regions once, for any number of questions."""
    with reserved_stdout() as out:
        check_target(ctx, "--out", out_file, (".safetensors",))
        name = chosen_model(model)
        _, regions = marked_media(ctx, source, marks, seen)
        options = seen.given()
        loaded, loading = computing.load(name)
        start = time.perf_counter()
        objects = loaded.encode(source, [one.region for one in regions], **options)
        encoding = time.perf_counter() - start
        objects.save(out_file)
        if as_json:
            document: dict[str, Any] = {"source": source, "model": name, "out": out_file}
            document |= {"regions": listed(regions)}
            document |= {"tokens": len(objects.tokens), "bytes": Path(out_file).stat().st_size}
            write_json(document | {"seconds": {"load": loading, "encode": encoding}}, out)
        else:
            print(f"{out_file}: {len(objects)} region(s), {len(objects.tokens)} object tokens", file=out)
