"""What becomes of work that was done: chunks go on air, instructions end, time passes."""

from __future__ import annotations

from shotstream.engine.direction import (
    Abandoned,
    Broken,
    Edited,
    EditMemory,
    Made,
    NewShot,
    NextChunk,
    OpenShot,
    Refused,
    Result,
)
from shotstream.engine.live_story import LiveStory
from shotstream.engine.messages import ChunkReady
from shotstream.engine.underway import Held, Making, RunningShot, Story, quantile_of


class Airing(LiveStory):
    """Puts what was made on the story clock and says so."""

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
        self._pass_time(now)

    def _arrive(self, story: int, place: NewShot) -> None:
        """The shot at the end of another way is ready: this way is the live one from now on."""
        addressed = self._pending.take(lambda one: one.at is not None)
        self._notices.end_all(addressed, "superseded", "the story went back")
        self._story = Story(story, place.seed, place.global_caption)
        self._aired_before, self._returning = place.parent_frames, False
        self._notices.add(self._takes.go_to(place))

    def _hold_back(self, shot: RunningShot, now: float) -> float:
        """Seconds by which the second chunk would come too late, at most what the first chunk lacks of a full one.

        What is missing beyond that every later chunk is late by as well: no hold mends it, and a longer one would only
        be added to the wait after each cut.
        """
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
        self._left_out = made.left_out
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

    def _pass_time(self, now: float) -> bool:
        """What happens by itself as time passes. Returns whether anything did."""
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
        return self._timing.is_overdue(self._overdue_ms(now)) or changed
