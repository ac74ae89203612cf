"""The sizing table of docs/scaling.md, by the cost model: objects a second, and cards for a million masks an hour.

python benchmarks/sizing.py            # prints it
python benchmarks/sizing.py --write    # puts it into docs/scaling.md
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from pixelrefer_fast.bench.estimate.estimate import Workload, config_of, estimate
from pixelrefer_fast.bench.estimate.gpus import find
from pixelrefer_fast.bench.report.tables import between

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MARKS = "<!-- sizing: made by `python benchmarks/sizing.py --write` -->", "<!-- end of sizing -->"
MODELS = ("lite-2b", "lite-7b", "full-2b", "full-7b")
GPUS = ("H200", "H100", "A100", "L40S", "RTX-4090", "L4")
MASKS_AN_HOUR = 1_000_000
# a batch of 64 descriptions, as `Describer` asks for them: eight photographs, eight marked objects in each
WORKLOAD = Workload(batch=8, objects=8, each=True, height=1080, width=1920, answer=64)


def table() -> str:
    """Rows of GPUs, columns of models: "objects a second / cards", "-" where a model does not fit."""
    requests = WORKLOAD.batch * WORKLOAD.objects
    lines = [f"| | {' | '.join(MODELS)} |", f"| :--- |{' ---: |' * len(MODELS)}"]
    configs = [config_of(model) for model in MODELS]
    for name in GPUS:
        cells = []
        for config in configs:
            found = estimate(config, WORKLOAD, find(name), graphs=True)
            if not found.fits or found.seconds is None:
                cells.append("-")
                continue
            rate = requests / found.seconds
            cells.append(f"{rate:.0f} / {math.ceil(MASKS_AN_HOUR / 3600 / rate)}")
        lines.append(f"| {find(name).title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md instead of to the terminal")
    made = table()
    if parser.parse_args().write:
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), MARKS, made), encoding="utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()
