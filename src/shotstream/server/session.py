"""A live story and the people who watch it.

Everything here runs on the event loop and computes nothing: commands go into the worker; what comes out is kept and
numbered already (`archive.py`), and is handed to every viewer (`audience.py`). A story that was kept from before opens
paused. What the stories of one server share, and who waits for a slot, is in `studio.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from shotstream.engine.archive import ArchiveError, Batch
from shotstream.engine.direction import NotWritten, Viewers, Written
from shotstream.engine.director import Director
from shotstream.engine.underway import text_of
from shotstream.engine.worker import Delivery, Worker
from shotstream.server.archive import StoryArchive
from shotstream.server.audience import Packet, Viewer
from shotstream.server.performer import INTERRUPTED, INTERRUPTIONS, Performer
from shotstream.server.playing import Playing
from shotstream.server.protocol import (
    PROTOCOL_VERSION,
    Accepted,
    Branch,
    Cancel,
    ChunkReady,
    Command,
    Cut,
    Ended,
    Error,
    Event,
    Hello,
    MediaFlag,
    MediaHeader,
    Metrics,
    Pending,
    Resume,
    Retake,
    ServerMessage,
    Start,
    Status,
    Steer,
    Stop,
    StorySnapshot,
    TreeChanged,
    Undo,
    to_json,
)

if TYPE_CHECKING:
    from shotstream.server.studio import Studio

log = logging.getLogger(__name__)

POLL_S = 0.05
METRICS_S = 2.0
ABANDONED_S = 30.0
"""A story that nobody has watched for so long gives its slot to one that somebody wants to begin."""

_NEEDS_A_SLOT = (Start, Resume, Branch, Retake, Undo)
_Written = Start | Cut | Steer | Branch
"""What a writer has to put into words."""


class Show:
    """One story: its archive, its worker once there is an engine, its viewers."""

    def __init__(self, name: str, studio: Studio) -> None:
        self.name, self._studio = name, studio
        self.viewers: set[Viewer] = set()
        self.worker: Worker | None = None
        self.archive = studio.store.story(name)
        saved = self.archive.load()
        self.seq = self.archive.seq
        self._packets: deque[Packet] = deque(maxlen=3)
        if saved.head is not None:
            with suppress(ArchiveError):  # its file is gone: one can still join, and branch from another take
                self._packets.append(_last_packet(self.archive, saved.head.take.node, saved.head.take.made_chunks - 1))
        self._snapshot = replace(Director(saved=saved).snapshot(0.0), status=studio.status)
        self._writing: asyncio.Queue[_Written] = asyncio.Queue()
        self._trouble = ""
        self._playing = Playing(self.archive, studio.broadcast.preset)
        self._latency_ms: float | None = None
        self._late_chunks = 0
        self._empty_since = studio.loop.time()
        self._tasks: list[asyncio.Task[None]] = []
        self._start(self._write())
        self._start(self._tick())

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        """Something that goes on until the story is closed."""
        task = self._studio.loop.create_task(job)
        task.add_done_callback(_report)
        self._tasks.append(task)

    # ---------------------------------------------------------------------------------------------------------- viewers

    def join(self, viewer: Viewer, resume_from: int | None) -> None:
        """Bring a viewer up to date and keep it so."""
        snapshot = self._look()
        missed = self._missed(resume_from)
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            viewer=viewer.id,
            story=self.name,
            role=viewer.role,
            seq=self.seq,
            replayed=len(missed),
            preset=self._studio.broadcast.preset,
            writer=self._studio.writer_name,
            snapshot=snapshot,
        )
        broadcast = self._studio.broadcast
        init = Packet(MediaHeader(flags=MediaFlag.INIT), broadcast.init_segment)
        slate = Packet(MediaHeader(flags=MediaFlag.SLATE, num_frames=broadcast.slate_frames), broadcast.slate)
        viewer.tell(to_json(hello), *missed, init.message(), slate.message())
        for packet in self._on_air(snapshot):
            viewer.show(packet, MediaFlag.LIVE_EDGE)
        self.viewers.add(viewer)
        self._count_viewers()

    def leave(self, viewer: Viewer) -> None:
        self.viewers.discard(viewer)
        self._studio.counters.gaps += viewer.gaps
        self._count_viewers()

    @property
    def is_live(self) -> bool:
        """Whether it takes a slot: it is running, and not just kept from before."""
        return self.worker is not None and self.worker.busy and not self.worker.dormant

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody has watched for a while."""
        return not self.viewers and self._studio.loop.time() - self._empty_since > ABANDONED_S

    def _count_viewers(self) -> None:
        self._empty_since = self._studio.loop.time()
        if self.worker is not None:
            self.worker.submit(Viewers(count=len(self.viewers)))

    def _missed(self, resume_from: int | None) -> list[str]:
        """The events after a number, or none where they are not kept so far back."""
        if resume_from is None or resume_from >= self.seq:
            return []
        return [message for seq, message in self.archive.events(resume_from) or () if seq <= self.seq]

    def _on_air(self, snapshot: StorySnapshot) -> list[Packet]:
        """What is on the screen now and after it; the last picture where the story stands still, none once it ended."""
        if not snapshot.shots or (self.worker is not None and not self.worker.busy):
            return []
        packets = [p for p in self._packets if p.header.epoch == self._packets[-1].header.epoch]
        clock = snapshot.status.clock_frame
        return [p for p in packets if p.header.start + p.header.num_frames > clock] or packets[-1:]

    # --------------------------------------------------------------------------------------------------------- commands

    def command(self, command: Command) -> Ended | None:
        """Take a command from a director. Returns what became of it where that is known at once.

        Raises ValueError for an id that was used before, ArchiveError while nothing can be kept.
        """
        queue = self._studio.queue
        if any(show is self and waiting.id == command.id for show, waiting in queue) or self.archive.knows(command.id):
            raise ValueError(f"id {command.id!r} was used before: every command needs an id of its own")
        self._empty_since = self._studio.loop.time()  # whoever gives commands is there
        if isinstance(command, INTERRUPTIONS):
            self.interrupt(INTERRUPTED)
        if self.worker is None and self._studio.status.state == "error":
            return self._answer(command, "failed", self._studio.status.detail)
        elif isinstance(command, _NEEDS_A_SLOT) and not self._studio.has_room_for(self):
            if any(show is self for show, _ in queue):
                return self._answer(command, "failed", "another command waits for a free slot already")
            queue.append((self, command))
            self._studio.announce_queue()
        elif isinstance(command, (Stop, Cancel)) and (waiting := self._waiting_start(command)) is not None:
            queue.remove((self, waiting))
            self._answer(waiting, "superseded", "cancelled")
            ended = self._answer(command, "applied", "")
            self._say([self._studio.status])
            self._studio.announce_queue()
            return ended
        elif self.worker is None:
            return self._answer(command, "failed", "there is no story yet: start it with its first shot")
        else:
            self.submit(command)
        return None

    @property
    def waiting(self) -> tuple[Command, ...]:
        """Commands of this story that wait for a free slot. Nothing is kept of them."""
        return tuple(command for show, command in self._studio.queue if show is self)

    def submit(self, command: Command) -> None:
        """Hand a command to the worker, and to the writer what needs words."""
        assert self.worker is not None
        self.worker.submit(command)
        if isinstance(command, (Start, Cut, Steer)) or (isinstance(command, Branch) and command.text.strip()):
            self._writing.put_nowait(command)

    def play(self, performer: Performer) -> None:
        """Play a story file live.

        Raises: ValueError, in words for people, where it cannot begin; ArchiveError while nothing can be kept.
        """
        if self.worker is None:
            raise ValueError("the engine is still loading: try again in a moment")
        if self.worker.busy:
            raise ValueError("a story is running here: stop it first, or play the file under another name")
        if not self._studio.has_room_for(self):
            raise ValueError("as many stories are live as may be: play the file when one of them is stopped or left")
        self._drain()  # what happened before is no concern of the performance
        self._playing.begin(self.worker, performer)

    def interrupt(self, reason: str) -> bool:
        """Let go of what is left of a story file that is played; the running shot goes on. Returns whether one was."""
        return self._playing.interrupt(self.worker, reason)

    def _waiting_start(self, command: Stop | Cancel) -> Command | None:
        for show, start in self._studio.queue:
            if show is self and (isinstance(command, Stop) or command.target == start.id):
                return start
        return None

    def refuse(self, command: Command, reason: str) -> None:
        """Accept a command and say at once why nothing comes of it."""
        self._answer(command, "failed", reason)

    def _answer(self, command: Command, outcome: Literal["applied", "superseded", "failed"], reason: str) -> Ended:
        ended = Ended(id=command.id, command=command.kind, outcome=outcome, reason=reason)
        self._say([Accepted(id=command.id, command=command.kind, text=text_of(command)), ended])
        return ended

    async def _write(self) -> None:
        """One instruction after the other: a later one builds on what became of those before it."""
        while True:
            command = await self._writing.get()
            worker, writer = self.worker, self._studio.writer
            if worker is None or writer is None:
                continue
            try:
                draft = await asyncio.to_thread(
                    writer.write, worker.scene(), command.text, opens=not isinstance(command, Steer)
                )
            except ValueError as error:
                worker.submit(NotWritten(id=command.id, reason=str(error)))
                continue
            except Exception as error:
                # The last frame of this task: without it nothing that is asked for later would be written either.
                log.exception("the writer failed")
                reason = f"the writer failed: {type(error).__name__}: {error}"[:300]
                worker.submit(NotWritten(id=command.id, reason=reason))
                continue
            worker.submit(Written(id=command.id, caption=draft.caption, replaces=draft.replaces, notice=draft.notice))

    # ----------------------------------------------------------------------------------------------------------- events

    def begin(self, worker: Worker) -> None:
        """There is an engine now."""
        self.worker = worker
        self._snapshot = StorySnapshot(status=self._snapshot.status)  # it knows better from now on
        worker.start()
        self._count_viewers()
        snapshot = self._look()
        if worker.dormant:
            self._say([snapshot.status])
        self._start(self._playing.take_up(worker, snapshot))

    def wake(self) -> None:
        """Called by the worker, from any thread."""
        with suppress(RuntimeError):  # the loop is closing
            self._studio.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self.worker is not None:
            self._send(self.worker.take())

    def _look(self) -> StorySnapshot:
        if self.worker is None:
            return self._with_queue(self._snapshot)
        deliveries, snapshot = self.worker.look()
        self._send(deliveries)
        snapshot = self._with_queue(replace(snapshot, performance=self._playing.performance))
        waiting = self._studio.is_waiting(self)
        live = self.worker.busy and not (self.worker.dormant and waiting)
        if live or (snapshot.status.state == "error" and not waiting):
            return snapshot
        return replace(snapshot, status=self._studio.status_of(self))

    def _with_queue(self, snapshot: StorySnapshot) -> StorySnapshot:
        """What waits for a slot is pending too, though no director has heard of it."""
        commands = [command for show, command in self._studio.queue if show is self]
        waiting = (Pending(id=one.id, command=one.kind, text=text_of(one)) for one in commands)
        return replace(snapshot, pending=(*snapshot.pending, *waiting))

    def _say(self, events: Sequence[Event]) -> None:
        """Announce what the worker does not: in its turn, and kept like everything else."""
        if self.worker is not None:
            self.worker.say(events)
            return
        try:
            first = self.archive.record(Batch(events=events))
        except ArchiveError as error:
            log.error("%s", error)
            first = self.archive.number(events)
        self._send([Delivery(event, seq=seq) for seq, event in enumerate(events, start=first)])

    def _send(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self.seq = delivery.seq
            message = to_json(delivery.event, seq=delivery.seq)
            for viewer in self.viewers:
                viewer.tell(message)
            self._note(delivery)

    def _note(self, delivery: Delivery) -> None:
        event, counters = delivery.event, self._studio.counters
        if self.worker is not None:
            self._playing.note(self.worker, event)
        if isinstance(event, Ended):
            counters.commands[event.command, event.outcome] += 1
            self._studio.room_may_be_free()
        elif isinstance(event, Status) and self.worker is None:
            self._snapshot = replace(self._snapshot, status=event)
        elif isinstance(event, Status) and event.state in ("idle", "error"):
            self._studio.room_may_be_free()
        elif isinstance(event, ChunkReady):
            counters.chunks += 1
            self._latency_ms = event.latency_ms if event.latency_ms is not None else self._latency_ms
            self._show(event, delivery.media)
        elif isinstance(event, TreeChanged) and event.shots and event.head is not None and not event.opening:
            with suppress(ArchiveError):  # its file is gone: the next chunk is seen all the same
                self._broadcast(_last_packet(self.archive, event.head, event.shots[-1].made_chunks - 1))

    def _show(self, event: ChunkReady, media: bytes) -> None:
        fresh = not self._packets or self._packets[-1].header.epoch != event.epoch
        header = MediaHeader(
            flags=MediaFlag.NEW_EPOCH if fresh else 0,
            num_frames=event.num_frames,
            shot=event.shot,
            chunk=event.chunk,
            take=event.take,
            sequence=event.sequence,
            epoch=event.epoch,
            start=event.start,
        )
        self._broadcast(Packet(header, media))

    def _broadcast(self, packet: Packet) -> None:
        self._packets.append(packet)
        for viewer in self.viewers:
            viewer.show(packet)

    async def _tick(self) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(POLL_S)
            worker = self.worker
            if worker is None:
                continue
            worker.poll()
            self._playing.give(worker)
            self._tell_trouble(worker.trouble)
            if count % round(METRICS_S / POLL_S) == 0:
                self._studio.room_may_be_free()
            if worker.busy and count % round(METRICS_S / POLL_S) == 0:
                self._measure(worker)

    def _tell_trouble(self, reason: str) -> None:
        if reason and reason != self._trouble:
            self.tell_all(Error(code="unavailable", message=reason))
        self._trouble = reason

    def _measure(self, worker: Worker) -> None:
        late = worker.late_chunks
        self._studio.counters.late_chunks += max(0, late - self._late_chunks)
        self._late_chunks = late
        median = worker.chunk_s(0.5)
        metrics = Metrics(
            frames_per_second=round(self._studio.broadcast.preset.chunk_frames / max(median, 1e-6), 1),
            chunk_ms_p50=round(median * 1000, 1),
            chunk_ms_p95=round(worker.chunk_s(0.95) * 1000, 1),
            encode_ms_p50=round(worker.encode_s * 1000, 1),
            late_chunks=late,
            viewers=len(self.viewers),
            instruction_ms=self._latency_ms,
        )
        self.tell_all(metrics)

    def tell_all(self, message: ServerMessage) -> None:
        """Something that is no event of the story."""
        text = to_json(message)
        for viewer in self.viewers:
            viewer.tell(text)

    def set_status(self, status: Status) -> None:
        """What the server says while the story itself is not running."""
        if self.worker is None or not self.worker.busy or self._studio.is_waiting(self):
            self._say([status])

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.worker is not None:
            await asyncio.to_thread(self.worker.close)


def _last_packet(archive: StoryArchive, node: int, chunk: int) -> Packet:
    """The last chunk of where a kept story goes on, so that everybody sees where it is before the next one is made."""
    take, stored = archive.take(node).take, archive.chunks(node)[chunk]
    header = MediaHeader(
        flags=MediaFlag.NEW_EPOCH,
        num_frames=stored.num_frames,
        shot=take.shot,
        chunk=chunk,
        take=take.take,
        sequence=stored.sequence,
        epoch=stored.epoch,
        start=stored.start,
    )
    return Packet(header, archive.media(node, chunk))


def _report(task: asyncio.Task[None]) -> None:
    """A task that should never end did."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a story's task failed", exc_info=error)
