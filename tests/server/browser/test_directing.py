"""The page in a real browser: what a person directs is what comes to the screen. The barcodes in the pixels judge."""

from __future__ import annotations

import itertools

import pytest
from benchmarks.live_browser import Record, Watcher

from shotstream.engine.barcode import caption_hash

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

FOX = "a fox walks along the beach"
ON_THE_WAY = 6
"""Frames by which screen and story clock may differ at a cut: it plays on until the new shot has come all the way."""


def story_frame(picture: Record, opened: list[Record]) -> int:
    """Where a picture lies on the story clock."""
    start: int = next(event["start"] for event in reversed(opened) if event["shot"] == picture["shot"])
    return start + picture["frame"]


def begin(person: Watcher, text: str = FOX) -> None:
    person.direct(text)
    person.receipt(text)


def test_the_first_prompt_plays_at_once_and_live(person: Watcher) -> None:
    pressed = person.direct(FOX)
    person.receipt(FOX)
    person.badge("Live")
    person.page.wait_for_timeout(400)
    pictures = person.pictures()
    first = pictures[0]
    assert (first["shot"], first["chunk"], first["frame"]) == (0, 0, 0)
    assert first["caption"] == caption_hash(FOX)
    assert first["when"] - pressed < 3000
    frames = [picture["frame"] for picture in pictures]
    assert frames == sorted(set(frames)), "no picture comes twice or out of order"
    assert person.page.locator("#latency").inner_text().endswith(" s")


def test_a_steer_shows_from_the_very_frame_that_its_receipt_names(person: Watcher) -> None:
    begin(person)
    person.direct("now make him look surprised")
    person.receipt("now make him look surprised")
    ended = person.ended("now make him look surprised")
    pictures, opened = person.pictures(), person.events("shot_opened")
    old, new = caption_hash(FOX), caption_hash(ended["caption"])
    captions = {story_frame(picture, opened): picture["caption"] for picture in pictures}
    assert {captions[frame] for frame in captions if frame < ended["first_frame"]} == {old}
    assert {captions[frame] for frame in captions if frame >= ended["first_frame"]} == {new}
    last_old = max(frame for frame in captions if captions[frame] == old)
    first_new = min(frame for frame in captions if captions[frame] == new)
    # The frames on either side of `first` themselves, unless a busy browser left one of them out.
    assert last_old >= ended["first_frame"] - 3
    assert first_new <= ended["first_frame"] + 2
    assert {picture["shot"] for picture in pictures} == {0}
    receipt = next(one for one in person.recorded("receipts") if "now make him look surprised" in one["text"])
    seen = next(picture for picture in pictures if picture["caption"] == new)
    assert receipt["outcome"] == "applied"
    assert seen["when"] - 20 <= receipt["when"] <= seen["when"] + 400, "the receipt comes with the picture"
    person.page.locator(".steer-mark").first.wait_for(state="attached")
    assert caption_hash(person.page.locator("#caption").inner_text()) == new


def test_after_a_cut_no_picture_of_the_shot_before_is_shown(person: Watcher) -> None:
    begin(person)
    texts = [f"transition to a wide shot number {shot}" for shot in range(1, 4)]
    for text, pause in zip(texts, (0, 150, 400), strict=True):
        person.page.wait_for_timeout(pause)
        person.direct(text, "Shift+Enter")
        person.receipt(text)
    person.page.wait_for_timeout(300)
    pictures, opened = person.pictures(), person.events("shot_opened")
    shots = [picture["shot"] for picture in pictures]
    assert shots == sorted(shots)
    assert set(shots) == {0, 1, 2, 3}
    for shot, text in enumerate(texts, 1):
        before, first = next(pair for pair in itertools.pairwise(pictures) if pair[1]["shot"] == shot)
        ended = person.ended(text)
        assert before["caption"] != first["caption"] == caption_hash(ended["caption"])
        assert first["chunk"] == 0, "a busy browser may leave out a frame, never a chunk"
        assert story_frame(first, opened) - first["frame"] == ended["first_frame"]
        assert abs(story_frame(before, opened) + 1 - ended["first_frame"]) <= ON_THE_WAY
    assert person.page.locator("#cards li").count() == 4


def test_a_cut_remembers_only_what_was_on_air_and_the_page_says_what(person: Watcher) -> None:
    begin(person)
    person.direct("the city at night", "Shift+Enter")
    person.receipt("the city at night")
    opened = person.events("shot_opened")[-1]
    shown = {picture["frame"] for picture in person.pictures() if picture["shot"] == 0}
    remembered = {frame["frame"] for frame in opened["context"]}
    assert remembered
    assert max(remembered) < opened["aired_before"] <= max(shown) + 1 + ON_THE_WAY
    person.page.locator("#memory li").filter(has_text="Shot 1").first.wait_for()
    pin = person.page.get_by_role("button", name="Pin the frame of Shot 1").first
    pin.focus()
    pin.press("Enter")
    person.page.locator("#memory li").filter(has_text="pinned").wait_for()
    person.page.get_by_role("button", name="Remove the frame of Shot 1 · pinned").press("Enter")
    person.page.locator("#memory li").filter(has_text="pinned").wait_for(state="detached")


def test_what_is_pending_can_be_cancelled_and_never_shows(person: Watcher) -> None:
    begin(person)
    for text in ("now he jumps", "now he waves", "now he reads"):  # a chunk may begin between the two keys
        person.direct(text)
        person.page.keyboard.press("Escape")
        ended = person.ended(text)
        if ended["outcome"] != "applied":
            break
    assert (ended["outcome"], ended["reason"]) == ("superseded", "cancelled")
    person.receipt(text)
    person.page.wait_for_timeout(900)
    never = caption_hash(f"{FOX}. {text}")
    assert never not in {picture["caption"] for picture in person.pictures()}


def test_a_shot_can_be_looked_back_at_and_live_is_one_key_away(person: Watcher) -> None:
    begin(person)
    person.direct("a city at night", "Shift+Enter")
    person.receipt("a city at night")
    person.page.get_by_role("button", name="Look back at shot 1").click()
    person.badge("Looking back")
    back = person.until(lambda: person.pictures()[-1]["shot"] == 0 and person.pictures()[-1])
    assert back["frame"] < 12, "from its beginning"
    person.page.keyboard.press("l")
    person.until(lambda: person.pictures()[-1]["shot"] == 1)
    assert person.page.locator("#badge-text").inner_text() != "Looking back"
