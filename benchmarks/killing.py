"""A server that is killed again and again, and a client that remembers what it was told.

Run as a program it is the stage: a process that has the weights loaded and forks a server whenever it is asked to, so
that a restart takes no time. Who asks (`Stage`, in another process) kills it: at a named point, where the server stands
still until it is dead, or at any moment. Afterwards `last_life` fetches everything over REST, and `inspect` exports the
story, films the file anew, and compares latents, frames and media.
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
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READY_S = 300.0
STORY = "main"
SHOWN = "shown.txt"
"""In the folder of the stories: what was encoded, and to what."""

POINTS = ("denoise", "mid-write", "before-commit", "after-commit", "before-announce", "cut", "retake")
"""Where a server can be made to stand still: inside a chunk, while bytes are written, around the commit of a
transaction, when it is kept but nobody was told, when a shot is about to be opened, when a retake is."""
COMMITS = ("before-commit", "after-commit", "before-announce")


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
        self._life: Life | None = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        if self._life is not None and self._life.is_alive:  # something went wrong
            self._life.kill()
        self._process.stdin.close()
        self._process.wait(30)

    def serve(self, folder: Path, point: str = "", count: int = 1) -> Life:
        """A server that stands still when it comes to a named point for the `count`-th time; none: it runs on."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pid = self._ask(do="serve", folder=str(folder), port=port, point=point, count=count)["pid"]
        self._life = Life(pid, port, self._read)
        return self._life

    def inspect(self, folder: Path) -> dict[str, Any]:
        """What is in a folder, and what is different from the exported story filmed anew; no server may run."""
        return self._ask(do="inspect", folder=str(folder))

    def last_life(self, folder: Path) -> dict[str, str]:
        """The hashes of all media of the story, fetched over REST from a server that is then killed, too."""
        life = self.serve(folder)
        fetched = fetch_hashes(life.port)
        life.kill()
        return fetched

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
        self.is_alive = True

    def wait_for_point(self) -> str:
        """Returns where it stands still."""
        point: str = self._read()["reached"]
        return point

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.is_alive = False
        while "dead" not in self._read():
            pass


def fetch_hashes(port: int) -> dict[str, str]:
    """SHA-256 of every chunk as REST gives it, by "take/chunk". Raises AssertionError where REST contradicts itself."""
    takes = f"http://127.0.0.1:{port}/api/stories/{STORY}/takes"
    _fetch_when_up(takes)
    found = {}
    for take in json.loads(_fetch(takes)):
        chunks = f"{takes}/{take['node']}/chunks"
        for card in json.loads(_fetch(f"{chunks}?sha256=1")):
            sha = hashlib.sha256(_fetch(f"{chunks}/{card['chunk']}")).hexdigest()
            assert sha == card["sha256"], f"take {take['node']} chunk {card['chunk']} is not what its hash says"
            found[f"{take['node']}/{card['chunk']}"] = sha
    return found


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def _fetch_when_up(url: str) -> None:
    end = time.monotonic() + READY_S
    while True:
        try:
            _fetch(url)
            return
        except ConnectionError:
            pass
        except OSError as error:
            if not isinstance(getattr(error, "reason", None), ConnectionError):
                raise
        assert time.monotonic() < end, "the server does not answer"
        time.sleep(0.02)


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

    def compare(self, found: dict[str, Any], fetched: dict[str, str]) -> list[str]:
        """Where what it was told is not what is there, or what REST gives."""
        wrong = [*self.contradictions, *found["differences"]]
        if fetched != found["media"]:
            wrong.append("over REST there are other chunks than in the folder")
        for sequence, sha in self.shas.items():
            place = self.places.get(sequence)
            if place is not None and fetched.get(f"{place[0]}/{place[1]}") != sha:
                wrong.append(f"chunk {place} is not what was sent")
        for sequence, place in self.places.items():
            if f"{place[0]}/{place[1]}" not in fetched:
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
    import uvicorn.protocols.http.auto
    import uvicorn.protocols.websockets.auto  # noqa: F401 - everything that a server imports, once for all of them

    import shotstream.server.app  # noqa: F401
    from shotstream.engine.loading import load
    from shotstream.engine.worker import warm_up
    from shotstream.server.media import ChunkEncoder

    load_before = os.getloadavg()[0]
    engine = load("storyworld", device="cpu")
    encoder = ChunkEncoder(engine.preset.width, engine.preset.height)
    pace = warm_up(engine, encoder.encode, num_chunks=2)
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
    from shotstream.server.security import SecurityConfig
    from shotstream.server.store import StoreConfig

    left, begun = [order["count"]], set[str]()

    def reached(point: str) -> None:
        begun.add(point)
        if point != order["point"] or (point in COMMITS and "denoise" not in begun):
            return  # commits before the first chunk was begun are of commands alone
        left[0] -= 1
        if left[0] == 0:
            os.write(writing, b"!")
            time.sleep(3600)  # the process is killed here

    folder = Path(order["folder"])
    server.warm_up = lambda *_: pace  # type: ignore[assignment]
    server.ChunkEncoder = _noting(server.ChunkEncoder, folder / SHOWN)  # type: ignore[misc]
    security = SecurityConfig(requests_per_s=10_000, commands_per_s=10_000)
    config = server.ServeConfig(preset=engine.preset, data=StoreConfig(folder=folder), slots=1, security=security)
    app = server.create_app(config, lambda: engine, reached=reached)
    uvicorn.run(app, host="127.0.0.1", port=order["port"], log_level="error", ws_per_message_deflate=False)


