"""Waiting for a live place, where there is only one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from benchmarks.live_browser import Server, Watcher, serve

pytestmark = [pytest.mark.panels, pytest.mark.timeout(240)]


@pytest.fixture
def narrow(browser: Any) -> Iterator[Server]:
    """With one live place."""
    with serve("--preset", "fake", "--slots", "1") as server:
        yield server


def wait_in_the_queue(person: Watcher, text: str) -> None:
    """Direct a first shot, and come again: it waits all the same."""
    person.direct(text)
    person.badge("In the queue")
    person.page.reload()
    person.badge("In the queue")
    person.page.locator("#pending").filter(has_text=text).wait_for()


def test_a_start_in_the_queue_outlives_a_reload_can_be_taken_back_and_plays_when_there_is_room(
    browser: Any, narrow: Server
) -> None:
    with ExitStack() as stack:
        first, second = (Watcher(browser, narrow, story, reads_barcodes=False) for story in ("first", "second"))
        stack.callback(first.close)
        stack.callback(second.close)
        first.badge("Ready")
        first.direct("a fox walks along the beach")
        first.receipt("a fox")
        second.badge("Ready")
        for text, take_back in (
            ("a bear dances", lambda: second.page.get_by_role("button", name="Leave the queue").click()),
            ("a bear sings", lambda: second.page.locator("#stop").click()),
            ("a bear reads", lambda: second.page.locator("#prompt").press("Escape")),
        ):
            wait_in_the_queue(second, text)
            take_back()
            second.badge("Ready")
            second.receipt("cancelled")
        wait_in_the_queue(second, "an owl flies")
        first.send("stop")
        second.receipt("an owl flies")
        second.badge("Live")
