"""Clips for fresh eyes give nothing away, and answers are compared with the key."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("skia", reason="clips are drawn: pip install 'shotstream[eval]'")

from shotstream.engine.stream import Engine
from shotstream.evaluation.blind import ASKED, CLIPS, answers_of, clip_stories, main, make, read_answers, report, score


def fill(form: Path, answers: dict[str, dict[str, str]]) -> None:
    with form.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", *ASKED])
        writer.writerows([clip, *(row.get(name, "") for name in ASKED)] for clip, row in answers.items())


def test_clips_show_one_person_and_every_word_occurs_somewhere():
    stories = clip_stories()
    assert len(stories) == CLIPS
    assert [s.seed for s in clip_stories()] == [s.seed for s in stories]
    assert [s.seed for s in clip_stories(seed=1)] != [s.seed for s in stories]
    assert {answers_of(s)["framing"] for s in stories} == {"wide", "medium", "close-up"}
    assert all("action" not in answers_of(s) for s in stories if s.shots[0].framing == "close-up")


def test_the_key_lies_elsewhere_and_right_answers_score_one(tiny_engine: Engine, tmp_path: Path):
    folder, key_file = tmp_path / "clips", tmp_path / "key.json"
    make(tiny_engine, folder, key_file, count=3)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "answers.csv", "clip-01.mp4", "clip-02.mp4", "clip-03.mp4", "sheet.png"]
    key = json.loads(key_file.read_text())
    written = " ".join(p.read_text() for p in (folder / "README.md", folder / "answers.csv"))
    assert "layout" not in written
    fill(folder / "answers.csv", {clip: {n: v.upper() for n, v in row.items()} for clip, row in key.items()})
    found = report(score(read_answers(folder / "answers.csv"), key))
    assert all(measure["value"] == 1 for measure in found["measures"].values())
    assert all(found["reached"].values())
    assert not found["wrong"]


def test_wrong_and_empty_answers_count_against_the_model(tmp_path: Path):
    key = {"01": {"character": "fox", "framing": "close-up"}, "02": {"character": "bear", "action": "waving"}}
    form = tmp_path / "answers.csv"
    fill(form, {"1": {"character": "fox", "framing": "close up"}, "2": {"character": "frog"}})
    found = report(score(read_answers(form), key))
    assert found["measures"]["character"]["value"] == 0.5
    assert found["measures"]["framing"]["value"] == 1
    assert {(w["clip"], w["seen"]) for w in found["wrong"]} == {(2, "frog"), (2, "")}
    assert not found["reached"]["action, expression"]


def test_words_of_ones_own_are_refused(tmp_path: Path):
    fill(tmp_path / "a.csv", {"1": {"character": "vixen"}})
    with pytest.raises(ValueError, match="fox"):
        read_answers(tmp_path / "a.csv")


def test_a_key_among_the_clips_is_refused(tiny_engine: Engine, tmp_path: Path):
    with pytest.raises(ValueError, match="must not lie among"):
        make(tiny_engine, tmp_path, tmp_path / "key.json", count=1)


def test_scores_are_written(tmp_path: Path):
    fill(tmp_path / "a.csv", {"1": {"character": "fox"}})
    (tmp_path / "key.json").write_text(json.dumps({"01": {"character": "fox"}}))
    main(["score", str(tmp_path / "a.csv"), str(tmp_path / "key.json"), "-o", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["measures"]["character"]["value"] == 1
