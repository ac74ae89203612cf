"""Everything is declared in pyproject.toml, but for the extension of csrc/, which is optional.

PIXELREFER_FAST_BUILD_CUDA=0 leaves it out, 1 insists on all of it (CPU and CUDA), and unset builds what can be built
here. One line says what was built, what not, and why.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

VARIABLE = "PIXELREFER_FAST_BUILD_CUDA"
MODE = os.environ.get(VARIABLE, "")
if MODE not in ("", "0", "1"):
    raise SystemExit(f"{VARIABLE}: expected 0, 1 or nothing, got {MODE!r}")
# by its path: the package itself needs torch, which an isolated build does not have
BUILDER = runpy.run_path(str(Path(__file__).parent / "pixelrefer_fast" / "ops" / "extension" / "build.py"))


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
            outcome = BUILDER["build"](BUILDER["plan"](), target, print)
        except BUILDER["BuildError"] as error:
            raise SystemExit(f"pixelrefer_fast extension: {error}") from error
        if MODE == "1" and outcome.missing:
            raise SystemExit(f"{VARIABLE}=1, but {BUILDER['summary'](outcome)}")
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


if MODE == "0":
    print(f"pixelrefer_fast extension: not built ({VARIABLE}=0)")
    setup()
else:
    # the commands above build it; setuptools has to know that there is one
    setup(
        ext_modules=[Extension("pixelrefer_fast._C", [], py_limited_api=True)],
        cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
    )
