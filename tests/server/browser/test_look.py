"""How the page looks and is used: in dark and light, on a desk and a phone, by keys alone, with a screen reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.live_browser import Record, Watcher
from PIL import Image
from tests.server.browser.conftest import (  # type: ignore[import-not-found]
    Enter,
    SeriousFindings,
    sideways,
    take_screenshot,
    unreachable,
)

pytestmark = [pytest.mark.panels, pytest.mark.timeout(240)]

SCHEMES = ("dark", "light")
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reads_barcodes": False, "reduced_motion": "reduce"}
PHONE: dict[str, Any] = DESK | {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
STATES: dict[str, tuple[dict[str, Any], str, str]] = {
    "idle": ({}, "Ready", "What do we see first?"),
    "loading": ({"detail": "reading 12 MB"}, "Loading", "Loading the model"),
    "warming": ({}, "Warming up", "Warming up"),
    "queued": ({"queue_position": 2}, "In the queue", "Number 2 in the queue"),
    "late": ({"late_ms": 1500}, "Late 1.5 s", ""),
    "holding": ({"detail": "waiting for direction"}, "Waiting for direction", ""),
    "paused": ({"detail": "the disk is full: make room, then resume"}, "Paused", ""),
    "error": ({"detail": "out of memory"}, "Error", "The engine stopped"),
}


def tell(person: Watcher, message: Record) -> None:
    """Let the page receive a message that the server did not send."""
    script = "(data) => window.sockets.at(-1).dispatchEvent(new MessageEvent('message', { data }))"
    person.page.evaluate(script, json.dumps(message))


def rich_story(person: Watcher) -> None:
    """Two shots, a steer, memory."""
    person.badge("Ready")
    for text, key in (
        ("A fox in a blue coat walks on the beach at sunset", "Enter"),
        ("Transition to a wide shot of the city at night", "Shift+Enter"),
        ("Now make him look surprised", "Enter"),
    ):
        person.direct(text, key)
        person.receipt(text)
    person.send("extend", num_chunks=60)  # however slow the machine, the shot runs on
    person.page.locator("#memory li").first.wait_for()
    read_with_its_shot = re.compile("Look back at Shot 2.*steer: Now make him look surprised")
    person.page.get_by_role("button", name=read_with_its_shot).wait_for()


def test_screenshots_that_fit_and_can_be_read_on_a_desk_and_on_a_phone_in_dark_and_light(
    enter: Enter, serious_findings: SeriousFindings
) -> None:
    desk, phone = enter(**DESK), enter(**PHONE)
    for name, person, scheme in (("desktop", desk, "dark"), ("phone", phone, "light")):
        person.badge("Ready")
        take_screenshot(person, f"start-{name}", scheme)
    rich_story(desk)
    phone.badge("Live")
    for name, person in (("desktop", desk), ("phone", phone)):
        for scheme in SCHEMES:
            take_screenshot(person, f"live-{name}", scheme)
    desk.send("pause")
    # Reading takes a while: the desk is read in light, the phone in dark.
    for person, scheme in ((desk, "light"), (phone, "dark")):
        person.badge("Paused")
        person.page.emulate_media(color_scheme=scheme)
        assert serious_findings(person) == []
    desk.page.locator("#help").click()
    assert serious_findings(desk, "dialog[open]") == []


def test_nothing_that_people_write_makes_the_page_scroll_sideways(person: Watcher) -> None:
    text = "a fox and a remarkably long word " + "w" * 90
    person.direct(text)
    person.receipt("a fox")
    for width in (1280, 390):
        person.page.set_viewport_size({"width": width, "height": 844})
        assert sideways(person) <= 0
    person.page.locator("#help").click()
    assert sideways(person) <= 0


def test_every_state_has_its_words_and_can_be_read(enter: Enter, serious_findings: SeriousFindings) -> None:
    person = enter(**PHONE)
    person.badge("Ready")
    seq = person.events("hello")[-1]["seq"]
    empty = {"detail": "", "late_ms": 0, "queue_position": None, "clock_frame": 0, "clock_running": False}
    for index, (state, (details, badge, title)) in enumerate(STATES.items(), seq + 1):
        person.page.emulate_media(color_scheme=SCHEMES[index % 2])
        tell(person, {"kind": "status", "seq": index, "state": state, **empty, **details})
        person.badge(badge)
        assert person.page.locator("#cover-title").inner_text() == title
        assert person.page.locator("#cover").is_visible() == bool(title)
        remark = "The disk is full: make room, then resume." if state == "paused" else ""
        assert person.page.locator("#remark-text").inner_text() == remark
        assert person.page.locator("#remark").is_visible() == bool(remark)
        assert serious_findings(person, "#stage") == [], state
    person.page.evaluate("window.WebSocket = class { close() {} }; window.sockets.at(-1).close(4000)")
    person.badge("Reconnecting")
    assert "by itself" in person.page.locator("#cover-help").inner_text()


def test_everything_can_be_done_with_the_keyboard_to_the_end(enter: Enter, person: Watcher, tmp_path: Path) -> None:
    page, keys = person.page, person.page.keyboard
    choosers: list[Any] = []
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # from the beginning: Playwright takes a while to catch them
    assert page.evaluate("document.activeElement.id") == "prompt", "one can type at once"
    rich_story(person)
    keys.press("ArrowUp")
    keys.press("ArrowUp")
    assert page.locator("#prompt").input_value() == "Transition to a wide shot of the city at night"
    keys.press("Escape")
    keys.press("Escape")
    keys.press("Space")
    person.badge("Paused")
    keys.press("Space")
    person.badge("Live")
    keys.press("e")
    person.until(lambda: [one for one in person.events("ended") if one["command"] == "extend"])
    keys.press("ArrowLeft")
    person.badge("Looking back")
    keys.press("l")
    person.page.locator("#badge-text").filter(has_text="Looking back").wait_for(state="detached")
    for key, name in (("p", ".png"), ("d", ".mp4")):
        with page.expect_download() as download:
            keys.press(key)
        assert download.value.suggested_filename.endswith(name)
        assert Path(download.value.path()).stat().st_size > 1000
    keys.press("f")
    person.until(lambda: page.evaluate("document.fullscreenElement?.id") == "stage")
    keys.press("f")
    person.until(lambda: not page.evaluate("document.fullscreenElement"))
    keys.press("a")
    remember_a_picture(person, person.until(choosers.copy)[0], tmp_path)
    person.send("pause")  # while the story runs, other frames come to be remembered under one's hand
    person.badge("Paused")
    assert unreachable(person) == []
    keys.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt"
    keys.press("Escape")
    keys.press("x")
    keys.press("Tab")
    keys.press("Enter")
    person.badge("Ready")
    late = enter()
    late.badge("Ready")
    assert late.page.locator("#cover-title").inner_text() == "What do we see first?"
    assert late.recorded("appended") == [], "the story that ended is not shown to who comes late"


def remember_a_picture(person: Watcher, chooser: Any, folder: Path) -> None:
    picture = folder / "wall.png"
    Image.new("RGB", (90, 50), (200, 120, 40)).save(picture)
    chooser.set_files(picture)
    person.page.locator("#picture-dialog[open]").wait_for()
    person.page.keyboard.type("an orange wall")
    person.page.keyboard.press("Enter")
    person.page.locator("#memory li").filter(has_text="Your picture").wait_for()
