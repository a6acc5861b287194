"""A headless Chromium, driven over the W3C WebDriver protocol by chromedriver: plain HTTP, no package needed."""

import base64
import json
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

KEYS = {"Enter": "\ue007", "Backspace": "\ue003", "ArrowUp": "\ue013", "ArrowDown": "\ue015", "End": "\ue010"}
_FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "window-size=1400,800",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_WAIT_S = 60.0


def need_browser() -> None:
    """Skips the test where there is no browser."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or shutil.which("chromedriver") is None:
        pytest.skip("no chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")


class Browser:
    """One browser with a profile of its own; a context manager. Downloads go to `downloads`."""

    def __init__(self, profile: pathlib.Path, downloads: pathlib.Path) -> None:
        need_browser()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._root = f"http://127.0.0.1:{port}/session"
        downloads.mkdir(parents=True, exist_ok=True)
        options = {
            "binary": shutil.which("chromium") or shutil.which("google-chrome"),
            "args": [*(f"--{flag}" for flag in _FLAGS), f"--user-data-dir={profile}"],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        try:
            made = self._started({"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise
        self._root = f"{self._root}/{made['sessionId']}"

    def _started(self, wanted: dict[str, Any]) -> Any:
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                return self._call("POST", "", wanted)
            except urllib.error.URLError as error:
                if isinstance(error, urllib.error.HTTPError) or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        # No proxy of the environment for a server on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    def open_tab(self, address: str) -> None:
        """Opens a page in a tab of its own and goes there."""
        self.go_to_tab(self._call("POST", "/window/new", {"type": "tab"})["handle"])
        self.open(address)

    def tabs(self) -> list[str]:
        return self._call("GET", "/window/handles")

    def go_to_tab(self, tab: str) -> None:
        self._call("POST", "/window", {"handle": tab})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script `return`s in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str) -> Any:
        """Waits until an expression is true in the page."""
        until = time.monotonic() + _WAIT_S
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < until, f"never true: {script}; {self.run('return document.body.innerText')}"
            time.sleep(0.05)
        return value

    def press(self, *keys: str) -> None:
        """Presses keys one after the other, as a keyboard does; names are those of KEYS."""
        actions = []
        for key in (KEYS.get(key, key) for key in keys):
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def _place(self, selector: str) -> dict[str, Any]:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._place(selector)[_ELEMENT]}/click", {})

    def turn_wheel(self, selector: str, by: int) -> None:
        """Turns the wheel over an element by so many pixels."""
        turn = {"type": "scroll", "x": 0, "y": 0, "deltaX": 0, "deltaY": by, "origin": self._place(selector)}
        self._call("POST", "/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]})

    def drag(self, selector: str, down: int, across: int) -> None:
        """Presses the button of the mouse in the middle of an element, moves by so many pixels, and lets go."""
        actions: list[dict[str, Any]] = [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": self._place(selector)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": across, "y": down, "origin": "pointer", "duration": 100},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def messages(self) -> list[str]:
        """What the console of the browser has said since it was last asked."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]
