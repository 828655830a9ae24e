"""Stories survive a file, captions are composed in one way, and mistakes in files are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shotstream.story import (
    PICTURE,
    Making,
    Picture,
    Recall,
    Shot,
    Steer,
    Story,
    compose_caption,
    read_reference_csv,
    read_story,
    write_story,
)

STORY = Story(
    name="fox day",
    global_caption="A fox called Rémy. Soft light.",
    seed=7,
    shots=(
        Shot(caption="he walks along the beach", steers=(Steer(chunk=3, caption="now he looks surprised"),)),
        Shot(caption="a wide shot of the city", num_chunks=2),
    ),
)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_story_survives_its_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"story{suffix}"
    write_story(STORY, path)
    assert read_story(path) == STORY
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_every_kind_of_line_break_in_a_caption_survives_its_file(tmp_path: Path, suffix: str) -> None:
    captions = [f"a fox{end}{more}runs{end}" for end in "\n\r\x85\u2028\u2029" for more in ("", " ", "\x85")]
    story = replace(STORY, shots=tuple(Shot(caption=caption) for caption in captions))
    write_story(story, tmp_path / f"story{suffix}")
    assert read_story(tmp_path / f"story{suffix}") == story


def test_a_shot_may_be_just_its_caption_and_the_file_names_the_story(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("shots:\n  - a fox runs\n  - caption: a fox sleeps\n")
    story = read_story(path)
    assert [shot.caption for shot in story.shots] == ["a fox runs", "a fox sleeps"]
    assert (story.name, story.global_caption, story.seed) == ("short", "", None)


def test_natural_captions_are_sentences() -> None:
    assert compose_caption("", "a fox runs") == "a fox runs"
    assert compose_caption(" Blue night ", "a fox runs.", ["he stops"]) == "Blue night. a fox runs. he stops"
    assert compose_caption("", "Look!", ["he waves", "he sits"]) == "Look! he waves. he sits"


def test_reference_captions_have_no_separators_and_count_from_zero() -> None:
    text = compose_caption("Muted blues.", "Wide view.", style="reference", shot_index=2)
    assert text == "Muted blues.shot2:Wide view."
    assert compose_caption("", "Wide", ["he waves"], style="reference") == "shot0:Wide. he waves"


def test_a_steer_holds_from_its_chunk_on() -> None:
    assert STORY.caption_at(0, 2) == "A fox called Rémy. Soft light. he walks along the beach"
    assert STORY.caption_at(0, 3).endswith("he walks along the beach. now he looks surprised")
    assert STORY.caption_at(1, 1).endswith("a wide shot of the city")


def test_steers_are_kept_in_the_order_of_their_chunks() -> None:
    shot = Shot(caption="x", steers=(Steer(chunk=4, caption="late"), Steer(chunk=1, caption="early")))
    assert shot.in_force(6) == ("x", ("early", "late"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "top level"),
        ("shots: []", "at least one shot"),
        ("shots: a fox", "must be a list"),
        ("shots: ['']", "shot 0: a shot needs a caption"),
        ("shots: [{caption: 5}]", "`caption` must be text"),
        ("shots: [{caption: x, num_chunks: 0}]", "at least 1"),
        ("shots: [{caption: x, steers: [{caption: y}]}]", "lacks `chunk`"),
        ("shots: [{caption: x, steers: [{chunk: 9, caption: y}]}]", "chunks 0..6"),
        ("shots: [{text: x}]", "no key text"),
        ("shots: [x]\nseed: red", "seed must be a whole number"),
        ("shots: [x", "not readable as YAML"),
        ('shots: [x]\nname: "a \\ud83d"', "`name` is not valid text"),
        ('shots: [x]\npictures: [{png: "", caption: "\\ud83d"}]', "`caption` is not valid text"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as error:
        read_story(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text", ["shots: [{}]", "shots: [{{caption: {}}}]", "shots: [{{caption: x, steers: [{}]}}]", "pictures: [{}]"]
)
def test_aliases_that_stand_for_gigabytes_are_refused_in_short(tmp_path: Path, text: str) -> None:
    bomb = "&a0 [lol]"
    for level in range(1, 10):
        bomb = f"&a{level} [{bomb}{f', *a{level - 1}' * 9}]"
    path = tmp_path / "bomb.yaml"
    path.write_text(text.format(bomb) + ("" if text.startswith("shots") else "\nshots: [x]"))
    with pytest.raises(ValueError, match=r"bomb\.yaml") as error:
        read_story(path)
    assert len(str(error.value)) < 500


def test_a_file_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.yaml"
    path.write_text("shots: [a fox]")
    assert read_story(path).name == "caf?"


def _write_reference(folder: Path, captions: dict[str, str], intervals: str) -> Path:
    (folder / "clips").mkdir()
    (folder / "clips" / "lamp.json").write_text(json.dumps(captions))
    table = folder / "list.csv"
    table.write_text(
        f'shot_num_from_caption,json_path,video_path,frame_number\n9,clips/lamp.json,x.mp4,"{intervals}"\n'
    )
    return table


def test_the_reference_form_counts_its_shots_by_intervals(tmp_path: Path) -> None:
    captions = {"global_caption": "Muted.", "shot1": "One.", "shot2": "Two.", "shot3": "Unused.", "other": "x"}
    (story,) = read_reference_csv(_write_reference(tmp_path, captions, "[[0, 96], [96, 190]]"))
    assert (story.name, story.global_caption) == ("lamp", "Muted.")
    assert [shot.caption for shot in story.shots] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("intervals", "message"),
    [("[[0, 1], [1, 2]]", "lacks shot2"), ("[]", "list of"), ("[0, 5]", "list of"), ("import os", "list of")],
)
def test_a_bad_reference_row_is_named(tmp_path: Path, intervals: str, message: str) -> None:
    table = _write_reference(tmp_path, {"shot1": "One."}, intervals)
    with pytest.raises(ValueError, match="row 1") as error:
        read_reference_csv(table)
    assert message in str(error.value)


EXACT = Story(
    name="again",
    seed=5,
    shots=(
        Shot(
            caption="a fox",
            num_chunks=3,
            steers=(Steer(chunk=1, caption="he waves"), Steer(chunk=2, caption="a bear", replaces=True)),
            making=Making(id=1, number=0, frames=0),
        ),
        Shot(
            caption="the city",
            making=Making(
                id=7,
                number=1,
                take=2,
                seed=9,
                global_caption="at night",
                recalls=(Recall(id=1, frame=32), Recall(id=PICTURE, frame=0)),
            ),
        ),
    ),
    pictures=(Picture(caption="a house", png="aGVsbG8="),),
    order=(7, 7),
)


@pytest.mark.parametrize("name", ["story.yaml", "story.json"])
def test_a_story_that_says_how_it_was_made_survives_a_file(name: str, tmp_path: Path) -> None:
    write_story(EXACT, tmp_path / name)
    assert read_story(tmp_path / name) == EXACT
    assert EXACT.is_exact


def test_a_steer_can_take_the_place_of_what_was_said_before() -> None:
    shot = EXACT.shots[0]
    assert [shot.in_force(chunk) for chunk in range(3)] == [("a fox", ()), ("a fox", ("he waves",)), ("a bear", ())]
    assert EXACT.caption_at(0, 2) == "a bear"
    assert EXACT.caption_at(1, 0, style="reference") == "at nightshot1:the city"


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ("{id: 1, shot: 0, recalls: [shot 3 frame 0]}", "recalls shot 3, which is not before it"),
        ("{id: 1, shot: 0, recalls: [picture 0]}", "recalls picture 0 of 0"),
        ("{id: 1, shot: 0, recalls: [the first]}", "'shot ID frame NUMBER'"),
        ("{shot: 0}", "a shot's id"),
        ("{id: 1}", "a shot's number"),
        ("{id: 1, shot: 0, look: nice}", "no key look"),
        ("[1]", "must be a mapping"),
        ("{id: 1, shot: 0, frames: 0}", "the story shows none of its shots"),
    ],
)
def test_a_making_that_cannot_be_followed_is_refused(made: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "story.yaml").write_text(f"shots: [{{caption: a fox, made: {made}}}]")
    with pytest.raises(ValueError, match=match):
        read_story(tmp_path / "story.yaml")


def test_either_all_shots_say_how_they_were_made_or_none() -> None:
    with pytest.raises(ValueError, match="or none does"):
        replace(EXACT, shots=(EXACT.shots[0], Shot(caption="a fox")))
    with pytest.raises(ValueError, match="names shot 3"):
        replace(EXACT, order=(3,))
    with pytest.raises(ValueError, match="two shots have the id 1"):
        replace(EXACT, shots=(EXACT.shots[0], EXACT.shots[0]))
