"""Stories survive a file, captions are composed in one way, and mistakes in files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shotstream.story import (
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
    assert shot.steers_at(6) == ("early", "late")


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
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as error:
        read_story(path)
    assert message in str(error.value)


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
