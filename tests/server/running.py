"""A real server in a thread, for clients that need a real connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import uvicorn
from websockets.sync.client import connect

from shotstream.engine.fake import FAKE, FakeConfig, FakeEngine
from shotstream.engine.stream import Engine
from shotstream.presets import Preset
from shotstream.server import protocol as p
from shotstream.server.app import ServeConfig, create_app
from shotstream.server.security import SecurityConfig
from shotstream.server.store import StoreConfig

PRESET = replace(FAKE, height=96, width=160)


def fake_engine() -> Engine:
    return FakeEngine(FakeConfig(chunk_ms=40, open_ms=5, preset=PRESET))


@contextmanager
def running(
    *,
    preset: Preset = PRESET,
    engine: Callable[[], Engine] = fake_engine,
    token: str = "",
    data: StoreConfig | None = None,
    slots: int = 12,
) -> Iterator[str]:
    """Serve; gives the address."""
    security = SecurityConfig(token=token, requests_per_s=10_000, commands_per_s=10_000)
    app = create_app(ServeConfig(preset=preset, security=security, slots=slots, data=data), engine)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        _wait_until_ready(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def _wait_until_ready(url: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server does not get ready")


class Person:
    """Directs a story over the socket."""

    def __init__(self, url: str, story: str, token: str = "") -> None:
        self.socket = connect(url.replace("http", "ws") + "/ws", max_size=None, compression=None)
        self.media: list[tuple[p.MediaHeader, bytes]] = []
        self._count = 0
        self.socket.send(p.to_json(p.Join(story=story, token=token)))

    def give(self, cls: type, **rest: object) -> str:
        self._count += 1
        id = f"{id_of(self)}-{self._count}"
        self.socket.send(p.to_json(cls(id=id, **rest)))
        return id

    def wait(self, test: Callable[[object], bool], seconds: float = 30) -> object:
        """The next event that passes a test; chunks are acknowledged and kept."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.socket.recv(timeout=seconds)
            if isinstance(message, str):
                event, _ = p.parse_event(message)
                if test(event):
                    return event
                continue
            header, payload = p.unpack_media(message)
            if not header.flags & (p.MediaFlag.INIT | p.MediaFlag.SLATE):
                self.media.append((header, payload))
                self.socket.send(p.to_json(p.Ack(sequence=header.sequence)))
        raise AssertionError(f"nothing came in {seconds} s")

    def applied(self, id: str) -> None:
        ended = self.wait(lambda event: isinstance(event, p.Ended) and event.id == id)
        assert isinstance(ended, p.Ended)
        assert ended.outcome == "applied", ended.reason

    def hold(self) -> None:
        self.wait(lambda event: isinstance(event, p.Status) and event.state == "holding")

    def leave(self) -> None:
        self.socket.close()


def id_of(person: Person) -> str:
    return f"{id(person):x}"
