"""Decides what the engine makes next, and when: a state machine without model, clock or I/O.

The caller brings the time. `handle` takes commands, `next_work` says what to make, `done` takes the result; `poll` lets
time pass. The first, third and fourth return the events that came of it, in order. One piece of work is under way at a
time. The same calls at the same times give the same state and events, so a log of them (`record`) is the whole story.

The story clock counts frames on air. It runs with real time, but never past the frames that exist: it stands still
while the story is paused or waits for direction, and where the engine is late it waits and goes on from there.

A cut asks for the running chunk to be abandoned (`unwanted`). Frames that were sent keep playing until the new shot's
first frame is ready; it takes the next frame of the clock, and what was sent for later is void: a new epoch. A chunk
that finished all the same is aired as usual. A shot of which nothing was aired never was; the
next one takes its number.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from shotstream.engine.messages import (
    Accepted,
    At,
    Branch,
    Cancel,
    ChunkReady,
    Command,
    Cut,
    Ended,
    Event,
    Extend,
    Memory,
    MemoryChanged,
    Outcome,
    Pause,
    Pending,
    RememberedFrame,
    Resume,
    Retake,
    ShotCard,
    ShotOpened,
    Start,
    State,
    Status,
    Steer,
    SteerMark,
    Stop,
    StorySnapshot,
)
from shotstream.story import CHUNKS_PER_SHOT

MAX_PENDING = 32
MAX_CHUNKS = 10_000
_KNOWN_IDS = 4096
_CARDS = 200
_ON_TIME_AGAIN = 3
"""After so many chunks on time the engine is no longer called late."""
_IDLE = 0.05
"""Seconds of idleness before a chunk that show it was asked for at short notice."""
_TINY = 1e-6


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
class Viewers:
    """How many people watch."""

    count: int


Input = Command | Written | NotWritten | Viewers


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenShot:
    """End the shot before, open this one and make its first chunk."""

    story: int
    """Counts the starts: where it changes, a new stream begins with `seed` and `global_caption`."""
    seed: int
    global_caption: str
    shot: int
    take: int
    caption: str
    steers: tuple[str, ...]
    aired_frames: int | None
    """How many frames of the stream's running shot were aired; None: there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextChunk:
    """Make the next chunk of the running shot."""

    shot: int
    chunk: int
    caption: str
    steers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EditMemory:
    """Do what a `memory` command says."""

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
# State


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


@dataclass
class _Instruction:
    """A start, cut or steer on its way."""

    command: Start | Cut | Steer
    accepted_at: float
    caption: str | None = None
    """None while it is being written."""
    replaces: bool = False
    notice: str = ""

    @property
    def id(self) -> str:
        return self.command.id

    @property
    def at(self) -> At | None:
        return None if isinstance(self.command, Start) else self.command.at

    @property
    def opens(self) -> bool:
        return not isinstance(self.command, Steer)


@dataclass
class _Shot:
    index: int
    opened_by: _Instruction
    caption: str
    num_chunks: int
    steers: list[str] = field(default_factory=list)
    start: int = 0
    """Story-clock frame; meaningless until it is on air."""
    num_made: int = 0
    num_frames: int = 0


@dataclass
class _Making:
    """The work under way and the instructions that take effect with it."""

    work: Work
    began: float
    instructions: list[_Instruction]
    shot: _Shot | None
    """The shot it belongs to, as it will be."""
    on_demand: bool = False
    """Nobody could have begun it earlier: it cannot be late."""
    orphaned: bool = False
    """The story ended meanwhile."""


@dataclass
class _Held:
    """A first chunk that waits until the second cannot come too late."""

    release_at: float
    made: Made
    making: _Making
    ready_at: float


@dataclass
class _Story:
    number: int
    seed: int
    global_caption: str


