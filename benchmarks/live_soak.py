"""Ten minutes live: do pictures keep coming, does memory stay flat, does everybody who joins see the story at once?

`python -m benchmarks.live_soak [--minutes 10] [--record]`: the real weights, the server in a process of its own, one
Chromium that watches, a director who cuts every few seconds, and twenty viewers over plain sockets who join at random.
Each of these decodes its first picture, and keeps a hash of every chunk.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from benchmarks.live_browser import Server, Watcher, chromium, serve
from benchmarks.live_report import Target, as_json, conditions, console, quantile, show, warn_if_busy, write
from rich.progress import Progress
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from shotstream.bench import new_prompts
from shotstream.server.protocol import Ack, Join, MediaFlag, to_json, unpack_media

NAME = "live-soak"
CUT_EVERY_S = 4.2
"""Before a shot has run its length, so that the story never waits for direction."""
SAMPLE_S = 2.0
STAY_S = (15.0, 60.0)
WARM_SHARE = 0.15
"""Of the time, during which memory may still grow to its size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """minute: pictures presented; memory: one sample; viewer: one who joined."""

    kind: str
    number: int
    at_s: float
    frames_per_s: float = math.nan
    """Distinct pictures presented in Chromium."""
    rss_mb: float = math.nan
    first_frame_s: float = math.nan
    """From opening the connection to the first decoded picture that is on air."""
    num_chunks: int = 0
    """That a viewer received."""
    differing: int = 0
    """Chunks of which a viewer got other bytes than somebody else."""


class Viewer(threading.Thread):
    """Joins over a plain socket, acknowledges, leaves after a while."""

    def __init__(self, server: Server, begun: float, stay_s: float) -> None:
        super().__init__(daemon=True)
        self.server, self.begun, self.stay_s = server, begun, stay_s
        self.joined_at = self.first_frame_s = math.nan
        self.hashes: dict[int, str] = {}
        self._init = b""

    def run(self) -> None:
        start = time.monotonic()
        self.joined_at = start - self.begun
        with connect(self.server.socket_url, max_size=None, compression=None) as socket:
            socket.send(to_json(Join()))
            while (left := start + self.stay_s - time.monotonic()) > 0:
                try:
                    message = socket.recv(timeout=left)
                except (TimeoutError, ConnectionClosed):
                    return
                if isinstance(message, bytes) and (sequence := self._take(message, start)) is not None:
                    socket.send(to_json(Ack(sequence=sequence)))

    def _take(self, message: bytes, start: float) -> int | None:
        header, payload = unpack_media(message)
        if header.flags & MediaFlag.INIT:
            self._init = payload
        if header.flags & (MediaFlag.INIT | MediaFlag.SLATE):
            return None
        if not self.hashes:
            with av.open(io.BytesIO(self._init + payload)) as file:
                next(file.decode(video=0))
            self.first_frame_s = time.monotonic() - start
        self.hashes[header.sequence] = hashlib.sha256(payload).hexdigest()
        return header.sequence


@dataclass
class Soak:
    """One long session."""

    server: Server
    person: Watcher
    seconds: float
    num_viewers: int
    rng: random.Random
    captions: Iterator[str]
    rows: list[Row] = field(default_factory=list)
    viewers: list[Viewer] = field(default_factory=list)
    shown: list[tuple[float, float]] = field(default_factory=list)
    """Time since the beginning and media time of every picture presented."""

    def run(self) -> list[Row]:
        self.person.direct(next(self.captions))
        self.person.until(lambda: self.person.recorded("pictures"))
        begun, origin = time.monotonic(), self.person.now()
        joins = sorted(self.rng.uniform(0.02, 0.9) * self.seconds for _ in range(self.num_viewers))
        next_cut, next_sample = CUT_EVERY_S, 0.0
        with Progress(console=console) as progress:
            task = progress.add_task("live", total=self.seconds)
            while (now := time.monotonic() - begun) < self.seconds:
                progress.update(task, completed=now)
                if now >= next_cut and self.person.connected():
                    self.person.send("cut", text=next(self.captions))
                    next_cut = now + CUT_EVERY_S
                if now >= next_sample:
                    self._sample(now, origin)
                    next_sample = now + SAMPLE_S
                while joins and now >= joins[0]:
                    joins.pop(0)
                    self._join(begun)
                self.person.page.wait_for_timeout(50)
        self._sample(self.seconds, origin)
        for viewer in self.viewers:
            viewer.join(STAY_S[1] + 5)
        return [*self._minutes(), *self.rows, *self._joined()]

    def _join(self, begun: float) -> None:
        viewer = Viewer(self.server, begun, self.rng.uniform(*STAY_S))
        self.viewers.append(viewer)
        viewer.start()

    def _sample(self, now: float, origin: float) -> None:
        self.rows.append(Row(kind="memory", number=len(self.rows), at_s=now, rss_mb=self.server.rss_mb))
        pictures = self.person.drain()["pictures"]
        self.shown += [((one["when"] - origin) / 1000, one["mediaTime"]) for one in pictures]

    def _minutes(self) -> list[Row]:
        return [
            Row(kind="minute", number=minute, at_s=begin, frames_per_s=rate)
            for minute, (begin, rate) in enumerate(rates(self.shown, self.seconds))
        ]

    def _joined(self) -> list[Row]:
        differing = differences([viewer.hashes for viewer in self.viewers])
        return [
            Row(
                kind="viewer",
                number=number,
                at_s=viewer.joined_at,
                first_frame_s=viewer.first_frame_s,
                num_chunks=len(viewer.hashes),
                differing=different,
            )
            for number, (viewer, different) in enumerate(zip(self.viewers, differing, strict=True))
        ]


