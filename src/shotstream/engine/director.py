"""Decides what the engine makes next, and when: a state machine without model, clock or I/O.

The caller brings the time. `handle` takes commands, `next_work` says what to make, `done` takes the result; `poll` lets
time pass. The first, third and fourth return the events that came of it, in order. One piece of work is under way at a
time. The same calls at the same times give the same state and events, so a log of them (`record`) is the whole story.

The story clock counts frames on air. It runs with real time, but never past the frames that exist: it stands still
while the story is paused or waits for direction, and where the engine is late it waits and goes on from there.

A shot is opening, rolling, holding or ended (`shot_state`); a story is idle, live (late where chunks are), holding with
its shot, or paused.

A cut asks for the running chunk to be abandoned (`unwanted`). Frames that were sent keep playing until the new shot's
first frame is ready; it takes the next frame of the clock, and what was sent for later is void: a new epoch. A chunk
that finished all the same is aired as usual. A shot that was never announced never was; the next one takes its number.

Going back (`branch`, `retake`, `undo`) is a cut to another place of the story's tree: whoever keeps the story says what
was there (`Located`), the stream is made anew from it (another `story` number), and the clock goes on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal

from shotstream.engine.airing import Airing
from shotstream.engine.direction import (
    DirectorConfig,
    Dropped,
    EditMemory,
    Entry,
    GoOn,
    Input,
    Located,
    NewShot,
    NotWritten,
    OpenShot,
    Remembered,
    Result,
    Saved,
    Trouble,
    Viewers,
    Wait,
    Work,
    Written,
)
from shotstream.engine.messages import (
    Accepted,
    Branch,
    Cancel,
    Command,
    Cut,
    Event,
    Extend,
    Hide,
    Memory,
    MemoryChanged,
    Pause,
    Resume,
    Retake,
    Start,
    Status,
    Steer,
    Stop,
    Undo,
)
from shotstream.engine.planning import Planning
from shotstream.engine.takes import Takes
from shotstream.engine.underway import LATE_STEP_MS, MAX_CHUNKS, Instruction, RunningShot, Story, at_of, text_of

MAX_PENDING = 32
KNOWN_IDS = 4096
"""So many ids of commands are remembered: none of them may come again."""


class Director(Planning, Airing):
    """Directs one live story."""

    def __init__(
        self,
        config: DirectorConfig | None = None,
        *,
        record: Callable[[Entry], None] | None = None,
        saved: Saved | None = None,
    ) -> None:
        """Args: record is told every call that counts; saved is a story to go on with, paused, see `replay`."""
        super().__init__(config or DirectorConfig())
        self._record = record
        self._known: OrderedDict[str, None] = OrderedDict()
        if saved is not None:
            self._restore(saved)

    # -------------------------------------------------------------------------------------------------------- the calls

    def handle(self, command: Input, now: float) -> list[Event]:
        """Take a command. Raises ValueError for an id that was used before; nothing changes then."""
        if not isinstance(command, (Written, NotWritten, Dropped, Viewers, Trouble, Remembered)):
            if command.id in self._known:
                raise ValueError(f"id {command.id!r} was used before: every command needs an id of its own")
            self._known[command.id] = None
            while len(self._known) > KNOWN_IDS:
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
        self._note_status(now)
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

    @classmethod
    def replay(
        cls, config: DirectorConfig, log: Iterable[Entry], saved: Saved | None = None
    ) -> tuple[Director, list[Event]]:
        """The state that a log leads to, and everything that is said on the way."""
        director, said = cls(config, saved=saved), list[Event]()
        for entry in log:
            call = getattr(director, entry.call)
            answer = call(entry.now) if entry.argument is None else call(entry.argument, entry.now)
            said += answer if isinstance(answer, list) else []
        return director, said

    def _advance(self, now: float) -> None:
        passed, longer = self._pass_time(now), self._lengthen()
        if passed or longer:
            self._log("poll", None, now)
            self._note_status(now)

    def _flush(self, now: float) -> list[Event]:
        """The events since the last time, and a status if it changed."""
        self._note_status(now)
        return self._notices.take()

    def _note_status(self, now: float) -> None:
        """Say what has changed in the very call that changed it: a replay is given no others."""
        status = self._status_now(now)
        if _is_news(status, self._status):
            self._status = status
            self._notices.add(status)

    def _log(
        self, call: Literal["handle", "next_work", "done", "poll"], argument: Input | Result | None, now: float
    ) -> None:
        if self._record is not None:
            self._record(Entry(call=call, argument=argument, now=now))

    # --------------------------------------------------------------------------------------------------------- commands

    def _take(self, command: Input, now: float) -> None:
        match command:
            case Viewers():
                self._take_viewers(command.count, now)
                return
            case Written():
                self._take_written(command, now)
                return
            case NotWritten():
                if instruction := self._pending.find(command.id):
                    self._pending.remove(instruction)
                    self._notices.end(instruction.command, "failed", reason=command.reason)
                    self._end_if_nothing_comes(command.reason)
                return
            case Dropped():
                self._drop(command)
                return
            case Trouble():
                self._take_trouble(command.reason, now)
                return
            case Located():
                self._take_located(command, now)
                return
            case Remembered():
                self._take_remembered(command)
                return
        self._notices.add(Accepted(id=command.id, command=command.kind, text=text_of(command), at=at_of(command)))
        if problem := self._problem(command, now):
            self._notices.end(command, "failed", reason=problem)
            return
        match command:
            case Start():
                self._begin_story(command, now)
                self._pending.append(Instruction(command, now))
            case Cut() | Steer():
                self._pending.append(Instruction(command, now))
            case Memory():
                self._edits.append(command)
            case Extend():
                self._extend(command)
            case Pause() | Resume():
                self._set_paused("asked" if isinstance(command, Pause) else "", now)
                self._notices.end(command, "applied", first_frame=math.floor(self._clock.at(now)))
            case Hide():
                self._hide(command)
            case Stop():
                self._end_story("the story was stopped")
                self._notices.end(command, "applied")
            case Cancel():
                self._cancel(command)

    def _problem(self, command: Command, now: float) -> str:
        """Why a command cannot be followed, or ""."""
        match command:
            case Start() if self._story is not None:
                return "the story is running already: cut to a new shot, or stop it first"
            case Branch() | Retake() | Undo():
                return "this story is not kept: there is nothing to go back to"
            case Cancel() | Start() | Hide():
                return ""
        if self._story is None:
            return "there is no story yet: start it with its first shot"
        match command:
            case Resume() if self._trouble:
                return self._trouble
            case Extend() if self._shot is None:
                return "there is no shot to extend yet"
            case Extend() if self._making is not None and isinstance(self._making.work, OpenShot):
                return "the next shot is being opened: extend it when it runs"
            case Extend() | Steer() if self._has_ended(now):
                return "the shot has ended: cut to a new one"
            case Cut() | Steer() | Memory() if len(self._pending) + len(self._edits) >= MAX_PENDING:
                return f"{MAX_PENDING} commands are pending already: wait for some of them"
            case Cut() | Steer() if self._missed(command.at):
                return f"shot {command.at.shot} chunk {command.at.chunk} was made before" if command.at else ""
        return ""

    def _take_written(self, written: Written, now: float) -> None:
        instruction = self._pending.find(written.id)
        if instruction is None:  # it ended while it was being written
            return
        instruction.caption, instruction.replaces = written.caption, written.replaces
        instruction.notice = written.notice
        if self._missed(instruction.at):
            self._pending.remove(instruction)
            self._notices.end(
                instruction.command, "failed", reason="its chunk was made while the caption was being written"
            )
        elif instruction.opens:
            self._supersede_before(instruction, now)

    def _supersede_before(self, cut: Instruction, now: float) -> None:
        """A cut takes the place of cuts and steers before it: now all, later those for the very same chunk."""
        position = self._pending.index(cut)
        running = self._shot.index if self._shot else 0
        for other in self._pending[:position]:
            here = other.at is None or other.at.shot <= running
            if (cut.at is None and here) or (cut.at is not None and other.opens and other.at == cut.at):
                self._pending.remove(other)
                self._notices.end(other.command, "superseded", reason="another cut came")
        if cut.at is None and self._held is not None:
            self._drop_held("another cut came")

    def _extend(self, command: Extend) -> None:
        assert self._shot is not None
        first = self._shot.num_chunks
        self._shot.num_chunks = min(MAX_CHUNKS, first + command.num_chunks)
        self._update_takes()
        self._notices.end(command, "applied", shot=self._shot.index, chunk=first)

    def _cancel(self, command: Cancel) -> None:
        instruction = self._pending.find(command.target)
        edit = next((edit for edit in self._edits if edit.id == command.target), None)
        if instruction is not None:
            self._pending.remove(instruction)
            self._notices.end(instruction.command, "superseded", reason="cancelled")
            self._end_if_nothing_comes("cancelled")
        elif edit is not None:
            self._edits.remove(edit)
            self._notices.end(edit, "superseded", reason="cancelled")
        else:
            reason = "that command is not pending: it is being made, took effect or ended before"
            self._notices.end(command, "failed", reason=reason)
            return
        self._notices.end(command, "applied")

    def _drop(self, dropped: Dropped) -> None:
        instructions = self._pending.take(lambda one: one.id in dropped.ids)
        self._notices.end_all(instructions, "superseded", dropped.reason)
        for edit in [edit for edit in self._edits if edit.id in dropped.ids]:
            self._edits.remove(edit)
            self._notices.end(edit, "superseded", reason=dropped.reason)
        if instructions:
            self._end_if_nothing_comes(dropped.reason)

    def _take_viewers(self, count: int, now: float) -> None:
        self._viewers = count
        if count == 0:
            self._unwatched_since = now if self._unwatched_since is None else self._unwatched_since
            return
        self._unwatched_since = None
        if self._paused == "unwatched":
            self._set_paused("", now)

    def _take_trouble(self, reason: str, now: float) -> None:
        self._trouble = reason
        if reason and self._story is not None:
            self._set_paused("trouble", now)
        elif self._paused == "trouble":  # it does not go on by itself: somebody has to look
            self._set_paused("asked", now)

    def _take_remembered(self, remembered: Remembered) -> None:
        if remembered.frames != self._memory and self._story is not None:
            self._memory = remembered.frames
            self._notices.add(MemoryChanged(frames=remembered.frames))

    def _begin_story(self, command: Start, now: float) -> None:
        self._enter_story(command.seed, command.global_caption, 0, now)
        self._takes.begin()

    def _hide(self, command: Hide) -> None:
        try:
            changed = self._takes.hide(command.node, command.hidden)
        except ValueError as error:
            self._notices.end(command, "failed", reason=str(error))
            return
        self._notices.add(changed)
        self._notices.end(command, "applied")

    # ------------------------------------------------------------------------------------------------------- going back

    def _restore(self, saved: Saved) -> None:
        """Take up a kept story, paused, as if everything that was announced had been seen."""
        self._known = OrderedDict.fromkeys(saved.known_ids)
        self._sequence, self._epoch = saved.sequence, saved.epoch
        self._takes = Takes(saved.takes, head=saved.last_node, cards=saved.head.cards if saved.head else ())
        if saved.head is None:
            return
        self._enter_story(saved.head.seed, saved.head.global_caption, saved.head.clock_frame, 0.0)
        self._paused, self._fresh = "restarted", False
        self._take_up(saved.head, 0.0)
        self._status = self._status_now(0.0)

    def _take_located(self, located: Located, now: float) -> None:
        command, place = located.command, located.place
        self._notices.add(Accepted(id=command.id, command=command.kind, text=text_of(command)))
        if place is None:
            self._notices.end(command, "failed", reason=located.reason)
        elif len(self._pending) + len(self._edits) >= MAX_PENDING:
            self._notices.end(
                command, "failed", reason=f"{MAX_PENDING} commands are pending already: wait for some of them"
            )
        elif isinstance(place, GoOn):
            self._go_on(command, place, now)
        else:
            self._open_elsewhere(command, place, now)

    def _open_elsewhere(self, command: Branch | Retake | Undo, place: NewShot, now: float) -> None:
        if self._story is None:
            self._enter_story(place.seed, place.global_caption, place.clock_frame, now)
            self._takes.begin()
        instruction = Instruction(command, now, place=place)
        self._pending.append(instruction)
        if place.caption:  # otherwise it is being written
            instruction.caption = place.caption
            self._supersede_before(instruction, now)

    def _go_on(self, command: Branch | Retake | Undo, place: GoOn, now: float) -> None:
        """Leave what runs and go on with another take; its next chunk will break the clock."""
        if self._story is None:
            self._enter_story(place.seed, place.global_caption, place.clock_frame, now)
        else:
            self._drop_everything("the story went back")
            self._stories += 1
            self._story = Story(self._stories, place.seed, place.global_caption)
        self._notices.add(self._takes.go_to(place))
        self._take_up(place, now)
        self._returning, self._left_out = True, ()
        first = math.floor(self._clock.at(now)) + 1
        self._notices.end(command, "applied", shot=place.take.shot, chunk=place.take.made_chunks, first_frame=first)

    def _take_up(self, place: GoOn, now: float) -> None:
        """The running shot is another one; all its frames count as seen."""
        take, card = place.take, self._takes.cards[-1]
        shot = RunningShot(take.shot, None, place.caption, max(card.num_chunks, take.num_chunks), take.take)
        shot.steers, shot.plan = list(place.steers), place.plan
        shot.num_made, shot.num_frames = take.made_chunks, place.num_frames
        shot.start = math.floor(self._clock.at(now)) + 1 - place.num_frames
        self._shot, self._leftover = shot, False

    def _drop_everything(self, reason: str) -> None:
        """End what is pending and under way."""
        making = self._making
        if making is not None and not isinstance(making.work, EditMemory):
            making.orphaned = True
            self._notices.end_all(making.instructions, "superseded", reason)
            making.instructions = []
        if self._held is not None:
            self._drop_held(reason)
        self._notices.end_all(self._pending, "superseded", reason)
        self._pending.clear()
        self._timing.begin()


def _is_news(status: Status, said: Status) -> bool:
    """Whether a status says something else than the last that was said, apart from the clock."""
    if (status.state, status.detail, status.clock_running) != (said.state, said.detail, said.clock_running):
        return True
    return status.state == "late" and abs(status.late_ms - said.late_ms) >= LATE_STEP_MS
