"""The benchmarks by the names that the command line takes."""

from __future__ import annotations

from pixelrefer_fast.evaluating.benchmark import Benchmark
from pixelrefer_fast.evaluating.benchmarks.categories import LVIS, PACO
from pixelrefer_fast.evaluating.benchmarks.dlc import DLC
from pixelrefer_fast.evaluating.benchmarks.ferret import FERRET
from pixelrefer_fast.evaluating.benchmarks.hcstvg import HCSTVG
from pixelrefer_fast.evaluating.benchmarks.phrases import VG
from pixelrefer_fast.evaluating.benchmarks.refl4 import REFL4, REFL4_CLAIR
from pixelrefer_fast.evaluating.benchmarks.videorefer_d import VIDEOREFER_D
from pixelrefer_fast.evaluating.benchmarks.videorefer_q import VIDEOREFER_Q

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (LVIS, PACO, VG, REFL4, HCSTVG, VIDEOREFER_Q, VIDEOREFER_D, DLC, REFL4_CLAIR, FERRET)
}
