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

Going back (`branch`, `retake`, `undo`) is a cut to another place of the story's tree: whoever keeps the story says what
was there (`Located`), the stream is made anew from it (another `story` number), and the clock goes on.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from shotstream.engine.direction import (
    Abandoned,
    Broken,
    DirectorConfig,
    Dropped,
    Edited,
    EditMemory,
    Entry,
    GoOn,
    Input,
    Located,
    Made,
    NewShot,
    NextChunk,
    NotWritten,
    OpenShot,
    Refused,
    Result,
    Saved,
    Scene,
    StoryClock,
    Trouble,
    Viewers,
    Wait,
    Work,
    Written,
)
from shotstream.engine.messages import (
    Accepted,
    At,
    Branch,
    Cancel,
    ChunkReady,
    Command,
    Cut,
    Event,
    Extend,
    Hide,
    Memory,
    MemoryChanged,
    Pause,
    Pending,
    RememberedFrame,
    Resume,
    Retake,
    Start,
    State,
    Status,
    Steer,
    SteerMark,
    Stop,
    StorySnapshot,
    Undo,
)
from shotstream.engine.takes import Takes
from shotstream.engine.underway import (
    Agenda,
    Held,
    Instruction,
    Making,
    Notices,
    RunningShot,
    Story,
    Timing,
    at_of,
    quantile_of,
    text_of,
)

MAX_PENDING = 32
MAX_CHUNKS = 10_000
KNOWN_IDS = 4096
"""So many ids of commands are remembered: none of them may come again."""
RESTARTED = "the server was restarted: resume to go on"
_IDLE = 0.05
"""Seconds of idleness before a chunk that show it was asked for at short notice."""
_TINY = 1e-6


