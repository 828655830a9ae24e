"""Does a long story cost more than a short one? Time to open it, to go on with it, memory while paused, storage.

`python -m benchmarks.long_story --record`, on an idle machine: a few minutes on two cores.

One story is filmed as fast as the engine can, through the worker and the store of the server, and goes back three times
to earlier shots. At every length that is asked about it is copied (`Store.duplicate`). Then, for every length, a server
of its own opens the copies, one after the other, as a page does; goes on with one; and pauses it again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.live_browser import Server, serve
from benchmarks.live_report import Target, as_json, conditions, console, show, warn_if_busy, write
from websockets.sync.client import ClientConnection, connect

from shotstream.engine.direction import DirectorConfig, Viewers, Written
from shotstream.engine.fake import FAKE, FakeConfig, FakeEngine
from shotstream.engine.loading import load
from shotstream.engine.stream import Engine
from shotstream.engine.worker import Worker
from shotstream.engine.writer import Composer, TemplateWriter
from shotstream.server import protocol as p
from shotstream.server.media import ChunkEncoder
from shotstream.server.store import Store, StoreConfig
from shotstream.story import CHUNKS_PER_SHOT

NAME = "long-story"
SHOTS = (
    "a fox in a red jacket walks along the beach",
    "wide shot of the city at night",
    "close-up of the fox, he looks surprised",
    "a bear dances in the snow",
)
BRANCHES = 3
COPIES = 3
WARM_UP = "warm-up"
"""Short stories, of which every server goes on with one first: what it takes once, for all, is in no measurement."""
SETTLE_S = 2.0
FILMED_FPS = 100_000
"""Of the story clock while filming: it never waits for what was made to be watched."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One opening of a story of so many shots."""

    shots: int
    copy: int
    takes: int
    video_s: float
    """Of all takes: what there is to keep."""
    stored_bytes: int
    hello_bytes: int
    """What a page is told when it joins."""
    open_ms: float
    """From the join until everything that a page draws has come."""
    start_s: float
    """From the start of the process until it could be joined; mostly the weights."""
    rss_before_mb: float
    """Of the server, warm, before any of them was opened."""
    rss_open_mb: float
    """With all copies open, paused."""
    resume_s: float
    """From `resume` until the next chunk was there."""
    rss_resumed_mb: float
    """After the first of them went on and was paused again."""


# ---------------------------------------------------------------------------------------------------------------------
# Filming


