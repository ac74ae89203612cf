"""The Auto classes are registered whichever of transformers' modules is imported first, also from inside another."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWS = (
    "from transformers import AutoConfig, AutoProcessor, AutoModelForImageTextToText as Auto; "
    "from pixelrefer_fast.engines.configs import CONFIGS; "
    "assert all(config in Auto._model_mapping for config in CONFIGS.values())"
)


@pytest.mark.parametrize(
    "first",
    [
        "import transformers.models.auto.image_processing_auto",  # in the middle of which modeling_auto is imported
        "import transformers.processing_utils",
        "import transformers.modeling_utils",
        "from transformers import AutoProcessor",
    ],
)
def test_any_module_may_come_first(first: str) -> None:
    code = f"import pixelrefer_fast; {first}; {KNOWS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
