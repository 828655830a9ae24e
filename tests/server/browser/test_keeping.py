"""What is kept, on the page: retakes, branches, undo, comparing, exports, the library, story files played live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from benchmarks.live_browser import Record, Watcher
from tests.server.browser.conftest import Enter, SeriousFindings, sideways, take_screenshot, unreachable

from shotstream.engine.barcode import Barcode, caption_hash, read_barcode
from shotstream.story import parse_story

pytestmark = [pytest.mark.panels, pytest.mark.timeout(240)]

FOX = "a fox walks along the beach"
CITY = "the city at night"
STEER = "now he looks surprised"
FPS = 16
FIRST, NEXT = 9, 12
"""Frames of a shot's first chunk and of the others."""

STORY_FILE = """
name: two shots
global_caption: in the snow
seed: 4
shots:
- caption: a fox sits on a hill
  num_chunks: 2
  steers: [{chunk: 1, caption: he waves}]
- caption: a bear dances on a stage
  num_chunks: 40
- caption: an owl flies over the city and the long and winding road to the sea
"""

SCREENS = """() => {
  const pen = (window.screenPen ??= new OffscreenCanvas(320, 192).getContext("2d", { willReadFrequently: true }));
  return [...document.querySelectorAll("#screens video")].map((video) => {
    pen.drawImage(video, 0, 0, 320, 192);
    return readBarcode(pen.getImageData(0, 0, 320, 192));
  });
}"""


def begin(person: Watcher, text: str = FOX, key: str = "Enter") -> Record:
    """Direct a shot that runs on, however slow the machine. Returns its opening."""
    person.direct(text, key)
    person.receipt(text)
    person.send("extend", num_chunks=60)
    return opened(person)


def opened(person: Watcher) -> Record:
    return person.events("shot_opened")[-1]


def leave_prompt(person: Watcher) -> None:
    """So that keys are the page's."""
    person.page.evaluate("document.activeElement.blur()")


def receipt(person: Watcher, verb: str, text: str = "") -> None:
    person.page.locator("#receipts li").filter(has=person.page.get_by_text(verb, exact=True)).filter(
        has_text=text
    ).last.wait_for()


def row(person: Watcher, name: str) -> Any:
    """A take in the tree."""
    return person.page.locator(".take").filter(has=person.page.locator("b").get_by_text(name, exact=True))


def show_takes(person: Watcher) -> None:
    leave_prompt(person)
    if person.page.locator("#takes-box").is_hidden():
        person.page.keyboard.press("t")
    person.page.locator("#takes-box").wait_for()


def head(person: Watcher) -> int:
    """The take in which the story goes on, from the newest event that says so."""
    events = [one["message"] for one in person.recorded("events")]
    told = [e for e in events if e["kind"] in ("shot_opened", "tree")]
    return int(told[-1]["node"] if told[-1]["kind"] == "shot_opened" else told[-1]["head"])


def film(file: Path) -> list[Barcode | None]:
    """The pictures of an mp4, as any player reads them."""
    with av.open(str(file)) as container:
        return [read_barcode(picture.to_ndarray(format="rgb24")) for picture in container.decode(video=0)]


def test_a_retake_is_another_take_of_the_same_shot_and_two_takes_play_in_step(person: Watcher) -> None:
    first = begin(person)
    person.direct(STEER)
    person.receipt(STEER)
    leave_prompt(person)
    person.page.keyboard.press("r")
    receipt(person, "Retake", FOX)
    again = opened(person)
    assert (again["shot"], again["take"], again["parent"]) == (0, 1, None)
    assert again["node"] != first["node"]
    shown = person.pictures()[-1]
    assert (shown["shot"], shown["take"]) == (0, 1)
    steered = caption_hash(person.ended(STEER)["caption"])
    person.until(lambda: person.pictures()[-1]["caption"] == steered)  # what was said is said again, by itself
    show_takes(person)
    assert "goes on here" in row(person, "Shot 1, take 2").inner_text()
    assert row(person, "Shot 1, take 1").locator("xpath=ancestor::ul").count() == 1, (
        "it stands beside the one that is live"
    )
    for name in ("Shot 1, take 1", "Shot 1, take 2"):
        row(person, name).locator("input").check()
    person.page.keyboard.press("c")
    plays_in_step(person)


