"""The director's promises, on an engine that exists only as compute times."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from shotstream.engine import messages as m
from shotstream.engine.direction import (
    Abandoned,
    DirectorConfig,
    Dropped,
    Edited,
    EditMemory,
    Entry,
    GoOn,
    Located,
    Made,
    NewShot,
    NextChunk,
    NotWritten,
    OpenShot,
    Refused,
    Remembered,
    Result,
    Trouble,
    Viewers,
    Wait,
    Work,
    Written,
)
from shotstream.engine.director import Director

CONFIG = DirectorConfig(expected_chunk_s=0.2, expected_open_s=0.25)
FPS = CONFIG.fps


@dataclass
class Simulation:
    """Time, an engine of set speed, and everything the director said with the time it said it."""

    chunk_s: float = 0.2
    open_s: float = 0.25
    config: DirectorConfig = CONFIG
    step: float = 0.01
    obeys: bool = True
    """Whether the engine abandons what is unwanted."""
    now: float = 0.0
    events: list[tuple[float, m.Event]] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    begun: list[tuple[float, Work]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Captions that the engine refuses."""

    def __post_init__(self) -> None:
        self.director = Director(self.config, record=self.log.append)
        self._work: Work | None = None
        self._ready = 0.0
        self._ids = 0

    def do(self, command: m.Command, caption: str | None = None) -> str:
        self._say(self.director.handle(command, self.now))
        if isinstance(command, (m.Start, m.Cut, m.Steer)):
            self._say(self.director.handle(Written(id=command.id, caption=caption or command.text), self.now))
        return command.id

    def start(self, text: str = "a fox", **rest: object) -> str:
        return self.do(m.Start(id=self._id(), text=text, **rest))  # type: ignore[arg-type]

    def cut(self, text: str = "the city", **rest: object) -> str:
        return self.do(m.Cut(id=self._id(), text=text, **rest))  # type: ignore[arg-type]

    def steer(self, text: str = "he waves", **rest: object) -> str:
        return self.do(m.Steer(id=self._id(), text=text, **rest))  # type: ignore[arg-type]

    def give(self, cls: type[m.Command], **rest: object) -> str:
        return self.do(cls(id=self._id(), **rest))  # type: ignore[arg-type]

    def _id(self) -> str:
        self._ids += 1
        return f"c{self._ids}"

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self._engine()
            self.now = round(self.now + self.step, 6)
            self._say(self.director.poll(self.now))
        self._engine()

    @property
    def shot_state(self) -> str:
        return self.director.shot_state(self.now)

    def _engine(self) -> None:
        if self._work is not None and self.obeys and self.director.unwanted:
            self._finish(Abandoned())
        elif self._work is not None and self.now >= self._ready:
            self._finish(self._result(self._work))
        while self._work is None:
            work = self.director.next_work(self.now)
            self._say(self.director.poll(self.now))
            if isinstance(work, Wait):
                return
            self._work = work
            self.begun.append((self.now, work))
            if isinstance(work, NextChunk):
                self._check_that_nothing_waits()
            cost = self.open_s if isinstance(work, OpenShot) else self.chunk_s
            self._ready = self.now + (0.0 if isinstance(work, EditMemory) else cost)
            if isinstance(work, EditMemory):
                self._finish(Edited())

    def _check_that_nothing_waits(self) -> None:
        """A chunk is begun once the one before it is on air, unless that is held back, or the story went elsewhere."""
        if not (self.director._held or self.director._returning):
            assert self.director.snapshot(self.now).status.clock_frame >= self.chunks[-1].start - 0.01

    def _result(self, work: Work) -> Result:
        if isinstance(work, EditMemory):
            return Edited()
        if work.caption in self.refusals:
            return Refused(reason="cannot")
        caption = " ".join([work.caption, *work.steers])
        return Made(num_frames=9 if isinstance(work, OpenShot) else 12, caption=caption)

    def _finish(self, result: Result) -> None:
        self._work = None
        self._say(self.director.done(result, self.now))
        if isinstance(result, Made):
            frame = m.RememberedFrame(shot=len(self.begun) % 3, frame=0, reason="allotted")
            self._say(self.director.handle(Remembered(frames=(frame,)), self.now))

    def _say(self, events: list[m.Event]) -> None:
        self.events += [(self.now, event) for event in events]

    def of(self, kind: type[m.Event]) -> list[m.Event]:
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def chunks(self) -> list[m.ChunkReady]:
        return [event for _, event in self.events if isinstance(event, m.ChunkReady)]

    @property
    def states(self) -> list[str]:
        return [event.state for _, event in self.events if isinstance(event, m.Status)]

    def ended(self, id: str) -> m.Ended:
        found = [event for _, event in self.events if isinstance(event, m.Ended) and event.id == id]
        assert len(found) == 1, f"{id} ended {len(found)} times"
        return found[0]

    def ready_at(self, sequence: int) -> float:
        return next(t for t, e in self.events if isinstance(e, m.ChunkReady) and e.sequence == sequence)