class Filming:
    """Directs one story of a store, without waiting for anybody to watch it."""

    def __init__(self, engine: Engine, store: Store, num_chunks: int) -> None:
        preset = engine.preset
        self.store, self.num_chunks, self.head = store, num_chunks, 0
        self._ids, self._woken = itertools.count(), threading.Event()
        self._texts = itertools.cycle(SHOTS)
        self._worker = Worker(
            engine,
            TemplateWriter(Composer(check=engine.check_caption, style=preset.caption_style)),
            ChunkEncoder(preset.width, preset.height, preset.fps).encode,
            config=DirectorConfig(fps=FILMED_FPS, expected_open_s=0.01, expected_chunk_s=0.01),
            wake=self._woken.set,
            archive=store.story(NAME),
        )
        self._worker.submit(Viewers(count=1))
        self._worker.start()

    def shot(self, number: int) -> None:
        """Film the next shot of the story to its end."""
        text = f"{next(self._texts)}, scene {number}"
        if number == 0:
            self._film(p.Start, text=text, seed=1, num_chunks=self.num_chunks)
        else:
            at = p.At(shot=number - 1, chunk=self.num_chunks)
            self._film(p.Cut, text=text, num_chunks=self.num_chunks, at=at)

    def branch(self, node: int) -> None:
        """Film another shot after an earlier take, and go back to where the story was."""
        head = self.head
        self._film(p.Branch, node=node, text=next(self._texts), num_chunks=self.num_chunks)
        self._worker.submit(p.Branch(id=self._id(), node=head))
        self.head = head

    def _film(self, cls: type[Any], **rest: Any) -> None:
        id = self._id()
        self._worker.submit(cls(id=id, **rest))
        self._worker.submit(Written(id=id, caption=rest["text"]))
        made = 0
        while made < self.num_chunks:
            self._woken.wait(0.05)
            self._woken.clear()
            self._worker.poll()
            for delivery in self._worker.take():
                event = delivery.event
                assert not (isinstance(event, p.Ended) and event.outcome == "failed"), event
                if isinstance(event, p.ShotOpened):
                    self.head, made = event.node, 0
                made += isinstance(event, p.ChunkReady) and event.node == self.head

    def _id(self) -> str:
        return f"film-{next(self._ids)}"

    def close(self) -> None:
        self._worker.close()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a folder holds of a story."""

    takes: int
    video_s: float
    stored_bytes: int


def film(engine: Engine, folder: Path, lengths: Sequence[int], num_chunks: int) -> dict[int, Kept]:
    """Leave copies of one story at every length in a folder: `shots-5-1`, `shots-5-2`, ... Returns what is kept."""
    store = Store(StoreConfig(folder=folder), engine.preset)
    filming, kept = Filming(engine, store, num_chunks), dict[int, Kept]()
    for number in range(max(lengths)):
        filming.shot(number)
        if 1 <= number <= BRANCHES:
            filming.branch(number)
        if number + 1 in lengths:
            console.print(f"filmed {number + 1} shots", highlight=False)
            for copy in range(1, COPIES + 1):
                store.duplicate(NAME, story_name(number + 1, copy))
            if number + 1 == min(lengths):
                for later in lengths:
                    store.duplicate(NAME, f"{WARM_UP}-{later}")
            kept[number + 1] = _kept(store, story_name(number + 1, 1))
    filming.close()
    store.close()
    return kept


def story_name(shots: int, copy: int) -> str:
    return f"shots-{shots}-{copy}"


def _kept(store: Store, name: str) -> Kept:
    archive = store.story(name)
    info, takes = archive.info(), archive.takes()
    video_s = sum(take.num_frames for take in takes) / info.fps
    return Kept(takes=len(takes), video_s=video_s, stored_bytes=info.bytes)


# ---------------------------------------------------------------------------------------------------------------------
# Opening


@contextmanager
def joined(server: Server, story: str) -> Iterator[tuple[ClientConnection, str]]:
    """A connection that has joined a story, and the `hello` as it came."""
    with connect(server.socket_url, max_size=None, compression=None) as socket:
        socket.send(p.to_json(p.Join(story=story)))
        hello = socket.recv(timeout=60)
        assert isinstance(hello, str)
        yield socket, hello


def go_on(socket: ClientConnection) -> float:
    """Resume a paused story, wait for its next chunk, and pause it again. Returns how many seconds it took."""
    socket.send(p.to_json(p.Extend(id="longer", num_chunks=2)))
    begun = time.monotonic()
    socket.send(p.to_json(p.Resume(id="go-on")))
    _wait(socket, lambda event: isinstance(event, p.ChunkReady))
    taken = time.monotonic() - begun
    socket.send(p.to_json(p.Pause(id="pause-again")))
    _wait(socket, lambda event: isinstance(event, p.Ended) and event.id == "pause-again")
    return taken


def stop(socket: ClientConnection) -> None:
    """Make room for another story."""
    socket.send(p.to_json(p.Stop(id="make-room")))
    _wait(socket, lambda event: isinstance(event, p.Ended) and event.id == "make-room")


def _wait(socket: ClientConnection, test: Callable[[p.ServerMessage], bool]) -> None:
    while True:
        message = socket.recv(timeout=60)
        if isinstance(message, str) and test(p.parse_event(message)[0]):
            return


def open_all(preset: str, folder: Path, shots: int, kept: Kept) -> list[Row]:
    """Start a server and open every copy of one length in it."""
    begun, opened = time.monotonic(), list[dict[str, Any]]()
    with serve("--preset", preset, "--data", str(folder), "--slots", "1") as server:
        start_s = time.monotonic() - begun
        for number in range(2):  # the first of everything takes longer
            with joined(server, f"empty-{number}"):
                pass
        with joined(server, f"{WARM_UP}-{shots}") as (socket, _):
            go_on(socket)
            stop(socket)
        before = settled_mb(server)
        for copy in range(1, COPIES + 1):
            begun = time.monotonic()
            with joined(server, story_name(shots, copy)) as (_, text):
                opened.append({"open_ms": 1000 * (time.monotonic() - begun), "hello_bytes": len(text.encode())})
        hello, _ = p.parse_event(text)
        assert isinstance(hello, p.Hello)
        assert (hello.snapshot.status.state, len(hello.snapshot.shots)) == ("paused", shots), hello.snapshot.status
        paused = settled_mb(server)
        resumed = math.nan
        for copy, one in enumerate(opened, start=1):
            with joined(server, story_name(shots, copy)) as (socket, _):
                one["resume_s"] = go_on(socket)
                resumed = settled_mb(server) if copy == 1 else resumed
                stop(socket)
    memory = {"rss_before_mb": before, "rss_open_mb": paused, "rss_resumed_mb": resumed}
    return [
        Row(shots=shots, copy=copy, **one, **asdict(kept), start_s=start_s, **memory)
        for copy, one in enumerate(opened, start=1)
    ]


def settled_mb(server: Server) -> float:
    """Resident memory once nothing happens any more."""
    time.sleep(SETTLE_S)
    return server.rss_mb


# ---------------------------------------------------------------------------------------------------------------------
# What it comes to


def summary_of(rows: Sequence[Row]) -> tuple[dict[str, Any], list[Target]]:
    """Per length, and how the longest story compares with the shortest."""
    lengths = sorted({row.shots for row in rows})
    by_length = [_at_length([row for row in rows if row.shots == shots]) for shots in lengths]
    first, last = by_length[0], by_length[-1]
    grown = by_length[-2] if len(by_length) > 1 else first
    more_shots = max(1, last["shots"] - first["shots"])
    later_bytes, later_s = last["stored_bytes"] - grown["stored_bytes"], last["video_s"] - grown["video_s"]
    targets = [
        Target("a longer story opens later by", last["open_ms"] - first["open_ms"], 50, "ms"),
        Target("goes on later by", last["resume_s"] - first["resume_s"], 0.5),
        Target(
            "a page is told more, per shot", (last["hello_bytes"] - first["hello_bytes"]) / more_shots / 1e3, 8, "kB"
        ),
        Target("takes more memory, paused", last["open_mb"] - first["open_mb"], 2, "MB"),
        # A picture (0.18 MB) and a caption of each of the newest 32 shots is remembered: this is bounded, not flat.
        Target("gone on with, per shot", (last["resumed_mb"] - first["resumed_mb"]) / more_shots, 1, "MB"),
        Target(
            "a minute of its last half against one of the shortest",
            later_bytes / max(later_s, 1e-9) / (first["stored_bytes"] / first["video_s"]),
            1.1,
            "times",
        ),
    ]
    return {"lengths": by_length, "branches": BRANCHES, "targets": as_json(targets)}, targets


def _at_length(rows: Sequence[Row]) -> dict[str, Any]:
    row = rows[0]
    return {
        "shots": row.shots,
        "takes": row.takes,
        "video_s": row.video_s,
        "stored_bytes": row.stored_bytes,
        "mb_per_minute": row.stored_bytes / 1e6 / (row.video_s / 60),
        "hello_bytes": row.hello_bytes,
        "open_ms": statistics.median(one.open_ms for one in rows),
        "start_s": row.start_s,
        "resume_s": statistics.median(one.resume_s for one in rows),
        "open_mb": (row.rss_open_mb - row.rss_before_mb) / len(rows),
        "resumed_mb": row.rss_resumed_mb - row.rss_open_mb,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 20, 40], help="lengths (default 5 10 20 40)")
    parser.add_argument("--chunks", type=int, default=CHUNKS_PER_SHOT, help="of every shot (default: a full one)")
    parser.add_argument("--preset", choices=("storyworld", "fake"), default="storyworld")
    parser.add_argument("--record", action="store_true", help="write to docs/results instead of out/live")
    options = parser.parse_args()
    if min(options.shots) <= BRANCHES:
        parser.error(f"--shots: a story of more than {BRANCHES} shots goes back {BRANCHES} times, got {options.shots}")
    load_before, rows = warn_if_busy(), list[Row]()
    engine: Engine = FakeEngine(FakeConfig()) if options.preset == FAKE.name else load(options.preset)
    with tempfile.TemporaryDirectory(prefix="shotstream-") as folder:
        kept = film(engine, Path(folder), options.shots, options.chunks)
        del engine
        for shots in sorted(kept):
            rows += open_all(options.preset, Path(folder), shots, kept[shots])
    summary, targets = summary_of(rows)
    write(NAME, rows, {**summary, **conditions(options.preset, load_before)}, record=options.record)
    for length in summary["lengths"]:
        console.print(", ".join(f"{name} {value:.4g}" for name, value in length.items()), highlight=False)
    show("A long story beside a short one", targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