def plays_in_step(person: Watcher) -> None:
    """Two videos of the compare dialog show the same picture of two takes while they play, step and stand."""
    page = person.page
    page.locator("#screening-play").filter(has_text="Pause").wait_for()
    pairs = [pair for _ in range(12) if all(pair := (page.wait_for_timeout(50), page.evaluate(SCREENS))[1])]
    assert len({pair[0]["frame"] for pair in pairs}) > 3, "they play"
    assert {(one["take"], other["take"]) for one, other in pairs} == {(0, 1)}
    settled = pairs[len(pairs) // 2 :]
    assert all(abs(one["frame"] - other["frame"]) <= 2 for one, other in settled), pairs
    page.locator("#screening-play").press("Enter")
    page.locator("#screening-play").filter(has_text="Play").wait_for()
    page.locator("#screening-bar").press("Home")
    person.until(lambda: stands(person) == 0)
    page.locator("#screening-next").press("Enter")
    person.until(lambda: stands(person) == 1)
    page.keyboard.press("Escape")
    page.locator("#screening").wait_for(state="hidden")


def stands(person: Watcher) -> int:
    """The picture at which both stand; -1 until they do."""
    one, other = person.page.evaluate(SCREENS)
    return int(one["frame"]) if one and other and one["frame"] == other["frame"] else -1


def test_an_undo_takes_back_the_newest_steer_then_the_cut_and_nothing_that_is_typed(person: Watcher) -> None:
    first = begin(person)
    city = begin(person, CITY, "Shift+Enter")
    person.direct(STEER)
    person.receipt(STEER)
    prompt = person.page.locator("#prompt")
    prompt.fill("half a sentence")
    prompt.press("Control+z")
    prompt.fill("")
    assert not person.events("tree"), "text of one's own is undone as text"
    prompt.press("Control+z")
    receipt(person, "Undo", STEER)
    assert person.events("tree")[-1]["takes"][0]["origin"] == city["node"]
    person.until(lambda: person.pictures()[-1]["caption"] == caption_hash(CITY))
    person.page.locator("#undo").click()
    receipt(person, "Undo", CITY)
    back = person.until(lambda: (seen := person.pictures()[-1]) and seen["shot"] == 0 and seen)
    assert back["caption"] == caption_hash(FOX)
    tree = person.events("tree")[-1]
    assert first["node"] in [tree["head"], *(take["origin"] for take in tree["takes"])]
    assert person.page.locator("#cards li").count() == 1
    show_takes(person)
    assert row(person, "Shot 2, take 1").get_attribute("class") == "take", "what was undone stays, and is not live"
    leave_prompt(person)
    with person.page.expect_download() as download:
        person.page.keyboard.press("d")
    assert {code.shot for code in film(Path(download.value.path())) if code} == {0}, "and is not in the film"


def test_a_key_that_is_held_gives_one_direction(person: Watcher) -> None:
    def given(kind: str) -> int:
        return sum(event["command"] == kind for event in person.events("accepted"))

    begin(person)
    person.until(lambda: given("extend") == 1)
    leave_prompt(person)
    for count, (key, kind) in enumerate((("e", "extend"), ("u", "undo")), start=1):
        before = given(kind)
        for _ in range(5):  # again without letting go: the keyboard's own repetition
            person.page.keyboard.down(key)
        person.page.keyboard.up(key)
        person.send("pause")
        person.until(lambda count=count: given("pause") == count)
        assert given(kind) - before == 1
        person.send("resume")
        person.until(lambda count=count: given("resume") == count)


def test_a_branch_from_inside_a_shot_that_is_looked_back_at_and_the_way_back(person: Watcher) -> None:
    first = begin(person)
    person.until(lambda: [e for e in person.events("chunk") if e["chunk"] >= 3])
    city = begin(person, CITY, "Shift+Enter")
    leave_prompt(person)
    person.page.keyboard.press("ArrowLeft")
    person.badge("Looking back")
    person.until(lambda: (seen := person.pictures()[-1]) and seen["shot"] == 0 and seen["chunk"] >= 1)
    person.page.get_by_role("button", name="Branch here").press("Enter")
    person.page.locator("#branch-dialog[open]").wait_for()
    place = person.page.locator("#branch-chunk")
    place.fill("2")
    assert person.page.locator("#branch-at").inner_text().startswith(f"After {(FIRST + NEXT) / FPS:.1f} of")
    person.page.locator("#branch-video").wait_for()
    person.page.locator("#branch-caption").fill("a bear comes out of the sea")
    person.page.locator("#branch-caption").press("Enter")
    receipt(person, "Branch", "a bear")
    bear = opened(person)
    assert (bear["parent"], bear["aired_before"], bear["shot"]) == (first["node"], FIRST + NEXT, 1)
    assert person.pictures()[-1]["caption"] == caption_hash("a bear comes out of the sea")
    show_takes(person)
    other = row(person, "Shot 2, take 1")
    assert CITY in other.inner_text()
    other.get_by_role("button", name="Make live").click()
    receipt(person, "Branch", "on from shot 2")
    assert head(person) == city["node"]
    person.until(lambda: person.pictures()[-1]["caption"] == caption_hash(CITY))
    hide_and_show(person)


def hide_and_show(person: Watcher) -> None:
    """By the keys of a row."""
    row(person, "Shot 2, take 2").locator(".look").press("h")
    row(person, "Shot 2, take 2").wait_for(state="detached")
    assert row(person, "Shot 2, take 1").get_by_role("button", name="Hide").is_disabled(), (
        "what is live cannot be hidden"
    )
    person.page.get_by_role("button", name="Show 1 hidden").click()
    row(person, "Shot 2, take 2").get_by_role("button", name="Show").click()
    person.page.locator("#hidden-toggle").wait_for(state="hidden")


def test_the_story_and_a_cut_list_of_ones_own_can_be_taken_along(person: Watcher) -> None:
    page = person.page
    begin(person)
    person.direct(CITY, "Shift+Enter")
    person.receipt(CITY)
    show_takes(person)
    leave_prompt(person)
    page.keyboard.press("Space")
    person.badge("Paused")
    page.keyboard.press("s")
    page.locator("#export-dialog[open]").wait_for()
    assert page.locator("#live-address").inner_text().endswith(f"/stories/{story_of(person)}/live.mp4")
    codes = film(export(person, "mp4"))
    assert {code and code.shot for code in codes} == {0, 1}
    story = parse_story(export(person, "yaml").read_text())
    assert [shot.caption for shot in story.shots] == [FOX, CITY]
    assert export(person, "vtt").read_text().startswith("WEBVTT")
    page.keyboard.press("Escape")
    for name in ("Shot 2, take 1", "Shot 1, take 1"):
        row(person, name).locator("input").check()
    page.locator("#export-cut").click()
    turned = film(export(person, "mp4"))
    assert [turned[0].shot, turned[-1].shot] == [1, 0]  # type: ignore[union-attr]
    page.get_by_role("button", name="Later: Shot 2, take 1").press("Enter")
    straight = film(export(person, "mp4"))
    assert [straight[0].shot, straight[-1].shot] == [0, 1]  # type: ignore[union-attr]


def story_of(person: Watcher) -> str:
    name: str = person.page.evaluate("new URLSearchParams(location.hash.slice(1)).get('story')")
    return name


def export(person: Watcher, format: str) -> Path:
    with person.page.expect_download() as download:
        person.page.locator(f"[data-format={format}]").click()
    assert download.value.suggested_filename.endswith(f".{format}")
    return Path(download.value.path())


def library(person: Watcher) -> Any:
    """The open library's list."""
    leave_prompt(person)
    person.page.keyboard.press("o")
    person.page.locator("#library-dialog[open]").wait_for()
    return person.page.locator("#stories")


def test_stories_are_listed_named_copied_opened_and_deleted(person: Watcher) -> None:
    page = person.page
    begin(person)
    name = story_of(person)
    own = library(person).locator(f"[data-name='{name}']")
    own.wait_for()
    assert "1 take" in own.inner_text()
    assert "MB" in own.inner_text() or "kB" in own.inner_text()
    own.get_by_role("button", name="Rename").click()
    page.keyboard.type("The fox & the sea")
    page.keyboard.press("Enter")
    own.filter(has_text="The fox & the sea").wait_for()
    page.locator("#story-title").filter(has_text="The fox & the sea").wait_for(state="attached")
    own.get_by_role("button", name="Delete").click()
    own.get_by_role("button", name="Delete for good").click()
    page.locator("#library-error").filter(has_text="watch this story").wait_for()
    own.get_by_role("button", name="Duplicate").click()
    copy = page.locator(f"[data-name='{name}-2']")
    copy.locator("a").click()
    page.wait_for_url(f"**/#story={name}-2")
    person.badge("Paused")
    assert page.locator("#cards li").inner_text().endswith(FOX)
    forgets(person, name)


def forgets(person: Watcher, name: str) -> None:
    """Nobody watches the first story any more: it can be deleted, after a question. A new one begins with its name."""
    page = person.page
    gone = library(person).locator(f"[data-name='{name}']")
    gone.get_by_role("button", name="Delete").press("Enter")
    gone.get_by_role("button", name="Keep it").press("Enter")
    gone.get_by_role("button", name="Delete").press("Enter")
    gone.get_by_role("button", name="Delete for good").press("Enter")
    gone.wait_for(state="detached")
    page.locator("#new-title").fill(f"Zoë's Film {name}")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/#story=zoe-s-film-{name}")
    person.badge("Ready")
    begin(person)
    page.locator("#story-title").filter(has_text=f"Zoë's Film {name}").wait_for(state="attached")


def test_a_story_file_plays_live_until_a_director_takes_over(person: Watcher, tmp_path: Path) -> None:
    page = person.page
    play(person, tmp_path, "shots: 7")
    page.locator("#library-error").filter(has_text="shots").wait_for()
    page.keyboard.press("Escape")
    play(person, tmp_path, STORY_FILE)
    page.locator("#performance-words").filter(has_text="shot 2 of 3").wait_for()
    page.set_viewport_size({"width": 390, "height": 640})
    assert sideways(person) <= 0
    assert (
        page.locator("#performance-next").inner_text()
        == "Next: an owl flies over the city and the long and winding road to the sea"
    )
    person.until(lambda: person.pictures() and person.pictures()[-1]["shot"] == 1)
    captions = [picture["caption"] for picture in person.pictures()]
    wanted = ["a fox sits on a hill", "a fox sits on a hill. he waves", "a bear dances on a stage"]
    hashes = [caption_hash(f"in the snow. {text}") for text in wanted]
    assert [one for index, one in enumerate(captions) if not index or captions[index - 1] != one] == hashes
    # From the pictures: a chunk that was on air before the page had joined comes in its snapshot, not as an event.
    assert {picture["chunk"] for picture in person.pictures() if picture["shot"] == 0} == {0, 1}
    person.direct("now it is snowing")
    person.receipt("now it is snowing")
    page.locator("#performance").wait_for(state="hidden")
    assert person.events("performance")[-1]["performance"]["state"] == "interrupted"
    assert person.page.locator("#badge-text").inner_text() == "Live"


def play(person: Watcher, folder: Path, text: str) -> None:
    file = folder / "two shots.yaml"
    file.write_text(text)
    library(person)
    with person.page.expect_file_chooser() as chooser:
        person.page.locator("#play-file").click()
    chooser.value.set_files(file)


@pytest.fixture
def busy(enter: Enter) -> Watcher:
    """A story with a take that was made again."""
    person = enter(viewport={"width": 1280, "height": 800}, reads_barcodes=False, reduced_motion="reduce")
    person.badge("Ready")
    begin(person, "A fox in a blue coat walks on the beach at sunset")
    begin(person, "Transition to a wide shot of the city at night", "Shift+Enter")
    leave_prompt(person)
    person.page.keyboard.press("r")
    receipt(person, "Retake")
    person.send("pause")
    return person


def test_the_panels_fit_can_be_read_and_are_used_by_keys_alone(
    busy: Watcher, serious_findings: SeriousFindings
) -> None:
    person, page = busy, busy.page
    show_takes(person)
    assert unreachable(person) == []
    for name in ("Shot 2, take 1", "Shot 2, take 2"):
        row(person, name).locator("input").check()
    looks = {
        "takes": ("", ""),
        "compare": ("c", "#screening-play:has-text('Pause')"),
        "export": ("s", "#export-dialog[open] #cut-list li"),
        "library": ("o", "#stories li"),
        "branch": ("b", "#branch-video[src]"),
    }
    for name, (key, ready) in looks.items():
        if key:
            leave_prompt(person)
            page.keyboard.press(key)
            page.locator(ready).first.wait_for()
        take_screenshot(person, f"{name}-desktop", "dark")
        page.set_viewport_size({"width": 390, "height": 844})
        take_screenshot(person, f"{name}-phone", "light", full_page=not key)
        assert sideways(person) <= 0
        assert serious_findings(person, "dialog[open]" if key else "main") == [], name
        page.set_viewport_size({"width": 1280, "height": 800})
        page.keyboard.press("Escape")
