"""A headless chromium that opens pages from files, driven over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
    "--remote-allow-origins=*", "--proxy-server=127.0.0.1:9", "--hide-scrollbars",
)  # fmt: skip
"""The proxy is a port at which nothing listens: whatever a page asks for fails."""
_START_S = 60.0


class Browser:
    """One tab, and what its pages said, asked for and opened."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.said, self.requests, self.dialogs = list[str](), list[str](), list[str]()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": values}))
        while True:
            heard = json.loads(self._socket.recv(timeout=60))
            self._hear(heard)
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result

    def open(self, page: Path, *, width: int = 1280, dark: bool = False, media: str = "screen") -> None:
        """Open a page in a window of a width, pixels, and wait until it is there."""
        for heard in (self.said, self.requests, self.dialogs):
            heard.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=page.absolute().as_uri())
        for _ in range(200):
            if self.run("document.readyState === 'complete' && location.href.startsWith('file:')"):
                return
            time.sleep(0.05)
        raise AssertionError(f"{page} was not there in time")

    def run(self, code: str) -> Any:
        """Return the value of a JavaScript expression, which the page's own policy does not hold back."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _hear(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Log.entryAdded":
            self.said.append(values["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(values))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(values["message"])


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a chromium; the test is skipped where there is none, or nothing to drive it with."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    client = pytest.importorskip("websockets.sync.client", reason="websockets, which drives the browser, is missing")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with client.connect(_address(Path(profile)), max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(profile: Path) -> str:
    """Where the tab of a browser that is starting can be spoken to."""
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends:
        try:
            port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
            with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                return next(str(tab["webSocketDebuggerUrl"]) for tab in json.load(answer) if tab["type"] == "page")
        except (OSError, IndexError, StopIteration):
            time.sleep(0.1)
    raise AssertionError("the browser did not start")