def _noting(encoder: type[Any], path: Path) -> type[Any]:
    """An encoder that writes down what it encodes, before anybody can have it."""

    class Noting(encoder):  # type: ignore[misc]
        def encode(self, frames: Any) -> bytes:
            media: bytes = super().encode(frames)
            with path.open("a", encoding="ascii") as file:
                file.write(f"{hashlib.sha256(media).hexdigest()} {_frames_hash(frames)}\n")
            return media

    return Noting


def _inspect(engine: Any, folder: Path) -> dict[str, Any]:
    from shotstream.server.store import Store, StoreConfig

    store = Store(StoreConfig(folder=folder), engine.preset)
    archive = store.story(STORY)
    archive.load()
    takes = archive.takes()
    differences = list(_generated_anew(engine, archive, _shown(folder)))
    found = {
        "media": {
            f"{chunk.node}/{chunk.chunk}": hashlib.sha256(archive.media(chunk.node, chunk.chunk)).hexdigest()
            for take in takes
            for chunk in archive.chunks(take.take.node)
        },
        "commands": [(command.id, command.outcome) for command in archive.commands()],
        "takes": len(takes),
        "refilmed": len(differences),
        "differences": [difference for difference in differences if difference],
    }
    store.close()
    return found


def _generated_anew(engine: Any, archive: Any, shown: dict[str, str]) -> Iterator[str]:
    """Export a story with every take as far as it was made, and film that file offline, as `shotstream generate` does.

    Args: shown has the hash of the frames that were encoded, by the hash of what they were encoded to.
    Yields for every chunk how it differs, or nothing.
    """
    import numpy as np

    from shotstream.engine.retelling import retell
    from shotstream.server.export import Clip, story
    from shotstream.server.media import ChunkEncoder
    from shotstream.story import parse_story, story_yaml

    takes = {take.take.node: take for take in archive.takes()}
    clips = [Clip(take=take, num_frames=take.num_frames, chunks=archive.chunks(node)) for node, take in takes.items()]
    stored = iter([chunk for clip in clips for chunk in clip.chunks])
    encoder = ChunkEncoder(engine.preset.width, engine.preset.height)
    exported = parse_story(story_yaml(story(archive, clips)))
    for made in retell(engine, exported):
        chunk = next(stored)
        media = archive.media(chunk.node, chunk.chunk)
        same = np.array_equal(archive.latent(chunk.node, chunk.chunk), made.latent[0].numpy())
        same = same and made.caption == chunk.caption
        same = same and shown.get(hashlib.sha256(media).hexdigest()) == _frames_hash(made.frames)
        same = same and encoder.encode(made.frames) == media
        yield "" if same else f"take {chunk.node} chunk {chunk.chunk} is another when it is filmed anew"
    for chunk in stored:
        yield f"take {chunk.node} chunk {chunk.chunk} is missing when it is filmed anew"


def _frames_hash(frames: Any) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _shown(folder: Path) -> dict[str, str]:
    """The hash of the frames of every chunk that was encoded, in all lives, by the hash of its media."""
    lines = (folder / SHOWN).read_text(encoding="ascii").split("\n")
    return {media: frames for media, _, frames in (line.partition(" ") for line in lines if len(line) == 129)}


if __name__ == "__main__":
    _stage()
    sys.stdout.flush()
    os._exit(0)  # taking the model apart takes seconds
