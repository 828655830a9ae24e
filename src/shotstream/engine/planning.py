"""What a story needs next, and when it is begun."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from shotstream.engine.direction import EditMemory, NewShot, NextChunk, OpenShot, Wait
from shotstream.engine.live_story import LiveStory
from shotstream.engine.messages import At, Cut, Memory, Start
from shotstream.engine.underway import MAX_CHUNKS, Instruction, Making, RunningShot, quantile_of

_IDLE = 0.05
"""Seconds of idleness before a chunk that show it was asked for at short notice."""


class Planning(LiveStory):
    """Turns what is pending into work."""

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
        scheduled = self._pending.scheduled_cut(_next_chunk(shot))
        if self._held if scheduled else shot.num_made >= shot.num_chunks:
            return Wait(until=self._deadline())  # a shot is opened once the one before it is on air
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

    def _lengthen(self) -> bool:
        """A shot that has run its length goes on for a little when it is steered. Returns whether it does from now."""
        shot = self._shot
        if shot is None or self._leftover or self._making is not None or shot.num_made < shot.num_chunks:
            return False
        if shot.num_made >= MAX_CHUNKS:
            return False
        here = _next_chunk(shot)
        if self._pending.waiting_cut() or self._pending.scheduled_cut(here) or not self._pending.steers(here):
            return False
        shot.num_chunks = min(MAX_CHUNKS, shot.num_made + self.config.steer_chunks)
        return True

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
            plan=place.plan,
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


def _next_chunk(shot: RunningShot) -> At:
    return At(shot=shot.index, chunk=shot.num_made)