class Director:
    """The state of one live story."""

    def __init__(
        self,
        config: DirectorConfig | None = None,
        *,
        record: Callable[[Entry], None] | None = None,
        saved: Saved | None = None,
    ) -> None:
        """Args: record is told every call that counts; saved is a story to go on with, paused, see `replay`."""
        self.config = config or DirectorConfig()
        self._record = record
        self._notices = Notices()
        self._clock = StoryClock(self.config.fps)
        self._story: Story | None = None
        self._stories = 0
        self._shot: RunningShot | None = None
        """The stream's running shot, on air or held."""
        self._leftover = False
        """The stream's running shot was never aired and is no shot of the story."""
        self._aired_before: int | None = None
        """How many frames of the shot before the running one counted as seen."""
        self._making: Making | None = None
        self._free_since = -math.inf
        self._held: Held | None = None
        self._pending = Agenda()
        self._edits: list[Memory] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._takes = Takes()
        self._memory: tuple[RememberedFrame, ...] = ()
        self._paused: Literal["", "asked", "unwatched", "restarted", "trouble"] = ""
        self._trouble = ""
        self._fresh = True
        """The clock began anew: so does an epoch."""
        self._returning = False
        """The next chunk goes on from an earlier place: it breaks the clock."""
        self._unwatched_since: float | None = None
        self._viewers = 0
        self._timing = Timing(self.config)
        self._broken = ""
        self._status = Status(state="idle")
        self._sequence = self._epoch = 0
        if saved is not None:
            self._restore(saved)

    # ----------------------------------------------------------------------------------------------------- the calls

    def handle(self, command: Input, now: float) -> list[Event]:
        """Take a command. Raises ValueError for an id that was used before; nothing changes then."""
        if not isinstance(command, (Written, NotWritten, Dropped, Viewers, Trouble)):
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
    def replay(cls, config: DirectorConfig, log: Iterable[Entry], saved: Saved | None = None) -> Director:
        """The state that a log leads to."""
        director = cls(config, saved=saved)
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
        return making.orphaned or (not self._paused and self._pending.waiting_cut() is not None)

    @property
    def busy(self) -> bool:
        """Whether a story is running."""
        return self._story is not None

    @property
    def dormant(self) -> bool:
        """Whether the story was taken up again after a restart and nobody has resumed it yet."""
        return self._story is not None and self._paused == "restarted"

    @property
    def late_chunks(self) -> int:
        """How many chunks came too late."""
        return self._timing.late_chunks

    @property
    def head(self) -> int | None:
        """The take in which the story goes on."""
        return self._takes.head

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
        return quantile_of(self._timing.chunk_s, quantile)

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
            shots=tuple(self._takes.cards),
            head=self._takes.head,
            takes=self._takes.all(),
            pending=(
                *(Pending(id=i.id, command=i.command.kind, text=i.text, at=i.at) for i in waiting),
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
        self._notices.add(Accepted(id=command.id, command=command.kind, text=text_of(command), at=at_of(command)))
        if problem := self._problem(command):
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

    def _problem(self, command: Command) -> str:
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
        return self._leftover and not opening and not self._pending.opens

    def _missed(self, at: At | None) -> bool:
        if at is None or self._shot is None:
            return False
        chunk = self._shot.num_made + (self._making is not None and isinstance(self._making.work, NextChunk))
        return (at.shot, at.chunk) < (self._shot.index, chunk)

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
            self._notices.end(command, "failed", reason="that command is not pending: it took effect or ended before")
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

    def _set_paused(self, reason: Literal["", "asked", "unwatched", "trouble"], now: float) -> None:
        if reason and self._paused == "restarted":
            return  # it sleeps more soundly than that
        was, self._paused = self._paused, reason
        if reason and not was:
            self._clock.stop(now)
        elif was and not reason and not self._is_holding(now) and self._clock.end:
            self._clock.run(now)

    def _begin_story(self, command: Start, now: float) -> None:
        self._enter_story(command.seed, command.global_caption, 0, now)
        self._takes.begin()

    def _enter_story(self, seed: int, global_caption: str, clock_frame: int, now: float) -> None:
        self._stories += 1
        self._story = Story(self._stories, seed, global_caption)
        self._clock = StoryClock(self.config.fps, frame=clock_frame, end=clock_frame, time=now)
        self._memory, self._shot, self._leftover = (), None, False
        self._broken, self._paused, self._timing.late_ms = "", "", 0.0
        self._fresh, self._returning = True, False
        if self._unwatched_since is not None:
            self._unwatched_since = now

    def _end_story(self, reason: str) -> None:
        if self._making is not None and not self._making.orphaned:
            self._making.orphaned = True
            self._notices.end_all(self._making.instructions, "superseded", reason)
            self._making.instructions = []
            if isinstance(self._making.work, EditMemory):
                self._notices.end(self._making.work.command, "superseded", reason=reason)
        if self._held is not None:
            self._drop_held(reason)
        self._notices.end_all(self._pending, "superseded", reason)
        for edit in self._edits:
            self._notices.end(edit, "superseded", reason=reason)
        self._pending.clear()
        self._edits, self._story, self._shot = [], None, None
        self._returning = False
        self._clock.running = False
        self._paused, self._timing.late_ms = "", 0.0

    def _end_if_nothing_comes(self, reason: str) -> None:
        """A story without a shot ends when its opening does."""
        making = self._making is not None and not isinstance(self._making.work, EditMemory)
        if self._shot is None and not making and not self._pending.opens:
            self._end_story(reason)

    # ---------------------------------------------------------------------------------------------------- going back

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
        self._returning = True
        first = math.floor(self._clock.at(now)) + 1
        self._notices.end(command, "applied", shot=place.take.shot, chunk=place.take.made_chunks, first_frame=first)

    def _take_up(self, place: GoOn, now: float) -> None:
        """The running shot is another one; all its frames count as seen."""
        take, card = place.take, self._takes.cards[-1]
        shot = RunningShot(take.shot, None, place.caption, max(card.num_chunks, take.num_chunks), take.take)
        shot.steers = list(place.steers)
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

    def _hide(self, command: Hide) -> None:
        try:
            changed = self._takes.hide(command.node, command.hidden)
        except ValueError as error:
            self._notices.end(command, "failed", reason=str(error))
            return
        self._notices.add(changed)
        self._notices.end(command, "applied")

    # ---------------------------------------------------------------------------------------------------------- work

    def _plan(self, now: float) -> Making | Wait:
        if self._story is None:
            return Wait()
        if self._edits and not self._trouble:
            return Making(self._edit_work(self._edits.pop(0), now), now, [], None)
        if self._paused:
            return Wait()
        if (cut := self._pending.waiting_cut()) is not None:
            return self._plan_opening(cut, now)
        shot = self._shot
        if shot is None or self._leftover:
            return Wait(until=self._deadline())
        self._lengthen(shot)
        scheduled = self._pending.scheduled_cut(_next_chunk(shot))
        if scheduled is None and shot.num_made >= shot.num_chunks:
            return Wait(until=self._deadline())
        begin = self._begin_at(self._timing.open_s if scheduled else self._timing.chunk_s)
        if now < begin:
            return Wait(until=min(begin, self._deadline() or begin))
        if scheduled is not None:
            return self._plan_opening(scheduled, now)
        making = self._plan_chunk(shot, now)
        making.on_demand = not self._clock.running or now - max(begin, self._free_since) > _IDLE
        return making

    def _edit_work(self, command: Memory, now: float) -> EditMemory:
        assert self._story is not None
        chunk = self._takes.cards[-1].made_chunks if self._takes.cards else 0
        off_air = self._leftover or self._held is not None
        seen = self._num_chunks(self._aired_before if off_air else self.aired_frames(now))
        return EditMemory(
            story=self._story.number, node=self._takes.head, chunk=chunk, seen=min(seen, chunk), command=command
        )

    def _num_chunks(self, num_frames: int | None) -> int:
        """How many chunks of a shot so many frames come from."""
        if not num_frames:
            return 0
        return 1 + max(0, math.ceil((num_frames - self.config.first_frames) / self.config.chunk_frames))

    def _lengthen(self, shot: RunningShot) -> None:
        """A shot that has run its length goes on for a little when it is steered."""
        if (
            shot.num_made >= shot.num_chunks
            and self._pending.steers(_next_chunk(shot))
            and not self._pending.scheduled_cut(_next_chunk(shot))
        ):
            shot.num_chunks = shot.num_made + self.config.steer_chunks

    def _begin_at(self, times: deque[float]) -> float:
        """When to begin the next chunk: early enough, but never before the chunk ahead of it is on air."""
        if not self._clock.running or self._held is not None or self._returning:
            return -math.inf  # whatever comes is wanted at once
        ahead = self.config.chunk_frames if self._shot and self._shot.num_made > 1 else self.config.first_frames
        lead = min(quantile_of(times, 0.95) + self.config.margin_s, ahead / self.config.fps)
        return self._clock.due - lead

    def _plan_opening(self, cut: Instruction, now: float) -> Making:
        assert self._story is not None
        assert cut.caption is not None
        self._pending.remove(cut)
        steers = self._steers_for_opening(cut)
        if cut.place is not None:
            return self._plan_elsewhere(cut, cut.place, steers, now)
        index, aired = self._next_index(), self.aired_frames(now, everything=cut.at is not None)
        if not self._leftover:
            self._aired_before = aired
        count = cut.command.num_chunks if isinstance(cut.command, (Start, Cut)) else None
        shot = RunningShot(index, cut, cut.caption, count or self.config.shot_chunks, self._takes.next_number())
        if isinstance(cut.command, Start):
            shot.take = 0
        for steer in steers:
            shot.steer(steer)
        work = OpenShot(
            story=self._story.number,
            seed=self._story.seed,
            global_caption=self._story.global_caption,
            shot=index,
            take=shot.take,
            caption=shot.caption,
            steers=tuple(shot.steers),
            aired_frames=aired,
            parent=self._takes.head,
            parent_chunks=self._takes.cards[-1].made_chunks if self._takes.cards else 0,
            parent_frames=self._aired_before,
        )
        return Making(work, now, [cut, *steers], shot)

    def _plan_elsewhere(self, cut: Instruction, place: NewShot, steers: list[Instruction], now: float) -> Making:
        """Open a shot at another place of the tree. What runs now stays as it is until that shot is on air."""
        assert cut.caption is not None
        self._stories += 1
        count = place.num_chunks or self.config.shot_chunks
        shot = RunningShot(place.shot, cut, cut.caption, count, place.take, list(place.steers), place.plan)
        for steer in steers:
            shot.steer(steer)
        work = OpenShot(
            story=self._stories,
            seed=place.seed,
            global_caption=place.global_caption,
            shot=place.shot,
            take=place.take,
            caption=shot.caption,
            steers=tuple(shot.steers),
            aired_frames=place.parent_frames,
            parent=place.parent,
            parent_chunks=place.parent_chunks,
            parent_frames=place.parent_frames,
            like=place.like,
        )
        return Making(work, now, [cut, *steers], shot)

    def _steers_for_opening(self, cut: Instruction) -> list[Instruction]:
        """Steers given after a cut belong to its shot, and those for its first chunk.

        Those that waited for a boundary which became a scheduled cut are void.
        """
        arrived = self._pending.steers(None if cut.place else At(shot=self._next_index(), chunk=0))
        waiting = self._pending.take(lambda one: one in arrived)
        if cut.at is None:
            return waiting
        self._notices.end_all([one for one in waiting if one.at is None], "superseded", "the shot ended before")
        return [one for one in waiting if one.at is not None]

    def _plan_chunk(self, shot: RunningShot, now: float) -> Making:
        assert self._story is not None
        steers = self._pending.steers(_next_chunk(shot))
        after = replace(shot, steers=list(shot.steers))
        planned = [plan for plan in shot.plan if plan.chunk == shot.num_made]
        for plan in planned:
            after.follow(plan)
        for steer in steers:
            self._pending.remove(steer)
            after.steer(steer)
        work = NextChunk(
            story=self._story.number,
            node=self._takes.head or 0,
            shot=shot.index,
            chunk=shot.num_made,
            caption=after.caption,
            steers=tuple(after.steers),
        )
        repeated = tuple(text for plan in planned for text in (plan.steers or (plan.caption,)))
        return Making(work, now, steers, after, planned=repeated)

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

    def _settle(self, making: Making, result: Result, now: float) -> None:
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
                self._notices.end(making.work.command, "failed" if refused else "applied", reason=reason)
            case Refused() if isinstance(making.work, NextChunk) and not making.instructions:
                self._break(making, result.reason)
            case Refused():
                self._notices.end_all(making.instructions, "failed", result.reason)
                self._end_if_nothing_comes(result.reason)
            case Abandoned():
                self._abandoned(making)

    def _abandoned(self, making: Making) -> None:
        if isinstance(making.work, OpenShot):
            self._forget_opening(making)
        elif self._pending.waiting_cut() is not None:
            self._notices.end_all(making.instructions, "superseded", "a cut came before its chunk was made")
        else:  # the cut was cancelled meanwhile: the chunk is made again
            self._pending[:0] = making.instructions

    def _forget_opening(self, making: Making) -> None:
        """The stream opened a shot of which nothing will be seen."""
        assert making.shot is not None
        if self._pending.waiting_cut() is not None:
            self._notices.end_all(making.instructions, "superseded", "another cut came")
        else:
            self._pending[:0] = making.instructions
        if making.instructions[0].place is None:  # otherwise the stream of what runs now is made anew
            self._shot, self._leftover = making.shot, True

    def _drop_held(self, reason: str) -> None:
        held, self._held = self._held, None
        assert held is not None
        self._notices.end_all(held.making.instructions, "superseded", reason)
        self._leftover = True
        if self._making is not None and isinstance(self._making.work, NextChunk):
            self._making.orphaned = True
            self._notices.end_all(self._making.instructions, "superseded", reason)
            self._making.instructions = []

    def _opened(self, making: Making, made: Made, now: float) -> None:
        assert making.shot is not None
        self._timing.open_s.append(now - making.began)
        if self._pending.waiting_cut() is not None:
            self._forget_opening(making)
            return
        if (place := making.instructions[0].place) is not None:
            assert isinstance(making.work, OpenShot)
            self._arrive(making.work.story, place)
        self._shot, self._leftover = making.shot, False
        self._shot.num_made, self._shot.num_frames = 1, made.num_frames
        self._held = Held(now + self._hold_back(making.shot, now), made, making, now)
        self._advance(now)

    def _arrive(self, story: int, place: NewShot) -> None:
        """The shot at the end of another way is ready: this way is the live one from now on."""
        addressed = self._pending.take(lambda one: one.at is not None)
        self._notices.end_all(addressed, "superseded", "the story went back")
        self._story = Story(story, place.seed, place.global_caption)
        self._aired_before, self._returning = place.parent_frames, False
        self._notices.add(self._takes.go_to(place))

    def _hold_back(self, shot: RunningShot, now: float) -> float:
        """Seconds by which the second chunk would come too late, at most what the first chunk lacks of a full one."""
        config, opening = self.config, shot.opened_by
        if shot.num_chunks < 2:
            return 0.0
        scheduled = opening is not None and opening.at is not None
        ahead = max(0.0, self._clock.due - now) if scheduled and self._clock.running else 0.0
        shortfall = quantile_of(self._timing.chunk_s, 0.95) - config.first_frames / config.fps - ahead
        return max(0.0, min(shortfall, (config.chunk_frames - config.first_frames) / config.fps))

    def _release(self, held: Held, now: float) -> None:
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
        self._epoch += shot.start < before or self._fresh
        self._fresh = self._returning = False
        self._takes.close(shot.start)
        self._clock.append(held.made.num_frames)
        self._clock.running = not self._paused
        self._fail_left_behind(shot)
        self._notices.add(self._takes.open(shot, opening.text, held.made, self._aired_before))
        self._announce(held.making, held.made, shot.start, now, held.ready_at)

    def _fail_left_behind(self, shot: RunningShot) -> None:
        """Instructions for chunks of shots that have ended can take effect no more."""
        late = self._pending.take(lambda i: i.at is not None and (i.at.shot, i.at.chunk) < (shot.index, 1))
        self._notices.end_all(late, "failed", "the shot ended before that chunk")

    def _made(self, making: Making, made: Made, now: float) -> None:
        if self._held is not None:  # the second chunk is there: nothing can come too late any more
            self._release(self._held, now)
        shot, after = self._shot, making.shot
        assert shot is not None
        assert after is not None
        self._timing.chunk_s.append(now - making.began)
        shot.caption, shot.steers = after.caption, after.steers
        shot.num_made += 1
        start = self._place_chunk(shot, making, made, now)
        shot.num_frames += made.num_frames
        self._clock.running = not self._paused
        self._update_takes(making, start)
        self._announce(making, made, start, now, now)

    def _place_chunk(self, shot: RunningShot, making: Making, made: Made, now: float) -> int:
        """Where on the clock a chunk begins: behind the last one, or where the story goes back at once."""
        if not self._returning:
            self._note_lateness(making, now)
            self._catch_up(now)
            return self._clock.append(made.num_frames)
        before = self._clock.end
        start = self._clock.break_at(now)
        self._epoch += start < before or self._fresh
        self._fresh = self._returning = False
        shot.start = start - shot.num_frames
        return self._clock.append(made.num_frames)

    def _catch_up(self, now: float) -> None:
        """Where frames ran out, the clock goes on from there."""
        if self._clock.raw(now) > self._clock.end or not self._clock.running:
            self._clock.frame, self._clock.time = self._clock.at(now), now

    def _note_lateness(self, making: Making, now: float) -> None:
        late_s = 0.0 if making.on_demand else (self._clock.raw(now) - self._clock.end) / self.config.fps
        self._timing.came(late_s)

    def _announce(self, making: Making, made: Made, start: int, now: float, ready_at: float) -> None:
        """Say that a chunk goes out, and end the instructions that took effect in it."""
        shot = self._shot
        assert shot is not None
        chunk = making.work.chunk if isinstance(making.work, NextChunk) else 0
        instructions = making.instructions
        self._sequence += 1
        self._notices.add(
            ChunkReady(
                node=self._takes.head or 0,
                shot=shot.index,
                chunk=chunk,
                take=shot.take,
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
        self._notices.took_effect(instructions, made, shot=shot.index, chunk=chunk, first_frame=start)

    def _break(self, making: Making, reason: str) -> None:
        self._notices.end_all(making.instructions, "failed", reason)
        making.instructions = []
        if isinstance(making.work, EditMemory):
            self._notices.end(making.work.command, "failed", reason=reason)
        self._end_story(reason)
        self._broken = reason

    def _update_takes(self, making: Making | None = None, start: int = 0) -> None:
        shot = self._shot
        if shot is None or self._leftover or self._held is not None:
            return
        texts = [("", text) for text in making.planned] if making else []
        texts += [(i.id, i.text) for i in making.instructions] if making else []
        marks = [SteerMark(id=id, chunk=shot.num_made - 1, first_frame=start, text=text) for id, text in texts]
        self._takes.update(num_chunks=shot.num_chunks, made_chunks=shot.num_made, marks=marks)

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
        changed = self._timing.is_overdue(self._overdue_ms(now)) or changed
        if changed:
            self._log("poll", None, now)

    def _overdue_ms(self, now: float) -> float:
        """By how much the chunk being waited for is late, if that is worth saying."""
        if not self._clock.running or self._shot is None or self._held is not None:
            return 0.0
        opening = (
            self._returning
            or self._pending.waiting_cut() is not None
            or (self._making is not None and isinstance(self._making.work, OpenShot))
        )
        overdue = (self._clock.raw(now) - self._clock.end) / self.config.fps
        return overdue * 1000 if overdue > (self.config.patience_s if opening else self.config.late_s) else 0.0

    def _is_holding(self, now: float) -> bool:
        """Whether the shot has run its length and everything was shown."""
        shot = self._shot
        if shot is None or self._held is not None or self._pending.waiting_cut() is not None:
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
            late_ms=round(self._timing.late_ms, 1),
            clock_frame=round(self._clock.at(now), 2),
            clock_running=self._clock.running,
        )

    def _state(self, now: float) -> tuple[State, str]:
        if self._broken:
            return "error", self._broken
        if self._story is None:
            return "idle", ""
        if self._paused:
            reasons = {"unwatched": "nobody is watching", "restarted": RESTARTED, "trouble": self._trouble}
            return "paused", reasons.get(self._paused, "")
        if self._is_holding(now):
            return "holding", "waiting for direction"
        if self._timing.late_ms:
            return "late", "chunks come too late: the clock waits for them"
        return "live", ""

    def _flush(self, now: float) -> list[Event]:
        """The events since the last time, and a status if it changed."""
        status = self._status_now(now)
        old = self._status
        if (status.state, status.detail, status.clock_running) != (old.state, old.detail, old.clock_running):
            self._status = status
            self._notices.add(status)
        return self._notices.take()

    def _log(
        self, call: Literal["handle", "next_work", "done", "poll"], argument: Input | Result | None, now: float
    ) -> None:
        if self._record is not None:
            self._record(Entry(call=call, argument=argument, now=now))


def _next_chunk(shot: RunningShot) -> At:
    return At(shot=shot.index, chunk=shot.num_made)
