#!/usr/bin/env bash
# Make a virtual environment with this package, editable, and its test tools.
#   [EXTRAS=test] tools/make_venv.sh FOLDER [REQUIREMENT ...]
# Requirements pin something else than the newest (test-oldest does), EXTRAS names other extras (test-ray does). On a
# machine without an NVIDIA GPU torch is taken as a CPU build wherever one can be had: the default build brings gigabytes
# of CUDA packages.
set -euo pipefail

folder=$1
shift
pins=("$@")
cpu_torch=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

python=${PYTHON:-python3}
"$python" - <<'PY' || { echo "pixelrefer_fast needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 10))
PY
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check -q)

torch_pin=torch
for pin in "${pins[@]}"; do case $pin in torch==*) torch_pin=$pin ;; esac; done

if ! "$folder/bin/python" -c 'import torch' 2>/dev/null; then
  if [ "$(uname -s)" != Linux ] || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
    "${pip[@]}" install "$torch_pin"
  else
    version=${torch_pin#torch}
    version=${version#==}
    wanted="torch==${version:-$cpu_torch}+cpu"
    # a build that pip already knows of comes first, then PyTorch's own index of CPU builds
    "${pip[@]}" install "$wanted" 2>/dev/null ||
      "${pip[@]}" install --retries 0 --index-url "$cpu_index" "$wanted" 2>/dev/null || {
      echo "no CPU build of $wanted can be reached: installing $torch_pin with its CUDA packages" >&2
      "${pip[@]}" install "$torch_pin"
    }
  fi
fi
# A CPU build of torch brings no Triton. The tables of docs/kernels/ are those of this one.
if "$folder/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  case " ${pins[*]} " in *" triton"[=\>]*) ;; *) pins+=(triton==3.6.0) ;; esac
fi
# environments of one checkout that are made at once (.ci/run) write one egg-info
if command -v flock >/dev/null; then exec 9<"$0" && flock 9; fi
have=$("$folder/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))')
"${pip[@]}" install "$have" "${pins[@]}" -e ".[${EXTRAS:-test}]"
# pip keeps to itself what the build said of the extension
"$folder/bin/python" - <<'PY'
from pixelrefer_fast.ops.extension import load

for name, module in load.describe()["modules"].items():
    print(f"extension {name}: {'loads' if module['loads'] else module['reason']}")
PY