def test_a_story_runs_its_shot_without_a_break_and_holds() -> None:
    sim = Simulation()
    first = sim.start()
    sim.run(7)
    assert [(c.chunk, c.start, c.num_frames) for c in sim.chunks] == [
        (0, 0, 9), (1, 9, 12), (2, 21, 12), (3, 33, 12), (4, 45, 12), (5, 57, 12), (6, 69, 12),
    ]  # fmt: skip
    assert {c.epoch for c in sim.chunks} == {1}
    ended = sim.ended(first)
    assert (ended.outcome, ended.shot, ended.chunk, ended.first_frame) == ("applied", 0, 0, 0)
    assert sim.states == ["live", "live", "holding"], "before and after its clock runs, then waiting"
    assert sim.director.snapshot(sim.now).status.clock_frame == 81


def test_a_shot_opens_rolls_holds_and_ends() -> None:
    sim = Simulation()
    assert sim.shot_state == "ended", "there is none yet"
    sim.start(num_chunks=2)
    assert sim.shot_state == "opening"
    sim.run(0.4)
    assert sim.shot_state == "rolling"
    sim.run(2.0)
    assert (sim.shot_state, sim.states[-1]) == ("holding", "holding")
    sim.give(m.Extend, num_chunks=1)
    sim.run(0.1)
    assert sim.shot_state == "rolling"
    cut = sim.cut()
    assert sim.shot_state == "opening"
    sim.run(0.1)
    sim.give(m.Cancel, target=cut)
    assert sim.shot_state == "opening", "it is being made already"
    sim.run(2.0)
    assert (sim.ended(cut).outcome, sim.shot_state) == ("applied", "rolling")
    sim.give(m.Stop)
    assert sim.shot_state == "ended"


def test_a_shot_whose_successor_came_to_nothing_has_ended() -> None:
    slow = Simulation(chunk_s=0.7, open_s=0.1, config=DirectorConfig(expected_chunk_s=0.7, expected_open_s=0.1))
    slow.start()
    slow.run(2.0)
    slow.cut()
    slow.run(0.15)
    assert slow.shot_state == "opening", "its first chunk is held back"
    slow.refusals.append("the beach")
    slow.cut("the beach")
    slow.run(2.0)
    assert (slow.shot_state, slow.states[-1]) == ("ended", "holding")
    assert slow.ended(slow.steer()).reason == "the shot has ended: cut to a new one"


def test_the_director_needs_neither_torch_nor_numpy() -> None:
    check = "import sys, shotstream.engine.director; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_chunks_are_begun_late_enough_that_one_is_unaired_and_early_enough_to_be_on_time() -> None:
    sim = Simulation()
    sim.start()
    sim.run(5)
    on_air = sim.ready_at(1)
    for began, work in sim.begun[3:]:
        assert isinstance(work, NextChunk)
        due = on_air + sum(c.num_frames for c in sim.chunks if c.chunk < work.chunk) / FPS
        lead = due - began
        assert 0.2 + CONFIG.margin_s - 0.02 <= lead <= 0.25 + CONFIG.margin_s + 0.02
    assert "late" not in sim.states


