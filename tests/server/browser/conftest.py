"""One server with the fake engine and one Chromium for all tests here; each test directs a story of its own.

Without Chromium the tests are skipped, with BROWSER_TESTS=1 they fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from benchmarks.live_browser import Server, Watcher, chromium, serve

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
def server(browser: Any) -> Iterator[Server]:
    pytest.importorskip("fastapi", reason="the server needs fastapi and uvicorn (pip install shotstream[serve])")
    with serve("--preset", "fake", "--slots", "8") as running:
        yield running


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
