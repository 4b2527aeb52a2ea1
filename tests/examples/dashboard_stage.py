"""What the dashboard's tests share: an event loop beside the test, a served shop, a page on it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from playwright.sync_api import Browser, BrowserContext, Page, expect

from examples.orders.dashboard import create_dashboard, serve
from tests.examples.fake_shop import FakeShop

__all__ = ["LOW_CONTRAST", "NARROW", "WIDE", "Loop", "Stage", "served"]

T = TypeVar("T")
WIDE, NARROW = (1400, 900), (390, 844)

LOW_CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((c) => linear(c / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const low = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(rgb(ink)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(`${element.tagName} ${element.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
}
"""
"""Names every visible text whose contrast to its ground is below 4.5 to 1, as WCAG 2.2 AA asks."""


class Loop:
    """An event loop on a thread of its own: the browser's API would block the server."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="dashboard", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def call(self, change: Callable[[], T]) -> T:
        """Change the shop between two of the server's steps, never within one."""

        async def changed() -> T:
            return change()

        return self.run(changed())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def served(loop: Loop, shop: FakeShop, port: int = 0) -> Iterator[str]:
    serving = serve(create_dashboard(shop, console_url="http://127.0.0.1:9"), port)
    address = loop.run(serving.__aenter__())
    try:
        yield address
    finally:
        loop.run(serving.__aexit__(None, None, None))


@dataclass
class Stage:
    """A served shop, and the browser to look at it."""

    loop: Loop
    shop: FakeShop
    address: str
    browser: Browser
    complaints: list[str] = field(default_factory=list)

    def page(
        self,
        *,
        size: tuple[int, int] = WIDE,
        scheme: str = "light",
        scripts: bool = True,
        path: str = "",
    ) -> Page:
        context: BrowserContext = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if scheme == "dark" else "light",
            java_script_enabled=scripts,
        )
        page = context.new_page()
        # Chromium reports a violated Content-Security-Policy as a console error too.
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.address + path)
        if scripts and page.locator("body[data-stream]").count():
            expect(page.locator("#link-words")).to_have_text("Live")
        return page