def rates(shown: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """Beginning of each minute, and distinct pictures a second in it; the last minute may be shorter."""
    found = []
    for begin in np.arange(0, seconds, 60.0).tolist():
        length = min(60.0, seconds - begin)
        distinct = {place for when, place in shown if begin <= when < begin + length}
        found.append((begin, len(distinct) / length))
    return found


def differences(hashes: list[dict[int, str]]) -> list[int]:
    """For each viewer how many of its chunks have other bytes than the first who got them saw."""
    first: dict[int, str] = {}
    for sequence, digest in itertools.chain.from_iterable(one.items() for one in hashes):
        first.setdefault(sequence, digest)
    return [sum(first[sequence] != digest for sequence, digest in one.items()) for one in hashes]


def slope_mb_per_minute(samples: list[Row], seconds: float) -> float:
    """A straight line through the memory samples after the beginning."""
    later = [(row.at_s / 60, row.rss_mb) for row in samples if row.at_s >= WARM_SHARE * seconds]
    if len(later) < 2:
        return math.nan
    minutes, megabytes = zip(*later, strict=True)
    return float(np.polyfit(minutes, megabytes, 1)[0])


def summary_of(rows: list[Row], seconds: float, fps: int) -> tuple[dict[str, Any], list[Target]]:
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    firsts = [row.first_frame_s if math.isfinite(row.first_frame_s) else math.inf for row in kinds["viewer"]]
    targets = [
        Target(
            "pictures missing a second, worst minute", fps - min(row.frames_per_s for row in kinds["minute"]), 1.0, ""
        ),
        Target("memory, growth a minute", slope_mb_per_minute(kinds["memory"], seconds), 1.0, "MB"),
        Target("first picture after joining, worst", max(firsts, default=math.nan), 1.0),
        Target("chunks with other bytes", sum(row.differing for row in kinds["viewer"]), 0, ""),
    ]
    return {
        "minutes": seconds / 60,
        "frames_per_s": [row.frames_per_s for row in kinds["minute"]],
        "viewers": len(firsts),
        "first_frame_p50_s": quantile(firsts, 0.5),
        "rss_mb": [kinds["memory"][0].rss_mb, kinds["memory"][-1].rss_mb],
        "targets": as_json(targets),
    }, targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=20, help="viewers who join (default 20)")
    parser.add_argument("--preset", default="storyworld")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write to docs/results instead of out/live")
    options = parser.parse_args()
    load, rng = warn_if_busy(), random.Random(options.seed)
    captions = new_prompts("storyworld", options.seed)
    with chromium() as browser, serve("--preset", options.preset) as server:
        person = Watcher(browser, server, reads_barcodes=False)
        person.badge("Ready")
        fps = person.events("hello")[0]["preset"]["fps"]
        rows = Soak(server, person, 60 * options.minutes, options.count, rng, captions).run()
        reconnections = person.num_connections() - 1
        person.close()
    summary, targets = summary_of(rows, 60 * options.minutes, fps)
    write(
        NAME,
        rows,
        {**summary, "reconnections": reconnections, **conditions(options.preset, load)},
        record=options.record,
    )
    show("Live for long", targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
