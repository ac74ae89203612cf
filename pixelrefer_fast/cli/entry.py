"""The command `pixelrefer-fast`: what it says on stderr and with which code it ends, whatever happens.

Exit codes: 0 fine, 1 failure, 2 bad input, 130 interrupted. Commands are in `cli.commands`.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

from pixelrefer_fast.printable import one_line

TRACEBACK = "PIXELREFER_FAST_TRACEBACK"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line (`sys.argv`) and returns its exit code; raises nothing."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows café as caf\xe9
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.showwarning = _warning
        try:
            try:
                code = _run(arguments)
            finally:
                sys.stdout.flush()
            return code
        except SystemExit as error:  # typer's answer to a closed pipe
            return error.code if isinstance(error.code, int) else 1
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # What reads our output has gone. The interpreter flushes once more at its end: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            return _failed(error)


def _run(arguments: list[str]) -> int:
    try:
        import typer

        from pixelrefer_fast.cli.commands import app
    except Exception:
        if arguments[:1] == ["doctor"]:  # needs nothing but the standard library
            from pixelrefer_fast import doctor

            return doctor.main(arguments[1:])
        raise
    try:
        code = app(args=arguments or ["--help"], prog_name="pixelrefer-fast", standalone_mode=False)
    except typer.Abort:
        return 130
    if not arguments:
        return 2
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """One line on stderr, and the exit code."""
    usage = type(error).__name__, *(c.__name__ for c in type(error).__mro__)
    if "ClickException" in usage:  # of click or of typer's copy of it, depending on the version
        message = str(getattr(error, "message", error) or error)
        if hasattr(error, "format_message"):
            message = error.format_message()
        _say("error", f"{message} (see --help)")
        code = 2
    elif isinstance(error, (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        _say("error", str(error))
        code = 2
    else:
        hint = "" if _traceback_wanted() else f" (set {TRACEBACK}=1 to see where)"
        _say("failed", f"{type(error).__name__}: {error}{hint}")
        code = 1
    if _traceback_wanted():
        traceback.print_exception(error)
    return code


def _traceback_wanted() -> bool:
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def _say(kind: str, message: str) -> None:
    # Messages quote file names and model output: no control character may reach the terminal.
    print(f"{kind}: {one_line(message)}", file=sys.stderr)


def _warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        _say("warning", str(message))
