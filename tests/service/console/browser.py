"""A real browser, headless, spoken to in Chromium's DevTools protocol over two pipes: no port, no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 90.0
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)


class Page:
    """One tab."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """Everything the browser told of, oldest first."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Says something and returns what the browser answers."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            told = self._read(until, method)
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                answer: dict[str, Any] = told["result"]
                return answer

    def _read(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            assert left > 0, f"the browser was silent for too long: {what}"
            ready, _, _ = select.select([self._back], [], [], min(left, 1.0))
            if ready:
                part = os.read(self._back, 1 << 16)
                assert part, f"the browser is gone: {what}"
                self._buffer += part
        first, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(first)
        if "method" in told:
            self.events.append(told)
        return told

    def look(self, *, width: int, height: int = 900, scheme: str = "light", script: bool = True) -> None:
        """A window of this size, in a light or a dark system."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Emulation.setScriptExecutionDisabled", value=not script)

    def open(self, url: str) -> None:
        """Goes there and waits until all of it is loaded."""
        since = len(self.events)
        answer = self.send("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        until = time.monotonic() + PATIENCE_SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[since:]):
            self._read(until, f"loading {url}")

    def value(self, expression: str) -> Any:
        """What an expression comes to; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """What an expression comes to once it is true."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self.value(expression)
            if found:
                return found
            assert time.monotonic() < until, f"waited in vain for {expression}: {self.value('document.body.innerText')}"
            time.sleep(0.02)

    def type_into(self, selector: str, text: str) -> None:
        """What a person does: focus, replace what is there, key by key as far as the page can tell."""
        self.value(f"(document.querySelector({json.dumps(selector)}).focus(), document.activeElement.select?.(), 1)")
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A real click in the middle of the element."""
        place = self.value(
            f"(() => {{ const each = document.querySelector({json.dumps(selector)});"
            " each.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = each.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            x, y = place
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}
        more = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        for kind in ("keyDown", "keyUp"):
            number = codes[key]
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=number,
                **(more if kind == "keyDown" else {}),
            )

    def screenshot(self, path: Path) -> None:
        """All of the page, as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12_000), "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What was written to the console as an error or a warning, exceptions included."""
        found = []
        for event in self.events:
            told = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(told["args"]))
        return found

    def requests(self) -> list[dict[str, Any]]:
        """Every request made: url, method, headers."""
        sent = [event["params"]["request"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [one for one in sent if not one["url"].startswith(("about:", "data:"))]


_ON_3_AND_4 = """
import os, sys
import fcntl
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads from descriptor 3 and writes to 4."""


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, with an empty profile in `folder`."""
    assert BROWSER is not None
    to_read, to = os.pipe()
    back, back_write = os.pipe()
    options = [
        "--headless=new",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}",
        "--remote-debugging-pipe",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    command = [sys.executable, "-c", _ON_3_AND_4, str(to_read), str(back_write), BROWSER, *options, "about:blank"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen(command, pass_fds=(to_read, back_write), stdout=log, stderr=log)
    os.close(to_read)
    os.close(back_write)
    try:
        yield Page(to, back)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(back)
