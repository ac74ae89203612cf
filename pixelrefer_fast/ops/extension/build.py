"""Compile csrc/: `_C`, the operations on the CPU, and `_C_cuda`, those on CUDA devices.

setup.py and `pixelrefer-fast doctor --build` both come here. Only the standard library is needed: setup.py runs this
file where nothing of the package can be imported, and torch is looked for but never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

# the folder of a checkout, or that of an installed package
PACKAGE = Path(__file__).parents[2]
CSRC = next((p for p in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if p.is_dir()), None)
OPERATIONS = ("mask_grids", "pack_masks", "pack_objects", "pack_views", "place_patches", "scatter_tokens")
SOURCES = {
    "_C": ("bindings_cpu.cpp", *(f"cpu/{name}.cpp" for name in OPERATIONS)),
    "_C_cuda": ("bindings_cuda.cpp", *(f"cuda/{name}.cu" for name in OPERATIONS)),
}
SUFFIX = ".abi3.so"
TORCH_TARGET = (2, 10)  # the oldest torch whose stable ABI has what csrc/ uses; csrc/README.md says what that is
DEFINES = ("-DPy_LIMITED_API=0x030a0000", "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*TORCH_TARGET))
ARCHITECTURES = "8.0;9.0;10.0+PTX"
JOB_MEMORY = 2 * 2**30  # bytes that one compiler may need


class BuildError(Exception):
    """Nothing can be built, for this reason."""


class _CompilerError(Exception):
    pass


@dataclass(frozen=True)
class Torch:
    """A torch as its files describe it."""

    folder: Path
    version: tuple[int, int]
    cuda: str | None


@dataclass(frozen=True)
class BuildPlan:
    """What can be built here: a module is in `missing`, with the reason, or it is built."""

    torch: Torch | None
    compiler: tuple[str, ...]
    nvcc: str | None
    missing: Mapping[str, str]

    @property
    def modules(self) -> list[str]:
        return [name for name in SOURCES if name not in self.missing]


@dataclass(frozen=True)
class Outcome:
    """What was built, and for each module that was not the reason."""

    built: list[Path]
    missing: Mapping[str, str]


def digest() -> str:
    """Of the sources and of what they are compiled with; a build carries it, so a stale one is told."""
    folder = _csrc()
    summed = hashlib.sha256(" ".join(DEFINES).encode())
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")):
        summed.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return summed.hexdigest()[:16]


def marker() -> bytes:
    """Stands in every build of these sources (csrc/module.h)."""
    return f"pixelrefer_fast csrc {digest()}".encode()


def plan(environment: Mapping[str, str] = os.environ) -> BuildPlan:
    """Look for a C++ compiler, torch, nvcc; nothing is compiled."""
    torch, compiler = find_torch(environment), _compiler(environment)
    nvcc = _nvcc(environment)
    shared = None
    if CSRC is None:
        shared = "its sources are not here"
    elif sys.platform != "linux":
        shared = f"it is built on Linux, this is {sys.platform}"
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        shared = "a free-threaded Python has no stable ABI"
    elif compiler is None:
        shared = "no C++ compiler was found: neither CXX nor c++, g++ or clang++ on the PATH"
    elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        shared = f"Python.h is not in {sysconfig.get_paths()['include']} (Debian: python3-dev)"
    elif torch is None:
        shared = "no torch was found in the surrounding environment"
    elif torch.version < TORCH_TARGET:
        shared = "it needs the headers of torch {}.{} or newer, found {}.{}".format(*TORCH_TARGET, *torch.version)
    missing = {} if shared is None else dict.fromkeys(SOURCES, shared)
    if torch is not None and shared is None:
        if torch.cuda is None:
            missing["_C_cuda"] = "the torch that was found is built without CUDA"
        elif nvcc is None:
            missing["_C_cuda"] = "no nvcc was found: neither in CUDA_HOME/bin nor on the PATH"
    return BuildPlan(torch, compiler or (), nvcc, missing)


def only(planned: BuildPlan, name: str, why: str) -> BuildPlan:
    """The same plan less every other module, for this reason."""
    others = {other: planned.missing.get(other, why) for other in SOURCES if other != name}
    return replace(planned, missing={**planned.missing, **others})


def build(
    planned: BuildPlan,
    target: Path,
    progress: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
) -> Outcome:
    """Compile the planned modules into the folder `target`, each for itself.

    Files appear whole or not at all. What a compiler says when it fails goes to standard error.

    Raises:
        BuildError: an environment variable is wrong.
    """
    target.mkdir(parents=True, exist_ok=True)
    built, missing = [], dict(planned.missing)
    for name in planned.modules:
        try:
            built.append(_build(planned, name, target, progress, environment))
        except _CompilerError as error:
            missing[name] = str(error)
    return Outcome(built, missing)


def _build(
    planned: BuildPlan, name: str, target: Path, progress: Callable[[str], None], environment: Mapping[str, str]
) -> Path:
    with tempfile.TemporaryDirectory(prefix="pixelrefer_fast-") as scratch:
        objects = {source: Path(scratch) / f"{source.replace('/', '-')}.o" for source in SOURCES[name]}
        commands = [(source, _compile_command(planned, source, to, environment)) for source, to in objects.items()]
        started = time.monotonic()
        with ThreadPoolExecutor(_jobs(environment)) as pool:
            for i, (source, _) in enumerate(zip(objects, pool.map(lambda c: _run(*c), commands), strict=True)):
                progress(f"{name} [{i + 1}/{len(objects)}] csrc/{source} ({time.monotonic() - started:.0f} s)")
        linked = Path(scratch) / f"{name}{SUFFIX}"
        _run(linked.name, _link_command(planned, name, [str(to) for to in objects.values()], linked))
        # copied beside its place and put there in one step: a process that has the old one loaded keeps it
        copy = target / f".{linked.name}.{os.getpid()}"
        shutil.copyfile(linked, copy)
        os.replace(copy, target / linked.name)
    return target / linked.name


def summary(outcome: Outcome) -> str:
    """One line: what was built, what not, and why."""
    reasons: dict[str, list[str]] = {}
    for name, why in outcome.missing.items():
        reasons.setdefault(why, []).append(name)
    parts = [f"built {' and '.join(path.name for path in outcome.built)}"] if outcome.built else []
    parts += [f"not built: {' and '.join(names)} ({why})" for why, names in reasons.items()]
    return f"pixelrefer_fast extension: {'; '.join(parts)}"


def user_folder() -> Path:
    """Where a build goes when the package's own folder cannot be written to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pixelrefer_fast" / f"{digest()}-{platform.machine()}"


