"""Chromium without a window, driven through its debugging pipe: Debian's package, no library and no download of a browser's own."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0
_ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-pipe",
    # Nothing is found by its name, and nothing is reached through a proxy of this machine's.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-proxy-server",
)
# The browser reads requests from file 3 and writes to file 4; what Python opens has other numbers.
_LAUNCH = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def chromium() -> str | None:
    """The browser's path, if this machine has one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One page. What the browser says of it (requests, messages on the console) is kept by its name."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._left = b""
        self._number = 0
        self._session = ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                return dict(said["result"])

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {SECONDS:.0f} s"
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser ended"
            self._left += piece
        text, _, self._left = self._left.partition(b"\0")
        said: dict[str, Any] = json.loads(text)
        if "method" in said:
            self.events.append((said["method"], said["params"]))
        return said

    def show(self, file: Path, width: int, scheme: str) -> None:
        """Open a page from the disk in a window of this width, light or dark, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, file: Path) -> None:
        """The whole page as a PNG file, for people."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened, its own too."""
        return [said["request"]["url"] for name, said in self.events if name == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What stands on the console: errors, warnings, what the page's policy refused."""
        found = [said["entry"]["text"] for name, said in self.events if name == "Log.entryAdded"]
        found += [str(said["args"]) for name, said in self.events if name == "Runtime.consoleAPICalled"]
        return found + [str(said) for name, said in self.events if name == "Runtime.exceptionThrown"]


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """A page in a browser of its own, with ``folder`` as its profile; both are gone afterwards."""
    read_requests, write_requests = os.pipe()
    read_answers, write_answers = os.pipe()
    # The sandbox is for pages of strangers, and cannot be had as root.
    arguments = [*_ARGUMENTS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    launch = [sys.executable, "-c", _LAUNCH, str(read_requests), str(write_answers), program, *arguments]
    with (folder.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(launch, pass_fds=(read_requests, write_answers), stdout=log, stderr=log)
    os.close(read_requests)
    os.close(write_answers)
    try:
        yield Page(write_requests, read_answers)
    finally:
        os.close(write_requests)
        os.close(read_answers)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
