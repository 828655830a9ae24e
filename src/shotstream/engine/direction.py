"""What a director is given and what it gives: its inputs, the work it asks for, results, and the story clock.

Frozen data without behaviour, apart from the clock. `director.py` decides; this is the language it is spoken to in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shotstream.engine.messages import (
    Branch,
    Command,
    Memory,
    RememberedFrame,
    Retake,
    ShotCard,
    Take,
    Undo,
)
from shotstream.story import CHUNKS_PER_SHOT


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectorConfig:
    """How a story is paced."""

    fps: int = 16
    first_frames: int = 9
    """Pixel frames of a shot's first chunk."""
    chunk_frames: int = 12
    """Pixel frames of every other chunk."""
    shot_chunks: int = CHUNKS_PER_SHOT
    steer_chunks: int = 3
    """How much longer a finished shot runs when it is steered."""
    margin_s: float = 0.08
    """How long before it is due a chunk should be ready."""
    expected_open_s: float = 0.4
    """Of opening a shot and making its first chunk, until measured."""
    expected_chunk_s: float = 0.4
    late_s: float = 0.125
    """A chunk that comes later than this is announced."""
    patience_s: float = 1.0
    """The same for the first chunk after a cut, counted from the last frame before it."""
    viewerless_s: float = 30.0
    """Without viewers for so long the story pauses."""

    def __post_init__(self) -> None:
        if min(self.fps, self.first_frames, self.chunk_frames, self.shot_chunks, self.steer_chunks) < 1:
            raise ValueError(f"frames, chunks and fps must be positive, got {self}")


