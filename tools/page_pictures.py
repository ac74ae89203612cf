"""The pictures of docs/web.md: the page as a browser shows it, after what a visitor would do.

    .venv-web/bin/python tools/page_pictures.py [FOLDER]

`make test-web` makes that environment. Colours are reduced to a palette, so that the files stay small.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
COLOURS = 200


def main(folder: Path) -> None:
    """Write web.png and web_phone.png."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{scratch}/files"}
        draw(folder, Path(scratch))


def draw(folder: Path, scratch: Path) -> None:
    from playwright.sync_api import sync_playwright
    from served import running

    import pixelrefer_fast as pf
    from pixelrefer_fast.page import create_page

    models = {"lite": pf.load("embedded:lite"), "full": pf.load("embedded:full")}
    with running(create_page(models, scratch, embedded=True)) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        save(wide(chromium, address), folder / "web.png")
        save(phone(chromium, address), folder / "web_phone.png")
        chromium.close()


def wide(chromium: object, address: str) -> bytes:
    """Three objects of a drawn scene, described by both models."""
    from visitor import Visitor

    page = chromium.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light")
    page.goto(address)
    page.wait_for_selector(".stage")
    visitor = Visitor(page)
    visitor.example(0)
    visitor.tool("box")
    page.locator("[data-cut]").check()
    for x0, y0, x1, y1 in ((34, 14, 113, 96), (1, 54, 45, 98), (118, 48, 168, 122)):
        visitor.drag((x0, y0), (x1, y1))
    visitor.answers("describe")
    page.mouse.move(0, 0)
    return page.screenshot(full_page=True)


def phone(chromium: object, address: str) -> bytes:
    """An object in two frames of a video, in the dark."""
    from visitor import Visitor

    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    page = chromium.new_page(**options)
    page.goto(address)
    page.wait_for_selector(".stage")
    visitor = Visitor(page)
    visitor.example(2)
    visitor.tool("box")
    page.locator("[data-cut]").check()
    visitor.drag((2, 2), (20, 24))
    visitor.changed(lambda: page.locator("[data-frame]").fill("3"))
    visitor.changed(lambda: page.locator("[data-number='0']").click())
    visitor.drag((40, 2), (64, 26))
    visitor.answers("ask")
    page.evaluate("window.scrollTo(0, 0)")
    return page.screenshot(full_page=True)


def save(screenshot: bytes, file: Path) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(screenshot)) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures")
