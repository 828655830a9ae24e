"""The whole way with the weights that ship: typed in Chromium, made by the model, seen in Chromium."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.live_browser import ROOT, Server, Watcher, first_presented, picture_before

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]

FPS = 16
BRIGHTNESS = """() => {
  const video = document.getElementById("video");
  const canvas = new OffscreenCanvas(32, 20);
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 32, 20);
  return [...pen.getImageData(0, 0, 32, 20).data].filter((_, index) => index % 4 === 1);
}"""


def test_the_shipped_model_is_directed_live(browser: Any, studio: Server) -> None:
    person = Watcher(browser, studio, "main", reads_barcodes=False, color_scheme="dark")
    try:
        person.badge("Ready")
        suggestion = person.page.locator("#suggestions button").first
        text = suggestion.inner_text()
        suggestion.click()
        person.page.keyboard.press("Enter")
        person.receipt(text)
        for text, key in (
            ("Now make him look surprised", "Enter"),
            ("Transition to a wide shot of the city", "Shift+Enter"),
        ):
            person.direct(text, key)
            person.receipt(text)
            shows_where_it_says(person, text)
        levels = person.page.evaluate(BRIGHTNESS)
        assert max(levels) - min(levels) > 20, "a picture, not a flat colour"
        assert {frame["shot"] for frame in person.events("shot_opened")[-1]["context"]} == {0}
        (ROOT / "out" / "screenshots").mkdir(parents=True, exist_ok=True)
        person.page.screenshot(path=ROOT / "out" / "screenshots" / "storyworld-desktop.png")
    finally:
        person.close()


def shows_where_it_says(person: Watcher, text: str) -> None:
    """The chunk that the receipt names was presented, and the picture before it belongs to another."""
    ended = person.ended(text)
    chunk = next(one for one in person.recorded("appended") if one["start"] == ended["first_frame"])
    assert (chunk["shot"], chunk["chunk"]) == (ended["shot"], ended["chunk"])
    pictures = person.recorded("pictures")
    shown = first_presented(pictures, chunk, FPS)
    assert shown is not None
    before = picture_before(pictures, shown)
    assert before is not None
    assert before["mediaTime"] < chunk["mediaStart"]