# ---------------------------------------------------------------------------------------------------------------------
# Inputs besides commands, work, results


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a writer made of the instruction in an accepted command."""

    id: str
    caption: str
    replaces: bool = False
    """For a steer: this describes the whole shot, instead of being added to it."""
    notice: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotWritten:
    """The instruction in an accepted command cannot be followed."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Commands that are wanted no more, as far as they are pending; whoever gave them says why."""

    ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Viewers:
    """How many people watch."""

    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """What a cut now would remember, as whoever has the stream sees it. Changes no decision."""

    frames: tuple[RememberedFrame, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What a retake does at a chunk, since the shot before did."""

    chunk: int
    caption: str
    """Of the shot, if it is described anew."""
    steers: tuple[str, ...]
    """All of them then, or those that are added."""
    replaces: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class NewShot:
    """A place in the tree where another shot can be opened."""

    seed: int
    global_caption: str
    parent: int | None
    """The take before it; none: the story begins with it."""
    parent_chunks: int = 0
    parent_frames: int | None = None
    """How many of its frames are part of the story."""
    like: int | None = None
    """A take that was opened at the very same place: what it remembered is kept."""
    shot: int
    take: int
    text: str = ""
    caption: str = ""
    """For a retake: of the shot at its first chunk; otherwise it is written from the command."""
    steers: tuple[str, ...] = ()
    num_chunks: int | None = None
    plan: tuple[Planned, ...] = ()
    """Later steers, by chunk."""
    cards: tuple[ShotCard, ...] = ()
    """Of the way there."""
    clock_frame: int = 0
    """Where the story clock was when the way there was on air."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoOn:
    """A place in the tree where a take can be gone on with: after its first `take.made_chunks` chunks."""

    seed: int
    global_caption: str
    take: Take
    fork: bool
    """More of it was made: what follows becomes another take, which shares these chunks."""
    caption: str
    """Of the shot, and its steers, after the last of these chunks."""
    steers: tuple[str, ...]
    num_frames: int
    cards: tuple[ShotCard, ...]
    """Of the way there, its own at the end."""
    clock_frame: int
    plan: tuple[Planned, ...] = ()
    """Of a retake that had not said everything yet: what it says later."""


Place = NewShot | GoOn


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """A command that leads elsewhere in the tree, and the place that it names."""

    command: Branch | Retake | Undo
    place: Place | None
    reason: str = ""
    """Why there is no such place."""

    @property
    def id(self) -> str:
        return self.command.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """Nothing can be kept at present, so nothing is made; with an empty reason: it can again."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What is kept of a story: a director made from it goes on there, paused."""

    head: GoOn | None = None
    """Where it goes on; none: it was stopped, or never began."""
    takes: tuple[Take, ...] = ()
    last_node: int | None = None
    """`head` even of a story that was stopped."""
    sequence: int = 0
    epoch: int = 0
    known_ids: tuple[str, ...] = ()
    """Of commands, newest last."""


Input = Command | Written | NotWritten | Dropped | Viewers | Located | Trouble | Remembered


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenShot:
    """End the shot before, open this one and make its first chunk."""

    story: int
    """Counts the beginnings and the goings back: where it changes, a new stream begins."""
    seed: int
    global_caption: str
    shot: int
    take: int
    caption: str
    steers: tuple[str, ...]
    aired_frames: int | None
    """How many frames of the stream's running shot were aired; None: there is none."""
    parent: int | None
    """For a stream that has to be made anew: the take before this one, and how much of it was seen."""
    parent_chunks: int
    parent_frames: int | None
    like: int | None = None
    """For the same: a take that was opened at this place before."""
    plan: tuple[Planned, ...] = ()
    """Later steers of a retake, to be kept with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextChunk:
    """Make the next chunk of the running shot."""

    story: int
    node: int
    """Its take, from which a new stream takes up the shot where there is none of this `story`."""
    shot: int
    chunk: int
    caption: str
    steers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EditMemory:
    """Do what a `memory` command says."""

    story: int
    node: int | None
    """The take on air, after so many chunks; none: no shot was on air yet."""
    chunk: int
    seen: int
    """How many of them were on air, the one on air included: what the person who gave the command had seen."""
    command: Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Nothing to make. Ask again at `until`, or when something was handled."""

    until: float | None = None


Work = OpenShot | NextChunk | EditMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A chunk is ready to be sent."""

    num_frames: int
    caption: str
    """In force, as the text encoder saw it."""
    left_out: tuple[str, ...] = ()
    """Parts of the shot's captions that it did not see, whenever they were given."""
    context: tuple[RememberedFrame, ...] = ()
    thumbnail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edited:
    """The memory was changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Abandoned:
    """The work was ended half-way, since it was unwanted. It can be done again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The work cannot be done as it was asked for; nothing changed."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """The engine failed. The story is over."""

    reason: str


Result = Made | Edited | Abandoned | Refused | Broken


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a writer knows of the story: what will be in force when its instruction takes effect."""

    global_caption: str = ""
    caption: str = ""
    """Of the shot; empty before the first."""
    steers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One call, for replaying."""

    call: Literal["handle", "next_work", "done", "poll"]
    argument: Input | Result | None
    now: float


# ---------------------------------------------------------------------------------------------------------------------
# Time


@dataclass
class StoryClock:
    """Frames on air. `end` is how many frames there are; the clock does not pass it."""

    fps: int
    frame: float = 0.0
    time: float = 0.0
    running: bool = False
    end: int = 0

    def raw(self, now: float) -> float:
        """Where the clock would be if there were always frames."""
        return self.frame + max(0.0, now - self.time) * self.fps if self.running else self.frame

    def at(self, now: float) -> float:
        return min(float(self.end), self.raw(now))

    @property
    def due(self) -> float:
        """When the next frame after `end` should be there."""
        return self.time + (self.end - self.frame) / self.fps

    def stop(self, now: float) -> None:
        self.frame, self.time, self.running = self.at(now), now, False

    def run(self, now: float) -> None:
        self.frame, self.time, self.running = self.at(now), now, True

    def append(self, num_frames: int) -> int:
        """Add frames behind the last; returns where they start."""
        self.end += num_frames
        return self.end - num_frames

    def break_at(self, now: float) -> int:
        """Void every frame that is not on air yet; the next to be added is on air at once. Returns its number."""
        start = min(self.end, math.floor(self.at(now)) + 1)
        self.frame, self.time, self.end = float(start), now, start
        return start
