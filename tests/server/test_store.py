"""A story that is kept: it goes on after the end of the process with the very frames it would have had."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shotstream.engine import messages as m
from shotstream.engine.archive import ArchiveError
from shotstream.engine.direction import DirectorConfig, Viewers, Written
from shotstream.engine.stream import Engine
from shotstream.engine.worker import Delivery, Worker
from shotstream.engine.writer import Composer, TemplateWriter
from shotstream.server import store as store_module
from shotstream.server.archive import StoryArchive
from shotstream.server.store import Store, StoreConfig
from shotstream.server.takefile import append_up_to
from shotstream.story import Steer


class Set:
    """One story of a store with a worker on it; its media are the frames themselves."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        fps: int = 160,
        margin_s: float = 0.08,
        expected_s: float = 0.02,
        **config: Any,
    ) -> None:
        self.engine = engine
        self.store = Store(StoreConfig(folder=folder, **config), engine.preset)
        self.archive = self.store.story("main")
        self.deliveries: list[Delivery] = []
        self.woken = threading.Event()
        self.worker = Worker(
            engine,
            TemplateWriter(Composer(check=engine.check_caption)),
            lambda frames: frames.tobytes(),
            config=DirectorConfig(
                fps=fps, margin_s=margin_s, expected_chunk_s=expected_s, expected_open_s=0.02, first_frames=9
            ),
            wake=self.woken.set,
            archive=self.archive,
        )
        self.worker.submit(Viewers(count=1))
        self.worker.start()

    def give(self, cls: type[Any], id: str, **rest: Any) -> str:
        self.worker.submit(cls(id=id, **rest))
        if issubclass(cls, (m.Start, m.Cut, m.Steer)) or (cls is m.Branch and rest.get("text")):
            self.worker.submit(Written(id=id, caption=rest["text"]))
        return id

    def wait(self, test: Callable[[m.Event], bool], seconds: float = 20) -> m.Event:
        end = time.monotonic() + seconds
        seen = 0
        while time.monotonic() < end:
            self.worker.poll()
            self.deliveries += self.worker.take()
            for delivery in self.deliveries[seen:]:
                if test(delivery.event):
                    return delivery.event
            seen = len(self.deliveries)
            self.woken.wait(0.01)
            self.woken.clear()
        raise AssertionError([type(d.event).__name__ for d in self.deliveries])

    def ended(self, id: str) -> m.Ended:
        event = self.wait(lambda e: isinstance(e, m.Ended) and e.id == id)
        assert isinstance(event, m.Ended)
        return event

    def holds(self) -> None:
        self.wait(lambda e: isinstance(e, m.Status) and e.state == "holding")

    @property
    def chunks(self) -> list[tuple[m.ChunkReady, bytes]]:
        return [(d.event, d.media) for d in self.deliveries if isinstance(d.event, m.ChunkReady)]

    @property
    def snapshot(self) -> m.StorySnapshot:
        return self.worker.look()[1]

    def leave(self) -> None:
        self.worker.close()
        self.store.close()


Open = Callable[..., Set]


@pytest.fixture
def film(tiny_engine: Engine, tmp_path: Path) -> Iterator[Open]:
    """Open the story of one folder; what was open before is left without a word."""
    sets: list[Set] = []

    def open_set(**config: Any) -> Set:
        if sets:
            sets.pop().leave()
        sets.append(Set(tiny_engine, tmp_path / "data", **config))
        return sets[-1]

    yield open_set
    if sets:
        sets.pop().leave()


def _kept_frames(archive: StoryArchive) -> dict[tuple[int, int], bytes]:
    return {
        (take.take.node, chunk.chunk): archive.media(take.take.node, chunk.chunk)
        for take in archive.takes()
        for chunk in archive.chunks(take.take.node)
    }


def _script(engine: Engine) -> list[Any]:
    """Two shots with a steer and a picture in memory, filmed at one go."""
    stream = engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4)
    chunks = [next(stream)]
    stream.steer("he waves")
    chunks += list(stream)
    stream.cut("the city", num_chunks=4)
    return chunks + list(stream)


