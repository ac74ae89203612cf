"""What is installed and what of it works: `pixelrefer-fast doctor`, `python -m pixelrefer_fast.doctor`.

Everything that has to import something runs in a process of its own, one probe after another, so the report is printed
even when a library is missing, raises, hangs or ends the process on import. Only the standard library is needed here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTED = {  # module -> names of the distributions that provide it
    "torch": ("torch",),
    "triton": ("triton", "triton-windows", "pytorch-triton"),
    "transformers": ("transformers",),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "huggingface_hub": ("huggingface_hub",),
    "numpy": ("numpy",),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "PIL": ("pillow", "pillow-simd"),
    "av": ("av",),
    "pycocotools": ("pycocotools",),
    "typer": ("typer",),
    "rich": ("rich",),
    "torchcodec": ("torchcodec",),
    "flash_attn": ("flash-attn",),
    "xformers": ("xformers",),
}
LISTED = ("supervision", "accelerate", "peft", "vllm", "ray", "gradio", "fastapi")
EXTRAS = ("triton", "torchcodec", "flash_attn", "xformers", *LISTED)
MODULES = (
    "media",
    "regions",
    "checkpoint",
    "model",
    "loading",
    "verify",
    "pictures",
    "cli.commands",
)  # of ours, imported to see whether they do
VARIABLES = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "TRITON_INTERPRET",
    "TRITON_CACHE_DIR",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "TORCH_CUDA_ARCH_LIST",
    "OMP_NUM_THREADS",
)
PREFIX = "PIXELREFER_FAST_"
TIMEOUT = 120.0  # seconds for one probe


def report(timeout: float = TIMEOUT) -> dict[str, Any]:
    """Plain JSON types. A probe that failed is `{"error": "<type>: <message>"}` in the place of its result.

    `ops.<name>.fallbacks` and `graphs` count what this process has done, where it has loaded them; `timeout` in
    seconds is for one probe.
    """
    probed = _in_child([*(f"import:{name}" for name in IMPORTED), *_PROBES], timeout)
    loaded = sys.modules.get("pixelrefer_fast.ops")
    trust = sys.modules.get("pixelrefer_fast.device.trust")
    packages = {name: probed[f"import:{name}"] for name in IMPORTED}
    for name, package in packages.items():
        if "error" in package:
            packages[name] = _guarded(_installed, name) | {"installed": True} | package
    packages |= {name: _guarded(_installed, name) for name in LISTED}
    found: dict[str, Any] = {
        "pixelrefer_fast": probed["package"],
        "python": _guarded(_python),
        "platform": _guarded(_platform),
        "cpu": _guarded(_cpu),
        "memory": _guarded(_memory),
        "packages": packages,
        "torch": probed["torch"],
        "devices": probed["devices"],
        "nvidia_driver": _guarded(_nvidia_driver),
        "ops": probed["ops"] if loaded is None else _guarded(_ops),
        "extension": probed["extension"],
        "graphs": probed["graphs"] | ({} if trust is None else _guarded(trust.counts)),
        "caches": _guarded(_caches),
        "environment": _guarded(_environment),
    }
    found["problems"] = _guarded(_problems, found)
    return found


# --- probes of this process -----------------------------------------------------------------------------------------


def _guarded(probe: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return probe(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library may raise SystemExit on import
        return {"error": _described(error)}


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")


def _python() -> dict[str, Any]:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "environment": sys.prefix,
    }


def _platform() -> dict[str, Any]:
    return {"system": platform.platform(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver())}


def _cpu() -> dict[str, Any]:
    name = platform.processor()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        named = [line.split(":", 1)[1].strip() for line in listing.read_text().splitlines() if "model name" in line]
        name = named[0] if named else name
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "logical_cores": os.cpu_count(), "usable_cores": usable}


def _memory() -> dict[str, Any]:
    listing, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    values: dict[str, Any] = {}
    if listing.exists():
        sizes = dict(line.split(":", 1) for line in listing.read_text().splitlines())
        values = {k: int(sizes[v].split()[0]) * 1024 for k, v in (("total", "MemTotal"), ("available", "MemAvailable"))}
    elif hasattr(os, "sysconf"):
        values = {"total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        values["container_limit"] = int(limit)
    return values


def _installed(module: str) -> dict[str, Any]:
    for distribution in IMPORTED.get(module, (module,)):
        try:
            return {"installed": True, "version": importlib.metadata.version(distribution)}
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"installed": False, "version": None}


def _nvidia_driver() -> dict[str, Any]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"found": False, "reason": "no nvidia-smi on the PATH"}
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    ran = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if ran.returncode:
        return {"found": False, "reason": (ran.stderr or ran.stdout).strip()[:300] or f"exit {ran.returncode}"}
    gpus = [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in ran.stdout.splitlines()]
    return {"found": bool(gpus), "gpus": gpus}


def _caches() -> dict[str, Any]:
    environment = os.environ
    user = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(environment.get("HF_HOME") or user / "huggingface")
    hub = Path(environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
    triton = Path(environment.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache").expanduser()
    held = sorted(path.name[8:].replace("--", "/") for path in hub.glob("models--*PixelRefer*"))
    return {
        "hub": {"path": str(hub), "exists": hub.is_dir(), "pixelrefer_models": held},
        "triton": {"path": str(triton), "exists": triton.is_dir()},
    }


def _environment() -> dict[str, str]:
    names = [name for name in sorted(os.environ) if name.startswith(PREFIX)]
    names += [name for name in VARIABLES if name in os.environ]
    # Reports are pasted into bug reports.
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    return {name: "(set, not shown)" if any(s in name for s in secret) else os.environ[name] for name in names}


# --- probes of the child process ------------------------------------------------------------------------------------


def _import(module: str) -> dict[str, Any]:
    found = _guarded(_installed, module)
    if importlib.util.find_spec(module) is None:
        return {"installed": False, "version": None} | ({} if not found.get("installed") else {"error": "no module"})
    imported = importlib.import_module(module)
    version = found.get("version") or getattr(imported, "__version__", None)
    return {"installed": True, "version": None if version is None else str(version)}


def _package() -> dict[str, Any]:
    package = importlib.import_module("pixelrefer_fast")
    found = {"version": package.__version__, "folder": str(Path(str(package.__file__)).parent)}
    broken = {}
    for name in MODULES:
        imported = _guarded(importlib.import_module, f"pixelrefer_fast.{name}")
        if isinstance(imported, dict):
            broken[name] = imported["error"]
    return found | {"broken_modules": broken}


def _torch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "cudnn": _guarded(torch.backends.cudnn.version),
        "architectures": _guarded(lambda: list(torch.cuda.get_arch_list())),
        "threads": _guarded(torch.get_num_threads),
    }


def _devices() -> list[dict[str, Any]]:
    torch = importlib.import_module("torch")
    devices: list[dict[str, Any]] = [{"device": "cpu", "dtype_auto": _guarded(_dtype, torch, "cpu")}]
    if torch.cuda.is_available():
        devices += [_guarded(_cuda_device, torch, i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "dtype_auto": _guarded(_dtype, torch, "mps")})
    return devices


def _cuda_device(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    name = f"cuda:{index}"
    return {
        "device": name,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "free": _guarded(lambda: torch.cuda.mem_get_info(index)[0]),
        "dtype_auto": _guarded(_dtype, torch, name),
    }


def _dtype(torch: Any, device: str) -> str:
    loading = importlib.import_module("pixelrefer_fast.loading")
    return str(loading.auto_dtype("auto", torch.device(device))).removeprefix("torch.")


def _ops() -> dict[str, Any]:
    registry = importlib.import_module("pixelrefer_fast.ops").registry()
    return {name: _guarded(_op, op) for name, op in sorted(registry.items())}


def _op(op: Any) -> dict[str, Any]:
    providers = [
        {"name": str(name), "available": bool(available), "reason": str(reason or "")}
        for name, available, reason in op.providers()
    ]
    return {"providers": providers, "fallbacks": {str(k): int(v) for k, v in dict(op.fallbacks()).items()}}


def _extension() -> dict[str, Any]:
    return dict(importlib.import_module("pixelrefer_fast.ops.extension.load").describe())


def _graphs() -> dict[str, Any]:
    """Whether a small computation can be captured and replayed here, and what became of captures."""
    torch = importlib.import_module("torch")
    graphs = importlib.import_module("pixelrefer_fast.device.graphs")
    trust = importlib.import_module("pixelrefer_fast.device.trust")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = graphs.GraphStore(2**30)
    reason = store.unusable(device)
    if reason is None:
        x = torch.ones(64, 64, device=device)
        store.capture("doctor", lambda: x @ x, {}, device)
        reason = next(iter(store.refused.values()), None)
    return {"works": reason is None, "reason": reason or "", **trust.counts()}


_PROBES: dict[str, Callable[[], Any]] = {
    "package": _package,
    "torch": _torch,
    "devices": _devices,
    "ops": _ops,
    "extension": _extension,
    "graphs": _graphs,
}
_CHILD = (
    "import json, runpy, sys; job = json.loads(sys.argv[1]); sys.path[:] = job['path']; "
    "runpy.run_path(job['file'])['_answer'](job['probes'])"
)


def _answer(probes: list[str]) -> None:
    """The child's whole life: a line of JSON per probe on the real standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while they are imported is not an answer
    for name in probes:
        module = name.removeprefix("import:")
        result = _guarded(_PROBES[name]) if name in _PROBES else _guarded(_import, module)
        out.write(json.dumps(result) + "\n")
        out.flush()
    os._exit(0)  # a library's exit handlers may hang, and nothing of ours is left to do


