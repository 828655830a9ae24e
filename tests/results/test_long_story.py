"""What was recorded of long stories is what its rows say, and the program that records it counts right."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets")

from benchmarks import long_story
from benchmarks.live_browser import ROOT

from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.server.store import Store, StoreConfig

RESULTS = ROOT / "docs" / "results"
ROW = long_story.Row(
    shots=5,
    copy=1,
    takes=8,
    video_s=30.0,
    stored_bytes=8_000_000,
    hello_bytes=40_000,
    open_ms=30.0,
    start_s=5.0,
    rss_before_mb=400.0,
    rss_open_mb=403.0,
    resume_s=0.4,
    rss_resumed_mb=410.0,
)


def test_what_was_recorded_is_what_its_rows_say_and_a_long_story_is_there() -> None:
    path = RESULTS / f"{long_story.NAME}.json"
    if not path.exists():
        pytest.skip("long-story was not recorded yet: python -m benchmarks.long_story --record")
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = [_row(row) for row in csv.DictReader(file)]
    recorded = json.loads(path.read_text())
    summary, _ = long_story.summary_of(rows)
    for length, expected in zip(recorded["lengths"], summary["lengths"], strict=True):
        assert length == pytest.approx(expected, abs=2e-3)
    for target, expected in zip(recorded["targets"], summary["targets"], strict=True):
        assert target["value"] == pytest.approx(expected["value"], abs=2e-3)
        assert target["met"] == (target["value"] <= target["limit"])
    assert recorded["lengths"][-1]["shots"] >= 40
    assert recorded["lengths"][-1]["takes"] == recorded["lengths"][-1]["shots"] + recorded["branches"]
    assert recorded["branches"] >= 3
    assert {"hardware", "load_before", "commit", "date", "command"} <= recorded.keys()


def _row(row: dict[str, str]) -> long_story.Row:
    kinds = {field.name: int if field.type == "int" else float for field in fields(long_story.Row)}
    return long_story.Row(**{name: kinds[name](value) for name, value in row.items()})  # type: ignore[arg-type]


def test_the_longest_story_is_compared_with_the_shortest() -> None:
    long = replace(
        ROW,
        shots=40,
        takes=43,
        video_s=210.0,
        stored_bytes=2 * 56_000_000,
        open_ms=100.0,
        rss_open_mb=409.0,
        resume_s=1.4,
    )
    rows = [replace(row, copy=copy) for row in (ROW, long) for copy in (1, 2, 3)]
    rows[0] = replace(rows[0], open_ms=500.0)
    summary, targets = long_story.summary_of(rows)
    found: dict[str, Any] = {target.name: round(target.value, 3) for target in targets}
    assert found["a longer story opens later by"] == 70, "medians: one slow opening does not count"
    assert found["goes on later by"] == 1
    assert found["takes more memory, paused"] == 2, "of three copies"
    assert found["a minute of its last half against one of the shortest"] == pytest.approx(104 / 180 / (8 / 30), 1e-3)
    assert [target["met"] for target in summary["targets"]].count(False) == 3
    assert [length["shots"] for length in summary["lengths"]] == [5, 40]


def test_the_film_has_every_length_and_three_branches(tmp_path: Path) -> None:
    engine = FakeEngine(FakeConfig(chunk_ms=1, open_ms=1))
    kept = long_story.film(engine, tmp_path, [4, 6], 1)
    assert {shots: one.takes for shots, one in kept.items()} == {4: 7, 6: 9}
    store = Store(StoreConfig(folder=tmp_path), engine.preset)
    copies = {long_story.story_name(length, copy) for length in (4, 6) for copy in range(1, long_story.COPIES + 1)}
    warming = {f"{long_story.WARM_UP}-{length}" for length in (4, 6)}
    assert {story.name for story in store.stories()} == {long_story.NAME, *copies, *warming}
    story = store.story(long_story.story_name(6, 2))
    assert [shot.take.take.shot for shot in story.path(story.info().head)] == [0, 1, 2, 3, 4, 5]
    assert story.info().num_frames == 6 * 9
    store.close()