@pytest.mark.parametrize("kept", range(1, 8))
def test_a_story_left_after_any_chunk_goes_on_as_if_it_had_not_been(film: Open, tiny_engine: Engine, kept: int) -> None:
    expected = _script(tiny_engine)
    first = film()
    first.give(m.Start, "a", text="a fox", seed=5, num_chunks=min(kept, 4))
    if kept > 1:
        first.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=1))
    if kept > 4:
        first.give(m.Cut, "c", text="the city", num_chunks=kept - 4, at=m.At(shot=0, chunk=4))
    first.wait(lambda e: isinstance(e, m.ChunkReady) and e.sequence == kept)
    first.holds()
    told = first.chunks

    again = film()
    status = again.snapshot.status
    assert (status.state, again.snapshot.head) == ("paused", 1 if kept <= 4 else 2)
    if kept == 1:
        again.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=1))
    if kept < 4:
        again.give(m.Extend, "e", num_chunks=4 - kept)
    if kept <= 4:
        again.give(m.Cut, "c", text="the city", num_chunks=4, at=m.At(shot=0, chunk=4))
    else:
        again.give(m.Extend, "e", num_chunks=8 - kept)
    again.give(m.Resume, "r")
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.sequence == 8)
    again.holds()
    chunks = [*told, *again.chunks]
    assert [event.sequence for event, _ in chunks] == list(range(1, 9))
    assert [event.start for event, _ in chunks] == [0, 9, 21, 33, 45, 54, 66, 78], "the clock goes on"
    assert [media for _, media in chunks] == [chunk.frames.tobytes() for chunk in expected]
    archive = again.archive
    places = [(event.node, event.chunk) for event, _ in chunks]
    for place, one in zip(places, expected, strict=True):
        assert archive.media(*place) == one.frames.tobytes()
        assert np.array_equal(archive.latent(*place), one.latent[0].numpy()), "bit for bit"


# ---------------------------------------------------------------------------------------------------------------------
# The tree


def _two_shots(film: Open) -> Set:
    """Takes 1 (steered at chunk 2) and 2."""
    one = film()
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=4)
    one.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=2))
    one.give(m.Cut, "c", text="the city", num_chunks=3, at=m.At(shot=0, chunk=4))
    one.wait(lambda e: isinstance(e, m.ChunkReady) and (e.shot, e.chunk) == (1, 2))
    one.holds()
    return one


def _new_chunks(one: Set, before: int) -> list[tuple[m.ChunkReady, bytes]]:
    return [(event, media) for event, media in one.chunks if event.sequence > before]


def test_a_retake_says_and_steers_the_same_at_the_same_chunks_with_other_noise(film: Open, tiny_engine: Engine) -> None:
    one = _two_shots(film)
    one.give(m.Retake, "d", node=1)
    assert one.ended("d").outcome == "applied"
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 3)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4, take=1)
    expected = [next(stream), next(stream)]
    stream.steer("he waves")
    expected += list(stream)
    made = _new_chunks(one, 7)
    assert [media for _, media in made] == [chunk.frames.tobytes() for chunk in expected]
    assert [event.caption for event, _ in made] == [e.caption for e, _ in one.chunks[:4]]
    assert [event.take for event, _ in made] == [1] * 4
    snapshot = one.snapshot
    assert [(t.node, t.parent, t.take, t.live) for t in snapshot.takes] == [
        (1, None, 0, False), (2, 1, 0, False), (3, None, 1, True),
    ]  # fmt: skip
    assert [card.node for card in snapshot.shots] == [3]
    assert [mark.chunk for mark in snapshot.shots[0].steers] == [2], "its marks show what it repeats"


def test_a_retake_of_a_later_shot_remembers_what_the_take_before_did(film: Open, tiny_engine: Engine) -> None:
    one = _two_shots(film)
    one.give(m.Retake, "d", node=2)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 2)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4)
    next(stream), next(stream)
    stream.steer("he waves")
    list(stream)
    stream.cut("the city", num_chunks=3, take=1)
    assert [media for _, media in _new_chunks(one, 7)] == [chunk.frames.tobytes() for chunk in stream]
    old, new = (one.archive.remembered(node) for node in (2, 3))
    assert [f.id for f in old] == [f.id for f in new]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(old, new, strict=True))


def _retake_steered_late(tiny_engine: Engine) -> list[bytes]:
    """Take 2 of a fox, who waves from chunk 3 on."""
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=5, steers=[Steer(chunk=3, caption="he waves")], take=1)
    return [chunk.frames.tobytes() for chunk in stream]


def _steered_late(film: Open, fps: int = 160) -> Set:
    one = film(fps=fps)
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=5)
    one.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=3))
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 4)
    return one


