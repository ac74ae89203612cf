"""Which model a command is about."""

from __future__ import annotations

import sys

from pixelrefer_fast.checkpoint.embedded import EMBEDDED_LITE, LIMITS, TITLES

RELEASED = tuple(f"Alibaba-DAMO-Academy/PixelRefer-{name}" for name in ("2B", "7B", "Lite-2B", "Lite-7B"))
MODEL_VARIABLE = "PIXELREFER_FAST_MODEL"


def chosen_model(model: str | None) -> str:
    """The model asked for; without one the embedded Lite, said to be what it is."""
    if model:
        return model
    print(
        f"no --model and no {MODEL_VARIABLE}: using {TITLES[EMBEDDED_LITE]}, which is embedded; {LIMITS}. "
        f"Released models: {', '.join(RELEASED)}",
        file=sys.stderr,
    )
    return EMBEDDED_LITE
