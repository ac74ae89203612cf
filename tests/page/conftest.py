"""Pages in Debian's Chromium; `make test-web` has an environment with the extra, Playwright and the browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
NEEDED = ("gradio", "fastapi", "uvicorn", "openai", "prometheus_client")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
if not find_spec("playwright"):
    collect_ignore_glob.append("test_browser*.py")


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    import pixelrefer_fast as pf

    return {"lite": pf.load(), "full": pf.load("embedded:full")}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a page, with a folder for what Gradio writes."""
    made = tmp_path_factory.mktemp("page")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(made / "files")
    yield made
    if before is None:
        del os.environ["GRADIO_TEMP_DIR"]
    else:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="session")
def address(models: dict[str, Any], folder: Path) -> Iterator[str]:
    from served import running

    from pixelrefer_fast.page import create_page

    with running(create_page(models, folder, embedded=True)) as found:
        yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("chromium: expected Debian's, or its path in CHROMIUM, found none")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as a visitor of its own; what the browser complains about, and other hosts, fail the test."""
    visitors, wrong = [], []

    def opened(to: str = address, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(20_000)
        visitors.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda asked: None if asked.url.startswith((to, "data:", "blob:")) else
                wrong.append(asked.url))  # fmt: skip
        page.goto(to)
        page.wait_for_selector(".stage")
        return page

    yield opened
    for context in visitors:
        context.close()
    assert wrong == []