def find_torch(environment: Mapping[str, str] = os.environ) -> Torch | None:
    """The torch of this interpreter or, where the build is isolated from it, of the environment around the build."""
    spec = importlib.util.find_spec("torch")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if not folders:
        homes = [environment[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environment.get(name)]
        asked = (
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
        )
        # pip isolates a build by these two
        outside = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
        for python in [sys.executable, *(str(Path(home) / "bin" / "python") for home in homes)]:
            try:
                ran = subprocess.run(
                    [python, "-c", asked], env=outside, cwd="/", capture_output=True, text=True, timeout=60, check=False
                )
            except OSError:
                continue
            if folder := ran.stdout.strip():
                folders = [folder]
                break
    for folder in folders:
        described = Path(folder) / "version.py"
        headers = Path(folder) / "include" / "torch" / "csrc" / "stable"
        if described.exists() and headers.is_dir():
            text = described.read_text()
            number = re.search(r"^__version__ = '(\d+)\.(\d+)", text, re.MULTILINE)
            cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE)
            if number:
                return Torch(Path(folder), (int(number[1]), int(number[2])), cuda[1] if cuda else None)
    return None


def architectures(listed: str) -> list[str]:
    """nvcc's options for a TORCH_CUDA_ARCH_LIST: machine code of each, and PTX where +PTX asks for it."""
    options = []
    for name in re.split(r"[;,\s]+", listed.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if not found:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected versions such as {ARCHITECTURES}, got {name!r}")
        number = "".join(found.group(1, 2, 3))
        options.append(f"--generate-code=arch=compute_{number},code=sm_{number}")
        if found[4]:
            options.append(f"--generate-code=arch=compute_{number},code=compute_{number}")
    return options


def _csrc() -> Path:
    if CSRC is None:
        raise BuildError("csrc: expected the sources beside the package, found none")
    return CSRC


def _compiler(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    named = shlex.split(environment.get("CXX", ""))
    path = environment.get("PATH")
    if named:
        return tuple(named) if shutil.which(named[0], path=path) else None
    found = next(filter(None, (shutil.which(name, path=path) for name in ("c++", "g++", "clang++"))), None)
    return (found,) if found else None


def _nvcc(environment: Mapping[str, str]) -> str | None:
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    named = (shutil.which(str(Path(home) / "bin" / "nvcc")) for home in homes)
    return next(filter(None, named), None) or shutil.which("nvcc", path=environment.get("PATH"))


def _jobs(environment: Mapping[str, str]) -> int:
    listed = environment.get("MAX_JOBS", "")
    if listed:
        if not listed.isdigit() or int(listed) == 0:
            raise BuildError(f"MAX_JOBS: expected a number of 1 or more, got {listed!r}")
        return int(listed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = Path("/proc/meminfo")
    available = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text()) if memory.exists() else None
    return max(1, min(cores, int(available[1]) * 1024 // JOB_MEMORY) if available else cores)


def _compile_command(planned: BuildPlan, source: str, to: Path, environment: Mapping[str, str]) -> list[str]:
    assert planned.torch is not None
    to_object = ("-c", str(_csrc() / source), "-o", str(to))
    hidden = ("-Xcompiler", "-fPIC,-fvisibility=hidden")
    if source.endswith(".cu"):  # no header of torch or Python is in these
        listed = environment.get("TORCH_CUDA_ARCH_LIST", "").strip() or _known_architectures(planned)
        return [*_nvcc_command(planned), *architectures(listed), *hidden, *to_object]
    headers = (planned.torch.folder / "include", Path(sysconfig.get_paths()["include"]))
    included = (part for folder in headers for part in ("-isystem", str(folder)))
    shared = (*DEFINES, f'-DPIXELREFER_FAST_SOURCES="{digest()}"', *included)
    if source == "bindings_cuda.cpp":  # by nvcc, which knows where its own headers are
        return [*_nvcc_command(planned), "-DUSE_CUDA", *shared, *hidden, *to_object]
    # a product and a sum round each for itself, as torch's operations do
    options = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden")
    # messages name files of csrc/ and torch/ wherever these are, so that two builds are the same
    named = (f"-ffile-prefix-map={_csrc()}=csrc", f"-ffile-prefix-map={planned.torch.folder}=torch")
    return [*planned.compiler, *options, *named, *shared, *to_object]


def _link_command(planned: BuildPlan, name: str, objects: list[str], to: Path) -> list[str]:
    assert planned.torch is not None
    libraries = [f"-L{planned.torch.folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    to_module = ("-o", str(to))
    if name == "_C_cuda":
        # CUDA's runtime goes into the module, so that it fits every torch whose driver is new enough
        return [*_nvcc_command(planned), "-shared", "-cudart=static", *objects, *libraries, "-ltorch_cuda", *to_module]
    return [*planned.compiler, "-shared", *objects, *libraries, *to_module]


def _nvcc_command(planned: BuildPlan) -> list[str]:
    assert planned.nvcc is not None
    return [planned.nvcc, "-std=c++17", "-O3", f"--compiler-bindir={shutil.which(planned.compiler[0])}"]


def _known_architectures(planned: BuildPlan) -> str:
    """The default list, less what an older nvcc does not know, with PTX of the newest."""
    assert planned.nvcc is not None
    ran = subprocess.run([planned.nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"compute_(\d+)", ran.stdout))
    names = [name for name in ARCHITECTURES.removesuffix("+PTX").split(";") if name.replace(".", "") in known]
    return f"{';'.join(names)}+PTX" if names else ARCHITECTURES


def _run(name: str, command: list[str]) -> None:
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise _CompilerError(f"{name}: {command[0]} does not run: {error}") from error
    if ran.returncode:
        print(shlex.join(command), ran.stdout, sep="\n", file=sys.stderr)
        lines = [line.strip() for line in ran.stdout.splitlines() if re.search("error|fatal", line)]
        reason = lines[0][:300] if lines else f"exit {ran.returncode}"
        raise _CompilerError(f"{name}: {command[0]} fails: {reason}")
