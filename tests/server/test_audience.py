"""What a viewer is still sent, and when it is given up."""

from __future__ import annotations

import asyncio

import pytest

from shotstream.server.audience import MAX_BACKLOG, Viewer
from shotstream.server.reader import KEPT_EVENTS

JOINING = ("hello", b"init", b"slate")
MISSED = ("event",) * KEPT_EVENTS


def viewer(sent: list[str | bytes]) -> Viewer:
    async def send(message: str | bytes) -> None:
        sent.append(message)

    return Viewer("v1", "watcher", send)


def test_who_missed_all_events_that_are_kept_is_told_all_of_them_and_stays() -> None:
    async def told() -> list[str | bytes]:
        sent: list[str | bytes] = []
        returning = viewer(sent)
        returning.tell(*JOINING, *MISSED)
        assert not returning.overrun
        sending = asyncio.create_task(returning.run())
        while len(sent) < len(JOINING) + len(MISSED):
            await asyncio.sleep(0)
        assert not sending.done()
        sending.cancel()
        return sent

    assert asyncio.run(told()) == [*JOINING, *MISSED]


def test_who_reads_nothing_while_events_pile_up_is_let_go() -> None:
    async def never(message: str | bytes) -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        slow = Viewer("v1", "watcher", never)
        sending = asyncio.create_task(slow.run())
        await asyncio.sleep(0)
        for _ in range(MAX_BACKLOG + 2):
            slow.tell("event")
        assert slow.overrun
        await asyncio.wait_for(sending, 5)

    asyncio.run(leave())


def test_a_connection_that_breaks_while_sending_says_so() -> None:
    async def broken(message: str | bytes) -> None:
        raise OSError("gone")

    async def leave() -> None:
        gone = Viewer("v1", "watcher", broken)
        gone.tell("event")
        await gone.run()

    with pytest.raises(OSError, match="gone"):
        asyncio.run(leave())