def test_a_retake_that_a_restart_cut_short_still_says_what_the_take_before_said_later(
    film: Open, tiny_engine: Engine
) -> None:
    one = _steered_late(film, fps=32)
    one.give(m.Retake, "r", node=1)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and (e.node, e.chunk) == (2, 1))
    again = film()
    assert again.archive.take(2).take.made_chunks < 4, "the steer was said before the end: nothing is tested"
    again.give(m.Resume, "s")
    again.wait(lambda e: isinstance(e, m.ChunkReady) and (e.node, e.chunk) == (2, 4))
    assert [again.archive.media(2, chunk) for chunk in range(5)] == _retake_steered_late(tiny_engine)


def test_a_retake_of_a_retake_that_had_just_begun_says_all_of_it(film: Open) -> None:
    one = _steered_late(film, fps=32)
    one.give(m.Retake, "r", node=1)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 2)
    one.give(m.Retake, "s", node=2)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and (e.node, e.chunk) == (3, 4))
    assert one.archive.take(2).take.made_chunks < 4, "the steer was said before: nothing is tested"
    first, third = (one.archive.chunks(node) for node in (1, 3))
    assert [chunk.caption for chunk in third] == [chunk.caption for chunk in first]


def test_undoing_a_retake_goes_back_to_the_take_that_was_made_again(film: Open) -> None:
    one = _two_shots(film)
    one.give(m.Retake, "d", node=2)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 2)
    one.holds()
    one.give(m.Steer, "s", text="it rains")
    one.ended("s")
    one.give(m.Undo, "e")
    one.ended("e")
    assert [card.node for card in one.snapshot.shots] == [1, 4], "first what was said in it"
    one.give(m.Undo, "f")
    assert one.ended("f").outcome == "applied"
    assert [card.node for card in one.snapshot.shots] == [1, 2]
    one.give(m.Undo, "g")
    one.ended("g")
    one.give(m.Retake, "h", node=1)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 5 and e.chunk == 3)
    one.give(m.Undo, "i")
    assert one.ended("i").outcome == "applied", "also where the shot is the story's first, and repeats a steer"
    assert [card.node for card in one.snapshot.shots] == [1]


def test_a_branch_inside_a_shot_opens_another_one_there_and_survives_a_restart(film: Open, tiny_engine: Engine) -> None:
    one = _two_shots(film)
    one.give(m.Branch, "d", node=1, chunk=2, text="the beach", num_chunks=4)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 1)
    made = _new_chunks(one, 7)
    again = film()
    assert [(t.node, t.parent, t.parent_frames, t.live) for t in again.snapshot.takes] == [
        (1, None, None, True), (2, 1, 45, False), (3, 1, 21, True),
    ]  # fmt: skip
    first = again.snapshot.shots[0]
    assert (first.node, first.made_chunks) == (1, 2), "as far as it is told"
    kept = again.snapshot.shots[1].made_chunks
    again.give(m.Resume, "e")
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 3)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=2)
    list(stream)
    stream.cut("the beach", num_chunks=4, take=1)
    expected = [chunk.frames.tobytes() for chunk in stream]
    assert [again.archive.media(3, chunk) for chunk in range(4)] == expected
    assert [media for _, media in made][:2] == expected[:2]
    assert [media for _, media in again.chunks] == expected[kept:]


def test_undoing_a_steer_goes_on_as_if_it_had_not_been_said(film: Open, tiny_engine: Engine) -> None:
    one = film()
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=4)
    one.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=2))
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 3)
    one.holds()
    one.give(m.Undo, "c")
    assert one.ended("c").chunk == 2
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 2 and e.chunk == 3)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4)
    expected = [chunk.frames.tobytes() for chunk in stream]
    assert [media for _, media in _new_chunks(one, 4)] == expected[2:]
    assert [one.archive.media(2, chunk) for chunk in range(4)] == expected, "it shares the first two"
    assert {event.epoch for event, _ in _new_chunks(one, 4)} == {1}, "everything was shown: nothing is void"
    one.give(m.Undo, "d")
    assert "first shot" in one.ended("d").reason


def test_undoing_a_cut_goes_on_with_the_shot_before(film: Open) -> None:
    one = _two_shots(film)
    one.give(m.Undo, "d")
    assert one.ended("d").outcome == "applied"
    snapshot = one.snapshot
    assert snapshot.head == 1
    assert [card.node for card in snapshot.shots] == [1]
    one.give(m.Extend, "e", num_chunks=1)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and (e.node, e.chunk) == (1, 4))
    again = film()
    assert again.snapshot.head == 1
    assert again.snapshot.shots[0].made_chunks == 5


