"""A server that is killed again and again, and a client that remembers what it was told.

Run as a program it is the stage: a process that has the weights loaded and forks a server whenever it is asked to, so
that a restart takes no time. Who asks (`Stage`, in another process) kills it: at a named point, where the server stands
still until it is dead, or at any moment. Afterwards `inspect` films every story anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READY_S = 300.0

POINTS = ("denoise", "mid-write", "before-commit", "after-commit", "before-announce", "cut", "retake")
"""Where a server can be made to stand still: inside a chunk, while bytes are written, around the commit of a
transaction, when it is kept but nobody was told, when a shot is about to be opened, when a retake is."""


# ---------------------------------------------------------------------------------------------------------------------
# In the process that asks


class Stage:
    """The process with the weights. Use it as a context manager."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.load = self._read()["load"]

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def serve(self, folder: Path, point: str = "", count: int = 1) -> Life:
        """A server that stands still when it comes to a named point for the `count`-th time; none: it runs on."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pid = self._ask(do="serve", folder=str(folder), port=port, point=point, count=count)["pid"]
        return Life(pid, port, self._read)

    def inspect(self, folder: Path) -> dict[str, Any]:
        """What is in a folder, and what is different from the same story filmed anew; no server may run."""
        return self._ask(do="inspect", folder=str(folder))

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the stage ended: what it said is on stderr")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Life:
    """One server from its start to its violent end."""

    def __init__(self, pid: int, port: int, read: Callable[[], dict[str, Any]]) -> None:
        self._pid, self.port, self._read = pid, port, read

    def wait_for_point(self) -> str:
        """Returns where it stands still."""
        point: str = self._read()["reached"]
        return point

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        while "dead" not in self._read():
            pass


@dataclass
class Witness:
    """A client that keeps what it was told, over all lives."""

    shas: dict[int, str] = field(default_factory=dict)
    """Of media, by sequence."""
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(node, chunk) by sequence."""
    accepted: set[str] = field(default_factory=set)
    endings: dict[str, str] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    seq: int | None = None
    head: int = 0
    _socket: Any = None

    def join(self, port: int) -> Any:
        """Connect, as soon as the server answers and its engine is ready; returns `hello`."""
        from websockets.sync.client import connect

        from shotstream.server import protocol as p

        end = time.monotonic() + READY_S
        while True:
            try:
                self._socket = connect(f"ws://127.0.0.1:{port}/ws", max_size=None, compression=None)
                break
            except OSError:
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.02)
        self._socket.send(p.to_json(p.Join(resume_from=self.seq)))
        hello = self.receive()
        assert isinstance(hello, p.Hello), hello
        self.head = hello.snapshot.head or 0
        status = hello.snapshot.status
        while status.state in ("loading", "warming"):
            event = self.receive()
            status = event if isinstance(event, p.Status) else status
        return hello, status

    def give(self, cls: type[Any], **rest: Any) -> str:
        from websockets.exceptions import ConnectionClosed

        from shotstream.server import protocol as p

        id = uuid.uuid4().hex
        with suppress(ConnectionClosed):
            self._socket.send(p.to_json(cls(id=id, **rest)))
        return id

    def receive(self, timeout: float = READY_S) -> Any:
        """One message, noted. Raises EOFError when the server is gone, TimeoutError."""
        from websockets.exceptions import ConnectionClosed

        from shotstream.server import protocol as p

        try:
            message = self._socket.recv(timeout)
        except ConnectionClosed as error:
            raise EOFError from error
        if isinstance(message, bytes):
            header, payload = p.unpack_media(message)
            if not header.flags & (p.MediaFlag.INIT | p.MediaFlag.SLATE):
                self._note(self.shas, header.sequence, hashlib.sha256(payload).hexdigest())
                with suppress(ConnectionClosed):  # this was the last that a dead server sent
                    self._socket.send(p.to_json(p.Ack(sequence=header.sequence)))
            return header
        event, seq = p.parse_event(message)
        self.seq = seq if seq is not None else self.seq
        match event:
            case p.Accepted():
                self.accepted.add(event.id)
            case p.Ended():
                self._note(self.endings, event.id, event.outcome)
            case p.ChunkReady():
                self._note(self.places, event.sequence, (event.node, event.chunk))
                self.head = event.node
        return event

    def _note(self, notes: dict[Any, Any], key: Any, value: Any) -> None:
        if notes.setdefault(key, value) != value:
            self.contradictions.append(f"{key}: {notes[key]} and {value}")

    def drain(self) -> None:
        """Everything that was sent before the server died."""
        try:
            while True:
                self.receive(timeout=10)
        except (EOFError, OSError):
            return

    def compare(self, found: dict[str, Any]) -> list[str]:
        """Where what it was told is not what is there."""
        wrong = [*self.contradictions, *found["differences"]]
        for sequence, sha in self.shas.items():
            place = self.places.get(sequence)
            if place is not None and found["media"].get(f"{place[0]}/{place[1]}") != sha:
                wrong.append(f"chunk {place} is not what was sent")
        for sequence, place in self.places.items():
            if f"{place[0]}/{place[1]}" not in found["media"]:
                wrong.append(f"chunk {place}, sequence {sequence}, was announced and is gone")
        outcomes = dict(found["commands"])
        wrong += [f"command {id} was accepted and is gone" for id in self.accepted - outcomes.keys()]
        wrong += [f"command {id} has no ending" for id, outcome in outcomes.items() if not outcome]
        wrong += [
            f"command {id} was said to be {outcome} and is {outcomes.get(id)}"
            for id, outcome in self.endings.items()
            if outcomes.get(id) != outcome
        ]
        return wrong


