"""From the key press to the picture: how long a start, a cut and a steer take with the real weights; stalls.

`python -m benchmarks.live_latency [--count 100] [--record]`: the server in a process of its own, Chromium on the same
cores. A person types at random phases of a chunk. The time runs from the key's own time stamp to the presentation time
of the first picture of the chunk that the instruction's receipt names (requestVideoFrameCallback); that picture is
found by the place where the chunk was appended to the media timeline.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.live_browser import Record, Watcher, chromium, first_presented, picture_before, serve
from benchmarks.live_report import Target, as_json, conditions, console, quantile, show, warn_if_busy, write
from rich.progress import Progress

from shotstream.bench import new_prompts

NAME = "live-latency"
STALL_MS = 125.0
PAUSE_S = (0.5, 1.25)
"""Between an instruction that was seen and the next: one chunk's length at random, so that all phases are as likely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """start, cut, steer: one instruction. chunk: one chunk's work. stall: one pause between pictures."""

    kind: str
    number: int
    at_ms: float
    """Page clock: the key press, the arrival, the picture before the pause."""
    latency_ms: float = math.nan
    """Key press to presentation time."""
    displayed_ms: float = math.nan
    """Key press to the expected display time."""
    gap_ms: float = math.nan
    """Between the picture before and the first one affected; of a stall, its length."""
    compute_ms: float = math.nan
    shot: int = -1
    chunk: int = -1
    outcome: str = ""
    """Of an instruction; of a stall whether it ended with a `cut` or came `within` a shot."""


@dataclass
class Log:
    """Everything recorded, and which instructions were given."""

    keys: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    sent: list[Record] = field(default_factory=list)
    appended: list[Record] = field(default_factory=list)
    pictures: list[Record] = field(default_factory=list)
    receipts: list[Record] = field(default_factory=list)
    instructions: list[tuple[str, str, float]] = field(default_factory=list)
    """Kind, id, time of the key press."""

    def drain(self, person: Watcher) -> None:
        """Take over what the page recorded, so that its own log stays short."""
        for name, found in person.drain().items():
            getattr(self, name).extend(found)


# ---------------------------------------------------------------------------------------------------------------------
# The session


class Session:
    """A person who directs in a fixed rhythm."""

    def __init__(self, person: Watcher, rng: random.Random, captions: Iterator[str]) -> None:
        self.person, self.rng, self.captions, self.log = person, rng, captions, Log()
        given = person.events("hello")[0]["preset"]["suggestions"]
        self.steers = itertools.cycle([text for text in given if text.startswith("Now")] or ["Now he looks surprised"])

    def direct(self, kind: str) -> None:
        """Give an instruction, wait until it is seen, and a random while longer."""
        text = next(self.steers) if kind == "steer" else next(self.captions)
        seen = self._num_receipts()
        pressed = self.person.direct(text, "Shift+Enter" if kind == "cut" else "Enter")
        sent = next(one["message"] for one in reversed(self.person.recorded("sent")) if one["message"]["kind"] == kind)
        self.log.instructions.append((kind, sent["id"], pressed))
        self.person.until(lambda: self._num_receipts() > seen)
        self.person.page.wait_for_timeout(1000 * self.rng.uniform(*PAUSE_S))
        self.log.drain(self.person)

    def stop(self) -> None:
        self.person.page.locator("#stop").click()
        self.person.page.get_by_role("button", name="End it").click()
        self.person.badge("Ready")
        self.person.page.wait_for_timeout(1000 * self.rng.uniform(*PAUSE_S))
        self.log.drain(self.person)

    def _num_receipts(self) -> int:
        return int(self.person.page.evaluate("window.recorded.receipts.length"))


def run(person: Watcher, *, count: int, starts: int, seed: int, preset: str) -> Log:
    """All instructions, the cold starts first; the last of them is gone on from."""
    session = Session(person, random.Random(seed), new_prompts(preset, seed))
    with Progress(console=console) as progress:
        task = progress.add_task("cold starts", total=starts)
        for number in range(starts):
            if number:
                session.stop()
            session.direct("start")
            progress.advance(task)
        task = progress.add_task("cuts and steers", total=2 * count)
        for _ in range(count):
            for kind in ("cut", "steer"):
                session.direct(kind)
                progress.advance(task)
    return session.log


# ---------------------------------------------------------------------------------------------------------------------
# Reading the log


def rows_of(log: Log, fps: int) -> list[Row]:
    """Everything that is worth keeping, in the order of kinds."""
    instructions = [_instruction(log, number, *given, fps) for number, given in enumerate(log.instructions)]
    return [*instructions, *_chunks(log), *_stalls(log, instructions)]


def _instruction(log: Log, number: int, kind: str, id: str, pressed: float, fps: int) -> Row:
    found = (one["message"] for one in log.events if one["message"]["kind"] == "ended" and one["message"]["id"] == id)
    ended = next(found, None)
    if ended is None or ended["outcome"] != "applied":
        return Row(kind=kind, number=number, at_ms=pressed, outcome=ended["outcome"] if ended else "unanswered")
    here = (ended["shot"], ended["chunk"], ended["first_frame"])
    later = (one for one in log.appended if one["when"] >= pressed)
    chunk = next((one for one in later if (one["shot"], one["chunk"], one["start"]) == here), None)
    shown = first_presented(log.pictures, chunk, fps) if chunk else None
    if shown is None:
        return Row(kind=kind, number=number, at_ms=pressed, outcome="not shown")
    before = picture_before(log.pictures, shown)
    return Row(
        kind=kind,
        number=number,
        at_ms=pressed,
        latency_ms=shown["when"] - pressed,
        displayed_ms=shown["shown"] - pressed,
        gap_ms=shown["when"] - before["when"] if before and kind != "start" else math.nan,
        shot=ended["shot"],
        chunk=ended["chunk"],
        outcome="applied",
    )


def _chunks(log: Log) -> list[Row]:
    made = [(one["when"], one["message"]) for one in log.events if one["message"]["kind"] == "chunk"]
    return [
        Row(kind="chunk", number=n, at_ms=at, compute_ms=m["compute_ms"], shot=m["shot"], chunk=m["chunk"])
        for n, (at, m) in enumerate(made)
    ]


def story_runs(log: Log) -> list[list[Record]]:
    """The pictures of every story, in runs: held or paused it has none to show, and goes on in another run."""
    starts = [pressed for kind, _, pressed in log.instructions if kind == "start"]
    spans = [span for story in zip(starts, [*starts[1:], math.inf], strict=True) for span in _running(log, *story)]
    return [[one for one in log.pictures if since <= one["when"] < until] for since, until in spans]


def _running(log: Log, begin: float, end: float) -> Iterator[tuple[float, float]]:
    """When the story that was started at `begin` ran, from its first chunk on."""
    since: float | None = next((one["when"] for one in log.appended if begin <= one["when"] < end), end)
    for when, state in _states(log, begin, end):
        if since is not None and state in ("idle", "holding", "paused"):
            yield since, when
            since = None
        elif since is None and state in ("live", "late"):
            since = when
        if state == "idle":
            return
    if since is not None:
        yield since, end


def _states(log: Log, begin: float, end: float) -> list[tuple[float, str]]:
    said = [(one["when"], one["message"]) for one in log.events if begin < one["when"] < end]
    return [(when, message["state"]) for when, message in said if message["kind"] == "status"]


def _stalls(log: Log, instructions: list[Row]) -> list[Row]:
    cuts = {row.at_ms + row.latency_ms for row in instructions if row.kind == "cut"}
    stalls: list[Row] = []
    for run in story_runs(log):
        for before, after in itertools.pairwise(run):
            gap = after["when"] - before["when"]
            if gap > STALL_MS:
                outcome = "cut" if after["when"] in cuts else "within"
                stalls.append(Row(kind="stall", number=len(stalls), at_ms=before["when"], gap_ms=gap, outcome=outcome))
    return stalls


def live_minutes(log: Log) -> float:
    """How long pictures ran."""
    return sum(float(run[-1]["when"] - run[0]["when"]) for run in story_runs(log) if run) / 60_000


def summary_of(rows: list[Row], minutes: float) -> tuple[dict[str, Any], list[Target]]:
    """Percentiles and what was aimed at."""
    seconds = {
        kind: [row.latency_ms / 1000 for row in rows if row.kind == kind and row.outcome == "applied"]
        for kind in ("start", "cut", "steer")
    }
    chunk_s = quantile([row.compute_ms / 1000 for row in rows if row.kind == "chunk" and row.chunk > 0], 0.5)
    stalls = [row for row in rows if row.kind == "stall"]
    kinds = {
        kind: {
            "count": len(values),
            "p50_s": quantile(values, 0.5),
            "p95_s": quantile(values, 0.95),
            "max_s": max(values, default=math.nan),
        }
        for kind, values in seconds.items()
    }
    targets = [
        Target("start, p95", kinds["start"]["p95_s"], 0.7),
        Target("cut, p95", kinds["cut"]["p95_s"], 0.7),
        Target("steer, p50", kinds["steer"]["p50_s"], 0.8),
        Target("steer, p95", kinds["steer"]["p95_s"], 0.75 + chunk_s + 0.2),
        Target("stalls a minute", len(stalls) / minutes if minutes else math.nan, 1.0, ""),
    ]
    return {
        **kinds,
        "not_applied": sum(row.outcome != "applied" for row in rows if row.kind in kinds),
        "chunk_median_s": chunk_s,
        "live_minutes": minutes,
        "stalls": {"total": len(stalls), "at_cuts": sum(row.outcome == "cut" for row in stalls), "over_ms": STALL_MS},
        "targets": as_json(targets),
    }, targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="cuts, and as many steers (default 100)")
    parser.add_argument("--starts", type=int, help="cold starts (default: three for every ten cuts)")
    parser.add_argument("--preset", default="storyworld")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write to docs/results instead of out/live")
    options = parser.parse_args()
    load, starts = warn_if_busy(), options.starts or max(2, round(0.3 * options.count))
    with chromium() as browser, serve("--preset", options.preset) as server:
        person = Watcher(browser, server, reads_barcodes=False)
        person.badge("Ready")
        fps = person.events("hello")[0]["preset"]["fps"]
        log = run(person, count=options.count, starts=starts, seed=options.seed, preset=options.preset)
        person.close()
    rows = rows_of(log, fps)
    summary, targets = summary_of(rows, live_minutes(log))
    write(NAME, rows, {**summary, **conditions(options.preset, load)}, record=options.record)
    show("From the key press to the picture", targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