def test_viewers_do_not_drive_the_clock() -> None:
    sim = Simulation()
    sim.start()
    for count in (1, 5, 0, 2):
        sim._say(sim.director.handle(Viewers(count=count), sim.now))
        sim.run(0.7)
    quiet = Simulation()
    quiet.start()
    quiet.run(2.8)
    assert [(c.start, c.chunk) for c in sim.chunks] == [(c.start, c.chunk) for c in quiet.chunks]


@pytest.mark.parametrize(("obeys", "at"), [(True, 1.6), (False, 2.1)])
def test_a_cut_takes_the_next_frame_of_the_clock_and_voids_what_was_sent_for_later(obeys: bool, at: float) -> None:
    sim = Simulation(obeys=obeys)
    sim.start()
    sim.run(at)
    frame_at_cut = sim.director.snapshot(sim.now).status.clock_frame
    cut_at = sim.now
    cut = sim.cut()
    sim.run(1.0)
    first = next(c for c in sim.chunks if c.shot == 1)
    opened = sim.of(m.ShotOpened)[-1]
    assert isinstance(opened, m.ShotOpened)
    assert sim.ended(cut).first_frame == first.start == opened.start
    assert first.epoch == 2
    assert sim.ready_at(first.sequence) - cut_at <= (0.27 if obeys else 0.47)
    before = [c for c in sim.chunks if c.shot == 0]
    assert first.start <= max(c.start + c.num_frames for c in before)
    assert opened.aired_before is not None
    assert 0 <= opened.aired_before - frame_at_cut <= (1 if obeys else 4), "only what was on air can be remembered"
    assert first.start - frame_at_cut <= (0.27 if obeys else 0.47) * FPS + 1


def test_steers_before_one_boundary_merge_in_order_and_a_cut_supersedes_them() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1.2)
    one, two = sim.steer("he waves"), sim.steer("it rains")
    sim.run(1.0)
    assert sim.ended(one).chunk == sim.ended(two).chunk
    assert sim.ended(one).first_frame == sim.ended(two).first_frame
    steered = next(c for c in sim.chunks if one in c.applied)
    assert steered.applied == (one, two)
    assert steered.caption == "a fox he waves it rains"
    earlier = sim.chunks[sim.chunks.index(steered) - 1]
    assert earlier.caption == "a fox", "the frame before still has the old caption"

    three = sim.steer("it snows")
    cut = sim.cut()
    sim.run(1.0)
    assert sim.ended(three).outcome == "superseded"
    assert sim.ended(cut).outcome == "applied"


def test_a_cut_supersedes_a_cut_whose_shot_was_not_seen_yet() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1.5)
    one = sim.cut("the city")
    sim.run(0.1)
    two = sim.cut("the beach")
    sim.run(1.0)
    assert sim.ended(one).outcome == "superseded"
    assert sim.ended(two).shot == 1, "a shot that nobody saw never was"
    openings = [work for _, work in sim.begun if isinstance(work, OpenShot)]
    assert [work.shot for work in openings] == [0, 1, 1]
    assert openings[2].aired_frames == 0
    assert {c.caption for c in sim.chunks if c.shot == 1} == {"the beach"}


@pytest.mark.parametrize(
    ("chunk_s", "hold"),
    [(0.2, 0.0), (0.5625, 0.0), (0.65, 0.65 - 9 / FPS), (0.75, 3 / FPS), (1.0, 3 / FPS)],
    ids=["fast", "just fast enough", "short of a little", "as long as a chunk lasts", "late whatever it waits"],
)
def test_a_short_first_chunk_is_held_back_by_exactly_the_shortfall(chunk_s: float, hold: float) -> None:
    config = DirectorConfig(expected_chunk_s=chunk_s, expected_open_s=0.3)
    sim = Simulation(chunk_s=chunk_s, open_s=0.3, config=config)
    start = sim.start()
    sim.run(4.0)
    assert sim.ready_at(1) == pytest.approx(0.3 + hold, abs=0.011)
    assert sim.chunks[0].latency_ms == pytest.approx((0.3 + hold) * 1000, abs=11), "the hold counts"
    assert sim.ended(start).outcome == "applied"
    assert ("late" in sim.states) is (chunk_s > 12 / FPS), "no longer hold would mend that"