# ---------------------------------------------------------------------------------------------------------------------
# In the stage


def _stage() -> None:
    from shotstream.engine.loading import load
    from shotstream.engine.worker import warm_up
    from shotstream.server.media import ChunkEncoder

    load_before = os.getloadavg()[0]
    engine = load("storyworld", device="cpu")
    encoder = ChunkEncoder(engine.preset.width, engine.preset.height)
    pace = warm_up(engine, encoder.encode, num_chunks=3)
    _say(load=load_before)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "inspect":
            _say(**_inspect(engine, Path(order["folder"])))
        else:
            _serve_and_watch(engine, pace, order)


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _serve_and_watch(engine: Any, pace: Any, order: dict[str, Any]) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _serve(engine, pace, order, writing)
        finally:
            os._exit(1)
    os.close(writing)
    _say(pid=pid)
    while os.read(reading, 1):
        _say(reached=order["point"])
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    _say(dead=status)


def _serve(engine: Any, pace: Any, order: dict[str, Any], writing: int) -> None:
    import uvicorn

    from shotstream.server import app as server
    from shotstream.server.store import StoreConfig

    left = [order["count"]]

    def reached(point: str) -> None:
        if point != order["point"]:
            return
        left[0] -= 1
        if left[0] == 0:
            os.write(writing, b"!")
            time.sleep(3600)  # the process is killed here

    server.warm_up = lambda *_: pace  # type: ignore[assignment]
    config = server.ServeConfig(preset=engine.preset, data=StoreConfig(folder=Path(order["folder"])), slots=1)
    app = server.create_app(config, lambda: engine, reached=reached)
    uvicorn.run(app, host="127.0.0.1", port=order["port"], log_level="error", ws_per_message_deflate=False)


def _inspect(engine: Any, folder: Path) -> dict[str, Any]:
    from shotstream.server.store import Store, StoreConfig

    store = Store(StoreConfig(folder=folder), engine.preset)
    archive = store.story("main")
    archive.load()
    takes = archive.takes()
    media = {
        f"{take.take.node}/{chunk.chunk}": hashlib.sha256(archive.media(chunk.node, chunk.chunk)).hexdigest()
        for take in takes
        for chunk in archive.chunks(take.take.node)
    }
    lengths = {take.take.node: take.num_frames for take in takes}
    covered = {
        take.take.parent
        for take in takes
        if take.take.parent is not None and (take.take.parent_frames or 0) >= lengths[take.take.parent]
    }
    differences: list[str] = []
    refilmed = 0
    for take in takes:
        if take.take.node not in covered:  # the way to what follows it holds all of it
            for difference in _refilm(engine, archive, take.take.node):
                differences += [difference] if difference else []
                refilmed += 1
    found = {
        "media": media,
        "commands": [(command.id, command.outcome) for command in archive.commands()],
        "takes": len(takes),
        "refilmed": refilmed,
        "differences": differences,
    }
    store.close()
    return found


def _refilm(engine: Any, archive: Any, node: int) -> Iterator[str]:
    """Film the way to a take anew, offline; yields for every chunk how it differs, or nothing."""
    import numpy as np

    from shotstream.server.media import ChunkEncoder
    from shotstream.story import Steer

    path = archive.path(node)
    encoder = ChunkEncoder(engine.preset.width, engine.preset.height)
    stream = engine.stream(seed=path[0].take.seed, global_caption=path[0].take.global_caption)
    aired = None
    for shot in path:
        chunks, frames = archive.chunks(shot.take.take.node), 0
        steers = [Steer(chunk=0, caption=caption) for caption in chunks[0].steers]
        number = shot.take.take.take
        stream.cut(chunks[0].shot_caption, num_chunks=10_000, steers=steers, take=number, aired_frames=aired)
        aired, before = shot.num_frames, chunks[0]
        for stored in chunks:
            if frames >= shot.num_frames:
                break
            if (stored.shot_caption, stored.steers) != (before.shot_caption, before.steers):
                stream.rewrite(stored.shot_caption, stored.steers)
            chunk, before = next(stream), stored
            frames += stored.num_frames
            same = np.array_equal(archive.latent(stored.node, stored.chunk), chunk.latent[0].numpy())
            same = same and chunk.caption == stored.caption
            same = same and encoder.encode(chunk.frames) == archive.media(stored.node, stored.chunk)
            yield "" if same else f"take {stored.node} chunk {stored.chunk} is another when it is filmed anew"


if __name__ == "__main__":
    _stage()
