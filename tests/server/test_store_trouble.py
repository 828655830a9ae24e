"""What can go wrong with the data folder: one clear sentence each, and nothing that was kept is lost."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.server.test_store import Open, Set, film  # type: ignore[import-not-found]  # noqa: F401

from shotstream.engine import messages as m
from shotstream.engine.archive import ArchiveError, Batch
from shotstream.engine.stream import Engine
from shotstream.presets import Preset
from shotstream.server import takefile
from shotstream.server.store import Store, StoreConfig


def _film_three(film: Open, **config: object) -> Set:  # noqa: F811
    one = film(**config)
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=3)
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 2)
    one.holds()
    return one


def _store(folder: Path, preset: Preset) -> Store:
    return Store(StoreConfig(folder=folder), preset)


def test_two_servers_on_one_folder(tmp_path: Path, tiny_preset: Preset) -> None:
    first = _store(tmp_path, tiny_preset)
    with pytest.raises(ArchiveError, match="another server uses"):
        _store(tmp_path, tiny_preset)
    first.close()
    _store(tmp_path, tiny_preset).close()


def test_a_file_that_is_no_database(tmp_path: Path, tiny_preset: Preset) -> None:
    (tmp_path / "stories.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(ArchiveError, match=r"stories\.db is damaged .*move it away"):
        _store(tmp_path, tiny_preset)
    assert (tmp_path / "stories.db").read_bytes().startswith(b"this is not"), "it is left as it was"


def test_a_database_of_another_version(tmp_path: Path, tiny_preset: Preset) -> None:
    _store(tmp_path, tiny_preset).close()
    with sqlite3.connect(tmp_path / "stories.db") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ArchiveError, match="format 99"):
        _store(tmp_path, tiny_preset)


def test_a_database_of_the_version_before_is_brought_up_to_date(film: Open, tmp_path: Path) -> None:  # noqa: F811
    _film_three(film).leave()
    with sqlite3.connect(tmp_path / "data" / "stories.db") as database:
        database.executescript(
            "ALTER TABLE story DROP COLUMN performance; ALTER TABLE take DROP COLUMN plan; PRAGMA user_version = 1"
        )
    again = film()
    assert again.snapshot.shots[0].made_chunks == 3
    again.give(m.Retake, "r", node=1)
    again.give(m.Resume, "s")
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.node == 2)


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_takes_whose_database_is_gone_are_not_written_over(
    film: Open,  # noqa: F811
    tiny_preset: Preset,
    tmp_path: Path,
    left: str,
) -> None:
    _film_three(film).leave()
    database = tmp_path / "data" / "stories.db"
    database.rename(tmp_path / "elsewhere.db")
    if left == "an empty file":
        database.touch()
    take = next((tmp_path / "data" / "takes").rglob("1.take"))
    data = take.read_bytes()
    with pytest.raises(ArchiveError, match=r"put a copy of it back.*--data"):
        _store(tmp_path / "data", tiny_preset)
    assert take.read_bytes() == data
    (tmp_path / "elsewhere.db").rename(database)
    assert film().snapshot.shots[0].made_chunks == 3


def test_a_database_that_was_damaged_in_the_middle(film: Open, tiny_preset: Preset, tmp_path: Path) -> None:  # noqa: F811
    _film_three(film).leave()
    path = tmp_path / "data" / "stories.db"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="is damaged"):
        _store(tmp_path / "data", tiny_preset)
    assert list((tmp_path / "data" / "takes").rglob("*.take")), "the files of the takes are untouched"


def test_a_story_of_another_preset(film: Open, tiny_preset: Preset, tmp_path: Path) -> None:  # noqa: F811
    _film_three(film).leave()
    other = _store(tmp_path / "data", replace(tiny_preset, name="other"))
    with pytest.raises(ArchiveError, match=r"made with tiny 64x32.*--preset tiny"):
        other.story("main")
    assert [story.preset for story in other.stories()] == ["tiny"], "it is listed all the same"
    other.close()


@pytest.mark.parametrize("harm", ["gone", "short", "changed"])
def test_a_take_whose_file_was_harmed(film: Open, tmp_path: Path, harm: str) -> None:  # noqa: F811
    _film_three(film)
    again = film()
    path = next((tmp_path / "data" / "takes").rglob("1.take"))
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:100] if harm == "short" else data[:9] + b"x" + data[10:])
    again.give(m.Extend, "x")
    again.give(m.Resume, "y")
    event = again.wait(lambda e: isinstance(e, m.Status) and e.state == "error")
    assert isinstance(event, m.Status)
    assert "1.take" in event.detail
    assert "copy in its place" in event.detail
    path.write_bytes(data)
    again.give(m.Branch, "z", node=1)  # it was extended before
    again.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 3)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, tiny_preset: Preset) -> None:
    folder = tmp_path / "data"
    _store(folder, tiny_preset).close()
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with _not_root(tmp_path), pytest.raises(ArchiveError, match="cannot be written to"):
        _store(folder, tiny_preset)
    folder.chmod(0o755)
    with _not_root(tmp_path), pytest.raises(ArchiveError, match="cannot be written to"):
        _store(folder / "deeper", tiny_preset)


class _not_root:
    """Permissions bind everybody but root."""

    def __init__(self, folder: Path) -> None:
        self._folders = [folder, *folder.parents]

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            self._modes = [(path, path.stat().st_mode) for path in self._folders if path.owner() == "root"]
            for path, mode in self._modes:
                if path != Path("/") and path != Path("/tmp"):
                    path.chmod(mode | 0o055)
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.geteuid() == 65534:
            os.seteuid(0)
            for path, mode in self._modes:
                if path != Path("/") and path != Path("/tmp"):
                    path.chmod(mode)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """How many more bytes the disk takes."""
    room = [10**9]
    write = os.write

    def limited(handle: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = write(handle, bytes(data)[: room[0]])
        room[0] -= part
        return part

    monkeypatch.setattr(takefile.os, "write", limited)
    return lambda bytes_left: room.__setitem__(0, bytes_left)


@pytest.mark.parametrize("left", [0, 700, 30_000])
def test_a_full_disk_pauses_the_story_and_nothing_is_lost(
    film: Open,  # noqa: F811
    tiny_engine: Engine,
    full_disk: Callable[[int], None],
    left: int,
) -> None:
    one = _film_three(film)
    full_disk(left)
    one.give(m.Extend, "x", num_chunks=4)
    event = one.wait(lambda e: isinstance(e, m.Status) and e.state == "paused")
    assert isinstance(event, m.Status)
    assert "disk" in event.detail
    assert "then resume" in event.detail
    told = [(event.node, event.chunk) for event, _ in one.chunks]
    assert [(1, chunk.chunk) for chunk in one.archive.chunks(1)] == told, "nothing was announced that is not kept"
    with pytest.raises(ArchiveError, match="full"):
        one.give(m.Resume, "y")
    full_disk(10**9)
    one.give(m.Resume, "z")
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 6)
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=7)
    assert [media for _, media in one.chunks] == [chunk.frames.tobytes() for chunk in stream]
    numbers = [delivery.seq for delivery in one.deliveries]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    again = film()
    assert again.snapshot.shots[0].made_chunks == 7
    assert [again.archive.media(1, k) for k in range(7)] == [media for _, media in one.chunks]


@pytest.mark.parametrize("slow_s", [0.0, 0.3])
def test_a_first_chunk_held_back_while_keeping_fails_is_kept_before_it_is_announced(
    film: Open,  # noqa: F811
    tiny_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    slow_s: float,
) -> None:
    one = film(fps=32, expected_s=0.36)  # longer than the first chunk is on air: it waits for the second
    record, full = one.archive.record, threading.Event()
    full.set()

    def failing(batch: Batch) -> int:
        if full.is_set() and any(isinstance(event, m.MemoryChanged) for event in batch.events):
            time.sleep(slow_s)  # past the time at which the first chunk is due
            raise ArchiveError("the disk is full: make room, then resume")
        return record(batch)

    monkeypatch.setattr(one.archive, "record", failing)
    one.give(m.Start, "a", text="a fox", seed=5, num_chunks=3)
    one.wait(lambda e: isinstance(e, m.Status) and e.state == "paused")
    full.clear()
    one.give(m.Resume, "b")
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 2)
    assert one.ended("a").outcome == "applied"
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox", num_chunks=3)
    assert [media for _, media in one.chunks] == [chunk.frames.tobytes() for chunk in stream]
    again = film()
    assert again.snapshot.shots[0].made_chunks == 3


def test_what_goes_wrong_in_the_archive_itself_pauses_the_story(film: Open, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    one = _film_three(film)
    with monkeypatch.context() as patch:
        patch.setattr(one.archive, "record", lambda batch: 1 // 0)
        one.give(m.Extend, "x", num_chunks=2)
        event = one.wait(lambda e: isinstance(e, m.Status) and e.state == "paused")
        assert isinstance(event, m.Status)
        assert "ZeroDivisionError" in event.detail
    one.wait(lambda e: isinstance(e, m.Ended) and e.id == "x")
    one.give(m.Resume, "y")
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk == 4)
    assert [event.chunk for event, _ in one.chunks] == list(range(5))


def test_a_full_database_pauses_the_story_too(film: Open) -> None:  # noqa: F811
    one = _film_three(film)
    connection = one.store.database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    one.give(m.Extend, "x", num_chunks=200)
    event = one.wait(lambda e: isinstance(e, m.Status) and e.state == "paused")
    assert isinstance(event, m.Status)
    assert "full" in event.detail
    connection.execute("PRAGMA max_page_count = 1000000")
    made = len(one.chunks)
    one.give(m.Resume, "y")
    one.wait(lambda e: isinstance(e, m.ChunkReady) and e.chunk > made + 2)
    assert [event.chunk for event, _ in one.chunks] == list(range(len(one.chunks)))


def test_quotas_of_a_story_and_of_all(film: Open, tmp_path: Path) -> None:  # noqa: F811
    one = film(max_story_bytes=60_000)
    one.give(m.Start, "a", text="a fox", num_chunks=20)
    event = one.wait(lambda e: isinstance(e, m.Status) and e.state == "paused")
    assert isinstance(event, m.Status)
    assert "--story-quota" in event.detail
    assert one.archive.info().bytes <= 60_000
    again = film(max_bytes=90_000)
    again.give(m.Resume, "b")
    event = again.wait(lambda e: isinstance(e, m.Status) and e.state == "paused" and "--quota" in e.detail)
    assert sum(path.stat().st_size for path in (tmp_path / "data" / "takes").rglob("*.take")) <= 90_000 + 60_000
    more = film()
    assert more.snapshot.status.state == "paused"
    more.give(m.Resume, "c")
    more.wait(lambda e: isinstance(e, m.ChunkReady))
