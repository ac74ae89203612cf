"""Where Triton kernels run in this process: on a GPU, compiled in the emulator of `emulator/`, or interpreted."""

from __future__ import annotations

import sys

import torch

EMULATED = "ptx_emulator.plugin" in sys.modules  # `make emulate` loads it before any test is collected
INTERPRETED = not EMULATED and not torch.cuda.is_available()

# Triton's interpreter rounds float32 to bfloat16 towards zero and cannot multiply it (triton-lang/triton#11584): what
# kernels do in it is shown by the emulator
KERNEL_DTYPES = (torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16]))
