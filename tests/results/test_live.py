"""The summaries of the live measurements say what their raw rows say, and the programs read their logs right."""

from __future__ import annotations

import csv
import json
import math
from typing import Any, get_type_hints

import pytest

pytest.importorskip("rich")

from benchmarks import live_latency, live_soak, live_stale
from benchmarks.live_browser import ROOT, first_presented
from benchmarks.live_report import Target

RESULTS = ROOT / "docs" / "results"
FPS = 16


def recorded(name: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Raw rows and summary of a measurement."""
    rows, summary = RESULTS / f"{name}.csv", RESULTS / f"{name}.json"
    missing = [str(file) for file in (rows, summary) if not file.exists()]
    assert not missing, f"record it: python -m benchmarks.{name.replace('-', '_')} --record"
    with rows.open(encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads(summary.read_text())


def as_rows(kind: type[Any], found: list[dict[str, str]]) -> list[Any]:
    """Raw rows as the program had them; an empty number is one that was not found."""
    types = get_type_hints(kind)
    return [
        kind(**{name: types[name](text or ("nan" if types[name] is float else text)) for name, text in row.items()})
        for row in found
    ]


def summed_up(name: str) -> list[Target]:
    """The targets, from the raw rows of a measurement."""
    rows, summary = recorded(name)
    match name:
        case "live-latency":
            return live_latency.summary_of(as_rows(live_latency.Row, rows), summary["live_minutes"])[1]
        case "live-stale":
            return live_stale.summary_of(as_rows(live_stale.Row, rows))[1]
        case _:
            return live_soak.summary_of(as_rows(live_soak.Row, rows), 60 * summary["minutes"], FPS)[1]


def nearest_rank(values: list[float], share: float) -> float:
    """Of N ordered values the one at place ceil(share * N), counted from 1."""
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


def target(summary: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in summary["targets"] if one["name"] == name)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What was recorded


def test_latencies_are_those_of_the_raw_rows() -> None:
    rows, summary = recorded("live-latency")
    for kind, given in (("start", 30), ("cut", 100), ("steer", 100)):
        assert [row["outcome"] for row in rows if row["kind"] == kind] == ["applied"] * given
        seconds = [float(row["latency_ms"]) / 1000 for row in rows if row["kind"] == kind]
        assert summary[kind]["count"] == given
        assert summary[kind]["p50_s"] == pytest.approx(nearest_rank(seconds, 0.5), abs=2e-3)
        assert summary[kind]["p95_s"] == pytest.approx(nearest_rank(seconds, 0.95), abs=2e-3)
    chunks = [float(row["compute_ms"]) / 1000 for row in rows if row["kind"] == "chunk" and int(row["chunk"]) > 0]
    assert summary["chunk_median_s"] == pytest.approx(nearest_rank(chunks, 0.5), abs=2e-3)
    assert target(summary, "steer, p95")["limit"] == pytest.approx(0.95 + nearest_rank(chunks, 0.5), abs=2e-3)
    gaps = [float(row["gap_ms"]) for row in rows if row["kind"] == "stall"]
    assert summary["stalls"]["total"] == len(gaps)
    assert all(gap > 125 for gap in gaps)
    assert {"hardware", "load_before", "commit", "date"} <= summary.keys()


MEASUREMENTS = ("live-latency", "live-stale", "live-soak")
NOT_MET_YET = {"live-soak": {"pictures missing a second, worst minute"}}
"""Recorded on a CPU with AVX2 only, which showed 14.9 of 16 in one minute of ten. With bfloat16 it was 16.1 in each."""


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_target_is_what_the_program_makes_of_the_raw_rows(name: str) -> None:
    said, found = recorded(name)[1]["targets"], summed_up(name)
    assert [one["name"] for one in said] == [one.name for one in found]
    for one, again in zip(said, found, strict=True):
        assert one["value"] == pytest.approx(again.value, abs=2e-3), one["name"]
        assert one["limit"] == pytest.approx(again.limit, abs=2e-3), one["name"]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_target_is_met(name: str) -> None:
    missed = {one["name"] for one in recorded(name)[1]["targets"] if not one["met"]}
    assert missed <= NOT_MET_YET.get(name, set())
    assert missed == {one.name for one in summed_up(name) if not one.is_met}


def test_stale_pictures_are_those_of_the_raw_rows() -> None:
    rows, summary = recorded("live-stale")
    cuts = [row for row in rows if row["kind"] == "cut"]
    assert len(cuts) == summary["cuts"] >= 50
    assert target(summary, "older pictures after a cut")["value"] == sum(int(row["older_after"]) for row in cuts)
    longest = max(float(row["freeze_ms"]) for row in cuts)
    assert target(summary, "longest freeze before a cut shows")["value"] == pytest.approx(longest, abs=1)


def test_ten_minutes_live_are_those_of_the_raw_rows() -> None:
    rows, summary = recorded("live-soak")
    minutes = [float(row["frames_per_s"]) for row in rows if row["kind"] == "minute"]
    assert summary["frames_per_s"] == pytest.approx(minutes, abs=1e-2)
    assert len(minutes) >= 10
    viewers = [row for row in rows if row["kind"] == "viewer"]
    assert len(viewers) == summary["viewers"] >= 20
    assert target(summary, "chunks with other bytes")["value"] == sum(int(row["differing"]) for row in viewers)


# ---------------------------------------------------------------------------------------------------------------------
# How logs are read


def picture(when: float, frame: float, **code: int) -> dict[str, Any]:
    return {"when": when, "shown": when + 5, "mediaTime": frame / FPS, "presentedFrames": 0, **code}


def appended(when: float, shot: int, chunk: int, start: int, frame: int, frames: int = 12) -> dict[str, Any]:
    place = {"shot": shot, "chunk": chunk, "start": start, "numFrames": frames}
    return {"when": when, "mediaStart": frame / FPS, **place}


def message(when: float, kind: str, **rest: Any) -> dict[str, Any]:
    return {"when": when, "message": {"kind": kind, **rest}}


def a_log() -> live_latency.Log:
    """A start at 1000; a cut at 1950, whose chunk is appended behind what is there and jumped to, after a stall."""
    log = live_latency.Log(instructions=[("start", "a", 1000.0), ("cut", "b", 1950.0)])
    log.appended = [appended(1290, 0, 0, 0, 8, 9), appended(1700, 0, 1, 9, 17), appended(2290, 1, 0, 15, 29, 9)]
    log.events = [
        message(1290, "ended", id="a", outcome="applied", shot=0, chunk=0, first_frame=0),
        message(1291, "chunk", chunk=0, shot=0, compute_ms=200.0),
        message(1700, "chunk", chunk=1, shot=0, compute_ms=250.0),
        message(2290, "ended", id="b", outcome="applied", shot=1, chunk=0, first_frame=15),
    ]
    played = [picture(1310 + 62.5 * index, 8 + index) for index in range(14)]
    log.pictures = [*played, *(picture(2330 + 62.5 * index, 29 + index) for index in range(5))]
    return log


def test_the_first_affected_picture_is_found_by_its_place_on_the_media_timeline() -> None:
    start, cut, *rest = live_latency.rows_of(a_log(), FPS)
    assert (start.latency_ms, start.displayed_ms) == (310, 315)
    assert cut.latency_ms == 2330 - 1950
    assert cut.gap_ms == 2330 - (1310 + 62.5 * 13)
    assert [(row.kind, row.compute_ms) for row in rest[:2]] == [("chunk", 200), ("chunk", 250)]
    assert [(row.kind, row.outcome) for row in rest[2:]] == [("stall", "cut")]


def test_a_story_that_waits_for_direction_runs_on_after_it_and_its_wait_is_no_stall() -> None:
    log = a_log()
    log.events += [message(2600, "status", state="holding"), message(5000, "status", state="live")]
    log.pictures += [picture(5400 + 62.5 * index, 38 + index) for index in range(17)]
    log.pictures += [picture(6600 + 62.5 * index, 55 + index) for index in range(17)]
    stalls = [row for row in live_latency.rows_of(log, FPS) if row.kind == "stall"]
    assert [(row.at_ms, row.outcome) for row in stalls][1:] == [(6400, "within")], (
        "what stalls after a wait still counts"
    )
    played = [run[-1]["when"] - run[0]["when"] for run in live_latency.story_runs(log)]
    assert played == [2330 + 62.5 * 4 - 1310, 6600 + 62.5 * 16 - 5400]
    assert live_latency.live_minutes(log) == pytest.approx(sum(played) / 60_000)


def test_what_was_never_shown_or_never_answered_is_no_latency() -> None:
    log = a_log()
    log.pictures = [one for one in log.pictures if one["when"] < 2000]
    log.instructions.append(("steer", "c", 2500.0))
    rows = live_latency.rows_of(log, FPS)
    assert [row.outcome for row in rows[:3]] == ["applied", "not shown", "unanswered"]
    summary, targets = live_latency.summary_of(rows, live_latency.live_minutes(log))
    assert summary["not_applied"] == 2
    assert not next(one for one in targets if one.name == "cut, p95").is_met, "nothing measured is no target met"


def test_a_picture_of_the_chunk_before_is_not_taken_for_the_first_of_the_chunk() -> None:
    chunk = appended(0, 0, 1, 9, 17)
    pictures = [picture(10, 16), picture(20, 16.9), picture(30, 18)]
    assert first_presented(pictures, chunk, FPS) == pictures[1], "rounding may put the first picture a little before"
    assert first_presented(pictures[:1], chunk, FPS) is None


def test_an_older_picture_after_a_cut_and_a_freeze_before_it_are_seen() -> None:
    shown = [(0, 0), (60, 0), (400, 1), (460, 0), (520, 1)]
    row = live_stale.judge([picture(when, 0, shot=shot) for when, shot in shown], 100, 1)
    assert (row.latency_ms, row.older_after, row.freeze_ms) == (300, 1, 340)


def test_other_bytes_and_missing_pictures_are_seen() -> None:
    assert live_soak.differences([{1: "a", 2: "b"}, {2: "b", 3: "c"}, {1: "x", 3: "c"}]) == [0, 0, 1]
    shown = [(index / 10, float(index // 2)) for index in range(900)]
    assert live_soak.rates(shown, 90) == [(0.0, 5.0), (60.0, 5.0)]
    samples = [live_soak.Row(kind="memory", number=n, at_s=float(n), rss_mb=500 + n / 30) for n in range(600)]
    assert live_soak.slope_mb_per_minute(samples, 600) == pytest.approx(2.0)
