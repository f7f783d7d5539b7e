"""A page in a real browser: Debian's Chromium, without a window, driven over two pipes by its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import signal
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS = 60.0  # for an answer; the browser's first start on a busy machine is the longest


class Page:
    """One page; as a context, it has a browser of its own.

    Attributes:
        requests: Every address that the page has asked for.
        complaints: Every error, uncaught exception, violated policy and other message of the console.
    """

    def __init__(self, folder: Path) -> None:
        """Starts nothing yet.

        Args:
            folder: For the browser's profile and its log.
        """
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._folder = folder
        self._numbers = count(1)
        self._unread = b""
        self._events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}

    def __enter__(self) -> "Page":
        assert CHROMIUM is not None
        (its_input, self._to), (self._from, its_output) = os.pipe(), os.pipe()
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        words += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={self._folder / 'profile'}"]
        log = str(self._folder / "chromium.log")
        actions = [
            (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT, 0o644),
            (os.POSIX_SPAWN_DUP2, its_input, 100),  # else 3 and 4 may be one of these pipes
            (os.POSIX_SPAWN_DUP2, its_output, 101),
            (os.POSIX_SPAWN_DUP2, 100, 3),
            (os.POSIX_SPAWN_DUP2, 101, 4),
        ]
        self._pid = os.posix_spawn(CHROMIUM, [CHROMIUM, *words], dict(os.environ), file_actions=actions)
        os.close(its_input)
        os.close(its_output)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = {}
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)

    def show(self, path: Path, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Loads a file into a window of a size, for somebody who likes a colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, whole: bool = False) -> bytes:
        """The window, or all of the page, as a PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls the browser's protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, f"no answer: {(self._folder / 'chromium.log').read_text(errors='replace')[-2000:]}"
            self._unread += part
        line, self._unread = self._unread.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._note(message["method"], message["params"])
            self._events.append(message)
        return message

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"].get("exception", facts["exceptionDetails"])))
        elif method == "Log.entryAdded":
            self.complaints.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([argument.get("value") for argument in facts["args"]]))
