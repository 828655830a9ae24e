"""Whether anybody ever sees a picture that is not live any more. The barcodes are read out of the video pixels.

`python -m benchmarks.live_stale [--count 50] [--record]`: the fake preset, the real server, encoder, socket and page.
Cuts at random phases: is an older picture shown after the first new one, and for how long does the picture stand still
before it? Then a second Chromium whose socket is not read for ten seconds: how old is the first picture it shows?
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.live_browser import Record, Server, Watcher, another, chromium, network_process, serve
from benchmarks.live_report import Target, as_json, conditions, console, quantile, show, warn_if_busy, write
from rich.progress import Progress

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAME = "live-stale"
PAUSE_S = (0.5, 1.25)
UNREAD_S = 10.0
SETTLE_S = 2.5
"""After the socket is read again, for what comes then to be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """cut: one cut. sleep: one viewer whose socket was not read."""

    kind: str
    number: int
    latency_ms: float = math.nan
    """Key press to the first picture of the new shot."""
    older_after: int = 0
    """Pictures of earlier shots that were shown after it."""
    freeze_ms: float = math.nan
    """The longest time without a new picture between the key press and the first of the new shot."""
    age_s: float = math.nan
    """How long before, elsewhere, the first picture was shown that a viewer saw after its sleep."""


# ---------------------------------------------------------------------------------------------------------------------
# Cuts


def cut(person: Watcher, rng: random.Random, number: int) -> Row:
    """Cut at a random phase and judge what was shown."""
    pressed = person.direct(f"number {number} of many wide shots", "Shift+Enter")
    person.until(lambda: person.pictures() and person.pictures()[-1]["shot"] >= number)
    person.page.wait_for_timeout(1000 * rng.uniform(*PAUSE_S))
    pictures = person.pictures()
    row = judge(pictures, pressed, number)
    person.page.evaluate("window.recorded.pictures.splice(0, window.recorded.pictures.length - 8)")
    return row


def judge(pictures: list[Record], pressed: float, number: int) -> Row:
    """Args: pictures with barcodes, in the order in which they were presented; number is the new shot's."""
    first = next(index for index, one in enumerate(pictures) if one["shot"] >= number)
    waits = [
        after["when"] - before["when"]
        for before, after in itertools.pairwise(pictures[: first + 1])
        if after["when"] > pressed
    ]
    return Row(
        kind="cut",
        number=number,
        latency_ms=pictures[first]["when"] - pressed,
        older_after=sum(one["shot"] < number for one in pictures[first:]),
        freeze_ms=max(waits, default=math.nan),
    )


# ---------------------------------------------------------------------------------------------------------------------
# A socket that is not read


def sleep(browser: Browser, server: Server, director: Watcher, number: int) -> Row:
    """Stop the process that reads a second Chromium's sockets for a while; its page and its player run on."""
    other = another(browser)
    try:
        viewer = Watcher(other, server)
        viewer.until(viewer.pictures)
        process = network_process(other)
        os.kill(process, signal.SIGSTOP)
        try:
            director.page.wait_for_timeout(1000 * UNREAD_S)
        finally:
            os.kill(process, signal.SIGCONT)
        woken = _wall(viewer, viewer.now())
        director.page.wait_for_timeout(1000 * SETTLE_S)
        return Row(kind="sleep", number=number, age_s=_age(director, viewer, woken))
    finally:
        other.close()


def _wall(person: Watcher, when: float) -> float:
    """The page clock on a clock that all pages share, ms."""
    return float(person.page.evaluate("performance.timeOrigin")) + when


def _age(director: Watcher, viewer: Watcher, woken: float) -> float:
    """How long before the director saw the picture that the viewer sees first after its sleep, seconds."""
    first = next(one for one in viewer.pictures() if _wall(viewer, one["when"]) > woken)
    place = (first["shot"], first["frame"])
    there = next(one for one in director.pictures() if (one["shot"], one["frame"]) >= place)
    return (_wall(viewer, first["when"]) - _wall(director, there["when"])) / 1000


# ---------------------------------------------------------------------------------------------------------------------


def run(browser: Browser, server: Server, *, count: int, sleeps: int, seed: int) -> list[Row]:
    person, rng = Watcher(browser, server), random.Random(seed)
    person.badge("Ready")
    person.direct("a fox walks along the beach")
    person.until(person.pictures)
    rows = []
    with Progress(console=console) as progress:
        task = progress.add_task("cuts", total=count)
        for number in range(1, count + 1):
            rows.append(cut(person, rng, number))
            progress.advance(task)
        person.send("extend", num_chunks=1000)
        task = progress.add_task("sockets that are not read", total=sleeps)
        for number in range(sleeps):
            rows.append(sleep(browser, server, person, number))
            progress.advance(task)
    person.close()
    return rows


def summary_of(rows: list[Row]) -> tuple[dict[str, Any], list[Target]]:
    cuts, sleeps = ([row for row in rows if row.kind == kind] for kind in ("cut", "sleep"))
    freezes = [row.freeze_ms for row in cuts]
    targets = [
        Target("older pictures after a cut", sum(row.older_after for row in cuts), 0, ""),
        Target("longest freeze before a cut shows", max(freezes), 250, "ms"),
        Target(
            "age of the first picture after 10 s unread, worst",
            max((row.age_s for row in sleeps), default=math.nan),
            2.0,
        ),
    ]
    return {
        "cuts": len(cuts),
        "freeze_p50_ms": quantile(freezes, 0.5),
        "freeze_p95_ms": quantile(freezes, 0.95),
        "cut_p50_s": quantile([row.latency_ms / 1000 for row in cuts], 0.5),
        "cut_p95_s": quantile([row.latency_ms / 1000 for row in cuts], 0.95),
        "sleeps": len(sleeps),
        "targets": as_json(targets),
    }, targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="cuts (default 50)")
    parser.add_argument("--sleeps", type=int, default=3, help="sockets that are not read for ten seconds (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write to docs/results instead of out/live")
    options = parser.parse_args()
    load = warn_if_busy()
    with chromium() as browser, serve("--preset", "fake") as server:
        rows = run(browser, server, count=options.count, sleeps=options.sleeps, seed=options.seed)
    summary, targets = summary_of(rows)
    write(NAME, rows, {**summary, **conditions("fake", load)}, record=options.record)
    show("Pictures that are not live any more", targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