def test_a_cut_while_a_first_chunk_is_held_back_drops_it() -> None:
    slow = Simulation(chunk_s=0.7, open_s=0.3, config=DirectorConfig(expected_chunk_s=0.7, expected_open_s=0.3))
    start = slow.start()
    slow.run(0.35)
    assert not slow.chunks
    cut = slow.cut("the beach")
    slow.run(2.0)
    assert slow.ended(start).outcome == "superseded"
    assert slow.ended(cut).shot == 0
    assert slow.chunks[0].caption == "the beach"


def test_a_late_engine_is_announced_and_shifts_the_clock() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1.5)
    sim.chunk_s = 1.2
    sim.run(4.0)
    assert "late" in sim.states
    assert sim.director.late_chunks >= 2
    frames = [(c.start, c.num_frames) for c in sim.chunks]
    assert all(start + count == then for (start, count), (then, _) in pairwise(frames))
    sim.chunk_s = 0.1
    sim.give(m.Extend, num_chunks=20)
    sim.run(6.0)
    assert sim.states[-1] == "live"


def test_how_late_a_chunk_is_that_does_not_come_is_said_again_and_again() -> None:
    sim = Simulation(chunk_s=4.0)
    sim.start()
    sim.run(6.0)
    late = [event.late_ms for _, event in sim.events if isinstance(event, m.Status) and event.state == "late"]
    assert late[0] < 500, "at once"
    assert late[-1] > 3000, "and not as if it still were so little"
    assert all(500 <= after - before < 600 for before, after in pairwise(late))


def test_a_held_shot_goes_on_when_steered_or_extended_and_nothing_counts_as_late() -> None:
    sim = Simulation()
    sim.start(num_chunks=2)
    sim.run(3.0)
    assert sim.states[-1] == "holding"
    steer = sim.steer()
    sim.run(5.0)
    assert sim.ended(steer).chunk == 2
    assert sim.ended(steer).first_frame == 21, "the clock stood still meanwhile"
    assert len(sim.chunks) == 2 + CONFIG.steer_chunks
    extend = sim.give(m.Extend, num_chunks=1)
    sim.run(2.0)
    assert sim.ended(extend).chunk == 5
    assert len(sim.chunks) == 6
    assert "late" not in sim.states


def test_a_held_back_first_chunk_is_not_lost_to_a_cut_that_follows_it_at_once() -> None:
    sim = Simulation(chunk_s=0.7, open_s=0.1, config=DirectorConfig(expected_chunk_s=0.7, expected_open_s=0.1))
    first = sim.start()
    second = sim.cut(at=m.At(shot=0, chunk=1))
    sim.run(3.0)
    assert (sim.ended(first).outcome, sim.ended(second).outcome) == ("applied", "applied")
    assert [(chunk.shot, chunk.start) for chunk in sim.chunks[:2]] == [(0, 0), (1, 9)]


def test_that_a_steer_made_a_shot_longer_is_replayed_even_before_its_chunk_is_begun() -> None:
    sim = Simulation()
    sim.start(num_chunks=2)
    while len(sim.chunks) < 2:
        sim.run(0.01)
    sim.steer()
    sim.run(0.01)
    extend = sim.give(m.Extend, num_chunks=1)
    assert sim.ended(extend).chunk == 2 + CONFIG.steer_chunks
    _, said = Director.replay(CONFIG, sim.log)
    assert said == [event for _, event in sim.events]


def test_pause_stops_the_clock_and_resume_goes_on() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1.6)
    sim.give(m.Pause)
    frame = sim.director.snapshot(sim.now).status.clock_frame
    sim.run(0.5)
    made = len(sim.chunks)
    sim.run(20)
    assert sim.director.snapshot(sim.now).status.clock_frame == frame
    assert len(sim.chunks) == made
    sim.give(m.Resume)
    sim.run(6)
    frames = [(c.start, c.num_frames) for c in sim.chunks]
    assert all(start + count == then for (start, count), (then, _) in pairwise(frames))
    assert len(sim.chunks) == 7
    assert "late" not in sim.states


