"""A server in a process of its own and the page in Chromium: what live measurements and browser tests share.

The recorder (`live_recorder.js`) runs in the page before its own scripts; `Watcher` reads what it wrote down.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY_S = 240
PATIENCE_MS = 20_000
"""For anything that is awaited on a busy machine; how long it took is judged where it matters."""

SINCE = """([what, count, born]) => {
    const list = window.recorded[what];
    const again = born !== performance.timeOrigin || list.length < count;
    return { again, born: performance.timeOrigin, fresh: again ? list : list.slice(count) };
}"""
DRAIN = """() => Object.fromEntries(
    Object.entries(window.recorded).map(([name, list]) => [name, list.splice(0, list.length)]))"""

Record = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Server and browser


class Process(Protocol):
    """What is needed of a `subprocess.Popen`."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """A running `shotstream serve`."""

    url: str
    process: Process

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    @property
    def rss_mb(self) -> float:
        """Resident memory of the process, megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@contextmanager
def serve(
    *arguments: str, command: Sequence[str] = ("-m", "shotstream.cli", "serve"), log: Path | None = None
) -> Iterator[Server]:
    """Run the server until the block ends, with stories of its own in a folder that is then deleted.

    Raises RuntimeError if it ends by itself or does not get ready.
    Args: log is a file for what the server writes to stderr; None: where everything goes.
    """
    port = free_port()
    with ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb")) if log else None
        stories = stack.enter_context(tempfile.TemporaryDirectory(prefix="shotstream-"))
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port), *arguments],
            env=os.environ | {"SHOTSTREAM_DATA": stories},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        server = Server(f"http://127.0.0.1:{port}", process)
        wait_until_ready(server)
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: Server) -> None:
    """Raises RuntimeError if it ends by itself or does not get ready."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.process.returncode}")
        with (
            suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"{server.url}/readyz", timeout=5),
        ):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not get ready within {READY_S} s")


def chromium_path() -> str | None:
    """Debian's Chromium, where it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium until the block ends. Raises RuntimeError where it or Playwright is missing."""
    path = chromium_path()
    if path is None:
        raise RuntimeError("there is no Chromium: install it (Debian: apt install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("Playwright is missing: pip install playwright") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGUMENTS), timeout=120_000)
        yield browser
        browser.close()


def another(browser: Browser) -> Browser:
    """A second Chromium with processes of its own, to be closed by the caller."""
    arguments = list(CHROMIUM_ARGUMENTS)
    return browser.browser_type.launch(executable_path=chromium_path(), args=arguments, timeout=120_000)


def network_process(browser: Browser) -> int:
    """The process that reads this Chromium's sockets."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    for process in processes:
        if "NetworkService" in process["type"]:
            return int(process["id"])
    raise RuntimeError(f"no network process among {processes}")


def recorder(*, reads_barcodes: bool) -> str:
    """The script that records, with or without reading barcodes out of every picture."""
    barcode = (ROOT / "tests" / "page" / "barcode.js").read_text().replace("export function", "function")
    script = (ROOT / "benchmarks" / "live_recorder.js").read_text()
    switch = f"window.readBarcode = readBarcode;\nwindow.readsBarcodes = {'true' if reads_barcodes else 'false'};"
    return f"{barcode}\n{switch}\n{script}"


# ---------------------------------------------------------------------------------------------------------------------
# A person at the page


class Watcher:
    """Somebody at the page, and what the recorder saw. Close it at the end: it ends the story it directs."""

    def __init__(
        self, browser: Browser, server: Server, story: str = "main", *, reads_barcodes: bool = True, **options: Any
    ) -> None:
        """Args: options go to `Browser.new_context`, for example viewport and color_scheme."""
        self._server, self._options = server, {"viewport": {"width": 1280, "height": 800}, **options}
        self.context: BrowserContext = browser.new_context(**self._options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self._log: dict[str, tuple[float, list[Record]]] = {}
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.add_init_script(recorder(reads_barcodes=reads_barcodes))
        self.visit(story)

    def visit(self, story: str) -> None:
        """Open a story's page."""
        self.page.goto(f"{self._server.url}/#story={story}")

    def leave(self) -> None:
        """End the story, so that its engine time is free, and go away; `visit` opens another one.

        Errors on the page raise AssertionError.
        """
        with suppress(AssertionError):
            self.send("stop")
        self.page.goto("about:blank")
        self.page.set_viewport_size(self._options["viewport"])
        self.page.emulate_media(color_scheme=self._options.get("color_scheme", "light"))
        self._tell_problems()

    def close(self) -> None:
        """End the story, so that its engine time is free, and the page. Errors on the page raise AssertionError."""
        with suppress(AssertionError):
            self.send("stop")
        self.context.close()
        self._tell_problems()

    def _tell_problems(self) -> None:
        problems, self.problems[:] = list(self.problems), []
        assert not problems, problems

    # ------------------------------------------------------------------------------------------------------------ acts

    def direct(self, text: str, key: str = "Enter") -> float:
        """Type an instruction. Returns the page clock at the key press, ms."""
        prompt = self.page.locator("#prompt")
        prompt.fill(text)
        prompt.press(key)
        return float(self.recorded("keys")[-1]["when"])

    def connected(self) -> bool:
        """Whether the page's socket is open: after two silent seconds it joins again by itself."""
        return bool(self.page.evaluate("window.sockets.at(-1)?.readyState === 1"))

    def num_connections(self) -> int:
        """Sockets the page has opened so far."""
        return int(self.page.evaluate("window.sockets.length"))

    def send(self, kind: str, **fields: Any) -> str:
        """Send a command beside the page's own. Returns its id."""
        message = {"kind": kind, "id": f"test-{time.monotonic_ns()}", **fields}
        sent = self.page.evaluate(
            "(text) => { const s = window.sockets.at(-1); return s?.readyState === 1 && (s.send(text), true) }",
            json.dumps(message),
        )
        assert sent, "there is no connection"
        return str(message["id"])

    # ------------------------------------------------------------------------------------------------------------ sees

    def recorded(self, what: str) -> list[Record]:
        """keys, events, sent, appended, pictures or receipts, oldest first. Only what is new is fetched."""
        born, known = self._log.get(what, (0.0, []))
        news = self.page.evaluate(SINCE, [what, len(known), born])
        self._log[what] = (news["born"], news["fresh"] if news["again"] else known + news["fresh"])
        return self._log[what][1]

    def drain(self) -> dict[str, list[Record]]:
        """Everything recorded since the last time, and an empty log: nothing falls between the two."""
        found: dict[str, list[Record]] = self.page.evaluate(DRAIN)
        self._log.clear()
        return found

    def events(self, kind: str) -> list[Record]:
        """Messages of a kind, without their time."""
        return [one["message"] for one in self.recorded("events") if one["message"]["kind"] == kind]

    def pictures(self) -> list[Record]:
        """Barcodes of the pictures that were presented, each with `when` and `mediaTime`.

        One that was presented twice in a row, before and after a jump came to rest, counts once.
        """
        found = [{**one, **one["code"]} for one in self.recorded("pictures") if one["code"]]
        return [
            one for index, one in enumerate(found) if not index or one["mediaTime"] != found[index - 1]["mediaTime"]
        ]

    def now(self) -> float:
        """The page clock, ms."""
        return float(self.page.evaluate("performance.now()"))

    def badge(self, text: str) -> None:
        """Wait until the badge says so."""
        self.page.locator("#badge-text").filter(has_text=text).wait_for()

    def receipt(self, text: str) -> None:
        """Wait until an instruction is seen to have taken effect."""
        self.page.locator("#receipts li").filter(has_text=text).last.wait_for()

    def ended(self, text: str) -> Record:
        """What became of the newest instruction with these words."""
        sent = next(one["message"] for one in reversed(self.recorded("sent")) if one["message"].get("text") == text)
        found: Record = self.until(lambda: next((e for e in self.events("ended") if e["id"] == sent["id"]), None))
        return found

    def until(self, look: Callable[[], Any], seconds: float = PATIENCE_MS / 1000) -> Any:
        """Look again and again until there is something to see. Raises AssertionError if nothing comes."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing came within {seconds:g} s"
            self.page.wait_for_timeout(30)
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Reading the log


def first_presented(pictures: Sequence[Record], chunk: Record, fps: int) -> Record | None:
    """The first presented picture of an appended chunk, found by its place on the media timeline alone."""
    end = chunk["mediaStart"] + chunk["numFrames"] / fps
    slack = 0.25 / fps
    inside = (one for one in pictures if chunk["mediaStart"] - slack <= one["mediaTime"] < end - slack)
    found: Record | None = next((one for one in inside if one["when"] >= chunk["when"]), None)
    return found


def picture_before(pictures: Sequence[Record], picture: Record) -> Record | None:
    """The one presented before it."""
    earlier = [one for one in pictures if one["when"] < picture["when"]]
    return earlier[-1] if earlier else None
