"""A headless Chromium, spoken to by the DevTools protocol over two pipes: no package is needed."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120  # seconds


def chromium() -> str | None:
    """The program, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """A page in a browser of its own, and what the browser says about it."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._last, self._session = to, back, b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._last:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def show(self, page: Path, width: int, *, dark: bool = False, height: int = 844) -> None:
        """Open a page in a window of that width, and wait until it is loaded."""
        self.events.clear()
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """Everything in the console."""
        said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in said]

    def requested(self) -> list[str]:
        """Every address that was asked for, without the images in the page itself."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        asked = [one["request"]["url"] for one in sent]
        return [url for url in asked if not url.startswith("data:")]

    def blocked(self) -> list[str]:
        """Why each request that failed was not let out."""
        failed = [event["params"] for event in self.events if event["method"] == "Network.loadingFailed"]
        return [one.get("blockedReason", "") for one in failed]

    def screenshot(self, file: Path) -> None:
        """Save the whole page as it looks."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page, printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._back, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Tab]:
    """A browser that starts without any profile, and ends with the block."""
    program = chromium()
    assert program is not None
    (theirs, to), (back, ours) = (_high(os.pipe()) for _ in range(2))
    command = f'exec "$0" "$@" 3<&{theirs} 4>&{ours}'  # where the protocol wants them
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
             "--no-first-run", "--disable-extensions", f"--user-data-dir={profile}"]  # fmt: skip
    running = subprocess.Popen(["bash", "-c", command, program, *flags], pass_fds=(theirs, ours),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(theirs)
    os.close(ours)
    try:
        yield Tab(to, back)
    finally:
        os.close(to)  # which ends it
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(20)
        running.kill()
        running.wait()
        os.close(back)
        time.sleep(0.1)  # its helpers still write to the profile


def _high(pipe: tuple[int, int]) -> tuple[int, int]:
    """The ends of a pipe, numbered so that they are not in the way of 3 and 4."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return ends[0], ends[1]