def test_an_empty_house_pauses_after_half_a_minute_and_a_viewer_resumes() -> None:
    sim = Simulation()
    sim._say(sim.director.handle(Viewers(count=1), sim.now))
    sim.start(num_chunks=1000)
    sim.run(2)
    sim._say(sim.director.handle(Viewers(count=0), sim.now))
    sim.run(29)
    assert sim.states[-1] == "live"
    sim.run(2)
    assert sim.states[-1] == "paused"
    sim._say(sim.director.handle(Viewers(count=1), sim.now))
    assert sim.states[-1] == "live"


def test_instructions_for_a_named_chunk_take_effect_there_and_cuts_without_a_break() -> None:
    sim = Simulation()
    sim.start()
    steer = sim.steer(at=m.At(shot=0, chunk=3))
    cut = sim.cut(at=m.At(shot=0, chunk=5))
    sim.run(6)
    assert sim.ended(steer).chunk == 3
    assert sim.ended(cut).first_frame == 9 + 4 * 12, "in place of chunk 5"
    assert {c.epoch for c in sim.chunks} == {1}, "no break"
    late = sim.steer(at=m.At(shot=0, chunk=1))
    assert sim.ended(late).outcome == "failed"


def test_a_shot_that_was_announced_counts_though_a_cut_at_once_comes_before_its_first_picture() -> None:
    sim = Simulation()
    sim.start(num_chunks=2)
    sim.cut(at=m.At(shot=0, chunk=2))
    while len(sim.of(m.ShotOpened)) < 2:
        sim.run(0.01)
    assert sim.director.snapshot(sim.now).status.clock_frame < sim.chunks[-1].start - 1, "it is not on air yet"
    sim.cut("a boat")
    sim.run(1)
    opening = [work for _, work in sim.begun if isinstance(work, OpenShot)][-1]
    assert (opening.shot, opening.aired_frames) == (2, 1), "a stream takes 0 for a shot that never was"
    opened = sim.of(m.ShotOpened)[-1]
    assert isinstance(opened, m.ShotOpened)
    assert (opened.shot, opened.parent, opened.aired_before) == (2, 2, 1)


def test_what_is_pending_can_be_cancelled() -> None:
    sim = Simulation()
    sim.start()
    sim.run(0.5)
    steer = sim.steer(at=m.At(shot=0, chunk=5))
    cancel = sim.give(m.Cancel, target=steer)
    assert sim.ended(steer).outcome == "superseded"
    assert sim.ended(cancel).outcome == "applied"
    again = sim.give(m.Cancel, target=steer)
    assert sim.ended(again).outcome == "failed"


def test_what_a_writer_refuses_fails_and_changes_nothing() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1)
    sim._say(sim.director.handle(m.Cut(id="x", text="far too long"), sim.now))
    sim._say(sim.director.handle(NotWritten(id="x", reason="too long"), sim.now))
    sim.run(5)
    assert sim.ended("x").outcome == "failed"
    assert len(sim.chunks) == 7


def test_a_refused_opening_leaves_the_shot_running() -> None:
    sim = Simulation(refusals=["the city"])
    sim.start()
    sim.run(1.3)
    cut = sim.cut("the city")
    sim.run(6)
    assert sim.ended(cut).outcome == "failed"
    assert [c.chunk for c in sim.chunks] == list(range(7))


def test_stop_ends_everything_and_another_start_begins_a_new_story() -> None:
    sim = Simulation()
    sim.start()
    sim.run(1)
    steer = sim.steer()
    stop = sim.give(m.Stop)
    assert sim.ended(steer).outcome == "superseded"
    assert sim.ended(stop).outcome == "applied"
    assert sim.states[-1] == "idle"
    again = sim.start("a bear", seed=3)
    sim.run(1)
    assert sim.ended(again).shot == 0
    openings = [work for _, work in sim.begun if isinstance(work, OpenShot)]
    assert [(w.story, w.seed) for w in openings] == [(1, 0), (2, 3)]
    assert sim.chunks[-1].epoch == 2


