"""The commands of `pixelrefer-fast`, one a file: its options, its examples, and what it does with them.

A new command is a function in a file of its own here and a line in the list below. Typer reads the signature, with the
options that commands share and their groups from `cli.options`. What takes long to import, or is more than a page, is
imported inside the function: from `cli.NAME` or from the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from typer.core import TyperCommand

from pixelrefer_fast._version import __version__
from pixelrefer_fast.cli.commands import (
    ask,
    bench,
    convert,
    demo,
    describe,
    doctor,
    encode,
    estimate,
    profile,
    serve,
    train,
    verify,
    web,
    world,
)
from pixelrefer_fast.cli.commands import eval as evaluate
from pixelrefer_fast.cli.groups import spelled_out
from pixelrefer_fast.cli.regions import InOrder

app = typer.Typer(
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


def _add(
    command: Callable[..., None], epilog: str, *, name: str | None = None, cls: type[TyperCommand] = TyperCommand
) -> None:
    app.command(name, cls=cls, epilog=epilog)(spelled_out(command))


# In the order of --help. Commands on which regions are marked keep the order of their options.
_add(describe.describe, describe.EXAMPLES, cls=InOrder)
_add(ask.ask, ask.EXAMPLES, cls=InOrder)
_add(encode.encode, encode.EXAMPLES, cls=InOrder)
_add(convert.convert, convert.EXAMPLES)
_add(verify.verify, verify.EXAMPLES)
_add(doctor.doctor, doctor.EXAMPLES)
_add(demo.demo, demo.EXAMPLES)
_add(evaluate.evaluate, evaluate.EXAMPLES, name="eval")
_add(bench.bench, bench.EXAMPLES)
_add(estimate.estimate, estimate.EXAMPLES)
_add(profile.profile, profile.EXAMPLES, cls=InOrder)
_add(serve.serve, serve.EXAMPLES)
_add(web.web, web.EXAMPLES)
_add(train.train, train.EXAMPLES)
_add(world.world, world.EXAMPLES)
