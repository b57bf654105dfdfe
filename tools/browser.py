"""A headless Chromium, driven over the DevTools protocol through a pair of pipes: nothing to install, no port."""

from __future__ import annotations

import base64
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage"]
PATIENCE = 60.0  # seconds, for any one answer


def find() -> str | None:
    """Return the Chromium on PATH, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab: what it is told over the pipe, and what it says that nobody asked for (`events`)."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._buffer, self._last, self._session = commands, answers, b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._read(deadline, method)).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _read(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"Chromium {'ended' if ready else 'gave no answer'} ({waiting_for})")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the window's size, and which colours its user prefers."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go there and wait until all of it is loaded. Events of pages before are forgotten."""
        self.events.clear()
        self.tell("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read(deadline, url))

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.ask(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"after {seconds:.0f} seconds there is still no {expression}")
            time.sleep(0.3)

    def troubles(self) -> list[str]:
        """Return what the console complained of since the page was opened."""
        self.ask("0")  # what was said until now is read
        told = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                told.append(str(about["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                told.append(str(about["entry"]))
            elif event.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                told.append(str(about["args"]))
        return told

    def requested(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened, itself included."""
        self.ask("0")
        sent = (event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [about["request"]["url"] for about in sent]

    def settle(self, seconds: float = 20.0) -> None:
        """Wait until the window looks the same for a second: what was moving has arrived."""
        last, deadline = "", time.monotonic() + seconds
        while (now := self.tell("Page.captureScreenshot", format="png")["data"]) != last:
            if time.monotonic() > deadline:
                return  # something never rests; it is not worth an error
            last = now
            time.sleep(1)

    def screenshot(self, path: Path, element: str = "") -> None:
        """Save what the window shows, or only the part of it where an element (a JavaScript expression) is."""
        part: dict[str, Any] = {}
        if element:
            box = self.ask(f"{element}.getBoundingClientRect().toJSON()")
            part = {"clip": {name: box[name] for name in ("x", "y", "width", "height")} | {"scale": 1}}
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png", **part)["data"]))


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start a Chromium with an empty profile, yield a tab of it, and end it."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root gets none
    (to_read, commands), (answers, to_write) = map(_high, os.pipe()), map(_high, os.pipe())
    # Chromium reads from its descriptor 3 and writes to 4.
    shell = ["sh", "-c", f'exec "$0" "$@" 3</dev/fd/{to_read} 4>/dev/fd/{to_write}', program]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = [*shell, *FLAGS, *sandbox, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        process = subprocess.Popen(  # noqa: S603
            arguments, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            os.close(to_read)
            os.close(to_write)
            yield Page(commands, answers)
        finally:
            os.close(commands)  # Chromium ends with its pipe
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers)


def _high(descriptor: int) -> int:
    """Return another number for a descriptor, away from 3 and 4."""
    number = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return number


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine and yield its address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler: Callable[..., Any] = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
