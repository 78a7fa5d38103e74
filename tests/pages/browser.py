"""A real headless browser, asked over the WebDriver protocol: what a page shows, what it logs, how it looks."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import requests

PROGRAMS = ("chromium", "chromedriver")
"""Debian's packages ``chromium`` and ``chromium-driver``; ``make browser`` installs them."""

KEYS = {"ArrowRight": "\ue014", "ArrowLeft": "\ue012", "Tab": "\ue004", "End": "\ue010", "Home": "\ue011"}


def missing() -> str | None:
    """Why no browser can be started; None when one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed: `make browser` installs Debian's" if absent else None


class Browser:
    """Chromium without a window."""

    def __init__(self, scheme: str = "light") -> None:
        """Start it, preferring the colour ``scheme``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._address = f"http://127.0.0.1:{port}"
        switches = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"]
        if os.geteuid() == 0:
            switches.append("--no-sandbox")  # Chromium refuses to run as root otherwise, as in a container
        options = {"binary": shutil.which("chromium"), "args": switches}
        self._wait_for_driver()
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/session/{answer['sessionId']}"
        self.prefer(scheme)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        requests.delete(self._address, timeout=20)
        self._driver.terminate()
        self._driver.wait(timeout=20)

    def prefer(self, scheme: str) -> None:
        """Light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        """Open a page from the disk, in a window as wide as a phone's or a desk's."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._post("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns in the page."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str, seconds: float = 20.0) -> None:
        """Until a script returns something true."""
        until = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < until, f"the page never came to: {script}"
            time.sleep(0.1)

    def press(self, *keys: str) -> None:
        """Press keys, by name or as the character."""
        values = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def complaints(self) -> list[str]:
        """What the page has logged as warnings and errors since it was asked last."""
        entries = self._post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, to: Path) -> None:
        """The whole page as a picture, however long it is."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(base64.b64decode(shot["data"]))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's DevTools."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = requests.post(f"{self._address}{path}", json=body, timeout=60).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def _wait_for_driver(self) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                assert requests.get(f"{self._address}/status", timeout=2).json()["value"]["ready"]
            except (requests.ConnectionError, AssertionError):
                assert time.monotonic() < until, "chromedriver does not answer"
                time.sleep(0.1)
            else:
                return
