"""A live story and the people who watch it.

Everything here runs on the event loop and computes nothing: commands go into the worker; what comes out is kept and
numbered already (`archive.py`), and is handed to every viewer. A story that was kept from before opens paused. Events
are never left out. Chunks are: a viewer that has not acknowledged three of them gets only the newest once it catches
up, and is told about the gap.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shotstream.engine.archive import ArchiveError, Batch
from shotstream.engine.direction import DirectorConfig, NotWritten, Viewers, Written
from shotstream.engine.director import Director
from shotstream.engine.stream import Engine
from shotstream.engine.turns import Turn
from shotstream.engine.worker import Delivery, Encode, Pace, Worker
from shotstream.engine.writer import Writer
from shotstream.server.archive import StoryArchive
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
    Gap,
    Hello,
    MediaFlag,
    MediaHeader,
    Metrics,
    PresetInfo,
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
    pack_media,
    to_json,
)
from shotstream.server.store import Store

log = logging.getLogger(__name__)

CREDITS = 3
"""Chunks that may be on their way to a viewer without having been acknowledged."""
MAX_BACKLOG = 4096
"""A viewer that is so many events behind is disconnected; it can come back and resume."""
POLL_S = 0.05
METRICS_S = 2.0
ABANDONED_S = 30.0
"""A story that nobody has watched for so long gives its slot to one that somebody wants to begin."""
REAL_TIME_RATE = 21.0
"""Frames per second of work that one live story is given: 16, and air for cuts."""

_NEEDS_A_SLOT = (Start, Resume, Branch, Retake, Undo)
_Written = Start | Cut | Steer | Branch
"""What a writer has to put into words."""

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
        self.overrun = False
        """Too many events are waiting: the connection should be closed."""
        self._events: deque[str | bytes] = deque()
        self._unsent: deque[tuple[Packet, int]] = deque()
        self._unacknowledged: deque[int] = deque()
        self._something = asyncio.Event()

    def tell(self, *messages: str | bytes) -> None:
        """Send these, in order; they are never left out."""
        self._events.extend(messages)
        self.overrun = self.overrun or len(self._events) > MAX_BACKLOG
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
        """Send until cancelled, or until the connection is lost."""
        while not self.overrun:
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


@dataclass
class Counters:
    """For /metrics; they only go up."""

    commands: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and outcome."""
    chunks: int = 0
    late_chunks: int = 0
    gaps: int = 0
    joins: int = 0
    refused: int = 0


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What every story of a server sends in the same form."""

    preset: PresetInfo
    init_segment: bytes
    slate: bytes
    slate_frames: int
    new_encoder: Callable[[], Encode]


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

    def command(self, command: Command) -> None:
        """Take a command from a director.

        Raises ValueError for an id that was used before, ArchiveError while nothing can be kept.
        """
        queue = self._studio.queue
        if any(show is self and waiting.id == command.id for show, waiting in queue) or self.archive.knows(command.id):
            raise ValueError(f"id {command.id!r} was used before: every command needs an id of its own")
        self._empty_since = self._studio.loop.time()  # whoever gives commands is there
        if isinstance(command, INTERRUPTIONS):
            self.interrupt(INTERRUPTED)
        if self.worker is None and self._studio.status.state == "error":
            self._answer(command, "failed", self._studio.status.detail)
        elif isinstance(command, _NEEDS_A_SLOT) and not self._studio.has_room_for(self):
            if any(show is self for show, _ in queue):
                self._answer(command, "failed", "another command waits for a free slot already")
                return
            queue.append((self, command))
            self._studio.announce_queue()
        elif isinstance(command, (Stop, Cancel)) and (waiting := self._waiting_start(command)) is not None:
            queue.remove((self, waiting))
            self._answer(waiting, "superseded", "cancelled")
            self._answer(command, "applied", "")
            self._say([self._studio.status])
            self._studio.announce_queue()
        elif self.worker is None:
            self._answer(command, "failed", "there is no story yet: start it with its first shot")
        else:
            self.submit(command)

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

    def _answer(self, command: Command, outcome: Literal["applied", "superseded", "failed"], reason: str) -> None:
        text = command.text if isinstance(command, (Start, Cut, Steer, Branch)) else ""
        self._say(
            [
                Accepted(id=command.id, command=command.kind, text=text),
                Ended(id=command.id, command=command.kind, outcome=outcome, reason=reason),
            ]
        )

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
            return self._snapshot
        deliveries, snapshot = self.worker.look()
        self._send(deliveries)
        snapshot = replace(snapshot, performance=self._playing.performance)
        live = self.worker.busy and not (self.worker.dormant and self._studio.is_waiting(self))
        return snapshot if live or snapshot.status.state == "error" else self._with_queue(snapshot)

    def _with_queue(self, snapshot: StorySnapshot) -> StorySnapshot:
        return replace(snapshot, status=self._studio.status_of(self))

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


class Studio:
    """All live stories of one server: the engine they share, the slots there are, who waits for one."""

    def __init__(
        self,
        broadcast: Broadcast,
        store: Store,
        *,
        writer_name: str,
        max_stories: int = 16,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.broadcast, self.store = broadcast, store
        self.writer_name, self._max_stories, self._reached = writer_name, max_stories, reached
        self.loop = asyncio.get_running_loop()
        self.status = Status(state="loading")
        self.shows: dict[str, Show] = {}
        self.queue: list[tuple[Show, Command]] = []
        self.counters = Counters()
        self.slots = 0
        self.writer: Writer | None = None
        self._engine: Engine | None = None
        self._pace: Pace | None = None
        self.turn = Turn()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def engine(self) -> Engine | None:
        """None until it is warm."""
        return self._engine

    def show(self, name: str) -> Show:
        """The story of this name.

        Raises: ValueError where there are too many already, ArchiveError if it cannot be read.
        """
        if name not in self.shows:
            if len(self.shows) >= self._max_stories:
                self._forget_one()
            self.shows[name] = Show(name, self)
            self._equip(self.shows[name])
        return self.shows[name]

    def _forget_one(self) -> None:
        for name, show in self.shows.items():
            if not show.viewers and not show.is_live:
                self._forget(name)
                return
        raise ValueError(f"there are {self._max_stories} stories already: join one of them")

    def _forget(self, name: str) -> None:
        """Whoever asks for this story gets it from the store again."""
        show = self.shows.pop(name)
        if show.worker is not None:
            show.worker.end()
        closing = self.loop.create_task(show.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def set_status(self, status: Status) -> None:
        """Loading, warming, ready, or why not."""
        self.status = status
        for show in self.shows.values():
            show.set_status(status)

    def fail(self, reason: str) -> None:
        """There will be no engine."""
        self.set_status(Status(state="error", detail=reason[:500]))
        for show, start in self.queue:
            show.refuse(start, reason)
        self.queue.clear()

    def open(self, engine: Engine, writer: Writer, pace: Pace, slots: int | None = None) -> None:
        """The engine is warm: let the stories run."""
        self._engine, self._pace, self.writer, self.writer_name = engine, pace, writer, writer.name
        self.slots = slots or max(1, int(pace.frames_per_second / REAL_TIME_RATE))
        for show in self.shows.values():
            self._equip(show)
        self.set_status(Status(state="idle"))
        self.room_may_be_free()

    def _equip(self, show: Show) -> None:
        if self._engine is None or self._pace is None or self.writer is None:
            return
        preset = self.broadcast.preset
        config = DirectorConfig(
            fps=preset.fps,
            first_frames=preset.first_chunk_frames,
            chunk_frames=preset.chunk_frames,
            shot_chunks=preset.chunks_per_shot,
            expected_open_s=self._pace.open_s,
            expected_chunk_s=self._pace.chunk_s,
        )
        encode = self.broadcast.new_encoder()
        try:
            worker = Worker(
                self._engine,
                self.writer,
                encode,
                config=config,
                wake=show.wake,
                turn=self.turn,
                archive=show.archive,
                reached=self._reached,
            )
        except ArchiveError as error:
            show.set_status(Status(state="error", detail=str(error)))
            return
        show.begin(worker)

    # ------------------------------------------------------------------------------------------------------------ slots

    def has_room_for(self, show: Show) -> bool:
        """Whether a story may run: it is running already, or a slot is free and nobody waits for it."""
        if show.is_live:
            return True
        return show.worker is not None and self._num_live() < self.slots and not self.queue

    def _num_live(self) -> int:
        return sum(show.is_live for show in self.shows.values())

    def is_waiting(self, show: Show) -> bool:
        """Whether a story waits for a slot."""
        return any(waiting is show for waiting, _ in self.queue)

    def room_may_be_free(self) -> None:
        """Let those who wait begin, in order."""
        if self.queue:
            self.loop.call_soon(self._admit)

    def _admit(self) -> None:
        self._end_unwatched()
        admitted = False
        while self.queue and self._num_live() < self.slots:
            show, start = self.queue.pop(0)
            if self.shows.get(show.name) is not show:  # it was deleted meanwhile
                continue
            with suppress(ValueError, ArchiveError):  # its id was used, or the disk is full: the others go on
                if show.worker is not None and not show.is_abandoned:
                    show.submit(start)
                    admitted = True
                else:
                    show.refuse(start, "nobody was there any more when its turn came: give it again")
        if admitted:
            self.announce_queue()

    def _end_unwatched(self) -> None:
        """Somebody waits: a story that nobody watches gives its slot away, and opens paused when it is wanted again."""
        for name, show in list(self.shows.items()):
            if self.queue and self.slots and show.is_live and show.is_abandoned:
                self._forget(name)

    def status_of(self, show: Show) -> Status:
        """What to tell the viewers of a story that is not running."""
        for position, (waiting, _) in enumerate(self.queue, start=1):
            if waiting is show and self.slots:
                detail = f"{self.slots} {'story is' if self.slots == 1 else 'stories are'} live already"
                return Status(state="queued", queue_position=position, detail=detail)
        return self.status

    def announce_queue(self) -> None:
        for show, _ in self.queue:
            show.set_status(self.status_of(show))
        self.room_may_be_free()

    def unauthorized(self) -> str:
        """Count a refusal; what to answer."""
        self.counters.refused += 1
        return to_json(Error(code="unauthorized", message="this server needs its token, or a watch link", fatal=True))

    async def close(self) -> None:
        await asyncio.gather(*(show.close() for show in self.shows.values()))
        self.store.close()


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