def _in_child(probes: list[str], timeout: float) -> dict[str, Any]:
    """Results by probe. A probe that ends or blocks the child is reported so, and the rest go to a new child."""
    results: dict[str, Any] = {}
    while waiting := [name for name in probes if name not in results]:
        job = json.dumps({"path": sys.path, "file": __file__, "probes": waiting})
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, job],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            return results | {name: {"error": f"no process for it: {_described(error)}"} for name in waiting}
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_forward, args=(child, lines), daemon=True).start()
        try:
            for name in waiting:
                try:
                    line = lines.get(timeout=timeout)
                except queue.Empty:
                    results[name] = {"error": f"no answer within {timeout:g} s"}
                    break
                if not line:
                    results[name] = {"error": _ending(child.wait())}
                    break
                results[name] = json.loads(line)
        finally:
            child.kill()
            child.wait()
    return results


def _forward(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended the process with exit code {code}"
    try:
        return f"ended the process with {signal.Signals(-code).name}"
    except ValueError:
        return f"ended the process with signal {-code}"


# --- what it says ---------------------------------------------------------------------------------------------------


def _problems(found: dict[str, Any]) -> list[str]:
    problems = []
    for name, package in found["packages"].items():
        if "error" in package:
            problems.append(f"{name} is installed but does not import: {package['error']}")
        elif name not in EXTRAS and not package["installed"]:
            problems.append(f"{name} is not installed, and pixelrefer_fast needs it")
    for part in ("pixelrefer_fast", "torch", "devices", "ops", "extension", "graphs"):
        if isinstance(found[part], dict) and "error" in found[part]:
            problems.append(f"{part}: {found[part]['error']}")
    for name, why in found["pixelrefer_fast"].get("broken_modules", {}).items():
        problems.append(f"pixelrefer_fast.{name} does not import: {why}")
    if found["nvidia_driver"].get("found") and found["torch"].get("version") and not found["torch"].get("cuda"):
        problems.append("there is an NVIDIA GPU, but this torch is built without CUDA")
    for name, op in (found["ops"] if isinstance(found["ops"], dict) else {}).items():
        if isinstance(op, dict) and "error" in op:
            problems.append(f"op {name}: {op['error']}")
    for name, module in found["extension"].get("modules", {}).items():
        if module["file"] and not module["loads"]:
            problems.append(f"pixelrefer_fast.{name}: {module['reason']}")
    return problems


def build() -> int:
    """Compile the extension here, with a line for each step; 0 if it loads afterwards."""
    from pixelrefer_fast.ops.extension import build as build_extension
    from pixelrefer_fast.ops.extension import load as extension

    try:
        extension.build_in_place(lambda line: print(line, flush=True))
    except (build_extension.BuildError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    # in a process of its own: a build that does not load may end the process
    found = _in_child(["extension"], TIMEOUT)["extension"]
    modules = found.get("modules", {"the extension": {"loads": False, "reason": found.get("error")}})
    broken = [f"{name}: {m['reason']}" for name, m in modules.items() if not m["loads"] and m.get("file")]
    if "error" in found or broken:
        print(f"failed: built, but {'; '.join(broken) or found['error']}", file=sys.stderr)
        return 1
    print(f"loads: {', '.join(name for name, m in modules.items() if m['loads'])}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 whatever it found, 1 if --build fails."""
    from pixelrefer_fast.checks.printable import one_line, write_json
    from pixelrefer_fast.doctor import table

    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print("usage: python -m pixelrefer_fast.doctor [--json | --build]\n\n" + (__doc__ or ""))
        return 0
    if arguments not in ([], ["--json"], ["--build"]):
        print(f"error: doctor takes --json or --build, got {one_line(' '.join(arguments))}", file=sys.stderr)
        return 2
    if arguments == ["--build"]:
        return build()
    found = report()
    if "--json" in arguments:
        write_json(found, sys.stdout)
    else:
        table.show(found)
    return 0
