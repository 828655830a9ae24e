"""A server with an engine that draws barcodes, and a client that speaks the protocol."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketTestSession

from shotstream.engine.fake import FAKE, FakeConfig, FakeEngine
from shotstream.server import protocol as p
from shotstream.server.app import ServeConfig, create_app
from shotstream.server.security import SecurityConfig

ADDRESS = "http://127.0.0.1:8000"
SOCKET = "ws://127.0.0.1:8000/ws"
PRESET = replace(FAKE, height=96, width=160)
SLOTS = 2
TOKEN = "a-token-of-twenty-ch"

_ids = itertools.count()


def free_port() -> int:
    """On which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Person:
    """A viewer over a test connection, who acknowledges what arrives."""

    def __init__(self, session: WebSocketTestSession) -> None:
        self.session = session
        self.events: list[tuple[Any, int | None]] = []
        self.media: list[tuple[p.MediaHeader, bytes]] = []
        self.acknowledges = True

    def join(self, **rest: Any) -> p.Hello:
        self.send(p.Join(**rest))
        return self.wait(p.Hello)

    def send(self, message: p.ClientMessage) -> None:
        self.session.send_text(p.to_json(message))

    def give(self, cls: type[Any], **rest: Any) -> str:
        id = f"t{next(_ids)}"
        self.send(cls(id=id, **rest))
        return id

    def receive(self) -> Any:
        message = self.session.receive()
        if message["type"] == "websocket.close":
            raise ConnectionError(message.get("code"))
        if message.get("text") is not None:
            event, seq = p.parse_event(message["text"])
            self.events.append((event, seq))
            return event
        header, payload = p.unpack_media(message["bytes"])
        self.media.append((header, payload))
        if self.acknowledges and not header.flags & (p.MediaFlag.INIT | p.MediaFlag.SLATE):
            self.send(p.Ack(sequence=header.sequence))
        return header

    def wait(self, kind: type[Any], test: Callable[[Any], bool] = lambda event: True, seconds: float = 20) -> Any:
        """The next message of this kind that passes a test; what came before is kept in `events`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.receive()
            if isinstance(message, kind) and test(message):
                return message
        raise AssertionError(f"no {kind.__name__} in {seconds} s: {[type(e).__name__ for e, _ in self.events]}")

    def ended(self, id: str) -> p.Ended:
        for event, _ in self.events:
            if isinstance(event, p.Ended) and event.id == id:
                return event
        ended: p.Ended = self.wait(p.Ended, lambda event: event.id == id)
        return ended

    def chunk_media(self) -> list[tuple[p.MediaHeader, bytes]]:
        return [(h, b) for h, b in self.media if not h.flags & (p.MediaFlag.INIT | p.MediaFlag.SLATE)]


class House:
    """A running server."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def enter(self, **headers: str) -> Any:
        """A connection, as a context manager."""
        return self.client.websocket_connect(SOCKET, headers=headers)

    def wait_until_ready(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while self.client.get("/readyz").status_code != 200:
            assert time.monotonic() < end, self.client.get("/readyz").json()
            time.sleep(0.02)


def open_house(*, chunk_ms: float = 30, **security: Any) -> Iterator[House]:
    config = ServeConfig(preset=PRESET, security=SecurityConfig(**security), slots=SLOTS)
    app = create_app(config, lambda: FakeEngine(FakeConfig(chunk_ms=chunk_ms, open_ms=5, preset=PRESET)))
    with TestClient(app, base_url=ADDRESS, client=("127.0.0.1", 50000)) as client:
        house = House(client)
        house.wait_until_ready()
        yield house


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Open to this machine, without a token."""
    yield from open_house()


@pytest.fixture(scope="module")
def guarded_house() -> Iterator[House]:
    """Others can reach it; it has a token."""
    yield from open_house(host="0.0.0.0", token=TOKEN)
