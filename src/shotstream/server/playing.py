"""The story file that one story plays: gives its commands in time, and goes on with it after a restart of the server.

The performer knows what comes next; here it meets the worker and the archive. What is needed to go on is kept before
anybody hears that a file is played, and forgotten before anybody hears that it is played no more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from shotstream.engine.archive import ArchiveError
from shotstream.engine.direction import Dropped
from shotstream.engine.worker import Worker
from shotstream.server.archive import StoryArchive
from shotstream.server.performer import Performer, go_on
from shotstream.server.protocol import Event, Performance, PerformanceChanged, PresetInfo, StorySnapshot
from shotstream.server.records import RESTARTED

log = logging.getLogger(__name__)


class Playing:
    """At most one performance at a time. Called on the event loop only."""

    def __init__(self, archive: StoryArchive, preset: PresetInfo) -> None:
        self._archive, self._preset = archive, preset
        self._performer: Performer | None = None
        self._left = archive.performance
        """The note of a performance that a server left behind, until it is taken up."""
        self._is_kept = bool(self._left)

    @property
    def performance(self) -> Performance | None:
        """What is being played."""
        return self._performer.performance if self._performer is not None else None

    def begin(self, worker: Worker, performer: Performer) -> None:
        """Play a story file from its beginning. Raises ArchiveError while nothing can be kept."""
        _give_next(worker, performer)
        self._archive.keep_performance(performer.note)
        self._performer, self._is_kept = performer, True
        worker.say([PerformanceChanged(performance=performer.performance)])
        self.give(worker)

    async def take_up(self, worker: Worker, snapshot: StorySnapshot) -> None:
        """Go on with what a server left behind; like its story, it waits until somebody resumes."""
        note, goes_on = self._left, worker.dormant  # now: it may have been resumed until the file is read
        if not note:
            return
        card = snapshot.shots[-1] if snapshot.shots else None
        newest = (card.shot, card.made_chunks - 1) if card is not None else (0, 0)
        first, others = self._preset.first_chunk_frames, self._preset.chunk_frames
        try:
            given = await asyncio.to_thread(self._archive.commands)
            performer = await asyncio.to_thread(go_on, note, given, newest, first_frames=first, chunk_frames=others)
        except (ValueError, ArchiveError) as error:
            log.error("the story file that was played is not gone on with: %s", error)
            self._left = ""
            return
        if not self._left:  # a director took over meanwhile
            return
        self._left, self._performer = "", performer
        if goes_on:
            worker.say([PerformanceChanged(performance=performer.performance)])
            self.give(worker)
        else:  # nothing of it was on air yet, or the story was stopped
            self._end(worker, performer, RESTARTED)

    def interrupt(self, worker: Worker | None, reason: str) -> bool:
        """Let go of what is left of it; the running shot goes on. Returns whether there was anything."""
        performer, was_left, self._left = self._performer, bool(self._left), ""
        if performer is not None and worker is not None:
            self._end(worker, performer, reason)
        self._forget()
        return performer is not None or was_left

    def give(self, worker: Worker) -> None:
        """Give the commands whose time it is. To be called a few times a second."""
        if self._performer is None and not self._left:
            self._forget()  # where that could not be written down before
        with suppress(ArchiveError):  # nothing can be kept at present: they are given when it can
            while self._performer is not None and self._performer.has_next:
                _give_next(worker, self._performer)

    def note(self, worker: Worker, event: Event) -> None:
        """Take in what happened."""
        performer = self._performer
        if performer is None or not performer.note_event(event):
            return
        performance = performer.performance
        if performance.state == "playing":
            worker.say([PerformanceChanged(performance=performance)])
        else:
            self._end(worker, performer, performance.reason)

    def _end(self, worker: Worker, performer: Performer, reason: str) -> None:
        self._performer = None
        self._forget()
        if performer.performance.state != "finished":
            worker.submit(Dropped(ids=performer.withdraw(reason), reason=reason))
        worker.say([PerformanceChanged(performance=performer.performance)])

    def _forget(self) -> None:
        if self._is_kept:
            with suppress(ArchiveError):
                self._archive.keep_performance("")
                self._is_kept = False


def _give_next(worker: Worker, performer: Performer) -> None:
    """Its captions stay as they were written."""
    step = performer.next()
    worker.submit(step.command)
    performer.gave(step)
    for written in step.written:
        worker.submit(written)
