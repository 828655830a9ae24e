"""A kept story, at the socket: across restarts of the server, and back and forth in its tree."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.server.conftest import ADDRESS, PRESET, House, Person  # type: ignore[import-not-found]

from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.server import protocol as p
from shotstream.server import session
from shotstream.server.app import ServeConfig, create_app
from shotstream.server.store import Store, StoreConfig


@contextmanager
def serving(folder: Path, slots: int = 1) -> Iterator[House]:
    """A server on a data folder."""
    config = ServeConfig(preset=PRESET, slots=slots, data=StoreConfig(folder=folder))
    app = create_app(config, lambda: FakeEngine(FakeConfig(chunk_ms=20, open_ms=5, preset=PRESET)))
    with TestClient(app, base_url=ADDRESS) as client:
        house = House(client)
        house.wait_until_ready()
        yield house


def test_a_story_opens_paused_after_a_restart_and_every_missed_event_comes_once(tmp_path: Path) -> None:
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join()
        start = person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.MediaHeader, lambda header: header.chunk == 1)
        waits = person.give(p.Steer, text="he waves", at=p.At(shot=0, chunk=40))
        person.wait(p.Accepted, lambda event: event.id == waits)
        told = {header.sequence: payload for header, payload in person.chunk_media()}
        seen = person.events[-1][1]
        assert person.ended(start).outcome == "applied"
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        hello = person.join(resume_from=seen)
        assert hello.snapshot.status.state == "paused"
        assert "resume" in hello.snapshot.status.detail
        assert [card.text for card in hello.snapshot.shots] == ["a fox"]
        assert [(take.node, take.live) for take in hello.snapshot.takes] == [(1, True)]
        assert not hello.snapshot.pending
        assert "\nshotstream_live_stories 0\n" in house.client.get("/metrics").text, "it takes no slot"
        for _ in range(hello.replayed):
            person.receive()
        assert [seq for _, seq in person.events[1:]] == list(range(seen + 1, hello.seq + 1))
        ended = person.ended(waits)
        assert (ended.outcome, ended.reason) == ("failed", "the server was restarted")
        last = person.wait(p.MediaHeader, lambda header: not header.flags & 3)
        assert last.flags & p.MediaFlag.LIVE_EDGE, "the last picture is there"
        person.give(p.Resume)
        following = person.wait(p.ChunkReady)
        assert following.sequence == last.sequence + 1
        assert following.start == last.start + last.num_frames
    with_store = Store(StoreConfig(folder=tmp_path), PRESET)
    archive = with_store.story("main")
    kept = {chunk.sequence: archive.media(1, chunk.chunk) for chunk in archive.chunks(1)}
    assert told.items() <= kept.items(), "everything that was announced is kept, byte for byte"
    assert all(command.outcome for command in archive.commands())
    with_store.close()


def test_what_was_pending_has_its_ending_as_soon_as_the_server_is_there_again(tmp_path: Path) -> None:
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join()
        person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.ChunkReady)
        waits = person.give(p.Steer, text="he waves", at=p.At(shot=0, chunk=40))
        person.wait(p.Accepted, lambda event: event.id == waits)
    with serving(tmp_path) as house:  # nobody opens the story
        given = {one["id"]: one for one in house.client.get("/api/stories/main/commands").json()}
        assert (given[waits]["outcome"], given[waits]["reason"]) == ("failed", "the server was restarted")
        assert all(one["outcome"] for one in given.values())


def test_a_command_that_waits_for_a_slot_in_vain_is_ended_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ABANDONED_S", 0.6)
    with serving(tmp_path) as house, house.enter() as one:
        person = Person(one)
        person.join(story="first")
        person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.ChunkReady)
        for name in ("left", "there"):
            body = {"kind": "start", "id": name, "text": "a bear", "num_chunks": 1}
            assert house.client.post(f"/api/stories/{name}/commands", json=body).status_code == 202
            if name == "left":
                time.sleep(0.8)
        person.ended(person.give(p.Stop))
        for name, outcome in (("left", "failed"), ("there", "applied")):
            ended = _ending(house, name)
            assert ended["outcome"] == outcome, ended
            assert outcome == "applied" or "nobody was there" in ended["reason"]


def _ending(house: House, name: str) -> dict[str, str]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        answer = house.client.get(f"/api/stories/{name}/commands")
        if answer.status_code == 200 and (found := answer.json()) and found[0]["outcome"]:
            return dict(found[0])
        time.sleep(0.02)
    raise AssertionError(f"{name} was forgotten")


def test_a_retake_and_a_branch_at_the_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join()
        person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.ChunkReady, lambda event: event.chunk == 2)
        retake = person.give(p.Retake, node=1)
        tree = person.wait(p.TreeChanged)
        assert tree.opening
        opened = person.wait(p.ShotOpened)
        assert (opened.node, opened.parent, opened.take, opened.text) == (2, None, 1, "a fox")
        assert person.ended(retake).outcome == "applied"
        person.wait(p.MediaHeader, lambda header: header.take == 1)
        branch = person.give(p.Branch, node=1, chunk=2, text="please transition to the city")
        opened = person.wait(p.ShotOpened)
        assert (opened.node, opened.parent, opened.shot, opened.aired_before) == (3, 1, 1, 21)
        assert person.ended(branch).caption == "transition to the city", "the writer put it into words"
        person.give(p.Stop)


def test_a_kept_story_takes_a_slot_only_once_it_is_resumed(tmp_path: Path) -> None:
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join(story="old")
        person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.ChunkReady)
    with serving(tmp_path) as house, house.enter() as one, house.enter() as two:
        old, new = Person(one), Person(two)
        old.join(story="old")
        new.join(story="new")
        new.give(p.Start, text="a bear", num_chunks=50)
        new.wait(p.ChunkReady)
        pause = old.give(p.Pause)
        assert old.ended(pause).outcome == "applied"
        old.give(p.Resume)
        assert old.wait(p.Status, lambda event: event.state == "queued").queue_position == 1
        new.give(p.Stop)
        assert old.wait(p.ChunkReady).chunk > 0


def test_a_story_whose_newest_take_lost_its_file_can_be_joined_and_gone_on_with_elsewhere(tmp_path: Path) -> None:
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join()
        person.give(p.Start, text="a fox", num_chunks=50)
        person.wait(p.ChunkReady, lambda event: event.chunk == 1)
        person.give(p.Cut, text="the city", num_chunks=50)
        person.wait(p.ShotOpened, lambda event: event.shot == 1)
    next((tmp_path / "takes").rglob("2.take")).unlink()
    with serving(tmp_path) as house, house.enter() as session:
        person = Person(session)
        person.join()
        resume = person.give(p.Resume)
        assert person.ended(resume).outcome == "applied"
        failed = person.wait(p.Status, lambda event: event.state == "error")
        assert "2.take is missing" in failed.detail
        branch = person.give(p.Branch, node=1)
        assert person.ended(branch).outcome == "applied"
        assert person.wait(p.ChunkReady).node in (1, 3)


def test_a_folder_that_cannot_be_used_ends_the_start_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shotstream.cli import main

    (tmp_path / "stories.db").write_bytes(b"no database" * 500)
    assert main(["serve", "--preset", "fake", "--data", str(tmp_path), "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "Traceback" not in said
