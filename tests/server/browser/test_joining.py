"""Coming late, going away and coming back: everybody sees what is on air now, and misses no event."""

from __future__ import annotations

import pytest
from benchmarks.live_browser import Record, Watcher
from tests.server.browser.conftest import Enter  # type: ignore[import-not-found]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

FPS = 16
FRESH_S = 2.0
"""How old the first picture may be, by the story clock."""


def begin(person: Watcher, text: str = "a fox walks along the beach") -> None:
    person.badge("Ready")
    person.direct(text)
    person.receipt(text)
    person.send("extend", num_chunks=60)  # however slow the machine, the shot runs on


def cut(person: Watcher, text: str) -> None:
    person.direct(text, "Shift+Enter")
    person.receipt(text)
    person.send("extend", num_chunks=60)


def numbers(person: Watcher) -> list[int]:
    """Sequence numbers of the story's events, as they came."""
    messages = (one["message"] for one in person.recorded("events"))
    return [message["seq"] for message in messages if message["kind"] != "hello" and "seq" in message]


def order(picture: Record) -> tuple[int, int]:
    return picture["shot"], picture["frame"]


def test_who_comes_late_sees_the_running_story_at_once(enter: Enter) -> None:
    director = enter()
    begin(director)
    late = enter()
    first = late.until(late.pictures)[0]
    hello = late.recorded("events")[0]
    assert hello["message"]["kind"] == "hello"
    assert [card["text"] for card in hello["message"]["snapshot"]["shots"]] == ["a fox walks along the beach"]
    clock = hello["message"]["snapshot"]["status"]["clock_frame"]
    assert clock - FRESH_S * FPS < first["frame"] <= clock + FPS
    assert first["when"] - hello["when"] < 1000
    late.badge("Live")
    assert late.page.locator("#cards li").count() == 1


def test_a_lost_connection_comes_back_with_every_event_once_and_live(enter: Enter) -> None:
    director, other = enter(), enter()
    begin(director)
    other.until(other.pictures)
    seen = numbers(director)[-1]
    director.page.evaluate("window.sockets.at(-1).close(4000)")
    cut(other, "the city at night")
    director.until(lambda: director.pictures()[-1]["shot"] == 1)
    joins = [one["message"] for one in director.recorded("sent") if one["message"]["kind"] == "join"]
    assert len(joins) == 2
    assert joins[-1]["resume_from"] >= seen
    came = numbers(director)
    assert came == list(range(came[0], came[0] + len(came))), "every event once, in order"
    shown = [order(picture) for picture in director.pictures()]
    assert shown == sorted(shown), "nothing is shown twice"
    director.badge("Live")
    director.receipt("the city at night")


def test_a_tab_that_slept_comes_back_to_what_is_on_air(enter: Enter) -> None:
    director, sleeper = enter(), enter()
    begin(director)
    sleeper.until(sleeper.pictures)
    session = sleeper.context.new_cdp_session(sleeper.page)
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    cut(director, "the city at night")
    director.page.wait_for_timeout(1600)
    session.send("Page.setWebLifecycleState", {"state": "active"})
    before = len(sleeper.pictures())
    sleeper.until(lambda: len(sleeper.pictures()) > before + 3)
    back, now = sleeper.pictures()[before + 1], director.pictures()[-1]
    assert back["shot"] == 1
    assert now["frame"] - back["frame"] < FRESH_S * FPS
    shown = [order(picture) for picture in sleeper.pictures()]
    assert shown == sorted(shown)
    sleeper.badge("Live")


def test_a_hidden_tab_returns_to_live_when_it_is_shown(enter: Enter) -> None:
    director = enter()
    begin(director)
    hide = """(state) => {
        const video = document.getElementById("video");
        if (state === "visible") delete video.play;
        else {
          video.play = async () => {};  // as browsers do with silent video
          video.pause();
        }
        Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    director.page.evaluate(hide, "hidden")
    last = director.pictures()[-1]
    director.page.wait_for_timeout(1600)
    shown = director.now()
    director.page.evaluate(hide, "visible")
    back = director.until(lambda: next((p for p in director.pictures() if p["when"] > shown), None))
    assert back["frame"] - last["frame"] > FPS, "what was missed is not played"
    chunk = director.events("chunk")[-1]
    assert chunk["start"] + chunk["num_frames"] - back["frame"] < FRESH_S * FPS