class Director:
    """The state of one live story."""

    def __init__(self, config: DirectorConfig | None = None, *, record: Callable[[Entry], None] | None = None) -> None:
        self.config = config or DirectorConfig()
        self._record = record
        self._events: list[Event] = []
        self._clock = StoryClock(self.config.fps)
        self._story: _Story | None = None
        self._stories = 0
        self._shot: _Shot | None = None
        """The stream's running shot, on air or held."""
        self._leftover = False
        """The stream's running shot was never aired and is no shot of the story."""
        self._aired_before: int | None = None
        """How many frames of the shot before the running one counted as seen."""
        self._making: _Making | None = None
        self._free_since = -math.inf
        self._held: _Held | None = None
        self._pending: list[_Instruction] = []
        self._edits: list[Memory] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._cards: list[ShotCard] = []
        self._memory: tuple[RememberedFrame, ...] = ()
        self._paused: Literal["", "asked", "unwatched"] = ""
        self._unwatched_since: float | None = None
        self._viewers = 0
        self._late_ms = 0.0
        self._on_time = 0
        self._broken = ""
        self._status = Status(state="idle")
        self._sequence = self._epoch = 0
        self.late_chunks = 0
        self._open_s = deque([self.config.expected_open_s], maxlen=32)
        self._chunk_s = deque([self.config.expected_chunk_s], maxlen=32)

    # ----------------------------------------------------------------------------------------------------- the calls

    def handle(self, command: Input, now: float) -> list[Event]:
        """Take a command. Raises ValueError for an id that was used before; nothing changes then."""
        if not isinstance(command, (Written, NotWritten, Viewers)):
            if command.id in self._known:
                raise ValueError(f"id {command.id!r} was used before: every command needs an id of its own")
            self._known[command.id] = None
            while len(self._known) > _KNOWN_IDS:
                self._known.popitem(last=False)
        self._log("handle", command, now)
        self._advance(now)
        self._take(command, now)
        return self._flush(now)

    def next_work(self, now: float) -> Work | Wait:
        """What to do now. After anything but Wait, `done` must follow before the next call."""
        assert self._making is None, "one piece of work at a time"
        self._advance(now)
        making = self._plan(now)
        if isinstance(making, Wait):
            return making
        self._log("next_work", None, now)
        self._making = making
        return making.work

    def done(self, result: Result, now: float) -> list[Event]:
        """Take the result of the work under way."""
        making = self._making
        assert making is not None, "nothing is under way"
        self._log("done", result, now)
        self._advance(now)
        self._making, self._free_since = None, now
        if not making.orphaned:
            self._settle(making, result, now)
        return self._flush(now)

    def poll(self, now: float) -> list[Event]:
        """Let time pass: release what was held back, notice lateness, holding and an empty house."""
        self._advance(now)
        return self._flush(now)

    def remembers(self, frames: tuple[RememberedFrame, ...]) -> list[Event]:
        """Announce what a cut now would remember. Changes no decision, so it is not logged."""
        if frames == self._memory or self._story is None:
            return []
        self._memory = frames
        return [MemoryChanged(frames=frames)]

    @classmethod
    def replay(cls, config: DirectorConfig, log: Iterable[Entry]) -> Director:
        """The state that a log leads to."""
        director = cls(config)
        for entry in log:
            call = getattr(director, entry.call)
            call(entry.now) if entry.argument is None else call(entry.argument, entry.now)
        return director

    # ------------------------------------------------------------------------------------------------- what is asked

    @property
    def unwanted(self) -> bool:
        """Whether the work under way should be abandoned."""
        making = self._making
        if making is None or isinstance(making.work, EditMemory):
            return False
        return making.orphaned or (not self._paused and self._waiting_cut() is not None)

    @property
    def busy(self) -> bool:
        """Whether a story is running."""
        return self._story is not None

    def scene(self) -> Scene:
        """What a writer should know, pending instructions included."""
        story, shot = self._story, self._shot
        scene = Scene(global_caption=story.global_caption if story else "")
        if shot is not None:
            scene = replace(scene, caption=shot.caption, steers=tuple(shot.steers))
        under_way = self._making.instructions if self._making else []
        for instruction in [*under_way, *self._pending]:
            if instruction.caption is not None and (instruction.opens or instruction.replaces):
                scene = replace(scene, caption=instruction.caption, steers=())
            elif instruction.caption is not None and instruction.caption not in scene.steers:
                scene = replace(scene, steers=(*scene.steers, instruction.caption))
        return scene

    def compute_s(self, quantile: float) -> float:
        """Seconds per chunk, over the newest ones."""
        return _quantile(self._chunk_s, quantile)

    def snapshot(self, now: float) -> StorySnapshot:
        """Everything needed to draw the story now."""
        story = self._story
        waiting = [*(self._making.instructions if self._making else []), *self._pending]
        if self._held is not None:
            waiting = [*self._held.making.instructions, *waiting]
        edits = [*self._edits]
        if self._making is not None and isinstance(self._making.work, EditMemory) and not self._making.orphaned:
            edits = [self._making.work.command, *edits]
        return StorySnapshot(
            status=self._status_now(now),
            global_caption=story.global_caption if story else "",
            seed=story.seed if story else 0,
            epoch=self._epoch,
            shots=tuple(self._cards),
            pending=(
                *(Pending(id=i.id, command=i.command.kind, text=i.command.text, at=i.at) for i in waiting),
                *(Pending(id=edit.id, command=edit.kind) for edit in edits),
            ),
            memory=self._memory,
        )

    # ------------------------------------------------------------------------------------------------------ commands

    def _take(self, command: Input, now: float) -> None:
        match command:
            case Viewers():
                self._take_viewers(command.count, now)
                return
            case Written():
                self._take_written(command, now)
                return
            case NotWritten():
                if instruction := self._find(command.id):
                    self._pending.remove(instruction)
                    self._end(instruction.command, "failed", reason=command.reason)
                return
        self._emit(Accepted(id=command.id, command=command.kind, text=_text(command), at=_at(command)))
        if problem := self._problem(command):
            self._end(command, "failed", reason=problem)
            return
        match command:
            case Start():
                self._begin_story(command, now)
                self._pending.append(_Instruction(command, now))
            case Cut() | Steer():
                self._pending.append(_Instruction(command, now))
            case Memory():
                self._edits.append(command)
            case Extend():
                self._extend(command)
            case Pause() | Resume():
                self._set_paused("asked" if isinstance(command, Pause) else "", now)
                self._end(command, "applied", first_frame=math.floor(self._clock.at(now)))
            case Stop():
                self._end_story("the story was stopped")
                self._end(command, "applied")
            case Cancel():
                self._cancel(command)

    def _problem(self, command: Command) -> str:
        """Why a command cannot be followed, or ""."""
        match command:
            case Start() if self._story is not None:
                return "the story is running already: cut to a new shot, or stop it first"
            case Branch() | Retake():
                return "not yet: stories are not kept so far that one could go back"
            case Cancel() | Start():
                return ""
        if self._story is None:
            return "there is no story yet: start it with its first shot"
        match command:
            case Extend() if self._shot is None:
                return "there is no shot to extend yet"
            case Extend() | Steer() if self._has_ended():
                return "the shot has ended: cut to a new one"
            case Cut() | Steer() | Memory() if len(self._pending) + len(self._edits) >= MAX_PENDING:
                return f"{MAX_PENDING} commands are pending already: wait for some of them"
            case Cut() | Steer() if self._missed(command.at):
                return f"shot {command.at.shot} chunk {command.at.chunk} was made before" if command.at else ""
        return ""

    def _has_ended(self) -> bool:
        """Whether the shot on air cannot go on and no other is coming."""
        opening = self._making is not None and isinstance(self._making.work, OpenShot)
        return self._leftover and not opening and not any(i.opens for i in self._pending)

    def _missed(self, at: At | None) -> bool:
        if at is None or self._shot is None:
            return False
        chunk = self._shot.num_made + (self._making is not None and isinstance(self._making.work, NextChunk))
        return (at.shot, at.chunk) < (self._shot.index, chunk)

    def _take_written(self, written: Written, now: float) -> None:
        instruction = self._find(written.id)
        if instruction is None:  # it ended while it was being written
            return
        instruction.caption, instruction.replaces = written.caption, written.replaces
        instruction.notice = written.notice
        if self._missed(instruction.at):
            self._pending.remove(instruction)
            self._end(instruction.command, "failed", reason="its chunk was made while the caption was being written")
        elif instruction.opens:
            self._supersede_before(instruction, now)

    def _supersede_before(self, cut: _Instruction, now: float) -> None:
        """A cut takes the place of cuts and steers before it: now all, later those for the very same chunk."""
        position = self._pending.index(cut)
        running = self._shot.index if self._shot else 0
        for other in self._pending[:position]:
            here = other.at is None or other.at.shot <= running
            if (cut.at is None and here) or (cut.at is not None and other.opens and other.at == cut.at):
                self._pending.remove(other)
                self._end(other.command, "superseded", reason="another cut came")
        if cut.at is None and self._held is not None:
            self._drop_held("another cut came")

    def _extend(self, command: Extend) -> None:
        assert self._shot is not None
        first = self._shot.num_chunks
        self._shot.num_chunks = min(MAX_CHUNKS, first + command.num_chunks)
        self._update_card()
        self._end(command, "applied", shot=self._shot.index, chunk=first)

    def _cancel(self, command: Cancel) -> None:
        instruction = self._find(command.target)
        edit = next((edit for edit in self._edits if edit.id == command.target), None)
        if instruction is not None:
            self._pending.remove(instruction)
            self._end(instruction.command, "superseded", reason="cancelled")
            if isinstance(instruction.command, Start):
                self._end_story("the start was cancelled")
        elif edit is not None:
            self._edits.remove(edit)
            self._end(edit, "superseded", reason="cancelled")
        else:
            self._end(command, "failed", reason="that command is not pending: it took effect or ended before")
            return
        self._end(command, "applied")

    def _find(self, id: str) -> _Instruction | None:
        return next((i for i in self._pending if i.id == id), None)

    def _take_viewers(self, count: int, now: float) -> None:
        self._viewers = count
        if count == 0:
            self._unwatched_since = now if self._unwatched_since is None else self._unwatched_since
            return
        self._unwatched_since = None
        if self._paused == "unwatched":
            self._set_paused("", now)

    def _set_paused(self, reason: Literal["", "asked", "unwatched"], now: float) -> None:
        was, self._paused = self._paused, reason
        if reason and not was:
            self._clock.stop(now)
        elif was and not reason and not self._is_holding(now) and self._clock.end:
            self._clock.run(now)

    def _begin_story(self, command: Start, now: float) -> None:
        self._stories += 1
        self._story = _Story(self._stories, command.seed, command.global_caption)
        self._clock = StoryClock(self.config.fps, time=now)
        self._cards, self._memory, self._shot, self._leftover = [], (), None, False
        self._broken, self._paused, self._late_ms = "", "", 0.0
        if self._unwatched_since is not None:
            self._unwatched_since = now

    def _end_story(self, reason: str) -> None:
        if self._making is not None and not self._making.orphaned:
            self._making.orphaned = True
            self._end_all(self._making.instructions, "superseded", reason)
            self._making.instructions = []
            if isinstance(self._making.work, EditMemory):
                self._end(self._making.work.command, "superseded", reason=reason)
        if self._held is not None:
            self._drop_held(reason)
        self._end_all(self._pending, "superseded", reason)
        for edit in self._edits:
            self._end(edit, "superseded", reason=reason)
        self._pending, self._edits, self._story, self._shot = [], [], None, None
        self._clock.running = False
        self._paused, self._late_ms = "", 0.0

    # ---------------------------------------------------------------------------------------------------------- work

    def _plan(self, now: float) -> _Making | Wait:
        if self._story is None:
            return Wait()
        if self._edits:
            return _Making(EditMemory(command=self._edits.pop(0)), now, [], None)
        if self._paused:
            return Wait()
        if (cut := self._waiting_cut()) is not None:
            return self._plan_opening(cut, now)
        shot = self._shot
        if shot is None or self._leftover:
            return Wait(until=self._deadline())
        self._lengthen(shot)
        scheduled = self._scheduled_cut(shot)
        if scheduled is None and shot.num_made >= shot.num_chunks:
            return Wait(until=self._deadline())
        begin = self._begin_at(self._open_s if scheduled else self._chunk_s)
        if now < begin:
            return Wait(until=min(begin, self._deadline() or begin))
        if scheduled is not None:
            return self._plan_opening(scheduled, now)
        making = self._plan_chunk(shot, now)
        making.on_demand = not self._clock.running or now - max(begin, self._free_since) > _IDLE
        return making

    def _waiting_cut(self) -> _Instruction | None:
        """A cut that wants to happen at once."""
        return next((i for i in self._pending if i.opens and i.at is None and i.caption is not None), None)

    def _scheduled_cut(self, shot: _Shot) -> _Instruction | None:
        here = At(shot=shot.index, chunk=shot.num_made)
        return next((i for i in self._pending if i.opens and i.at == here and i.caption is not None), None)

    def _arriving_steers(self, shot: _Shot) -> list[_Instruction]:
        here = At(shot=shot.index, chunk=shot.num_made)
        return [i for i in self._pending if not i.opens and i.caption is not None and i.at in (None, here)]

    def _lengthen(self, shot: _Shot) -> None:
        """A shot that has run its length goes on for a little when it is steered."""
        if shot.num_made >= shot.num_chunks and self._arriving_steers(shot) and not self._scheduled_cut(shot):
            shot.num_chunks = shot.num_made + self.config.steer_chunks

    def _begin_at(self, times: deque[float]) -> float:
        """When to begin the next chunk: early enough, but never before the chunk ahead of it is on air."""
        if not self._clock.running and self._held is None:
            return -math.inf  # holding: whatever comes is wanted at once
        if self._held is not None:
            return -math.inf
        ahead = self.config.chunk_frames if self._shot and self._shot.num_made > 1 else self.config.first_frames
        lead = min(_quantile(times, 0.95) + self.config.margin_s, ahead / self.config.fps)
        return self._clock.due - lead

    def _plan_opening(self, cut: _Instruction, now: float) -> _Making:
        assert self._story is not None
        assert cut.caption is not None
        self._pending.remove(cut)
        steers = self._steers_for_opening(cut)
        index, aired = self._next_index(), self.aired_frames(now, everything=cut.at is not None)
        if not self._leftover:
            self._aired_before = aired
        count = cut.command.num_chunks if isinstance(cut.command, (Start, Cut)) else None
        shot = _Shot(index, cut, cut.caption, count or self.config.shot_chunks)
        for steer in steers:
            _apply_steer(shot, steer)
        work = OpenShot(
            story=self._story.number,
            seed=self._story.seed,
            global_caption=self._story.global_caption,
            shot=index,
            take=0,
            caption=shot.caption,
            steers=tuple(shot.steers),
            aired_frames=aired,
        )
        return _Making(work, now, [cut, *steers], shot)

    def _steers_for_opening(self, cut: _Instruction) -> list[_Instruction]:
        """Steers given after a cut belong to its shot. Those that waited for a boundary which became one are void."""
        waiting = [i for i in self._pending if not i.opens and i.at is None and i.caption is not None]
        for steer in waiting:
            self._pending.remove(steer)
        if cut.at is None:
            return waiting
        self._end_all(waiting, "superseded", "the shot ended before")
        return []

    def _plan_chunk(self, shot: _Shot, now: float) -> _Making:
        steers = self._arriving_steers(shot)
        after = replace(shot, steers=list(shot.steers))
        for steer in steers:
            self._pending.remove(steer)
            _apply_steer(after, steer)
        work = NextChunk(shot=shot.index, chunk=shot.num_made, caption=after.caption, steers=tuple(after.steers))
        return _Making(work, now, steers, after)

    def _next_index(self) -> int:
        if self._shot is None:
            return 0
        return self._shot.index if self._leftover else self._shot.index + 1

    def aired_frames(self, now: float, *, everything: bool = False) -> int | None:
        """How many frames of the stream's running shot were on air until now, or will be; None: there is no shot."""
        shot = self._shot
        if shot is None:
            return None
        if self._leftover:
            return 0
        if everything:
            return shot.num_frames
        return max(0, min(shot.num_frames, math.floor(self._clock.at(now)) + 1 - shot.start))

    # ------------------------------------------------------------------------------------------------------- results

    def _settle(self, making: _Making, result: Result, now: float) -> None:
        match result:
            case Broken():
                self._break(making, result.reason)
            case Made() if isinstance(making.work, OpenShot):
                self._opened(making, result, now)
            case Made():
                self._made(making, result, now)
            case Edited() | Refused() if isinstance(making.work, EditMemory):
                refused = isinstance(result, Refused)
                reason = result.reason if isinstance(result, Refused) else ""
                self._end(making.work.command, "failed" if refused else "applied", reason=reason)
            case Refused() if isinstance(making.work, NextChunk) and not making.instructions:
                self._break(making, result.reason)
            case Refused():
                self._end_all(making.instructions, "failed", result.reason)
                if self._shot is None and not any(i.opens for i in self._pending):
                    self._end_story(result.reason)
            case Abandoned():
                self._abandoned(making)

    def _abandoned(self, making: _Making) -> None:
        if isinstance(making.work, OpenShot):
            self._forget_opening(making)
        elif self._waiting_cut() is not None:
            self._end_all(making.instructions, "superseded", "a cut came before its chunk was made")
        else:  # the cut was cancelled meanwhile: the chunk is made again
            self._pending[:0] = making.instructions

    def _forget_opening(self, making: _Making) -> None:
        """The stream opened a shot of which nothing will be seen."""
        assert making.shot is not None
        if self._waiting_cut() is not None:
            self._end_all(making.instructions, "superseded", "another cut came")
        else:
            self._pending[:0] = making.instructions
        self._shot, self._leftover = making.shot, True

    def _drop_held(self, reason: str) -> None:
        held, self._held = self._held, None
        assert held is not None
        self._end_all(held.making.instructions, "superseded", reason)
        self._leftover = True
        if self._making is not None and isinstance(self._making.work, NextChunk):
            self._making.orphaned = True
            self._end_all(self._making.instructions, "superseded", reason)
            self._making.instructions = []

    def _opened(self, making: _Making, made: Made, now: float) -> None:
        assert making.shot is not None
        self._open_s.append(now - making.began)
        if self._waiting_cut() is not None:
            self._forget_opening(making)
            return
        self._shot, self._leftover = making.shot, False
        self._shot.num_made, self._shot.num_frames = 1, made.num_frames
        self._held = _Held(now + self._hold_back(making.shot, now), made, making, now)
        self._advance(now)

    def _hold_back(self, shot: _Shot, now: float) -> float:
        """Seconds by which the second chunk would come too late, at most what the first chunk lacks of a full one."""
        config, opening = self.config, shot.opened_by
        if shot.num_chunks < 2:
            return 0.0
        ahead = max(0.0, self._clock.due - now) if opening.at is not None and self._clock.running else 0.0
        shortfall = _quantile(self._chunk_s, 0.95) - config.first_frames / config.fps - ahead
        return max(0.0, min(shortfall, (config.chunk_frames - config.first_frames) / config.fps))

    def _release(self, held: _Held, now: float) -> None:
        """Put a first chunk on air."""
        self._held = None
        shot, opening = held.making.shot, held.making.instructions[0]
        assert shot is not None
        before = self._clock.end
        if opening.at is None:
            shot.start = self._clock.break_at(now)
        else:
            self._catch_up(now)
            shot.start = self._clock.end
        self._epoch += shot.start < before or not self._cards
        self._close_cards(shot.start)
        self._clock.append(held.made.num_frames)
        self._clock.running = not self._paused
        self._fail_left_behind(shot)
        self._cards.append(_card(shot, held.made))
        del self._cards[:-_CARDS]
        self._emit(
            ShotOpened(
                shot=shot.index,
                take=0,
                start=shot.start,
                text=opening.command.text,
                caption=held.made.caption,
                num_chunks=shot.num_chunks,
                context=held.made.context,
                aired_before=self._aired_before,
                thumbnail=held.made.thumbnail,
            )
        )
        self._announce(held.making, held.made, shot.start, now, held.ready_at)

    def _close_cards(self, start: int) -> None:
        """Frames from `start` on belong to a new shot: marks of steers that were never on air go."""
        if not self._cards:
            return
        last = self._cards[-1]
        self._cards[-1] = replace(last, steers=tuple(mark for mark in last.steers if mark.first_frame < start))

    def _fail_left_behind(self, shot: _Shot) -> None:
        """Instructions for chunks of shots that have ended can take effect no more."""
        late = [i for i in self._pending if i.at is not None and (i.at.shot, i.at.chunk) < (shot.index, 1)]
        self._pending = [i for i in self._pending if i not in late]
        self._end_all(late, "failed", "the shot ended before that chunk")

    def _made(self, making: _Making, made: Made, now: float) -> None:
        if self._held is not None:  # the second chunk is there: nothing can come too late any more
            self._release(self._held, now)
        shot, after = self._shot, making.shot
        assert shot is not None
        assert after is not None
        self._chunk_s.append(now - making.began)
        shot.caption, shot.steers = after.caption, after.steers
        shot.num_made += 1
        shot.num_frames += made.num_frames
        self._note_lateness(making, now)
        self._catch_up(now)
        start = self._clock.append(made.num_frames)
        self._clock.running = not self._paused
        self._update_card(making, start)
        self._announce(making, made, start, now, now)

    def _catch_up(self, now: float) -> None:
        """Where frames ran out, the clock goes on from there."""
        if self._clock.raw(now) > self._clock.end or not self._clock.running:
            self._clock.frame, self._clock.time = self._clock.at(now), now

    def _note_lateness(self, making: _Making, now: float) -> None:
        late_s = 0.0 if making.on_demand else (self._clock.raw(now) - self._clock.end) / self.config.fps
        if late_s > self.config.late_s:
            self.late_chunks += 1
            self._late_ms, self._on_time = late_s * 1000, 0
        else:
            self._on_time += 1
            self._late_ms = 0.0 if self._on_time >= _ON_TIME_AGAIN else self._late_ms

    def _announce(self, making: _Making, made: Made, start: int, now: float, ready_at: float) -> None:
        """Say that a chunk goes out, and end the instructions that took effect in it."""
        shot = self._shot
        assert shot is not None
        chunk = making.work.chunk if isinstance(making.work, NextChunk) else 0
        instructions = making.instructions
        self._sequence += 1
        self._emit(
            ChunkReady(
                shot=shot.index,
                chunk=chunk,
                take=0,
                sequence=self._sequence,
                epoch=self._epoch,
                start=start,
                num_frames=made.num_frames,
                caption=made.caption,
                applied=tuple(i.id for i in instructions),
                num_chunks=shot.num_chunks,
                compute_ms=(ready_at - making.began) * 1000,
                latency_ms=(now - instructions[0].accepted_at) * 1000 if instructions else None,
            )
        )
        for i in instructions:
            self._emit(
                Ended(
                    id=i.id,
                    command=i.command.kind,
                    outcome="applied",
                    shot=shot.index,
                    chunk=chunk,
                    first_frame=start,
                    caption=made.caption,
                    left_out=made.left_out,
                    reason=i.notice,
                )
            )

    def _break(self, making: _Making, reason: str) -> None:
        self._end_all(making.instructions, "failed", reason)
        making.instructions = []
        if isinstance(making.work, EditMemory):
            self._end(making.work.command, "failed", reason=reason)
        self._end_story(reason)
        self._broken = reason

    def _update_card(self, making: _Making | None = None, start: int = 0) -> None:
        if not self._cards or self._shot is None or self._leftover or self._held is not None:
            return
        card, shot = self._cards[-1], self._shot
        marks = (
            SteerMark(id=i.id, chunk=shot.num_made - 1, first_frame=start, text=i.command.text)
            for i in (making.instructions if making else ())
        )
        self._cards[-1] = replace(
            card, num_chunks=shot.num_chunks, made_chunks=shot.num_made, steers=(*card.steers, *marks)
        )

    # ---------------------------------------------------------------------------------------------------------- time

    def _advance(self, now: float) -> None:
        """What happens by itself as time passes."""
        changed = False
        held = self._held
        if held is not None and now >= held.release_at and not self._paused:
            self._release(held, now)
            changed = True
        since = self._unwatched_since
        if since is not None and not self._paused and self._story and now >= since + self.config.viewerless_s:
            self._set_paused("unwatched", now)
            changed = True
        if self._clock.running and self._is_holding(now):
            self._clock.stop(now)
            changed = True
        late_ms = self._overdue_ms(now)
        if late_ms and not self._late_ms:
            self._late_ms, self._on_time, changed = late_ms, 0, True
        if changed:
            self._log("poll", None, now)

    def _overdue_ms(self, now: float) -> float:
        """By how much the chunk being waited for is late, if that is worth saying."""
        if not self._clock.running or self._shot is None or self._held is not None:
            return 0.0
        opening = self._waiting_cut() is not None or (
            self._making is not None and isinstance(self._making.work, OpenShot)
        )
        overdue = (self._clock.raw(now) - self._clock.end) / self.config.fps
        return overdue * 1000 if overdue > (self.config.patience_s if opening else self.config.late_s) else 0.0

    def _is_holding(self, now: float) -> bool:
        """Whether the shot has run its length and everything was shown."""
        shot = self._shot
        if shot is None or self._held is not None or self._waiting_cut() is not None:
            return False
        if self._making is not None and not isinstance(self._making.work, EditMemory):
            return False
        if not self._leftover and shot.num_made < shot.num_chunks:
            return False
        return self._clock.at(now) >= self._clock.end - _TINY

    def _deadline(self) -> float | None:
        """When something happens by itself next."""
        times = [self._held.release_at] if self._held is not None else []
        if self._clock.running:
            times.append(self._clock.due)
        if self._unwatched_since is not None and not self._paused:
            times.append(self._unwatched_since + self.config.viewerless_s)
        return min(times, default=None)

    # -------------------------------------------------------------------------------------------------------- events

    def _status_now(self, now: float) -> Status:
        state, detail = self._state(now)
        return Status(
            state=state,
            detail=detail,
            late_ms=round(self._late_ms, 1),
            clock_frame=round(self._clock.at(now), 2),
            clock_running=self._clock.running,
        )

    def _state(self, now: float) -> tuple[State, str]:
        if self._broken:
            return "error", self._broken
        if self._story is None:
            return "idle", ""
        if self._paused:
            return "paused", "nobody is watching" if self._paused == "unwatched" else ""
        if self._is_holding(now):
            return "holding", "waiting for direction"
        if self._late_ms:
            return "late", "chunks come too late: the clock waits for them"
        return "live", ""

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _end(
        self,
        command: Command,
        outcome: Outcome,
        *,
        reason: str = "",
        shot: int | None = None,
        chunk: int | None = None,
        first_frame: int | None = None,
    ) -> None:
        self._emit(
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

    def _end_all(self, instructions: Iterable[_Instruction], outcome: Outcome, reason: str) -> None:
        for instruction in instructions:
            self._end(instruction.command, outcome, reason=reason)

    def _flush(self, now: float) -> list[Event]:
        """The events since the last time, and a status if it changed."""
        status = self._status_now(now)
        old = self._status
        if (status.state, status.detail, status.clock_running) != (old.state, old.detail, old.clock_running):
            self._status = status
            self._emit(status)
        events, self._events = self._events, []
        return events

    def _log(
        self, call: Literal["handle", "next_work", "done", "poll"], argument: Input | Result | None, now: float
    ) -> None:
        if self._record is not None:
            self._record(Entry(call=call, argument=argument, now=now))


def _apply_steer(shot: _Shot, steer: _Instruction) -> None:
    assert steer.caption is not None
    if steer.replaces:
        shot.caption, shot.steers = steer.caption, []
    else:
        shot.steers = [*shot.steers, steer.caption]


def _card(shot: _Shot, made: Made) -> ShotCard:
    return ShotCard(
        shot=shot.index,
        take=0,
        start=shot.start,
        text=shot.opened_by.command.text,
        caption=made.caption,
        num_chunks=shot.num_chunks,
        made_chunks=1,
        context=made.context,
        thumbnail=made.thumbnail,
    )


def _text(command: Command) -> str:
    return command.text if isinstance(command, (Start, Cut, Steer)) else ""


def _at(command: Command) -> At | None:
    return command.at if isinstance(command, (Cut, Steer, Branch)) else None


def _quantile(values: Iterable[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(quantile * len(ordered)) - 1]
