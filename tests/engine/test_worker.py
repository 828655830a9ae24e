"""The engine thread, with a real (tiny) model."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from shotstream.engine import messages as m
from shotstream.engine.archive import Archive, ArchiveError
from shotstream.engine.direction import DirectorConfig, Entry, Written
from shotstream.engine.director import Director
from shotstream.engine.pictures import read_picture, thumbnail
from shotstream.engine.stream import Engine, Stream
from shotstream.engine.turns import Turn
from shotstream.engine.worker import Delivery, Worker, warm_up
from shotstream.engine.writer import Composer, TemplateWriter
from shotstream.server.store import Store, StoreConfig


class Crew:
    """A worker whose media are the frames themselves, and everything it delivered."""

    def __init__(
        self, engine: Engine, *, fps: int = 160, archive: Archive | None = None, turn: Turn | None = None
    ) -> None:
        self.record: list[Entry] = []
        self.deliveries: list[Delivery] = []
        self.woken = threading.Event()
        self.config = config = DirectorConfig(fps=fps, expected_chunk_s=0.02, expected_open_s=0.02)
        writer = TemplateWriter(Composer(check=engine.check_caption))
        self.worker = Worker(
            engine,
            writer,
            lambda f: f.tobytes(),
            config=config,
            wake=self.woken.set,
            record=self.record.append,
            archive=archive,
            turn=turn,
        )
        self.worker.start()

    def give(self, command: Any) -> None:
        self.worker.submit(command)
        if isinstance(command, (m.Start, m.Cut, m.Steer)):
            self.worker.submit(Written(id=command.id, caption=command.text))

    def wait(self, test: Callable[[m.Event], bool], seconds: float = 20) -> Delivery:
        end = time.monotonic() + seconds
        seen = 0
        while time.monotonic() < end:
            self.worker.poll()
            self.deliveries += self.worker.take()
            for delivery in self.deliveries[seen:]:
                if test(delivery.event):
                    return delivery
            seen = len(self.deliveries)
            self.woken.wait(0.01)
            self.woken.clear()
        raise AssertionError([type(d.event).__name__ for d in self.deliveries])

    def ended(self, id: str) -> m.Ended:
        event = self.wait(lambda e: isinstance(e, m.Ended) and e.id == id).event
        assert isinstance(event, m.Ended)
        return event

    @property
    def chunks(self) -> list[tuple[m.ChunkReady, bytes]]:
        return [(d.event, d.media) for d in self.deliveries if isinstance(d.event, m.ChunkReady)]


@pytest.fixture
def crew(tiny_engine: Engine) -> Iterator[Crew]:
    crew = Crew(tiny_engine)
    yield crew
    crew.worker.close()


def _holding(event: m.Event) -> bool:
    return isinstance(event, m.Status) and event.state == "holding"


def test_what_is_live_has_the_same_bits_as_what_is_filmed(crew: Crew, tiny_engine: Engine) -> None:
    crew.give(m.Start(id="a", text="a fox", seed=5, num_chunks=3))
    crew.give(m.Steer(id="b", text="he waves", at=m.At(shot=0, chunk=1)))
    crew.give(m.Cut(id="c", text="the city", num_chunks=2, at=m.At(shot=0, chunk=3)))
    crew.give(m.Extend(id="d", num_chunks=1))
    crew.wait(lambda e: isinstance(e, m.ChunkReady) and e.shot == 1 and e.chunk == 1)
    crew.wait(_holding)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=3)
    expected = [next(stream)]
    stream.steer("he waves")
    expected += list(stream)
    stream.cut("the city", num_chunks=2)
    expected += list(stream)
    assert [media for _, media in crew.chunks] == [chunk.frames.tobytes() for chunk in expected]
    assert [event.caption for event, _ in crew.chunks] == [chunk.caption for chunk in expected]


def test_the_log_of_a_story_gives_its_state_and_all_that_was_said(crew: Crew) -> None:
    crew.give(m.Start(id="a", text="a fox", num_chunks=3))
    crew.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 1)
    crew.give(m.Cut(id="b", text="the city", num_chunks=2))
    assert crew.ended("b").outcome == "applied"
    crew.wait(_holding)
    crew.worker.close()
    rest, snapshot = crew.worker.look()
    heard = [delivery.event for delivery in [*crew.deliveries, *rest]]
    replayed, said = Director.replay(crew.config, crew.record)
    assert replayed.snapshot(time.monotonic()) == snapshot
    assert snapshot.memory, "what a cut would remember included"
    assert said[: len(heard)] == heard, "a closed worker tells nothing more"


def test_a_cut_reaches_the_screen_and_names_what_it_remembers(crew: Crew) -> None:
    crew.give(m.Start(id="a", text="a fox", num_chunks=30))
    crew.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 2)
    crew.give(m.Cut(id="b", text="the city"))
    assert crew.ended("b").outcome == "applied"
    opened = [d.event for d in crew.deliveries if isinstance(d.event, m.ShotOpened)][-1]
    assert opened.aired_before is not None
    assert opened.context
    assert all(frame.frame < opened.aired_before for frame in opened.context)


def test_an_engine_that_fails_says_so_and_can_begin_again(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(tiny_engine)
    healthy = Stream.__next__
    monkeypatch.setattr(Stream, "__next__", _fail)
    crew.give(m.Start(id="a", text="a fox"))
    assert "out of memory" in crew.ended("a").reason
    status = crew.wait(lambda e: isinstance(e, m.Status) and e.state == "error").event
    assert isinstance(status, m.Status)
    assert "out of memory" in status.detail
    monkeypatch.setattr(Stream, "__next__", healthy)
    crew.give(m.Start(id="b", text="a fox", num_chunks=1))
    assert crew.ended("b").outcome == "applied"
    crew.worker.close()


def _fail(stream: Stream, **_: object) -> None:
    raise RuntimeError("out of memory")


def test_a_story_goes_on_where_nobody_can_say_what_a_cut_would_remember(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "preview_memory", _fail)
    crew.give(m.Start(id="a", text="a fox", num_chunks=3))
    crew.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 2)
    crew.give(m.Cut(id="b", text="the city"))
    assert crew.ended("b").outcome == "applied"


def test_what_a_cut_would_remember_is_looked_up_in_turn(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, held = Turn(), list[bool]()
    for name in ("preview_memory", "encode_ahead"):
        look = getattr(Stream, name)
        monkeypatch.setattr(Stream, name, lambda *a, look=look, **k: held.append(turn.wanted) or look(*a, **k))
    crew = Crew(tiny_engine, turn=turn)
    crew.give(m.Start(id="a", text="a fox", num_chunks=5))
    crew.wait(_holding)
    crew.worker.close()
    assert len(held) == 3
    assert all(held)


@pytest.fixture
def kept_crew(tiny_engine: Engine, tmp_path: Path) -> Iterator[Crew]:
    """Its story is kept."""
    store = Store(StoreConfig(folder=tmp_path), tiny_engine.preset)
    crew = Crew(tiny_engine, archive=store.story("main"))
    yield crew
    crew.worker.close()
    store.close()


def test_pictures_that_cannot_be_packed_beforehand_are_packed_when_they_are_kept(
    kept_crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_crew.worker._archive, "prepare", _busy)
    kept_crew.give(m.Start(id="a", text="a fox", num_chunks=1))
    kept_crew.wait(_holding)
    kept_crew.give(m.Cut(id="b", text="the city", num_chunks=1))
    assert kept_crew.ended("b").outcome == "applied"


def _busy(opening: object) -> None:
    raise ArchiveError("the database is busy")


def test_a_shot_that_is_refused_once_it_has_begun_leaves_the_one_before_as_it_was(
    kept_crew: Crew, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, openings = kept_crew.worker._encode, count()

    def refuse_the_second_opening(frames: np.ndarray) -> bytes:
        if len(frames) == 9 and next(openings) == 1:
            raise ValueError("no room for the picture")
        return encode(frames)

    monkeypatch.setattr(kept_crew.worker, "_encode", refuse_the_second_opening)
    kept_crew.give(m.Start(id="a", text="a fox", seed=5, num_chunks=4))
    kept_crew.give(m.Cut(id="b", text="the city", at=m.At(shot=0, chunk=2)))
    assert "no room" in kept_crew.ended("b").reason
    kept_crew.wait(_holding)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=4)
    assert [media for _, media in kept_crew.chunks] == [chunk.frames.tobytes() for chunk in stream]


def test_a_story_that_is_over_is_neither_kept_at_hand_nor_what_a_new_one_remembers(crew: Crew) -> None:
    crew.give(m.Start(id="a", text="a fox", num_chunks=2))
    crew.wait(_holding)
    with crew.worker._changed:  # before the engine thread looks again
        crew.worker.submit(m.Stop(id="b"))
        crew.worker.submit(m.Start(id="c", text="a bear"))
        crew.worker.submit(m.Memory(id="d", action="pin", frame=m.FrameRef(shot=0, frame=0)))
    assert "nothing is remembered yet" in crew.ended("d").reason
    crew.worker.submit(Written(id="c", caption="a bear"))
    assert crew.ended("c").outcome == "applied"
    crew.give(m.Stop(id="e"))
    crew.wait(lambda e: isinstance(e, m.Status) and e.state == "idle")
    end = time.monotonic() + 20
    while crew.worker._stream is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert crew.worker._stream is None


def test_the_engine_waits_when_nobody_takes_what_it_made(tiny_engine: Engine) -> None:
    crew = Crew(tiny_engine, fps=2000)
    crew.give(m.Start(id="a", text="a fox", num_chunks=100))
    time.sleep(1.0)
    waiting = crew.worker.take()
    assert sum(isinstance(d.event, m.ChunkReady) for d in waiting) <= 5
    crew.worker.close()


def test_a_closed_worker_ends_its_thread(tiny_engine: Engine) -> None:
    crew = Crew(tiny_engine)
    crew.give(m.Start(id="a", text="a fox"))
    crew.worker.close()
    assert not crew.worker._thread.is_alive()


def test_warming_up_measures_the_pace(tiny_engine: Engine) -> None:
    pace = warm_up(tiny_engine, lambda frames: b"", num_chunks=2)
    assert pace.chunk_s > 0
    assert pace.open_s > 0
    assert pace.frames_per_second == pytest.approx(12 / pace.chunk_s)


def test_only_pixels_of_a_persons_picture_survive() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 255
    read = read_picture(thumbnail(picture), width=32, height=32)
    assert read.shape == (32, 32, 3)
    assert read.dtype == np.uint8
    for bad in ("not base64!", "aGVsbG8=", ""):
        with pytest.raises(ValueError, match="picture"):
            read_picture(bad, width=32, height=32)


def test_pictures_that_are_too_large_are_refused_before_they_are_unpacked() -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    flat = base64.b64encode(file.getvalue()).decode()
    assert len(flat) < m.MAX_PICTURE, "a bomb: small as a file"
    with pytest.raises(ValueError, match="8000x8000 pixels"):
        read_picture(flat, width=32, height=32)
    with pytest.raises(ValueError, match="characters of base64"):
        read_picture("A" * (m.MAX_PICTURE + 4), width=32, height=32)


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
def test_a_picture_of_any_shape_takes_no_more_room_than_it_has_pixels(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("L", size, 200).save(file, "PNG")
    read = read_picture(base64.b64encode(file.getvalue()).decode(), width=320, height=192)
    assert read.shape == (192, 320, 3)
    assert (read == 200).all()


def test_a_picture_is_turned_as_its_metadata_say() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6  # its right side is the top
    Image.fromarray(np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)).save(file, "PNG", exif=exif)
    read = read_picture(base64.b64encode(file.getvalue()).decode(), width=32, height=32)
    assert (read[:14] < 20).all()
    assert (read[18:] > 235).all()


def test_metadata_that_are_none_make_a_picture_unreadable() -> None:
    for exif in (b"nonsense", b"MM\x00*\x00\x00\x00"):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "PNG", exif=exif)
        with pytest.raises(ValueError, match="cannot be read"):
            read_picture(base64.b64encode(file.getvalue()).decode(), width=32, height=32)


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="positive"):
        replace(DirectorConfig(), fps=0)
