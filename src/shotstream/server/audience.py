"""Who watches a story, and what is still on its way to each of them.

Events are never left out. Chunks are: a viewer that has not acknowledged three of them gets only the newest once it
catches up, and is told about the gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

from shotstream.server.protocol import Gap, MediaHeader, pack_media, to_json
from shotstream.server.reader import KEPT_EVENTS

CREDITS = 3
"""Chunks that may be on their way to a viewer without having been acknowledged."""
MAX_BACKLOG = 2 * KEPT_EVENTS
"""A viewer that is so many events behind is disconnected; it can come back and resume. What is told on joining (every
kept event, `hello`, two segments) leaves as much again for what happens while it is on its way."""

Role = Literal["director", "watcher"]
Send = Callable[[str | bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Packet:
    """A chunk as it is sent to everybody."""

    header: MediaHeader
    payload: bytes

    def message(self, flags: int = 0) -> bytes:
        return pack_media(replace(self.header, flags=self.header.flags | flags), self.payload)


class Viewer:
    """One connection: what is still to be sent to it, and what it has acknowledged."""

    def __init__(self, id: str, role: Role, send: Send) -> None:
        self.id, self.role, self._send = id, role, send
        self.gaps = 0
        self._events: deque[str | bytes] = deque()
        self._unsent: deque[tuple[Packet, int]] = deque()
        self._unacknowledged: deque[int] = deque()
        self._something = asyncio.Event()
        self._too_much = asyncio.Event()

    @property
    def overrun(self) -> bool:
        """Whether too many events were waiting once: the connection is given up."""
        return self._too_much.is_set()

    def tell(self, *messages: str | bytes) -> None:
        """Send these, in order; they are never left out."""
        self._events.extend(messages)
        if len(self._events) > MAX_BACKLOG:
            self._too_much.set()
        self._something.set()

    def show(self, packet: Packet, flags: int = 0) -> None:
        """Send a chunk, if the viewer keeps up."""
        self._unsent.append((packet, flags))
        self._drop_what_is_too_much()
        self._something.set()

    def acknowledge(self, sequence: int) -> None:
        """The chunk with this number and all before it arrived."""
        while self._unacknowledged and self._unacknowledged[0] <= sequence:
            self._unacknowledged.popleft()
        self._something.set()

    async def run(self) -> None:
        """Send until cancelled, until the connection is lost, or until too much is waiting.

        The last is watched from beside: a send into a connection that nobody reads does not return.
        """
        sending, overrun = asyncio.ensure_future(self._send_all()), asyncio.ensure_future(self._too_much.wait())
        try:
            await asyncio.wait((sending, overrun), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            overrun.cancel()

    async def _send_all(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while (message := self._next()) is not None:
                await self._send(message)

    def _next(self) -> str | bytes | None:
        if self._events:
            return self._events.popleft()
        if self._unsent and len(self._unacknowledged) < CREDITS:
            packet, flags = self._unsent.popleft()
            self._unacknowledged.append(packet.header.sequence)
            return packet.message(flags)
        return None

    def _drop_what_is_too_much(self) -> None:
        """Without credits only the newest chunk waits; chunks before a break of the clock are void anyway."""
        credits = max(0, CREDITS - len(self._unacknowledged))
        newest = self._unsent[-1][0].header.epoch
        dropped = []
        while len(self._unsent) > max(1, credits) or self._unsent[0][0].header.epoch != newest:
            dropped.append(self._unsent.popleft()[0].header)
        if dropped:
            self.gaps += len(dropped)
            self.tell(
                to_json(
                    Gap(
                        first_sequence=dropped[0].sequence,
                        last_sequence=dropped[-1].sequence,
                        num_frames=sum(header.num_frames for header in dropped),
                    )
                )
            )
