"""What the page tells whoever looks: why nothing comes of something, why a picture stands still, what was left out."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from benchmarks.live_browser import Server, Watcher
from PIL import Image

pytestmark = [pytest.mark.panels, pytest.mark.timeout(240)]

DROP = """([name, type, base64]) => {
    const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type }));
    const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer });
    document.getElementById("memory-box").dispatchEvent(drop);
}"""


def drop(person: Watcher, name: str, type: str, content: bytes) -> None:
    """A file on the memory strip."""
    person.page.evaluate(DROP, [name, type, base64.b64encode(content).decode()])


def test_what_is_dropped_on_the_memory_and_is_no_picture_is_refused_in_words_to_be_seen(person: Watcher) -> None:
    note = person.page.locator("#note")
    drop(person, "notes.txt", "text/plain", b"a fox in a red coat")
    note.filter(has_text="Only pictures can be remembered").wait_for()
    drop(person, "broken.png", "image/png", b"no picture at all")
    note.filter(has_text="This picture cannot be read").wait_for()
    file = io.BytesIO()
    Image.new("RGB", (90, 50), (200, 120, 40)).save(file, "png")
    drop(person, "wall.png", "image/png", file.getvalue())
    person.page.locator("#picture-dialog[open]").wait_for()


def test_what_did_not_fit_into_the_caption_is_told_and_told_again_after_a_reload(person: Watcher) -> None:
    person.direct("a fox walks along the beach")
    person.receipt("a fox")
    person.send("extend", num_chunks=60)
    left_out = person.page.locator("#left-out")
    assert left_out.is_hidden()
    person.direct("now he walks on and on " + "past the sea and the hills " * 11)
    left_out.filter(has_text="past the sea").wait_for()
    person.page.reload()
    person.badge("Live")
    left_out.filter(has_text="past the sea").wait_for()


def test_a_browser_without_h264_is_told_so_and_what_to_do(browser: Any, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("MediaSource.isTypeSupported = () => false")
    page.goto(f"{server.url}/#story=unplayable")
    page.locator("#badge-text").filter(has_text="Cannot play").wait_for()
    assert page.locator("#cover-title").inner_text() == "This browser cannot play the stream"
    assert "H.264" in (words := page.locator("#cover-help").inner_text())
    assert "Use a current Chrome, Edge, Firefox or Safari" in words
    assert page.locator("#steer").is_disabled()
    context.close()


def test_where_the_engine_stopped_the_next_words_begin_another_story(person: Watcher) -> None:
    person.badge("Ready")
    status = {"kind": "status", "seq": 1, "state": "error", "detail": "out of memory", "late_ms": 0}
    script = "(data) => window.sockets.at(-1).dispatchEvent(new MessageEvent('message', { data }))"
    person.page.evaluate(script, json.dumps(status))
    person.badge("Error")
    person.page.locator("#cover-help").filter(has_text="Begin again with a first shot").wait_for()
    person.direct("a fox walks along the beach")
    person.badge("Live")


def test_a_picture_that_stands_still_for_want_of_chunks_is_not_called_live(person: Watcher) -> None:
    person.direct("a fox walks along the beach")
    person.receipt("a fox")
    person.send("extend", num_chunks=60)
    person.badge("Live")
    person.page.evaluate("window.sockets.at(-1).onmessage = null")  # the network stalls, the socket stays open
    person.badge("Waiting for video")
    last = person.pictures()[-1]
    person.page.wait_for_timeout(300)
    assert person.pictures()[-1] == last
    person.badge("Live")  # the silence was noticed, and the page joined again
