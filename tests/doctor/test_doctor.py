"""The doctor prints whatever is broken around it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelrefer_fast.doctor import probes as doctor
from pixelrefer_fast.doctor import table as doctor_table

HEAVY = (
    "transformers",
    "torchcodec",
    "xformers",
    "flash_attn",
    "cv2",
    "av",
    "pycocotools",
    "triton",
    "huggingface_hub",
)


def run(tmp_path: Path, stubs: dict[str, str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m pixelrefer_fast.doctor` with modules of these sources in front of the installed ones."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name, source in (dict.fromkeys(HEAVY, "") | stubs).items():
        (folder / f"{name}.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pixelrefer_fast.doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_module_that_it_imports_is_there() -> None:
    assert "pictures" in doctor.MODULES
    assert doctor._package()["broken_modules"] == {}


def test_a_whole_report_is_json_and_names_everything(tmp_path: Path) -> None:
    ran = run(tmp_path, {}, "--json", PIXELREFER_FAST_X="1", PIXELREFER_FAST_TOKEN="hush", HF_HUB_OFFLINE="1")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["pixelrefer_fast"]["version"]
    assert found["python"]["version"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert found["cpu"]["logical_cores"] >= 1
    assert found["memory"]["total"] > 2**20
    # the installed metadata may leave out the build that the library itself names: 2.11.0, 2.11.0+cu130
    assert found["torch"]["version"].startswith(found["packages"]["torch"]["version"])
    assert found["devices"][0] == {"device": "cpu", "dtype_auto": "float32"}
    assert set(found["ops"]) >= {"object_pool", "infuse", "varlen_attention", "rope2d"}
    for op in found["ops"].values():
        assert {p["name"] for p in op["providers"] if p["available"]} >= {"torch"}
        assert all(p["reason"] for p in op["providers"] if not p["available"])
        assert op["fallbacks"] == {}
    assert set(found["packages"]) >= {"torch", "triton", "transformers", "av", "torchcodec", "flash_attn", "xformers"}
    assert set(found["environment"]) >= {"PIXELREFER_FAST_X", "PIXELREFER_FAST_TOKEN", "HF_HUB_OFFLINE"}
    assert "hush" not in ran.stdout
    assert found["caches"]["hub"]["path"].endswith("hub")
    assert set(found["extension"]["modules"]) == {"_C", "_C_cuda"}
    assert all(m["loads"] is (m["reason"] == "") for m in found["extension"]["modules"].values())
    graphs = found["graphs"]
    assert graphs["works"] is (graphs["reason"] == "")
    assert graphs["dropped"] == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('libtorch is broken\\nsecond line')", "RuntimeError: libtorch is broken"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(5)", "ended the process with exit code 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended the process with SIGSEGV"),
        ("def", "SyntaxError"),
    ],
)
def test_a_broken_torch_is_reported_and_the_rest_printed(tmp_path: Path, source: str, said: str) -> None:
    ran = run(tmp_path, {"torch": source, "PIL": "raise OSError('no libjpeg')", "numpy": ""})
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    out = " ".join(ran.stdout.split())
    assert said in out
    assert "OSError: no libjpeg" in out
    assert "second line" not in out
    for section in ("System", "Packages", "Devices", "Operations", "CUDA extension", "Caches", "Environment"):
        assert section in out
    assert "python" in out
    assert "tokenizers" in out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('rich is broken')", "ImportError: rich is broken"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(5)", "ended the process with exit code 5"),
    ],
)
def test_without_rich_the_report_is_plain_and_says_so(tmp_path: Path, source: str, said: str) -> None:
    ran = run(tmp_path, {"rich": source, "torch": "raise ImportError('no torch')"})
    assert ran.returncode == 0, ran.stderr
    assert "  torch: " in ran.stdout
    assert "<- problem" in ran.stdout
    problems = ran.stdout.split("System\n")[0]
    assert f"rich is installed but does not import: {said}" in problems


def test_a_rich_whose_parts_are_broken_leaves_a_plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(doctor_table, "_rich", ends)
    error = {"error": "x"}
    parts = ("pixelrefer_fast", "python", "platform", "cpu", "memory", "torch", "devices", "nvidia_driver", "ops")
    found = dict.fromkeys((*parts, "extension", "graphs", "caches"), error) | {
        "packages": {},
        "environment": {},
        "problems": [],
    }
    out = io.StringIO()
    doctor_table.show(found, out)
    assert "  python: x  <- problem" in out.getvalue()


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('broken')",
        "import sys; print('{}', flush=True); sys.exit(0)",
        "import os; os._exit(5)",
        "print('hello from typer')",
    ],
)
def test_the_command_reaches_the_doctor_whatever_typer_does(tmp_path: Path, source: str, form: list[str]) -> None:
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in (*HEAVY, "torch"):
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name}')")
    (folder / "typer.py").write_text(source)
    command = [sys.executable, "-m", "pixelrefer_fast.cli", "doctor", *form]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "hello from typer" not in ran.stdout
    if form:
        found = json.loads(ran.stdout)
        assert "no torch" in found["packages"]["torch"]["error"]
        assert ("error" in found["packages"]["typer"]) is ("hello" not in source)
    else:
        assert ran.stdout.startswith("Problems")
        assert "no torch" in ran.stdout


def test_a_typer_that_ends_the_program_is_a_line_for_the_other_commands(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import sys; print('bye'); sys.exit(0)")
    command = [sys.executable, "-m", "pixelrefer_fast.cli", "describe"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines()[1:] == [
        "failed: ImportError: a library ends the program on import: SystemExit: 0 "
        "(set PIXELREFER_FAST_TRACEBACK=1 to see where)"
    ]


def test_a_probe_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("slow_one", "quick_one"):
        (tmp_path / f"{name}.py").write_text(
            "import time; time.sleep(60)" if name == "slow_one" else "__version__ = '7'"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor._in_child(["import:slow_one", "import:quick_one"], timeout=2.0)
    assert found["import:slow_one"] == {"error": "no answer within 2 s"}
    assert found["import:quick_one"] == {"installed": True, "version": "7"}


def test_what_a_library_prints_on_import_is_not_taken_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.py").write_text("import os; print('{}', flush=True); os.write(1, b'{}\\n'); __version__ = '1'")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor._in_child(["import:loud"], 30)["import:loud"] == {"installed": True, "version": "1"}


def test_missing_and_damaged_packages_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {name: {"installed": True, "version": "1"} for name in (*doctor.IMPORTED, *doctor.LISTED)} | {
        "numpy": {"installed": False, "version": None},
        "av": {"installed": True, "version": "2", "error": "OSError: x"},
    }
    found = {
        "pixelrefer_fast": {"version": "1", "folder": "/", "broken_modules": {}},
        "packages": packages | {"xformers": {"installed": False, "version": None}},
        "torch": {"version": "2", "cuda": None},
        "devices": [],
        "ops": {"infuse": {"error": "KeyError: y"}},
        "nvidia_driver": {"found": True, "gpus": []},
        "graphs": {"works": True, "reason": "", "bit_for_bit": 0, "within_bar": 0, "dropped": {}},
        "extension": {
            "modules": {
                "_C": {"loads": False, "file": "/x/_C.abi3.so", "reason": "invalid ELF header"},
                "_C_cuda": {"loads": False, "file": None, "reason": "not built"},
            }
        },
    }
    problems = doctor._problems(found)
    assert problems == [
        "numpy is not installed, and pixelrefer_fast needs it",
        "av is installed but does not import: OSError: x",
        "there is an NVIDIA GPU, but this torch is built without CUDA",
        "op infuse: KeyError: y",
        "pixelrefer_fast._C: invalid ELF header",
    ]


def test_the_table_of_a_gpu_machine() -> None:
    error = {"error": "OSError: gone"}
    found = {
        "problems": [],
        "pixelrefer_fast": {"version": "0.1.0", "folder": "/x"},
        "python": error,
        "platform": {"system": "Linux"},
        "cpu": {"name": "EPYC", "usable_cores": 2, "logical_cores": 4},
        "memory": {"total": 2**34},
        "torch": {"version": "2.11", "cuda": "12.8", "threads": error},
        "packages": {"torch": {"installed": True, "version": "2.11"}},
        "devices": [
            {"device": "cpu", "dtype_auto": "float32"},
            {
                "device": "cuda:0",
                "name": "H200",
                "capability": "9.0",
                "memory": 2**37,
                "free": 2**36,
                "dtype_auto": "bfloat16",
            },
            error,
        ],
        "nvidia_driver": {
            "found": True,
            "gpus": [{"driver_version": "570.1", "name": "H200", "memory.total": "143771 MiB"}],
        },
        "ops": {
            "infuse": {
                "providers": [{"name": "triton", "available": False, "reason": "no GPU"}],
                "fallbacks": {"triton: no GPU": 3},
            }
        },
        "extension": {
            "modules": {
                "_C": {"loads": True, "file": "/x/_C.abi3.so", "reason": ""},
                "_C_cuda": {"loads": False, "file": None, "reason": "not built"},
            },
            "can_build": ["_C"],
            "cannot_build": "_C_cuda: no nvcc",
        },
        "graphs": {
            "works": False,
            "reason": "CUDA graphs exist on cuda only",
            "bit_for_bit": 5,
            "within_bar": 2,
            "dropped": {"its first replay was off": 3},
        },
        "caches": {
            "hub": {"path": "/hub", "exists": True, "pixelrefer_models": ["A/PixelRefer-2B"]},
            "triton": {"path": "/triton", "exists": False},
        },
        "environment": {"TRITON_INTERPRET": "1"},
    }
    for show in (doctor_table._rich, doctor_table._plain):
        out = io.StringIO()
        show(list(doctor_table._sections(found)), out)
        text = " ".join(out.getvalue().split())
        for part in (
            "none found",
            "OSError: gone",
            "16.0 GiB",
            "capability 9.0, 128.0 GiB, 64.0 GiB free",
            "570.1 (H200",
            "triton: no, no GPU",
            "passed over 3 times: triton: no GPU",
            "not built",
            "/x/_C.abi3.so",
            "_C_cuda: no nvcc",
            "no, CUDA graphs exist on cuda only",
            "5 bit for bit, 2 within rounding",
            "dropped 3 times: its first replay was off",
            "A/PixelRefer-2B",
            "/triton (does not exist yet)",
            "TRITON_INTERPRET",
            "built for CUDA 12.8",
        ):
            assert part in text


def test_unknown_arguments_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err
    assert doctor.main(["--help"]) == 0
    assert "--json" in capsys.readouterr().out
