"""A server with the embedded models on a port of loopback. `make test-serve` has an environment with the extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import png_url, running

import pixelrefer_fast as pf
from pixelrefer_fast.world import Scene, make_scene

NEEDED = ("fastapi", "uvicorn", "openai", "prometheus_client", "schemathesis")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def lite() -> Any:
    return pf.load()


@pytest.fixture(scope="session")
def scene() -> Scene:
    return make_scene(1000, "heldout", False)


@pytest.fixture(scope="session")
def picture(scene: Scene) -> np.ndarray:
    return np.asarray(scene.frames[0])


@pytest.fixture(scope="session")
def url(picture: np.ndarray) -> str:
    return png_url(picture)


@pytest.fixture(scope="session")
def box(scene: Scene) -> list[int]:
    rows, columns = np.nonzero(scene.masks[0, 0])
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.fixture(scope="session")
def address(lite: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from pixelrefer_fast.serving import create_app

    root = tmp_path_factory.mktemp("shared")
    Image.new("RGB", (20, 20)).save(root / "black.png")
    with running(create_app({"lite": lite}, keys=["secret", "other"], roots=[root])) as found:
        yield found


@pytest.fixture(scope="session")
def client(address: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def say(client: Any) -> Callable[..., Any]:
    """A chat completion about content parts."""

    def ask(*parts: dict[str, Any], **options: Any) -> Any:
        messages = [{"role": "user", "content": list(parts)}]
        return client.chat.completions.create(model="lite", messages=messages, **options)

    return ask
