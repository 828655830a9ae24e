"""What a director has in hand: instructions on their way, the running shot, the work that is being done, what to say.

Plain state, changed only by the director and the parts that it is made of.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shotstream.engine.direction import DirectorConfig, Made, NewShot, Planned, Work
from shotstream.engine.messages import (
    At,
    Branch,
    Command,
    Cut,
    Ended,
    Event,
    Outcome,
    Retake,
    Start,
    Steer,
    Undo,
)

MAX_CHUNKS = 10_000
"""Of a shot, however often it is made longer."""
LATE_STEP_MS = 500.0
"""Lateness is said anew when it has changed by so much."""
_ON_TIME_AGAIN = 3
"""After so many chunks on time the engine is no longer called late."""


@dataclass
class Instruction:
    """A start, cut or steer on its way, or a going back that opens a shot."""

    command: Start | Cut | Steer | Branch | Retake | Undo
    accepted_at: float
    caption: str | None = None
    """None while it is being written."""
    replaces: bool = False
    notice: str = ""
    place: NewShot | None = None
    """Where its shot is opened, if that is elsewhere in the tree."""

    @property
    def id(self) -> str:
        return self.command.id

    @property
    def at(self) -> At | None:
        return at_of(self.command)

    @property
    def text(self) -> str:
        return text_of(self.command) or (self.place.text if self.place else "")

    @property
    def opens(self) -> bool:
        return not isinstance(self.command, Steer)


@dataclass
class RunningShot:
    """The stream's shot, as far as it was made."""

    index: int
    opened_by: Instruction | None
    """None for one that was gone on with."""
    caption: str
    num_chunks: int
    take: int = 0
    steers: list[str] = field(default_factory=list)
    plan: tuple[Planned, ...] = ()
    """What a retake does later, since the take before did."""
    start: int = 0
    """Story-clock frame; meaningless until it is on air."""
    num_made: int = 0
    num_frames: int = 0

    def steer(self, steer: Instruction) -> None:
        """Describe it anew, or add to what is said of it."""
        assert steer.caption is not None
        if steer.replaces:
            self.caption, self.steers = steer.caption, []
        else:
            self.steers = [*self.steers, steer.caption]

    def follow(self, planned: Planned) -> None:
        """The same, for what a retake repeats."""
        self.caption = planned.caption if planned.replaces else self.caption
        self.steers = list(planned.steers) if planned.replaces else [*self.steers, *planned.steers]


@dataclass
class Making:
    """The work under way and the instructions that take effect with it."""

    work: Work
    began: float
    instructions: list[Instruction]
    shot: RunningShot | None
    """The shot it belongs to, as it will be."""
    on_demand: bool = False
    """Nobody could have begun it earlier: it cannot be late."""
    orphaned: bool = False
    """The story ended, or went elsewhere, meanwhile."""
    planned: tuple[str, ...] = ()
    """Steers that a retake repeats."""


@dataclass
class Held:
    """A first chunk that waits until the second cannot come too late."""

    release_at: float
    made: Made
    making: Making
    ready_at: float


@dataclass
class Story:
    """What all shots have in common; another number means another stream."""

    number: int
    seed: int
    global_caption: str


class Agenda(list[Instruction]):
    """Instructions that have not taken effect, in the order in which they were given."""

    def find(self, id: str) -> Instruction | None:
        return next((one for one in self if one.id == id), None)

    @property
    def opens(self) -> bool:
        """Whether one of them opens a shot."""
        return any(one.opens for one in self)

    def waiting_cut(self) -> Instruction | None:
        """A cut that wants to happen at once."""
        return next((one for one in self if one.opens and one.at is None and one.caption is not None), None)

    def scheduled_cut(self, here: At) -> Instruction | None:
        return next((one for one in self if one.opens and one.at == here and one.caption is not None), None)

    def steers(self, here: At | None) -> list[Instruction]:
        """Those that take effect at a chunk; None: only those that name no chunk."""
        return [one for one in self if not one.opens and one.caption is not None and one.at in (None, here)]

    def take(self, wanted: Callable[[Instruction], bool]) -> list[Instruction]:
        """Remove and return some of them."""
        taken = [one for one in self if wanted(one)]
        self[:] = [one for one in self if one not in taken]
        return taken


class Notices:
    """Events that are to be said."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        self._events.append(event)

    def end(
        self,
        command: Command,
        outcome: Outcome,
        *,
        reason: str = "",
        shot: int | None = None,
        chunk: int | None = None,
        first_frame: int | None = None,
    ) -> None:
        """What became of a command."""
        self.add(
            Ended(
                id=command.id,
                command=command.kind,
                outcome=outcome,
                reason=reason,
                shot=shot,
                chunk=chunk,
                first_frame=first_frame,
            )
        )

    def end_all(self, instructions: Iterable[Instruction], outcome: Outcome, reason: str) -> None:
        for instruction in instructions:
            self.end(instruction.command, outcome, reason=reason)

    def took_effect(
        self, instructions: Iterable[Instruction], made: Made, *, shot: int, chunk: int, first_frame: int
    ) -> None:
        """Instructions are seen from this chunk on."""
        for instruction in instructions:
            self.add(
                Ended(
                    id=instruction.id,
                    command=instruction.command.kind,
                    outcome="applied",
                    shot=shot,
                    chunk=chunk,
                    first_frame=first_frame,
                    caption=made.caption,
                    left_out=made.left_out,
                    reason=instruction.notice,
                )
            )

    def take(self) -> list[Event]:
        """All of them, once."""
        events, self._events = self._events, []
        return events


class Timing:
    """How long the newest work took, and whether chunks come too late."""

    def __init__(self, config: DirectorConfig) -> None:
        self.open_s = deque([config.expected_open_s], maxlen=32)
        self.chunk_s = deque([config.expected_chunk_s], maxlen=32)
        self.late_ms = 0.0
        """By how much the newest chunk came too late; 0 once some came in time."""
        self.late_chunks = 0
        self._limit_s = config.late_s
        self._on_time = 0

    def begin(self) -> None:
        """Nothing is late yet."""
        self.late_ms, self._on_time = 0.0, 0

    def came(self, late_s: float) -> None:
        """A chunk came so late."""
        if late_s > self._limit_s:
            self.late_chunks += 1
            self.late_ms, self._on_time = late_s * 1000, 0
        else:
            self._on_time += 1
            self.late_ms = 0.0 if self._on_time >= _ON_TIME_AGAIN else self.late_ms

    def is_overdue(self, late_ms: float) -> bool:
        """Note how late a chunk is that is being waited for; returns whether that is news; every half second is."""
        if not late_ms or (self.late_ms and late_ms < self.late_ms + LATE_STEP_MS):
            return False
        self.late_ms, self._on_time = late_ms, 0
        return True


def text_of(command: Command) -> str:
    return command.text if isinstance(command, (Start, Cut, Steer, Branch)) else ""


def at_of(command: Command) -> At | None:
    return command.at if isinstance(command, (Cut, Steer)) else None


def quantile_of(values: Iterable[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(quantile * len(ordered)) - 1]
