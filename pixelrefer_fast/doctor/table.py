"""The doctor's report for people: tables through rich, or plain lines where rich is missing or broken."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

Row = tuple[str, str, bool | None]
"""What, what was found, and whether that is good (True), bad (False) or neither (None)."""


def show(found: dict[str, Any], file: TextIO | None = None) -> None:
    """Writes the report of `doctor.report` to `file` (standard output)."""
    file = file or sys.stdout
    sections = list(_sections(found))
    # rich is a library like the others: it may be missing or broken, end the process or hang on import, and the report
    # still has to appear
    if "error" in found["packages"].get("rich", {}):
        _plain(sections, file)
        return
    try:
        _rich(sections, file)
    except KeyboardInterrupt:
        raise
    except BaseException:
        _plain(sections, file)


def _rich(sections: list[tuple[str, list[Row]]], file: TextIO) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 110
    width = max((len(name) for _, rows in sections for name, _, _ in rows), default=0)
    tables = []
    for title, rows in sections:
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
        )
        table.add_column(min_width=width, overflow="fold")
        table.add_column(overflow="fold")
        for name, value, good in rows:
            table.add_row(Text(name), Text(value, {True: "green", False: "red", None: ""}[good]))
        tables.append(table)
    with console.capture() as captured:  # all or nothing: a failure half-way falls back to plain lines
        for table in tables:
            console.print(table)
            console.print()
    file.write(captured.get())


def _plain(sections: list[tuple[str, list[Row]]], file: TextIO) -> None:
    for title, rows in sections:
        print(title, file=file)
        for name, value, good in rows:
            print(f"  {name}: {value}{'  <- problem' if good is False else ''}", file=file)
        print(file=file)


def _sections(found: dict[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    problems = found["problems"] if isinstance(found["problems"], list) else [_value(found["problems"])]
    yield "Problems", [("-", problem, False) for problem in problems] or [("-", "none found", True)]
    yield (
        "System",
        [
            ("pixelrefer_fast", *_found(found["pixelrefer_fast"], "{version} in {folder}")),
            ("python", *_found(found["python"], "{version} ({implementation}), {executable}")),
            ("platform", *_found(found["platform"], "{system}")),
            ("cpu", *_found(found["cpu"], "{name}, {usable_cores} of {logical_cores} cores usable")),
            ("memory", *_each(found["memory"], lambda values: _sizes(values))),
            ("torch", *_found(found["torch"], "{version}, built for CUDA {cuda}, {threads} threads")),
        ],
    )
    yield "Packages", [(name, *_package(package)) for name, package in found["packages"].items()]
    yield "Devices", [*_devices(found["devices"]), ("nvidia driver", *_each(found["nvidia_driver"], _driver))]
    yield "Operations (who can compute them here)", list(_operations(found["ops"], _has_gpu(found)))
    yield "CUDA extension", list(_extension(found["extension"]))
    yield "Captured CUDA graphs", list(_graphs(found["graphs"]))
    yield "Caches", list(_caches(found["caches"]))
    environment = found["environment"]
    yield "Environment variables", [(k, v, None) for k, v in environment.items()] or [("-", "none of ours set", None)]


def _error(part: Any) -> str | None:
    return str(part["error"]) if isinstance(part, dict) and "error" in part else None


def _each(part: Any, describe: Any) -> tuple[str, bool | None]:
    error = _error(part)
    return (error, False) if error is not None else (describe(part), None)


def _found(part: Any, template: str) -> tuple[str, bool | None]:
    return _each(part, lambda values: template.format_map({k: _value(v) for k, v in values.items()}))


def _value(value: Any) -> str:
    error = _error(value)
    return error if error is not None else "none" if value is None else str(value)


def _package(package: dict[str, Any]) -> tuple[str, bool | None]:
    if "error" in package:
        return f"{package.get('version') or ''} does not import: {package['error']}".strip(), False
    return (str(package["version"] or "version unknown"), None) if package["installed"] else ("not installed", None)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _sizes(values: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_gib(count)}" for name, count in values.items()) or "unknown"


def _devices(devices: Any) -> Iterator[Row]:
    if _error(devices) is not None:
        yield "devices", _value(devices), False
        return
    for device in devices:
        if _error(device) is not None:
            yield "device", _value(device), False
            continue
        parts = [device["name"]] if "name" in device else []
        if "capability" in device:
            parts += [f"capability {device['capability']}", _gib(device["memory"])]
            free = device["free"]
            parts.append(_value(free) if _error(free) is not None else f"{_gib(free)} free")
        yield device["device"], ", ".join([*parts, f'dtype "auto" is {_value(device["dtype_auto"])}']), None


def _driver(driver: dict[str, Any]) -> str:
    if not driver["found"]:
        return str(driver.get("reason", "no GPU listed"))
    return "; ".join(f"{gpu['driver_version']} ({gpu['name']}, {gpu['memory.total']})" for gpu in driver["gpus"])


def _has_gpu(found: dict[str, Any]) -> bool:
    devices = found.get("devices")
    return isinstance(devices, list) and any(str(device.get("device")).startswith("cuda") for device in devices)


def _operations(ops: Any, has_gpu: bool) -> Iterator[Row]:
    if _error(ops) is not None:
        yield "operations", _value(ops), False
        return
    for name, op in ops.items():
        if _error(op) is not None:
            yield name, _value(op), False
            continue
        for provider in op["providers"]:
            ok = provider["available"]
            said = "yes" if ok else f"no, {provider['reason']}"
            if ok and provider["name"] == "cuda" and not has_gpu:
                said = "yes, its C++ for tensors of the CPU"
            yield name, f"{provider['name']}: {said}", True if ok else None
            name = ""
        for reason, count in op["fallbacks"].items():
            yield "", f"passed over {count} times: {reason}", None


def _extension(extension: dict[str, Any]) -> Iterator[Row]:
    if _error(extension) is not None:
        yield "extension", _value(extension), False
        return
    for name, module in extension["modules"].items():
        if module["loads"]:
            yield f"pixelrefer_fast.{name}", module["file"], True
        else:
            yield f"pixelrefer_fast.{name}", module["reason"], False if module["file"] else None
    yield "can be built here", " and ".join(extension["can_build"]) or "nothing", None
    if extension["cannot_build"]:
        yield "cannot be built here", extension["cannot_build"], None


def _graphs(graphs: Any) -> Iterator[Row]:
    if _error(graphs) is not None:
        yield "graphs", _value(graphs), False
        return
    yield "work here", "yes" if graphs["works"] else f"no, {graphs['reason']}", True if graphs["works"] else None
    agreed = f"{graphs['bit_for_bit']} bit for bit, {graphs['within_bar']} within rounding"
    yield "first replays that agreed", agreed, None
    for reason, count in graphs["dropped"].items():
        yield "", f"dropped {count} times: {reason}", None


def _caches(caches: Any) -> Iterator[Row]:
    if _error(caches) is not None:
        yield "caches", _value(caches), False
        return
    hub = caches["hub"]
    holds = ", ".join(hub["pixelrefer_models"]) or "no PixelRefer model"
    yield "hugging face hub", f"{hub['path']} ({holds if hub['exists'] else 'does not exist yet'})", None
    triton = caches["triton"]
    yield "triton", f"{triton['path']}{'' if triton['exists'] else ' (does not exist yet)'}", None