def test_commands_without_a_story_fail_with_a_reason_and_an_id_is_used_once() -> None:
    sim = Simulation()
    for id in (sim.cut(), sim.steer(), sim.give(m.Pause), sim.give(m.Extend), sim.give(m.Retake, node=1)):
        assert sim.ended(id).outcome == "failed"
        assert sim.ended(id).reason
    with pytest.raises(ValueError, match="used before"):
        sim.do(m.Pause(id="c1"))


def _place(sim: Simulation, num_chunks: int) -> GoOn:
    """The first shot after some of its chunks."""
    card = sim.director.snapshot(sim.now).shots[0]
    take = m.Take(
        node=card.node, parent=None, shot=0, take=0, text="a fox", caption="a fox", num_chunks=7, made_chunks=num_chunks
    )
    return GoOn(
        seed=0,
        global_caption="",
        take=take,
        fork=True,
        caption="a fox",
        steers=(),
        num_frames=9 + 12 * (num_chunks - 1),
        cards=(replace(card, made_chunks=num_chunks),),
        clock_frame=0,
    )


def test_going_back_voids_what_was_sent_and_goes_on_from_there() -> None:
    sim = Simulation()
    sim.start()
    sim.run(2.5)
    assert [c.chunk for c in sim.chunks] == [0, 1, 2, 3]
    steer = sim.steer(at=m.At(shot=0, chunk=6))
    frame = sim.director.snapshot(sim.now).status.clock_frame
    sim._say(sim.director.handle(Located(command=m.Branch(id="b", node=1), place=_place(sim, 2)), sim.now))
    sim.run(0.5)
    assert sim.ended(steer).outcome == "superseded"
    assert (sim.ended("b").outcome, sim.ended("b").chunk) == ("applied", 2)
    before, first = sim.chunks[3], sim.chunks[4]
    assert (first.node, first.chunk, first.epoch) == (2, 2, before.epoch + 1)
    assert frame < first.start < before.start + before.num_frames
    work = [work for _, work in sim.begun if isinstance(work, NextChunk) and work.node == 2][0]  # noqa: RUF015
    assert work.story == 2, "a stream of its own"
    sim.run(6)
    assert [c.chunk for c in sim.chunks[4:]] == [2, 3, 4, 5, 6]
    assert sim.states[-1] == "holding"
    assert [(t.node, t.origin, t.live) for t in sim.director.snapshot(sim.now).takes] == [
        (1, None, False),
        (2, 1, True),
    ]


def test_a_cut_at_once_after_a_retake_was_asked_for_follows_what_is_on_air() -> None:
    sim = Simulation()
    sim.start()
    sim.run(2.5)
    elsewhere = NewShot(seed=0, global_caption="", parent=None, shot=0, take=1, text="a fox", caption="a fox", like=1)
    sim._say(sim.director.handle(Located(command=m.Retake(id="r", node=1), place=elsewhere), sim.now))
    sim.run(0.1)
    cut = sim.cut()
    sim.run(1.0)
    assert sim.ended("r").outcome == "superseded"
    assert (sim.ended(cut).outcome, sim.ended(cut).shot) == ("applied", 1)
    opening = [work for _, work in sim.begun if isinstance(work, OpenShot)][-1]
    assert (opening.parent, opening.parent_chunks, opening.story) == (1, 4, 1), "made anew after the shot on air"
    assert sim.director.snapshot(sim.now).shots[-1].take == 0


def test_what_cannot_be_kept_pauses_the_story_until_somebody_resumes_it() -> None:
    sim = Simulation()
    sim.start()
    sim.run(2.5)
    sim._say(sim.director.handle(Trouble(reason="the disk is full"), sim.now))
    sim.run(3)
    made = len(sim.chunks)
    assert made <= 5
    assert (sim.director.snapshot(sim.now).status.state, sim.director.snapshot(sim.now).status.detail) == (
        "paused",
        "the disk is full",
    )
    sim._say(sim.director.handle(Trouble(reason=""), sim.now))
    sim.run(3)
    assert len(sim.chunks) == made, "it does not go on by itself"
    sim.give(m.Resume)
    sim.run(3)
    assert len(sim.chunks) == 7


