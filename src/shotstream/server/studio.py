"""All live stories of one server: the engine they share, the slots there are, who waits for one."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from shotstream.engine.archive import ArchiveError
from shotstream.engine.direction import DirectorConfig
from shotstream.engine.stream import Engine
from shotstream.engine.turns import Turn
from shotstream.engine.worker import Encode, Pace, Worker
from shotstream.engine.writer import Writer
from shotstream.server.protocol import Command, Error, PresetInfo, Status, to_json
from shotstream.server.session import Show
from shotstream.server.store import Store

log = logging.getLogger(__name__)

REAL_TIME_RATE = 21.0
"""Frames per second of work that one live story is given: 16, and air for cuts."""


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
