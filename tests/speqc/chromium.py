"""Drives a headless Chromium through its DevTools pipe, with nothing but the standard library.

The protocol: JSON messages, each ended by a zero byte, on the browser's file descriptors 3 and 4
(https://chromedevtools.github.io/devtools-protocol/, `--remote-debugging-pipe`).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 180
"""How long an answer may take: beside much other work a browser takes a minute to start."""

STARTS = 2
"""How often a browser is started that ends, or says nothing, before it has a page."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of a browser; `problems` are its errors, and all that it asked a network for."""

    def __init__(self, reader: int, writer: int):
        self._reader, self._writer = reader, writer
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result, taking note of problems meanwhile."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._reader], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._reader, 1 << 20)
            assert read, "the browser ended"
            self._pending += read
        text, self._pending = self._pending.split(b"\0", 1)
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(json.dumps(details.get("exception", details)))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"]))
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    self.problems.append(f"requested {url}")

    def open(self, path: Path, part: str = "") -> None:
        """Load a file, at one of its anchors; forget earlier problems."""
        self.problems.clear()
        # By way of an empty page, as another anchor alone would load nothing.
        for url, anchor in ("about:blank", ""), (path.absolute().as_uri(), part):
            self.call("Page.navigate", url=url + anchor)
            there = f"location.href.split('#')[0] === {json.dumps(url)}"
            self.wait(f"{there} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of a promise its result."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def size(self, width: int, height: int) -> None:
        """Give the window a size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def colours(self, scheme: str) -> None:
        """Have the user prefer "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile, and end it."""
    for start in range(STARTS):
        with _process(executable, profile / str(start)) as (reader, writer):
            try:
                page = Page(reader, writer)
            except (AssertionError, OSError) as error:
                if start == STARTS - 1:
                    said = (profile / str(start)).with_suffix(".log").read_text()
                    raise AssertionError(f"{error}; it said: {said}") from error
                continue
            yield page
            return


@contextmanager
def _process(executable: str, profile: Path) -> Iterator[tuple[int, int]]:
    """A browser's process: the descriptors to read from it and to write to it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # The shell moves the pipes to the descriptors that the browser expects.
    command = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    log = profile.with_suffix(".log").open("wb")
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", executable, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_browser[0], from_browser[1]),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    log.close()
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield from_browser[0], to_browser[1]
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])