def _cut_before_the_first_picture(film: Open) -> Set:
    """Take 2 was announced but not on air yet when take 3 was cut to."""
    one = film(fps=16, margin_s=0.6)
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=2)
    one.give(m.Cut, "b", text="the city", at=m.At(shot=0, chunk=2))
    opened = one.wait(lambda e: isinstance(e, m.ShotOpened) and e.shot == 1)
    assert isinstance(opened, m.ShotOpened)
    assert one.snapshot.status.clock_frame < opened.start - 1
    one.give(m.Cut, "c", text="a boat", num_chunks=2)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 1)
    one.holds()
    return one


def test_a_cut_before_the_first_picture_of_an_announced_shot_makes_the_shot_that_is_announced(
    film: Open, tiny_engine: Engine
) -> None:
    one = _cut_before_the_first_picture(film)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=2)
    list(stream)
    stream.cut("the city", num_chunks=1)
    list(stream)
    stream.cut("a boat", num_chunks=2, aired_frames=1)
    made = [(event.shot, media) for event, media in one.chunks if event.node == 3]
    assert made == [(2, chunk.frames.tobytes()) for chunk in stream]
    one.give(m.Undo, "u")
    assert (one.ended("u").outcome, one.snapshot.head) == ("applied", 2)
    again = film()
    again.give(m.Cut, "d", text="a bear", num_chunks=1)
    again.give(m.Resume, "r")
    assert again.ended("d").outcome == "applied"


def test_a_story_of_which_a_shot_was_never_seen_is_read_and_gone_on_with(film: Open) -> None:
    one = _cut_before_the_first_picture(film)
    database = one.store.database
    with database.transaction():  # as stories were kept in which a cut came before an announced shot
        database.run("UPDATE take SET parent_frames = 0 WHERE node = 3")
        database.run("DELETE FROM remembered WHERE node = 3 AND kind = 'kept'")
    one.give(m.Undo, "u")
    assert (one.ended("u").outcome, "take 2" in one.ended("u").reason) == ("failed", True)
    again = film()
    again.give(m.Resume, "r")
    again.give(m.Extend, "e", num_chunks=1)
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 2)
    again.give(m.Cut, "d", text="a bear", num_chunks=1)
    assert again.ended("d").outcome == "applied"


def test_what_ran_is_void_when_the_story_goes_back_in_the_middle_of_it(film: Open) -> None:
    one = film(fps=64)
    one.give(m.Start, "a", text="a fox", num_chunks=40)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 3)
    pending = one.give(m.Steer, "b", text="he waves", at=m.At(shot=0, chunk=30))
    one.give(m.Branch, "c", node=1, chunk=1)
    assert one.ended(pending).outcome == "superseded"
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 2 and e.chunk == 2)
    first = next(event for event, _ in one.chunks if event.node == 2)
    before = [event for event, _ in one.chunks if event.node == 1]
    end = before[-1].start + before[-1].num_frames
    assert first.start <= end
    assert (first.chunk, first.epoch) == (1, before[-1].epoch + (first.start < end))
    same = next(media for event, media in one.chunks if event.node == 1 and event.chunk == 1)
    assert next(media for event, media in one.chunks if event.node == 2) == same, "the same place, the same frames"


def test_a_stopped_story_can_be_gone_on_with_and_another_one_begun_beside_it(film: Open) -> None:
    one = _two_shots(film)
    one.give(m.Stop, "s")
    again = film()
    assert again.snapshot.status.state == "idle", "what was stopped does not come back by itself"
    assert not again.worker.busy
    again.give(m.Start, "n", text="a bear", num_chunks=2)
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 3 and e.chunk == 1)
    again.holds()
    again.give(m.Stop, "t")
    again.give(m.Branch, "u", node=2)
    assert again.ended("u").outcome == "applied"
    again.give(m.Cut, "v", text="the beach", num_chunks=1)
    assert again.ended("v").shot == 2
    assert [card.node for card in again.snapshot.shots] == [1, 2, 4]


def test_hidden_takes_stay_and_can_be_shown_again(film: Open) -> None:
    one = _two_shots(film)
    frame = one.archive.remembered(2)[0]
    one.give(m.Memory, "p", action="pin", frame=m.FrameRef(shot=frame.id[0], frame=frame.id[1]))
    one.ended("p")
    one.give(m.Hide, "h", node=2)
    assert "live" in one.ended("h").reason
    one.give(m.Retake, "r", node=1)
    one.ended("r")
    one.give(m.Hide, "i", node=1)
    one.ended("i")
    again = film()
    assert [(t.node, t.hidden) for t in again.snapshot.takes] == [(1, True), (2, True), (3, False)]
    again.give(m.Hide, "j", node=2, hidden=False)
    again.ended("j")
    assert [t.hidden for t in again.snapshot.takes] == [True, False, False]
    again.give(m.Branch, "k", node=2)
    again.give(m.Resume, "l")
    again.give(m.Cut, "m", text="the beach", num_chunks=1)
    again.ended("m")
    assert frame.id in [(f.shot, f.frame) for f in again.snapshot.shots[-1].context if f.reason == "pinned"]


