"""What a story's archive is asked to keep, and what it gives back, so that a stream can be made anew.

The worker hands every batch of events over *before* anybody hears of them: log, then announce. `server/archive.py`
keeps them in files; a worker without an archive forgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.direction import Place, Planned, Saved
from shotstream.engine.memory import FrameId, MemoryFrame
from shotstream.engine.messages import Branch, Command, Event, Retake, Undo
from shotstream.engine.stream import KeptShot


class ArchiveError(Exception):
    """Something cannot be kept, or not be found again; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class ChunkData:
    """What is kept of a chunk besides its event."""

    caption: str
    """Of its shot, and the steers in force, as they were written; the event has what the encoder saw of them."""
    steers: tuple[str, ...]
    latent: NDArray[np.float32]
    """[F, C, h, w]"""
    media: bytes
    """As it is sent: one fMP4 fragment."""


@dataclass(frozen=True, kw_only=True)
class OpeningData:
    """What is kept of a shot besides its event."""

    seed: int
    global_caption: str
    context: tuple[MemoryFrame, ...]
    """The frames it remembers, in order."""
    kept: tuple[MemoryFrame, ...]
    """Every frame of the shot before it that any later cut may ask for."""
    plan: tuple[Planned, ...] = ()
    """What it says later, since it is a retake."""


@dataclass(frozen=True, kw_only=True)
class MemoryEdit:
    """A `memory` command that took effect, when so many chunks of a take had been on air."""

    command: str
    """Its id."""
    node: int | None
    chunk: int
    action: Literal["pin", "remove", "add"]
    id: FrameId
    frame: MemoryFrame | None = None
    """For pin and add."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Events that belong together, and what has to be kept along with them."""

    events: Sequence[Event]
    command: Command | None = None
    """The one that was accepted."""
    openings: Mapping[int, OpeningData] = field(default_factory=dict)
    """By the number of the shot: for every `shot_opened`."""
    chunks: Mapping[tuple[int, int], ChunkData] = field(default_factory=dict)
    """By shot and chunk: for every `chunk`."""
    edit: MemoryEdit | None = None


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a stream is made from that goes on at some place of a story."""

    seed: int
    global_caption: str
    shots: tuple[tuple[MemoryFrame, ...], ...]
    """Of each earlier shot, oldest first, the frames that memory kept when the next one was opened."""
    edits: tuple[MemoryEdit, ...] = ()
    running: KeptShot | None = None
    """The shot that goes on, or is cut at its end; none: a new one follows `shots`."""


class Archive(Protocol):
    """Keeps one story. Every method may be called from any thread."""

    def load(self) -> Saved:
        """What is kept so far. Commands that had not ended are ended, as failed."""
        ...

    def prepare(self, opening: OpeningData) -> None:
        """Do the slow part of keeping a shot's pictures, before a lock is held for `record`."""
        ...

    def record(self, batch: Batch) -> int:
        """Keep a batch, all of it or nothing. Returns the number of its first event. Raises ArchiveError."""
        ...

    def number(self, events: Sequence[Event]) -> int:
        """Number events that are not kept. Returns the number of the first."""
        ...

    def locate(self, command: Branch | Retake | Undo, head: int | None) -> Place:
        """The place that a command names. Raises ValueError, in words for people, if there is none."""
        ...

    def past(self, node: int | None, num_chunks: int, *, like: int | None = None) -> Past:
        """What a stream needs to go on after so many chunks of a take.

        With `like`, a take that follows it: what that one remembered is taken from there, and there is no running shot.
        Raises ArchiveError.
        """
        ...
