"""Everything is declared in pyproject.toml, but for the extension of csrc/, which is optional, and for archives that
are the same whenever and wherever they are made (docs/releasing.md).

PIXELREFER_FAST_BUILD_CUDA=0 leaves the extension out, cpu insists on its CPU module and builds no other, 1 insists on
both, and unset builds what can be built here. One line says what was built, what not, and why.
"""

from __future__ import annotations

import gzip
import os
import runpy
import tarfile
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

VARIABLE = "PIXELREFER_FAST_BUILD_CUDA"
MODE = os.environ.get(VARIABLE, "")
if MODE not in ("", "0", "1", "cpu"):
    raise SystemExit(f"{VARIABLE}: expected 0, 1, cpu or nothing, got {MODE!r}")
# by its path: the package itself needs torch, which an isolated build does not have
BUILDER = runpy.run_path(str(Path(__file__).parent / "pixelrefer_fast" / "ops" / "extension" / "build.py"))
# the date of every file in an archive, which setuptools reads too; without one, 2020
DATE = int(os.environ.setdefault("SOURCE_DATE_EPOCH", "1577836800"))


class BuildExtension(build_ext):
    built: ClassVar[list[Path]] = []
    has_run = False  # a wheel asks twice

    def run(self) -> None:
        if BuildExtension.has_run:
            return
        BuildExtension.has_run = True
        package = Path("pixelrefer_fast")
        target = package if self.inplace or self.editable_mode else Path(self.build_lib) / package
        try:
            planned = BUILDER["plan"]()
            if MODE == "cpu":
                planned = BUILDER["only"](planned, "_C", f"{VARIABLE}=cpu")
            outcome = BUILDER["build"](planned, target, print)
        except BUILDER["BuildError"] as error:
            raise SystemExit(f"pixelrefer_fast extension: {error}") from error
        wanted = {"1": ("_C", "_C_cuda"), "cpu": ("_C",)}.get(MODE, ())
        if any(name in outcome.missing for name in wanted):
            raise SystemExit(f"{VARIABLE}={MODE}, but {BUILDER['summary'](outcome)}")
        BuildExtension.built = outcome.built
        print(BUILDER["summary"](outcome))

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.built]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """For this platform and every Python from 3.10 on if the extension is in it, else for all."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not BuildExtension.built:
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("cp310", "abi3", super().get_tag()[2]) if BuildExtension.built else ("py3", "none", "any")

    def write_wheelfile(self, wheelfile_base: str, *args: Any, **options: Any) -> None:
        """The last file before all are packed; a checkout's modes depend on its umask."""
        super().write_wheelfile(wheelfile_base, *args, **options)
        for path in Path(self.bdist_dir).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


class SourceArchive(sdist):
    """Files in order, without owners, modes and dates of the machine."""

    def make_archive(
        self, base_name: str, format: str, root_dir: Any = None, base_dir: Any = None, **owners: Any
    ) -> str:
        if format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, **owners)
        name = f"{base_name}.tar.gz"
        with (
            open(name, "wb") as file,
            # the name would stand in the header
            gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=DATE) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(base_dir, filter=_plain)  # folders in alphabetical order
        return name


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    entry.mtime = DATE
    return entry


COMMANDS = {"bdist_wheel": Wheel, "sdist": SourceArchive}
if MODE == "0":
    print(f"pixelrefer_fast extension: not built ({VARIABLE}=0)")
    setup(cmdclass=COMMANDS)
else:
    # the commands above build it; setuptools has to know that there is one
    setup(
        ext_modules=[Extension("pixelrefer_fast._C", [], py_limited_api=True)],
        cmdclass={"build_ext": BuildExtension, **COMMANDS},
    )
