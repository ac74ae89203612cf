"""Real vLLM beside this package's own engine: the same mixed requests, how many get the same tokens, and how fast.

    python benchmarks/vllm_engine.py --device cuda                          the embedded models in float32
    python benchmarks/vllm_engine.py --device cuda --model FOLDER --dtype bfloat16

Needs vLLM (docs/vllm.md). The checkout need not be installed: vLLM's processes are told of it by metadata in a folder
that lives as long as this. In float32 a different token is a failure; in other dtypes it is only counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomllib

REPOSITORY = Path(__file__).resolve().parent.parent


def make_known(folder: Path) -> None:
    """Metadata of this checkout with its entry points, on the path of this process and of those that it starts."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "pixelrefer_fast-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: pixelrefer-fast\nVersion: 0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    (folder / "pixelrefer_fast").symlink_to(REPOSITORY / "pixelrefer_fast")
    paths = [str(folder), str(REPOSITORY / "tests" / "helpers")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def compare(name: str, dtype: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Both engines on the same requests; each is asked twice, and the second time counts."""
    from mixed_requests import mixed_requests

    import pixelrefer_fast as pf

    own = pf.load(name, dtype=dtype)
    asks = mixed_requests(own.kind, count, tokens=32)
    seconds, answers = {}, {}
    engine = pf.load(name, dtype=dtype, engine="vllm", engine_options=options)
    try:
        for label, model in (("own", own), ("vllm", engine)):
            model.ask_batch(asks, progress=False)
            start = time.perf_counter()
            answers[label] = model.ask_batch(asks, progress=False)
            seconds[label] = time.perf_counter() - start
    finally:
        engine.close()
    pairs = list(zip(answers["own"], answers["vllm"], strict=True))
    return {
        "model": name,
        "dtype": dtype,
        "requests": count,
        "failed": [f"{b.index}: {b.error}" for a, b in pairs if a.ok and not b.ok],
        "same tokens": sum(a.tokens == b.tokens for a, b in pairs),
        "requests a second": {label: round(count / taken, 2) for label, taken in seconds.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="which vLLM is expected to be here")
    parser.add_argument("--model", nargs="+", default=["embedded:lite", "embedded:full"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--json", type=Path, help="a file that gets the results, a line for each model")
    given = parser.parse_args()
    options: dict[str, Any] = {"max_model_len": 2048}
    if given.device == "cpu":
        options |= {"enforce_eager": True, "max_num_seqs": 8, "block_size": 32}
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    else:
        options |= {"gpu_memory_utilization": 0.4}  # the own engine is on the device as well
    with tempfile.TemporaryDirectory() as folder:
        make_known(Path(folder))
        found = [compare(name, given.dtype, given.requests, options) for name in given.model]
    for result in found:
        print(json.dumps(result))
        if given.json:
            with given.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    wrong = any(r["failed"] or (r["dtype"] == "float32" and r["same tokens"] < r["requests"]) for r in found)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
