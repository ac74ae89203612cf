"""What a visitor of the page does, and sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Visitor:
    """On an opened page.

    Args:
        page: Playwright's.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.width = self.height = 1

    def example(self, number: int) -> None:
        """Opens one of the examples."""
        self._open(lambda: self.page.locator(".examples button").nth(number).click())

    def upload(self, file: Path, what: str = "file") -> None:
        """A picture or a video, or a mask; whether it is taken or not."""
        self._open(lambda: self.page.locator(f"[data-pick={what}]").set_input_files(file))

    def _open(self, act: Callable[[], object]) -> None:
        self.changed(act)
        box = self.page.locator("#marker .stage > svg").get_attribute("viewBox")
        if box is not None:
            *_, self.width, self.height = map(int, box.split())

    def changed(self, act: Callable[[], object]) -> None:
        """Waits for the answer to what `act` does, and to all that was done before."""
        stage = self.page.locator("#marker .stage")
        before = int(stage.get_attribute("data-told") or 0)
        act()
        for _ in range(1000):
            told = int(stage.get_attribute("data-told") or 0)
            if told > before and "busy" not in (stage.get_attribute("class") or ""):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"the page said nothing new after {before} answers")

    def tool(self, name: str) -> None:
        self.page.locator(f"[data-tool={name}]").click()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """On the screen, of a pixel's middle in the picture."""
        stage = self.page.locator("#marker .stage > svg")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        return box["x"] + (x + 0.5) / self.width * box["width"], box["y"] + (y + 0.5) / self.height * box["height"]

    def click(self, x: float, y: float) -> None:
        self.changed(lambda: self.page.mouse.click(*self.place(x, y)))

    def drag(self, *places: tuple[float, float]) -> None:
        """Through these pixels."""

        def dragged() -> None:
            self.page.mouse.move(*self.place(*places[0]))
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*self.place(*place), steps=4)
            self.page.mouse.up()

        self.changed(dragged)

    def press(self, key: str) -> None:
        self.changed(lambda: self.page.keyboard.press(key))

    @property
    def chips(self) -> list[str]:
        """The objects that are listed."""
        return [text for text in self.page.locator(".chip .pick").all_inner_texts() if text != "+ new"]

    @property
    def message(self) -> str:
        return str(self.page.locator(".message").inner_text())

    def answers(self, button: str) -> dict[str, list[str]]:
        """What each model says after a button was pressed."""
        self.page.evaluate("() => document.querySelectorAll('.pr-card').forEach((card) => (card.dataset.old = 1))")
        self.page.locator(f"#{button}").click()
        names = self.page.locator("#models label").all_inner_texts()
        last = [name for name in names if self.page.get_by_label(name, exact=True).is_checked()][-1]
        self.page.locator(f"[data-model={last}][data-state=done]:not([data-old])").wait_for()
        cards = self.page.locator(".pr-card").all()
        return {
            card.get_attribute("data-model"): card.locator(".pr-text > span:last-child").all_inner_texts()
            for card in cards
        }