def test_memory_is_as_it_was_after_a_restart(film: Open, tiny_engine: Engine) -> None:
    def direct(one: Set) -> None:
        one.give(m.Cut, "z", text="the beach", num_chunks=1)
        one.ended("z")

    one = _two_shots(film)
    one.give(m.Memory, "p", action="remove", frame=m.FrameRef(shot=0, frame=0))
    one.give(m.Memory, "q", action="pin", frame=m.FrameRef(shot=1, frame=4))
    one.ended("q")
    again = film()
    again.give(m.Resume, "r")
    direct(again)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4)
    next(stream), next(stream)
    stream.steer("he waves")
    list(stream)
    stream.cut("the city", num_chunks=3)
    list(stream)
    stream.forget((0, 0))
    stream.pin((1, 4))
    stream.cut("the beach", num_chunks=1)
    chunk = next(stream)
    assert again.chunks[-1][1] == chunk.frames.tobytes()
    kept = again.archive.remembered(3)
    assert [(f.id, f.reason) for f in kept] == [(f.id, f.reason) for f in chunk.context]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(kept, chunk.context, strict=True))


@pytest.mark.parametrize("then", ["restart", "branch", "undo"])
def test_what_was_pinned_while_chunks_were_made_ahead_is_not_lost_with_those_chunks(film: Open, then: str) -> None:
    one = film(fps=64)
    one.give(m.Start, "a", text="a fox", num_chunks=2)
    one.give(m.Cut, "b", text="the city", num_chunks=40, at=m.At(shot=0, chunk=2))
    one.wait(lambda e: isinstance(e, m.ChunkReady) and (e.shot, e.chunk) == (1, 3))
    one.give(m.Memory, "p", action="pin", frame=m.FrameRef(shot=0, frame=0))
    one.ended("p")
    one.give(m.Cut, "c", text="the beach", num_chunks=2)
    one.ended("c")
    if then == "restart":
        one = film()
        one.give(m.Resume, "r")
    elif then == "branch":
        one.give(m.Branch, "r", node=3)
    else:
        one.give(m.Undo, "r")
    assert one.ended("r").outcome == "applied"
    one.give(m.Cut, "z", text="home", num_chunks=1)
    one.ended("z")
    assert ((0, 0), "pinned") in [(f.id, f.reason) for f in one.archive.remembered(one.snapshot.head)]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (m.Branch(id="x", node=9), "no take 9"),
        (m.Branch(id="x", node=1, chunk=5), "has 4 chunks"),
        (m.Branch(id="x", node=1, chunk=0), "say what"),
        (m.Retake(id="x", node=7), "no take 7"),
        (m.Hide(id="x", node=7), "no take 7"),
    ],
)
def test_places_that_do_not_exist_are_named_in_words(film: Open, command: m.Command, reason: str) -> None:
    one = _two_shots(film)
    one.worker.submit(command)
    ended = one.ended("x")
    assert ended.outcome == "failed"
    assert reason in ended.reason


def test_a_story_of_forty_shots_takes_as_much_for_its_last_as_for_its_first(film: Open) -> None:
    one = film(fps=1600)
    one.give(m.Start, "s0", text="a fox", num_chunks=2)
    sizes = []
    for shot in range(1, 41):
        one.wait(lambda e, shot=shot: isinstance(e, m.ChunkReady) and (e.shot, e.chunk) == (shot - 1, 1))
        sizes.append(one.archive.info().bytes)
        one.give(m.Cut, f"s{shot}", text=f"place {shot}", num_chunks=2)
    growth = np.diff(sizes)
    assert max(growth[-10:]) <= 1.1 * max(growth[2:12])
    again = film()
    assert again.snapshot.status.state == "paused"
    assert len(again.snapshot.takes) >= 40
    assert sum(len(frames) for frames in again.archive.past(39, 2).shots) <= 2 * 40, "what a cut may ask for, no more"
    again.give(m.Resume, "r")
    again.give(m.Cut, "z", text="home")
    assert again.ended("z").outcome == "applied"


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what is synced is looked up in /proc")
def test_what_is_to_survive_the_machine_waits_for_the_disk(film: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("shotstream.server.takefile.os.fsync", lambda at: synced.append(_path_of(at)))
    one = film(durable="power")
    one.give(m.Start, "a", text="a fox", num_chunks=3)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 2)
    folder = str(one.store.folder)
    assert synced.count(f"{folder}/takes/1/1.take") >= 3, "once per chunk, before anybody was told"
    assert {folder, f"{folder}/takes", f"{folder}/takes/1"} <= set(synced), "a file that cannot be found is lost, too"
    one.holds()
    one.store.duplicate("main", "copy")
    assert f"{folder}/takes/2" in synced
    assert any(path.endswith(".take") and ".copy-" in path for path in synced)
    assert one.store.database.row("PRAGMA synchronous")["synchronous"] == 2


