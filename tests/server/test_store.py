"""A story that is kept: it goes on after the end of the process with the very frames it would have had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shotstream.engine import messages as m
from shotstream.engine.direction import DirectorConfig, Viewers, Written
from shotstream.engine.stream import Engine
from shotstream.engine.worker import Delivery, Worker
from shotstream.engine.writer import Composer, TemplateWriter
from shotstream.server.archive import StoryArchive
from shotstream.server.store import Store, StoreConfig


class Set:
    """One story of a store with a worker on it; its media are the frames themselves."""

    def __init__(self, engine: Engine, folder: Path, *, fps: int = 160, **config: Any) -> None:
        self.engine = engine
        self.store = Store(StoreConfig(folder=folder, **config), engine.preset)
        self.archive = self.store.story("main")
        self.deliveries: list[Delivery] = []
        self.woken = threading.Event()
        self.worker = Worker(
            engine,
            TemplateWriter(Composer(check=engine.check_caption)),
            lambda frames: frames.tobytes(),
            config=DirectorConfig(fps=fps, expected_chunk_s=0.02, expected_open_s=0.02, first_frames=9),
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
