"""The state of one live story: what runs and what is pending, where the clock is, and what can be said of it.

Nothing is decided here: `planning.py` says what is made next, `airing.py` what becomes of it, `director.py` takes
commands.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from shotstream.engine.direction import DirectorConfig, EditMemory, NextChunk, OpenShot, Scene, StoryClock
from shotstream.engine.messages import At, Memory, Pending, RememberedFrame, State, Status, SteerMark, StorySnapshot
from shotstream.engine.takes import Takes
from shotstream.engine.underway import Agenda, Held, Making, Notices, RunningShot, Story, Timing, quantile_of

RESTARTED = "the server was restarted: resume to go on"
_TINY = 1e-6

ShotState = Literal["opening", "rolling", "holding", "ended"]
"""opening: a shot is on its way, and nothing of it was seen; rolling: it is on air and goes on; holding: it has run its
length and its last picture stands; ended: no shot can go on, another one has to be opened."""


class LiveStory:
    """Where a story is. Times are the caller's."""

    def __init__(self, config: DirectorConfig) -> None:
        self.config = config
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
        self._takes = Takes()
        self._memory: tuple[RememberedFrame, ...] = ()
        self._left_out: tuple[str, ...] = ()
        """Of the newest chunk's captions."""
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

    # ---------------------------------------------------------------------------------------------------- what is asked

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
            left_out=self._left_out,
        )

    def aired_frames(self, now: float, *, everything: bool = False) -> int | None:
        """How many frames of the stream's running shot were on air until now, or will be; None: there is no shot.

        One that was announced counts at least one: it is a shot of the story, even where its first frame is still due.
        """
        shot = self._shot
        if shot is None:
            return None
        if self._leftover:
            return 0
        if everything:
            return shot.num_frames
        return max(1, min(shot.num_frames, math.floor(self._clock.at(now)) + 1 - shot.start))

    def _next_index(self) -> int:
        if self._shot is None:
            return 0
        return self._shot.index if self._leftover else self._shot.index + 1

    def _num_chunks(self, num_frames: int | None) -> int:
        """How many chunks of a shot so many frames come from."""
        if not num_frames:
            return 0
        return 1 + max(0, math.ceil((num_frames - self.config.first_frames) / self.config.chunk_frames))

    def _missed(self, at: At | None) -> bool:
        if at is None or self._shot is None:
            return False
        chunk = self._shot.num_made + (self._making is not None and isinstance(self._making.work, NextChunk))
        return (at.shot, at.chunk) < (self._shot.index, chunk)

    def shot_state(self, now: float) -> ShotState:
        """How the newest shot is doing."""
        is_made = self._making is not None and isinstance(self._making.work, OpenShot)
        if is_made or self._held is not None or self._pending.waiting_cut() is not None:
            return "opening"
        if self._shot is None or self._leftover:
            return "ended"
        return "holding" if self._shot.num_made >= self._shot.num_chunks and self._stands_still(now) else "rolling"

    def _has_ended(self, now: float) -> bool:
        """Whether the shot on air cannot go on and no other is coming, however late."""
        return self._leftover and self.shot_state(now) == "ended" and not self._pending.opens

    # ------------------------------------------------------------------------------------------------ beginning and end

    def _enter_story(self, seed: int, global_caption: str, clock_frame: int, now: float) -> None:
        self._stories += 1
        self._story = Story(self._stories, seed, global_caption)
        self._clock = StoryClock(self.config.fps, frame=clock_frame, end=clock_frame, time=now)
        self._memory, self._left_out = (), ()
        self._shot, self._leftover = None, False
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
        self._edits, self._story, self._shot, self._left_out = [], None, None, ()
        self._returning = False
        self._clock.running = False
        self._paused, self._timing.late_ms = "", 0.0

    def _end_if_nothing_comes(self, reason: str) -> None:
        """A story without a shot ends when its opening does."""
        making = self._making is not None and not isinstance(self._making.work, EditMemory)
        if self._shot is None and not making and not self._pending.opens:
            self._end_story(reason)

    def _drop_held(self, reason: str) -> None:
        held, self._held = self._held, None
        assert held is not None
        self._notices.end_all(held.making.instructions, "superseded", reason)
        self._leftover = True
        if self._making is not None and isinstance(self._making.work, NextChunk):
            self._making.orphaned = True
            self._notices.end_all(self._making.instructions, "superseded", reason)
            self._making.instructions = []

    def _set_paused(self, reason: Literal["", "asked", "unwatched", "trouble"], now: float) -> None:
        if reason and self._paused == "restarted":
            return  # it sleeps more soundly than that
        was, self._paused = self._paused, reason
        if reason and not was:
            self._clock.stop(now)
        elif was and not reason and not self._is_holding(now) and self._clock.end:
            self._clock.run(now)

    def _update_takes(self, making: Making | None = None, start: int = 0) -> None:
        shot = self._shot
        if shot is None or self._leftover or self._held is not None:
            return
        texts = [("", text) for text in making.planned] if making else []
        texts += [(i.id, i.text) for i in making.instructions] if making else []
        marks = [SteerMark(id=id, chunk=shot.num_made - 1, first_frame=start, text=text) for id, text in texts]
        self._takes.update(num_chunks=shot.num_chunks, made_chunks=shot.num_made, marks=marks)

    # ------------------------------------------------------------------------------------------------------------- time

    def _catch_up(self, now: float) -> None:
        """Where frames ran out, the clock goes on from there."""
        if self._clock.raw(now) > self._clock.end or not self._clock.running:
            self._clock.frame, self._clock.time = self._clock.at(now), now

    def _overdue_ms(self, now: float) -> float:
        """By how much the chunk being waited for is late, if that is worth saying."""
        if not self._clock.running or self._shot is None or self._held is not None:
            return 0.0
        opening = self._returning or self.shot_state(now) == "opening"
        overdue = (self._clock.raw(now) - self._clock.end) / self.config.fps
        return overdue * 1000 if overdue > (self.config.patience_s if opening else self.config.late_s) else 0.0

    def _is_holding(self, now: float) -> bool:
        """Whether the story waits for direction: its shot goes on no more, and everything was shown."""
        return self._shot is not None and self.shot_state(now) in ("holding", "ended") and self._stands_still(now)

    def _stands_still(self, now: float) -> bool:
        """Whether no chunk is being made and every frame was shown."""
        is_made = self._making is not None and not isinstance(self._making.work, EditMemory)
        return not is_made and self._clock.at(now) >= self._clock.end - _TINY

    def _deadline(self) -> float | None:
        """When something happens by itself next."""
        times = [self._held.release_at] if self._held is not None else []
        if self._clock.running:
            times.append(self._clock.due)
        if self._unwatched_since is not None and not self._paused:
            times.append(self._unwatched_since + self.config.viewerless_s)
        return min(times, default=None)

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
