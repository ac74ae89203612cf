"""The command `pixelrefer-fast`: what it says on stderr and with which code it ends, whatever happens.

Exit codes: 0 fine, 1 failure, 2 bad input, 129 hung up, 130 interrupted, 143 terminated. Commands are in
`cli.commands`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import warnings
from typing import Any, TextIO

from pixelrefer_fast.checks.printable import one_line

_BAD_PATHS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
TRACEBACK = "PIXELREFER_FAST_TRACEBACK"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line (`sys.argv`) and returns its exit code; raises nothing."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _take_closed_descriptors()
    if sys.stderr is None:  # it was closed before Python started
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the rest of the process)
    if sys.stdout is None:
        _say("failed", "standard output is closed: there is nowhere to write an answer to")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows café as caf\xe9
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.showwarning = _warning
        code = _code(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # what reads our output has gone
        _silence(sys.stdout)
        return code or 1
    except OSError as error:
        _silence(sys.stdout)
        if not code:
            _say("failed", f"standard output cannot be written: {error.strerror or error}")
        return code or 1
    return code


def _code(arguments: list[str]) -> int:
    """Runs a command and returns its exit code, the line about an error said."""
    try:
        return _run(arguments)
    except SystemExit as error:  # typer's answer to a closed pipe
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        return _failed(error)


def _take_closed_descriptors() -> None:
    # A file opened later would get the number of a closed standard stream, and what libraries print would go into it.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _silence(stream: TextIO) -> None:
    # The interpreter flushes once more at its end: let that go nowhere.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["doctor"] and not {"--help", "-h"} & set(arguments):
        from pixelrefer_fast import doctor  # needs nothing but the standard library, whatever typer does on import

        return doctor.main(arguments[1:])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print on import is not an answer
            import typer

            from pixelrefer_fast.cli.commands import app
    except SystemExit as error:
        raise ImportError(f"a library ends the program on import: SystemExit: {error}") from error
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
    elif isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _BAD_PATHS):
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
