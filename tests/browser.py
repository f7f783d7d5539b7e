"""A page in a real browser: Debian's Chromium, without a window, by Playwright."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One page; as a context, it has a browser of its own.

    Attributes:
        requests: Every address that the page has asked for.
        complaints: Every uncaught exception and message of the console, violated policies among them.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> "Page":
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        self._page = self._browser.new_page()
        self._page.on("request", lambda request: self.requests.append(request.url))
        self._page.on("console", lambda message: self.complaints.append(message.text))
        self._page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._browser.close()
        self._playwright.stop()

    def show(self, path: Path, width: int = 1200, height: int = 900, scheme: Any = "light") -> None:
        """Loads a file into a window of a size, for somebody who likes a colour scheme."""
        self._page.set_viewport_size({"width": width, "height": height})
        self._page.emulate_media(color_scheme=scheme)
        self._page.goto(path.resolve().as_uri())
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        return self._page.evaluate(script)

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self._page.mouse.move(x, y)

    def picture(self, whole: bool = False) -> bytes:
        """The window, or all of the page, as a PNG."""
        return self._page.screenshot(full_page=whole)
