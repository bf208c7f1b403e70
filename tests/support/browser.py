"""A real browser without a window: Chromium, told what to do over its DevTools pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = 390
"""Width of a phone, in CSS pixels."""

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
_COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@dataclass
class Page:
    """A page as the browser shows it.

    Attributes:
        text: What a reader sees.
        width: How wide the page is, in CSS pixels; more than ``PHONE`` scrolls sideways.
        complaints: Errors and messages of the console.
        requests: What was asked for beside the page itself.
    """

    text: str = ""
    width: int = 0
    complaints: list[Any] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def show(path: Path, profile: Path) -> Page:
    """Open a file at the width of a phone; ``profile`` is a folder for the browser's own files."""
    url, page = path.resolve().as_uri(), Page()
    with _browser(profile) as browser:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        metrics = {"width": PHONE, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        browser.ask("Emulation.setDeviceMetricsOverride", **metrics)
        browser.ask("Page.navigate", url=url)
        browser.wait("Page.loadEventFired")
        page.text = browser.value("document.body.innerText")
        page.width = browser.value("document.documentElement.scrollWidth")
        for event in browser.events:
            if event["method"] in _COMPLAINTS:
                page.complaints.append(event["params"])
            elif event["method"] == "Network.requestWillBeSent":
                asked = event["params"]["request"]["url"]
                if asked != url and not asked.startswith("data:"):
                    page.requests.append(asked)
    return page


@dataclass
class _Browser:
    """Commands go to one pipe; answers and events come from another, each ended by a zero byte."""

    commands: Any
    answers: Any
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    def ask(self, method: str, **params: Any) -> Any:
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        command |= {"sessionId": self.session} if self.session else {}
        self.commands.write(json.dumps(command).encode() + b"\0")
        self.commands.flush()
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, method: str) -> None:
        while all(event["method"] != method for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression)["result"]["value"]

    def _next(self) -> Any:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        return json.loads(text)


@contextmanager
def _browser(profile: Path) -> Iterator[_Browser]:
    assert CHROMIUM is not None
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    # The browser reads its file descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(read_commands, write_answers),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        with os.fdopen(write_commands, "wb") as commands, os.fdopen(read_answers, "rb") as answers:
            yield _Browser(commands, answers)
    finally:
        process.terminate()
        process.wait()
