"""Plays a story file live: turns it into ordinary commands, each given a little before it takes effect.

Starts, cuts at shot ends, steers at their chunks, pictures before the first shot that remembers them. Like everybody
else's they are accepted, kept and ended one by one, wait while the story is paused, and can be cancelled. The captions
are taken word by word, without a writer. An exported story is performed anew: its shots as long as the film shows them,
while memory chooses for itself what they remember.

A performance outlives the server: the file is kept with the story, and the commands say by their ids which steps have
been taken.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shotstream.engine.direction import Written
from shotstream.server.protocol import (
    At,
    Branch,
    ChunkReady,
    Cut,
    Ended,
    Event,
    Extend,
    Memory,
    Performance,
    Retake,
    Start,
    Status,
    Steer,
    Stop,
    Undo,
    parse,
    to_json,
)
from shotstream.server.records import GIVEN_AGAIN, RESTARTED, StoredCommand
from shotstream.story import PICTURE, Shot, Story, parse_story, story_yaml

INTERRUPTIONS = (Cut, Steer, Extend, Stop, Branch, Retake, Undo)
"""Commands by which a director takes over."""
INTERRUPTED = "the director took over"
MAX_SHOTS = 1000
_AHEAD = 8
"""Commands that are pending at a time; a director can pend others beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A command of the performance."""

    command: Start | Cut | Steer | Memory
    written: tuple[Written, ...] = ()
    """Captions that are ready once it was given."""
    after: int = 0
    """How many shots must have begun before it can be given."""

    @property
    def opens(self) -> bool:
        return isinstance(self.command, (Start, Cut))


class Performer:
    """One performance of a story file. Pure: whoever gives its commands tells it what becomes of them."""

    def __init__(
        self,
        story: Story,
        *,
        first_frames: int,
        chunk_frames: int,
        id: str = "",
        given: Sequence[StoredCommand] = (),
        newest: tuple[int, int] = (0, 0),
    ) -> None:
        """Args: pixel frames of a shot's first chunk and of every other one. To go on with a performance: its id, the
        commands that were given before, all ended, and the shot and chunk that were made last.

        Raises: ValueError, in words for people, for a story that no commands can be made of.
        """
        self.id = id or f"play-{secrets.token_hex(6)}"
        self.note = json.dumps({"id": self.id, "story": story_yaml(story)})
        """What `go_on` needs after a restart of the server."""
        self.shots = _shots(story, first_frames, chunk_frames)
        if len(self.shots) > MAX_SHOTS:
            raise ValueError(f"at most {MAX_SHOTS} shots are played, the story has {len(self.shots)}")
        for index, shot in enumerate(self.shots):
            if max(Counter(steer.chunk for steer in shot.steers).values(), default=0) >= _AHEAD:
                raise ValueError(f"shot {index} has {_AHEAD} steers or more at one chunk: put them into fewer")
        past = Past(self.id, given)
        steps = [step for step in _steps(story, self.shots, past) if step.command.id]
        for step in steps:
            parse(to_json(step.command))  # texts, counts and numbers as over the wire
        self._steps = deque(steps)
        self._pending: dict[str, Step] = {}
        self._newest = newest
        """Shot and chunk that were made last."""
        opened = len(self.shots) - sum(step.opens for step in steps)
        self.performance = Performance(
            title=story.name[:200],
            state="playing",
            opened=opened,
            num_shots=len(self.shots),
            following=self.shots[opened].caption if opened < len(self.shots) else "",
        )

    @property
    def has_next(self) -> bool:
        """Whether another command should be given now."""
        waits = not self._steps or self._steps[0].after > self.performance.opened
        return not waits and len(self._pending) < _AHEAD

    def next(self) -> Step:
        """The command to be given next; it stays the next one until it is said that it was `gave`n."""
        return self._steps[0]

    def gave(self, step: Step) -> None:
        """It was accepted."""
        self._steps.popleft()
        self._pending[step.command.id] = step

    def note_event(self, event: Event) -> bool:
        """Take in what happened; returns whether `performance` changed."""
        before = self.performance
        match event:
            case Ended() if (step := self._pending.pop(event.id, None)) is not None:
                self._note_ending(step, event)
            case ChunkReady():
                self._newest = (event.shot, event.chunk)
            case Status(state="idle" | "error"):
                self.withdraw(event.detail or "the story ended")
        if self.performance.state == "playing" and self._is_over():
            self.performance = replace(self.performance, state="finished")
        return self.performance != before

    def _note_ending(self, step: Step, event: Ended) -> None:
        if not step.opens:
            return
        if event.outcome != "applied":
            self.withdraw(event.reason or INTERRUPTED)
            return
        opened = self.performance.opened + 1
        following = self.shots[opened].caption if opened < len(self.shots) else ""
        self.performance = replace(self.performance, opened=opened, following=following)

    def _is_over(self) -> bool:
        last = len(self.shots) - 1
        return self.performance.opened > last and self._newest >= (last, self.shots[last].num_chunks - 1)

    def withdraw(self, reason: str) -> tuple[str, ...]:
        """End it here. Returns the ids of commands that are pending and wanted no more."""
        if self.performance.state == "playing":
            self.performance = replace(self.performance, state="interrupted", following="", reason=reason)
        # A story whose start is still to come would be over with it: whoever takes over wants to go on from there.
        return tuple(id for id, step in self._pending.items() if not isinstance(step.command, Start))


def go_on(
    note: str, given: Sequence[StoredCommand], newest: tuple[int, int], *, first_frames: int, chunk_frames: int
) -> Performer:
    """Take up a performance where it was left. Args: note is the performer's that was; the rest as for `Performer`."""
    kept = json.loads(note)
    return Performer(
        parse_story(kept["story"]),
        first_frames=first_frames,
        chunk_frames=chunk_frames,
        id=kept["id"],
        given=[command for command in given if command.id.startswith(kept["id"])],
        newest=newest,
    )


