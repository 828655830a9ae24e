"""The real server with the fake engine, and the page in a real browser: the barcodes in the pixels are the judges."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shotstream.engine.barcode import caption_hash

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

REQUIRED = os.environ.get("BROWSER_TESTS") == "1"
PATIENCE_MS = 20_000
"""For anything that is awaited on a busy machine; how long it took is asserted where it matters."""
BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BARCODE = (
    (Path(__file__).resolve().parents[1] / "page" / "barcode.js").read_text().replace("export function", "function")
)
RECORDER = """
addEventListener("DOMContentLoaded", () => {
  const video = document.getElementById("video");
  const canvas = new OffscreenCanvas(320, 192);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  window.pictures = [];
  const next = (_now, { expectedDisplayTime }) => {
    pen.drawImage(video, 0, 0, 320, 192);
    const code = readBarcode(pen.getImageData(0, 0, 320, 192));
    if (code) window.pictures.push({ at: expectedDisplayTime, ...code });
    video.requestVideoFrameCallback(next);
  };
  video.requestVideoFrameCallback(next);
});
"""


def unavailable(reason: str) -> None:
    """Skip, or fail where the browser tests are asked for."""
    if REQUIRED:
        pytest.fail(f"BROWSER_TESTS=1, but {reason}")
    pytest.skip(f"{reason}; BROWSER_TESTS=1 makes this a failure")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        unavailable("there is no chromium (apt install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed (pip install playwright)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS, timeout=120_000)
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="the server needs fastapi and uvicorn (pip install shotstream[serve])")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shotstream.cli", "serve", "--preset", "fake", "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the server did not get ready")


@pytest.fixture
def page(browser: Any, server: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page on a story of its own, one live slot being enough for all of them in turn."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.add_init_script(BARCODE + RECORDER)
    opened.goto(f"{server}/")
    badge(opened, "Ready")
    yield opened
    stop(opened)
    context.close()
    assert not problems


def stop(page: Any) -> None:
    """End the story, so that the next test finds the place free."""
    if page.locator("#stop").is_enabled():
        page.locator("#stop").click()
        page.get_by_role("button", name="End it").click()
    badge(page, "Ready")


def direct(page: Any, text: str, key: str = "Enter") -> float:
    """Type an instruction; returns the page clock at the key press, in ms."""
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press(key)
    now: float = page.evaluate("performance.now()")
    return now


def badge(page: Any, text: str) -> None:
    page.locator("#badge-text").filter(has_text=text).wait_for()


def receipt(page: Any, text: str) -> None:
    page.locator("#receipts li").filter(has_text=text).wait_for()


def pictures(page: Any) -> list[dict[str, Any]]:
    """What the barcodes said so far. A story before may have left its last picture on the screen: it does not count."""
    found: list[dict[str, Any]] = page.evaluate("window.pictures")
    return [picture for picture in found if picture["story"] == found[-1]["story"]]


def test_the_first_prompt_plays_at_once_and_live(page: Any) -> None:
    pressed = direct(page, "a fox walks along the beach")
    receipt(page, "a fox walks along the beach")
    badge(page, "Live")
    first = pictures(page)[0]
    assert (first["shot"], first["chunk"], first["frame"]) == (0, 0, 0)
    assert first["caption"] == caption_hash("a fox walks along the beach")
    assert first["at"] - pressed < 5000
    page.wait_for_timeout(1000)
    frames = [picture["frame"] for picture in pictures(page)]
    assert frames == sorted(frames), "no picture comes twice or out of order"


def test_a_steer_gets_its_receipt_on_the_picture_where_it_took_effect(page: Any) -> None:
    direct(page, "a fox on the beach")
    receipt(page, "a fox on the beach")
    direct(page, "now make him look surprised")
    receipt(page, "now make him look surprised")
    shown = pictures(page)
    assert shown[0]["caption"] == caption_hash("a fox on the beach")
    assert shown[-1]["caption"] != shown[0]["caption"]
    first = next(index for index, picture in enumerate(shown) if picture["caption"] != shown[0]["caption"])
    assert shown[first]["chunk"] > shown[first - 1]["chunk"], "captions change between chunks"
    assert {picture["shot"] for picture in shown} == {0}
    page.locator(".steer-mark").wait_for(state="attached")
    assert caption_hash(page.locator("#caption").inner_text()) == shown[-1]["caption"]


def test_after_a_cut_no_picture_of_the_shot_before_is_shown(page: Any) -> None:
    direct(page, "a fox on the beach")
    receipt(page, "a fox on the beach")
    for shot in range(1, 4):
        text = f"transition to a wide shot number {shot}"
        direct(page, text, "Shift+Enter")
        receipt(page, text)
    page.wait_for_timeout(500)
    shots = [picture["shot"] for picture in pictures(page)]
    assert shots == sorted(shots)
    assert set(shots) == {0, 1, 2, 3}
    assert page.locator("#cards li").count() == 4
    for shot in (1, 2, 3):
        page.locator("#memory li").filter(has_text=f"Shot {shot}").first.wait_for()


def test_a_shot_can_be_looked_back_at_and_live_is_one_key_away(page: Any) -> None:
    direct(page, "a fox on the beach")
    receipt(page, "a fox on the beach")
    direct(page, "a city at night", "Shift+Enter")
    receipt(page, "a city at night")
    page.get_by_role("button", name="Look back at shot 1").click()
    badge(page, "Looking back")
    page.wait_for_timeout(300)
    assert pictures(page)[-1]["shot"] == 0
    page.keyboard.press("l")
    assert page.locator("#badge-text").inner_text() != "Looking back"
    page.wait_for_timeout(500)
    assert pictures(page)[-1]["shot"] == 1


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_without_sideways_scroll(page: Any, width: int, scheme: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 844 if width < 800 else 800})
    page.emulate_media(color_scheme=scheme)
    direct(page, "a fox with a remarkably long description " + "w" * 80)
    receipt(page, "a fox")
    page.locator("#memory li").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=str(folder / f"page-{width}-{scheme}.png"), full_page=width < 800)
