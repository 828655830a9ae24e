"""Others watch by a link until it is revoked: on a server that asks who comes, over an address of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from benchmarks.live_browser import Server, Watcher, serve
from tests.server.browser.conftest import SeriousFindings, take_screenshot

pytestmark = [pytest.mark.panels, pytest.mark.timeout(240)]

TOKEN = "the-token-of-the-directors"
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reads_barcodes": False, "reduced_motion": "reduce"}


@pytest.fixture
def exposed(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """By an address that is not this machine's usual one: links to that lead nobody here."""
    monkeypatch.setitem(os.environ, "SHOTSTREAM_TOKEN", TOKEN)
    with serve("--preset", "fake", "--host", "0.0.0.0") as server:
        yield replace(server, url=server.url.replace("127.0.0.1", "127.0.0.2"))


def test_who_has_a_link_watches_without_a_prompt_line_until_it_is_revoked(
    browser: Any, exposed: Server, serious_findings: SeriousFindings
) -> None:
    director = Watcher(browser, exposed, f"main&token={TOKEN}", **DESK)
    director.badge("Ready")
    director.direct("a fox walks along the beach")
    director.receipt("a fox")
    director.send("extend", num_chunks=60)
    director.page.locator("#export").click()
    director.page.locator("#link-new").click()
    address = director.page.locator("#links code").first.inner_text()
    assert address.startswith(f"{exposed.url}/#story=main&token=")
    in_a_player = director.page.locator("#links code").last.inner_text()
    assert in_a_player.endswith(f"@{exposed.url.removeprefix('http://')}/stories/main/live.mp4")
    assert serious_findings(director, "dialog[open]") == []
    take_screenshot(director, "links-desktop", "dark")
    director.page.set_viewport_size({"width": 390, "height": 844})
    take_screenshot(director, "links-phone", "light", full_page=False)
    watcher = Watcher(browser, exposed, address.split("#story=")[1], **DESK)
    watcher.badge("Live")
    watcher.until(lambda: watcher.recorded("pictures"))
    assert watcher.page.locator("#direct").is_hidden()
    assert "you are watching" in watcher.page.locator("#about").inner_text()
    director.page.reload()  # the page forgets the address, the server does not forget the link
    director.badge("Live")
    director.page.locator("#export").click()
    revoke = director.page.locator("#links").get_by_role("button", name="Revoke link")
    revoke.wait_for()
    revoke.click()
    director.page.locator("#links li").wait_for(state="detached")
    watcher.badge("Log in")
    watcher.page.reload()
    watcher.page.locator("#cover-help").filter(has_text="This link is not valid, or not any more").wait_for()
    watcher.close()
    director.close()