def _random_command(sim: Simulation, dice: random.Random) -> None:
    at = m.At(shot=dice.randrange(4), chunk=dice.randrange(8)) if dice.random() < 0.25 else None
    known = [e.id for _, e in sim.events if isinstance(e, m.Accepted)][-5:]
    match dice.randrange(15):
        case 13:
            _go_back(sim, dice)
        case 14:
            takes = sim.director.snapshot(sim.now).takes
            sim.give(m.Hide, node=dice.randint(1, len(takes) + 1), hidden=dice.random() < 0.7)
        case 0 | 1:
            sim.start(num_chunks=dice.randint(1, 8))
        case 2 | 3 | 4:
            sim.cut(f"cut {dice.random():.3f}", at=at, num_chunks=dice.randint(1, 5))
        case 5 | 6 | 7:
            sim.steer(f"steer {dice.random():.3f}", at=at)
        case 8:
            sim.give(m.Extend, num_chunks=dice.randint(1, 3))
        case 9:
            sim.give(m.Pause)
        case 10:
            sim.give(m.Resume)
        case 11:
            if dice.random() < 0.3:
                sim.give(m.Stop)
            sim.give(m.Memory, action="pin", frame=m.FrameRef(shot=0, frame=0))
        case _:
            sim.give(m.Cancel, target=dice.choice(known) if known else "nothing")


def _go_back(sim: Simulation, dice: random.Random) -> None:
    """To a place on the live path: to go on there, or to open another shot."""
    cards = sim.director.snapshot(sim.now).shots
    if not cards:
        return
    index = dice.randrange(len(cards))
    made = dice.randint(1, cards[index].made_chunks)
    card = replace(cards[index], made_chunks=made)
    frames, way = 9 + 12 * (made - 1), (*cards[:index], card)
    take = next(t for t in sim.director.snapshot(sim.now).takes if t.node == card.node)
    if dice.random() < 0.5:
        sim._say(
            sim.director.handle(
                Located(
                    command=m.Branch(id=sim._id(), node=card.node),
                    place=GoOn(
                        seed=0,
                        global_caption="",
                        take=replace(take, made_chunks=made),
                        fork=made < take.made_chunks,
                        caption=card.caption,
                        steers=(),
                        num_frames=frames,
                        cards=way,
                        clock_frame=card.start + frames,
                    ),
                ),
                sim.now,
            )
        )
        return
    place = NewShot(
        seed=0,
        global_caption="",
        parent=card.node,
        parent_chunks=made,
        parent_frames=frames,
        shot=card.shot + 1,
        take=7,
        caption=f"again {dice.random():.3f}",
        num_chunks=dice.randint(1, 5),
        cards=way,
        clock_frame=card.start + frames,
    )
    sim._say(sim.director.handle(Located(command=m.Retake(id=sim._id(), node=card.node), place=place), sim.now))


@pytest.mark.parametrize("seed", range(24))
def test_any_sequence_of_commands_keeps_the_promises(seed: int) -> None:
    dice = random.Random(seed)
    config = DirectorConfig(expected_chunk_s=0.2, expected_open_s=0.3)
    sim = Simulation(
        chunk_s=dice.choice([0.05, 0.2, 0.7, 1.1]),
        open_s=dice.choice([0.1, 0.4]),
        obeys=seed % 3 > 0,
        config=config,
        step=0.03,
    )
    sim.start()
    for _ in range(60):
        _random_command(sim, dice)
        sim.run(dice.choice([0.0, 0.02, 0.1, 0.5, 1.5]))
    sim.give(m.Resume)
    sim.run(10)
    sim.give(m.Stop)
    sim.run(2)

    accepted = Counter(e.id for _, e in sim.events if isinstance(e, m.Accepted))
    ended = Counter(e.id for _, e in sim.events if isinstance(e, m.Ended))
    assert accepted == ended, "every accepted command ends exactly once"
    assert set(accepted.values()) == {1}
    seen: set[str] = set()
    for _, event in sim.events:
        if isinstance(event, m.Accepted):
            seen.add(event.id)
        if isinstance(event, m.Ended):
            assert event.id in seen, "and never before it was accepted"
    _check_timeline(sim)
    replayed, said = Director.replay(config, sim.log)
    assert said == [event for _, event in sim.events]
    assert replayed.snapshot(sim.now) == sim.director.snapshot(sim.now)
    assert replayed._clock == sim.director._clock
    assert (replayed._sequence, replayed._epoch, replayed._known) == (
        sim.director._sequence,
        sim.director._epoch,
        sim.director._known,
    )