def test_stories_can_be_listed_renamed_copied_and_deleted(film: Open, tmp_path: Path) -> None:
    one = _two_shots(film)
    frames = _kept_frames(one.archive)
    one.worker.close()
    one.store.rename("main", "The fox")
    one.store.duplicate("main", "copy")
    assert {info.name: (info.title, info.num_frames, info.bytes) for info in one.store.stories()} == {
        "main": ("The fox", 78, one.archive.info().bytes),
        "copy": ("The fox", 78, one.archive.info().bytes),
    }
    one.store.delete("main")
    assert [info.name for info in one.store.stories()] == ["copy"]
    assert _kept_frames(one.store.story("copy")) == frames
    assert len(list((tmp_path / "data" / "takes").iterdir())) == 1
    one.store.delete("copy")
    assert not list((tmp_path / "data" / "takes").iterdir())


def test_what_is_pending_when_a_story_is_copied_stays_so_and_is_ended_in_the_copy(film: Open) -> None:
    one = _two_shots(film)
    one.give(m.Steer, "p", text="he waves", at=m.At(shot=1, chunk=30))
    one.store.duplicate("main", "copy")
    ends = {name: {c.id: c.outcome for c in one.store.story(name).commands()} for name in ("main", "copy")}
    assert (ends["main"]["p"], ends["copy"]["p"]) == (None, "failed")
    assert all(ends["copy"].values())


def test_a_copy_has_the_commands_in_the_order_in_which_they_were_given(film: Open) -> None:
    one = film()
    for id in ("z", "a", "m", "b"):
        one.give(m.Start if id == "z" else m.Extend, id, **({"text": "a fox"} if id == "z" else {"num_chunks": 1}))
    one.ended("b")
    one.store.duplicate("main", "copy")
    assert [command.id for command in one.store.story("copy").commands()] == ["z", "a", "m", "b"]


def test_a_story_that_is_live_goes_on_while_it_is_copied_and_the_copy_has_it_all(
    film: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _two_shots(film)
    made = len(one.chunks)
    copied: list[int] = []

    def slowly(source: Path, target: Path, stop: int, **_: bool) -> None:
        append_up_to(source, target, stop)
        copied.append(stop)
        if len(copied) == 1:  # whoever holds the database here keeps the story from going on
            one.give(m.Extend, "x", num_chunks=2)
            one.wait(lambda e: isinstance(e, m.ChunkReady) and e.sequence == made + 2, seconds=5)

    monkeypatch.setattr(store_module, "append_up_to", slowly)
    copying = threading.Thread(target=one.store.duplicate, args=("main", "copy"))
    copying.start()
    copying.join(30)
    assert len(_kept_frames(one.archive)) == made + 2
    assert _kept_frames(one.store.story("copy")) == _kept_frames(one.archive)
    saved = one.store.story("copy").load()
    assert saved.head is not None
    assert one.store.story("copy").past(saved.head.take.node, saved.head.take.made_chunks).running is not None


def test_a_copy_that_was_cut_short_leaves_nothing_behind(
    film: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = _two_shots(film)
    folder = tmp_path / "data" / "takes"

    def full(source: Path, target: Path, stop: int, **_: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "append_up_to", full)
    with pytest.raises(ArchiveError, match="disk"):
        one.store.duplicate("main", "copy")
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["1"]
    (folder / ".copy-of-a-crash").mkdir()
    (folder / "2").mkdir()
    (folder / "2" / "1.take").write_bytes(b"of a crash, too")
    again = film()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    again.store.duplicate("main", "copy")
    assert _kept_frames(again.store.story("copy")) == _kept_frames(again.archive)
