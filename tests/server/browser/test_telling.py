"""What the page tells whoever looks: why nothing comes of something, why a picture stands still, what was left out."""

from __future__ import annotations

import base64
import io

import pytest
from benchmarks.live_browser import Watcher
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