def _check_timeline(sim: Simulation) -> None:
    """Frames never overlap inside an epoch, chunks count up, and a shot is announced before its chunks."""
    previous: m.ChunkReady | None = None
    opened = -1
    went_back = False
    for _, event in sim.events:
        if isinstance(event, m.ShotOpened):
            opened = event.shot
            went_back = went_back or event.aired_before is None
        if isinstance(event, m.TreeChanged) and event.shots is not None:
            opened = event.shots[-1].shot if event.shots and not event.opening else opened
            went_back = True
        if not isinstance(event, m.ChunkReady):
            continue
        assert event.shot == opened
        if previous is not None:
            assert event.sequence == previous.sequence + 1
            assert event.epoch in (previous.epoch, previous.epoch + 1)
        if previous is not None and event.epoch == previous.epoch:
            assert event.start == previous.start + previous.num_frames, "no gap and no overlap"
        elif previous is not None and event.start and not went_back:
            assert previous.shot != event.shot, "only a cut breaks the clock"
            assert event.start < previous.start + previous.num_frames
        if previous is not None and event.node == previous.node and event.start and not went_back:
            assert event.chunk == previous.chunk + 1
        previous, went_back = event, False


def test_a_steer_for_the_first_chunk_of_a_shot_takes_effect_as_it_opens() -> None:
    simulation = Simulation()
    simulation.start(num_chunks=2)
    cut = simulation.cut(at=m.At(shot=0, chunk=2))
    rain = simulation.steer("it rains", at=m.At(shot=1, chunk=0))
    simulation.run(3)
    assert simulation.ended(cut).caption == "the city it rains"
    assert (simulation.ended(rain).shot, simulation.ended(rain).chunk) == (1, 0)


def test_what_is_dropped_ends_once_and_the_running_shot_goes_on() -> None:
    simulation = Simulation()
    simulation.start(num_chunks=4)
    simulation.run(0.5)
    cut = simulation.cut(at=m.At(shot=0, chunk=2))
    pin = simulation.give(m.Memory, action="pin", frame=m.FrameRef(shot=0, frame=0))
    simulation._say(simulation.director.handle(Dropped(ids=(cut, pin, "another"), reason="no more"), simulation.now))
    assert [simulation.ended(id).outcome for id in (cut, pin)] == ["superseded", "superseded"]
    simulation.run(4)
    assert [(chunk.shot, chunk.chunk) for chunk in simulation.chunks] == [(0, chunk) for chunk in range(4)]


def test_a_story_whose_opening_is_dropped_never_was() -> None:
    simulation = Simulation()
    simulation._say(simulation.director.handle(m.Start(id="s", text="a fox"), 0.0))
    simulation._say(simulation.director.handle(Dropped(ids=("s",), reason="no more"), 0.0))
    assert simulation.ended("s").reason == "no more"
    assert not simulation.director.busy


def test_an_edit_of_the_memory_belongs_to_what_was_on_air_not_to_what_was_made_ahead() -> None:
    simulation = Simulation()
    simulation.start(num_chunks=40)

    def pin() -> None:
        simulation.give(m.Memory, action="pin", frame=m.FrameRef(shot=0, frame=0))
        simulation.run(0.05)

    while len(simulation.chunks) < 4:
        simulation.run(0.01)
    pin()
    simulation.cut()
    while len(simulation.of(m.ShotOpened)) < 2:
        pin()
    opened = simulation.of(m.ShotOpened)[-1]
    assert isinstance(opened, m.ShotOpened)
    assert opened.aired_before is not None
    assert 9 + 12 < opened.aired_before <= 9 + 2 * 12, "what follows begins inside the third chunk"
    edits = [work for _, work in simulation.begun if isinstance(work, EditMemory) and work.node == 1]
    assert len(edits) > 1
    assert {(work.chunk, work.seen) for work in edits} == {(4, 3)}, "all of them are part of what leads there"
