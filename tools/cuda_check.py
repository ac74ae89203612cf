"""Compile every CUDA source of csrc/ for sm_80, sm_90 and sm_100 and read what ptxas says of it.

    python tools/cuda_check.py            # fails on spills and local memory
    python tools/cuda_check.py --update   # writes docs/kernels/packing_resources.md as well

No device and no torch are needed, nvcc is; without it, one line says so.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "kernels" / "packing_resources.md"
CAPABILITIES = (80, 90, 100)
# the name, mangled: namespaces, then the kernel's own name and what its template is given
KERNEL = re.compile(r"Compiling entry function '(\S+)'")
NUMBERS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "shared": re.compile(r"(\d+) bytes smem"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spills": re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads"),
}

Row = dict[str, int]


def compiled(nvcc: str, source: Path, capability: int) -> dict[str, Row]:
    """By kernel: registers and bytes of shared memory, stack (local memory) and spills."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{capability}", "-cubin", "-Xptxas", "-v,-warn-spills"]
        command += [str(source), "-o", str(Path(folder) / "kernel.cubin")]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{source.name} does not compile for sm_{capability}:\n{ran.stderr}")
    rows = {}
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", ran.stderr + ran.stdout):
        if named := KERNEL.search(part):
            found = {key: pattern.search(part) for key, pattern in NUMBERS.items()}
            rows[readable(named[1])] = {
                key: sum(map(int, match.groups())) if match else 0 for key, match in found.items()
            }
    if not rows:
        raise SystemExit(f"{source.name}: ptxas says nothing of a kernel:\n{ran.stderr}")
    return rows


def readable(mangled: str) -> str:
    """The kernel's name; of a template also what it is for."""
    tool = shutil.which("c++filt")
    name = subprocess.run([tool, mangled], capture_output=True, text=True).stdout if tool else mangled
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__\w+::|^void |pixelrefer_fast::cuda::", "", name.strip())
    return name.split("(")[0].replace("unsigned int", "uint32").replace("unsigned short", "uint16")


def markdown(results: dict[tuple[str, str], dict[int, Row]]) -> str:
    """One line for each kernel."""
    lines = [
        "# What ptxas says of csrc/cuda/",
        "",
        "Made by `python tools/cuda_check.py --update`; do not edit. Registers of a thread, and bytes of shared memory",
        "of a block of 256 threads. No kernel spills or has local memory, or the command fails. Compiled, not run.",
        "",
        f"| source | kernel | {' | '.join(f'sm_{c}' for c in CAPABILITIES)} | shared memory |",
        "| :--- | :--- | " + "---: | " * (len(CAPABILITIES) + 1),
    ]
    for (source, kernel), by_capability in results.items():
        registers = " | ".join(str(by_capability[c]["registers"]) for c in CAPABILITIES)
        lines.append(f"| {source} | `{kernel}` | {registers} | {max(r['shared'] for r in by_capability.values())} |")
    return "\n".join(lines).replace("---: | \n", "---: |\n") + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile csrc/cuda/ and read what ptxas says.")
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda-check: skipped, no nvcc on the PATH")
        return 0
    results: dict[tuple[str, str], dict[int, Row]] = {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        for capability in CAPABILITIES:
            for kernel, row in compiled(nvcc, source, capability).items():
                results.setdefault((source.name, kernel), {})[capability] = row
    bad = [
        f"{source} {kernel} sm_{capability}: {row['stack']} bytes of local memory, {row['spills']} bytes spilled"
        for (source, kernel), rows in results.items()
        for capability, row in rows.items()
        if row["stack"] or row["spills"]
    ]
    print(*bad, sep="\n", file=sys.stderr)
    if arguments.update:
        TABLE.write_text(markdown(results))
    kernels, compilations = len(results), sum(map(len, results.values()))
    print(f"cuda-check: {kernels} kernels, {compilations} compilations, {len(bad)} with spills or local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