class Past:
    """Which steps of a performance were taken, and the ids of those that are still to be."""

    def __init__(self, id: str, given: Sequence[StoredCommand]) -> None:
        self._id, self._numbers = id, itertools.count(1)
        numbers = [(int(command.id.split("-")[2]), command) for command in given]
        self._taken = {number for number, command in numbers if command.reason not in (RESTARTED, GIVEN_AGAIN)}
        self._times = Counter(number for number, _ in numbers)

    def next_id(self) -> str:
        """Of the next step; empty for one that was taken."""
        number = next(self._numbers)
        again = f"-{self._times[number]}" if self._times[number] else ""
        return "" if number in self._taken else f"{self._id}-{number}{again}"


def _shots(story: Story, first_frames: int, chunk_frames: int) -> tuple[Shot, ...]:
    """Those that the film shows, in its order, as long as it shows them."""
    made = {shot.making.id: shot for shot in story.shots if shot.making is not None}
    if not made:
        return story.shots
    order = story.order or [id for id, shot in made.items() if shot.making is None or shot.making.frames != 0]
    shots = tuple(_as_shown(made[id], first_frames, chunk_frames) for id in order)
    if not shots:
        raise ValueError("the story shows none of its shots: nothing can be played")
    return shots


def _as_shown(shot: Shot, first_frames: int, chunk_frames: int) -> Shot:
    frames = shot.making.frames if shot.making is not None else None
    if not frames:
        return shot
    count = min(shot.num_chunks, 1 + max(0, -(-(frames - first_frames) // chunk_frames)))
    return replace(shot, num_chunks=count, steers=tuple(steer for steer in shot.steers if steer.chunk < count))


def _steps(story: Story, shots: tuple[Shot, ...], past: Past) -> Iterator[Step]:
    """In the order in which they take effect; those that were taken have no id."""
    added = set[int]()
    for index, shot in enumerate(shots):
        for number in _pictures(shot) if index else ():
            if number not in added:
                added.add(number)
                picture = story.pictures[number]
                add = Memory(id=past.next_id(), action="add", picture=picture.png, caption=picture.caption)
                yield Step(command=add, after=index)
        yield from _shot_steps(story, shots, index, past)


def _shot_steps(story: Story, shots: tuple[Shot, ...], index: int, past: Past) -> Iterator[Step]:
    """A shot's opening and steers. Its caption is ready once everything that belongs to its first chunk was given."""
    shot, opening = shots[index], _opening(past.next_id(), story, shots, index)
    caption = Written(id=opening.id, caption=shot.caption)
    first = sum(steer.chunk == 0 for steer in shot.steers)
    yield Step(command=opening, written=() if first else (caption,))
    for number, steer in enumerate(shot.steers, start=1):
        command = Steer(id=past.next_id(), text=steer.caption, at=At(shot=index, chunk=steer.chunk))
        written = Written(id=command.id, caption=steer.caption, replaces=steer.replaces)
        yield Step(command=command, written=(written, caption) if number == first else (written,))


def _opening(id: str, story: Story, shots: tuple[Shot, ...], index: int) -> Start | Cut:
    shot = shots[index]
    if index == 0:
        seed = story.seed or 0
        return Start(
            id=id, text=shot.caption, global_caption=story.global_caption, seed=seed, num_chunks=shot.num_chunks
        )
    at = At(shot=index - 1, chunk=shots[index - 1].num_chunks)
    return Cut(id=id, text=shot.caption, num_chunks=shot.num_chunks, at=at)


def _pictures(shot: Shot) -> list[int]:
    recalls = shot.making.recalls if shot.making is not None else ()
    return [recall.frame for recall in recalls if recall.id == PICTURE]
