"""Drive headless Chromium by its DevTools protocol, with the standard library."""

import base64
import itertools
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

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars "
    "--remote-debugging-pipe"
)
PATIENCE = 120  # seconds until a browser that does not answer is given up


def errors(method: str, details: dict[str, Any]) -> list[str]:
    """Return what an event says if it is an error of the page."""
    if method == "Runtime.exceptionThrown":
        return [str(details["exceptionDetails"])]
    if method == "Runtime.consoleAPICalled" and details["type"] == "error":
        return [str(details["args"])]
    if method == "Log.entryAdded" and details["entry"]["level"] == "error":
        return [str(details["entry"])]
    return []


class Browser:
    """One page of a browser.

    Attributes:
        errors: What the console of the page reported since the last visit.
    """

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.buffer, self.numbers = b"", itertools.count(1)
        self.errors: list[str] = []
        self.loaded = False
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self.receive()
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def receive(self) -> dict[str, Any]:
        """Return the next message; take note of errors and of the end of loading."""
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(text)
        self.loaded |= found.get("method") == "Page.loadEventFired"
        self.errors += errors(found.get("method", ""), found.get("params", {}))
        return found

    def visit(self, page: Path, width: int, scheme: str, query: str = "") -> None:
        """Open a file at a width and with the color scheme that a system prefers."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.errors, self.loaded = [], False
        self.call("Page.navigate", url=page.resolve().as_uri() + query)
        while not self.loaded:
            self.receive()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.05)
        return value

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what the page looks like as PNG."""
        options: dict[str, Any] = {"captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "scale": 1} | {
                "width": size["width"],
                "height": size["height"],
            }
        data = self.call("Page.captureScreenshot", **options)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile, and end it."""
    from_here, write = os.pipe()
    read, to_here = os.pipe()
    # the browser reads commands from descriptor 3 and writes answers to 4
    command = (
        f"exec {CHROMIUM} {FLAGS} --user-data-dir={profile} 3<&{from_here} 4>&{to_here}"
    )
    process = subprocess.Popen(
        ["bash", "-c", command],
        pass_fds=(from_here, to_here),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_here)
    os.close(to_here)
    try:
        yield Browser(write, read)
    finally:
        os.close(write)
        os.close(read)
        process.terminate()
        process.wait()
