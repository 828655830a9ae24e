"""A person at the socket: what they are promised from joining to leaving."""

from __future__ import annotations

import base64
import io
import json
import random
import threading

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.server.conftest import (  # type: ignore[import-not-found]
    ADDRESS,
    PRESET,
    SLOTS,
    SOCKET,
    TOKEN,
    House,
    Person,
    free_port,
)

from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.engine.stream import Engine
from shotstream.engine.writer import OpenAIConfig, TemplateWriter
from shotstream.server import app as app_module
from shotstream.server import protocol as p
from shotstream.server import session as session_module
from shotstream.server.app import ServeConfig, create_app


def test_from_the_first_prompt_to_a_receipt(house: House) -> None:
    with house.enter() as session:
        person = Person(session)
        hello = person.join(story="first")
        assert hello.role == "director"
        assert hello.snapshot.status.state == "idle"
        assert hello.preset.suggestions
        start = person.give(p.Start, text="A fox walks along the beach", num_chunks=20)
        person.wait(p.ChunkReady)
        steer = person.give(p.Steer, text="please make him look surprised")
        applied = person.ended(steer)
        cut = person.give(p.Cut, text="Transition to a wide shot of the city")
        opened = person.wait(p.ShotOpened, lambda event: event.shot == 1)
        person.wait(p.MediaHeader, lambda header: header.shot == 1)
        person.give(p.Stop)
        assert person.ended(start).first_frame == 0
        assert applied.outcome == "applied"
        assert applied.caption == "A fox walks along the beach. make him look surprised"
        chunks = [event for event, _ in person.events if isinstance(event, p.ChunkReady)]
        steered = next(chunk for chunk in chunks if steer in chunk.applied)
        assert steered.start == applied.first_frame
        assert person.ended(cut).first_frame == opened.start
        assert opened.context
        assert all(frame.shot == 0 and frame.frame < opened.aired_before for frame in opened.context)
        flags = [header.flags for header, _ in person.media]
        assert flags[:2] == [p.MediaFlag.INIT, p.MediaFlag.SLATE]
        headers = [header for header, _ in person.chunk_media()]
        assert [h.sequence for h in headers] == [c.sequence for c in chunks][: len(headers)]
        assert all(payload[4:8] == b"moof" for _, payload in person.chunk_media())
        seqs = [seq for _, seq in person.events if seq is not None]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_who_joins_late_sees_the_story_at_once_and_gets_the_same_bytes(house: House) -> None:
    with house.enter() as one, house.enter() as two:
        first, second = Person(one), Person(two)
        first.join(story="late")
        first.give(p.Start, text="a bear", num_chunks=30)
        first.wait(p.MediaHeader, lambda header: header.chunk == 2)
        hello = second.join(story="late")
        edge = second.wait(p.MediaHeader, lambda header: not header.flags & 3)
        assert edge.flags & p.MediaFlag.LIVE_EDGE
        assert edge.start + edge.num_frames > hello.snapshot.status.clock_frame, "it is still on air"
        assert [card.text for card in hello.snapshot.shots] == ["a bear"]
        last = second.wait(p.MediaHeader, lambda header: header.sequence > edge.sequence)
        while first.media[-1][0].sequence < last.sequence:
            first.receive()
        first.give(p.Stop)
        mine, theirs = (
            {header.sequence: payload for header, payload in person.chunk_media()} for person in (first, second)
        )
        both = mine.keys() & theirs.keys()
        assert len(both) >= 2
        assert all(mine[sequence] == theirs[sequence] for sequence in both)


def test_what_the_model_does_not_read_is_said_to_those_who_join_later_too(house: House) -> None:
    with house.enter() as one, house.enter() as two:
        first, second = Person(one), Person(two)
        first.join(story="long")
        start = first.give(p.Start, text="a fox " + "that is very red " * 20, num_chunks=30)
        first.wait(p.ChunkReady, lambda event: event.chunk == 2)
        left_out = first.ended(start).left_out
        assert left_out
        assert second.join(story="long").snapshot.left_out == left_out, "nobody changed the caption since"
        cut = first.give(p.Cut, text="the city")
        first.ended(cut)
        with house.enter() as another:
            assert Person(another).join(story="long").snapshot.left_out == ()
        first.give(p.Stop)


def test_who_joins_after_the_end_is_not_shown_the_story_that_ended(house: House) -> None:
    with house.enter() as one, house.enter() as two:
        first, second = Person(one), Person(two)
        first.join(story="ended")
        first.give(p.Start, text="a bear")
        first.wait(p.MediaHeader, lambda header: not header.flags & p.MediaFlag.SLATE and header.num_frames > 0)
        first.ended(first.give(p.Stop))
        assert second.join(story="ended").snapshot.status.state == "idle"
        second.ended(second.give(p.Extend))
        assert not second.chunk_media()


def test_the_slate_says_how_long_it_is(house: House) -> None:
    with house.enter() as session:
        person = Person(session)
        person.join(story="slate")
        header = person.wait(p.MediaHeader, lambda header: header.flags == p.MediaFlag.SLATE)
        init, slate = (payload for _, payload in person.media)
        with av.open(io.BytesIO(init + slate)) as container:
            assert header.num_frames == sum(1 for _ in container.decode(video=0)) > 0


def test_who_reconnects_gets_every_missed_event_once(house: House) -> None:
    with house.enter() as session:
        person = Person(session)
        person.join(story="again")
        person.give(p.Start, text="a frog", num_chunks=30)
        person.wait(p.ChunkReady)
        seen = person.events[-1][1]
    with house.enter() as other:
        director = Person(other)
        director.join(story="again")
        missed = director.give(p.Steer, text="he waves")
        director.ended(missed)
        with house.enter() as session:
            back = Person(session)
            hello = back.join(story="again", resume_from=seen)
            assert hello.replayed == hello.seq - seen
            for _ in range(hello.replayed):
                back.receive()
            replayed = [seq for _, seq in back.events[1:]]
            assert replayed == list(range(seen + 1, hello.seq + 1))
            assert any(isinstance(e, p.Ended) and e.id == missed for e, _ in back.events)
        director.give(p.Stop)


def test_a_viewer_who_does_not_acknowledge_gets_three_chunks_and_then_the_newest(house: House) -> None:
    with house.enter() as one, house.enter() as two:
        quick, slow = Person(one), Person(two)
        slow.acknowledges = False
        quick.join(story="credits")
        slow.join(story="credits")
        quick.give(p.Start, text="a rabbit", num_chunks=30)
        quick.wait(p.MediaHeader, lambda header: header.sequence == 6)
        gap = slow.wait(p.Gap)
        got = [header.sequence for header, _ in slow.chunk_media()]
        assert got == [1, 2, 3]
        assert gap.first_sequence == 4
        slow.send(p.Ack(sequence=3))
        newest = slow.wait(p.MediaHeader)
        assert newest.sequence >= 5
        gaps = [event for event, _ in slow.events if isinstance(event, p.Gap)]
        dropped = [n for gap in gaps for n in range(gap.first_sequence, gap.last_sequence + 1)]
        assert dropped == list(range(4, newest.sequence)), "every chunk is either sent or told as left out"
        quick.give(p.Stop)


def test_memory_takes_pins_and_pictures_and_says_so(house: House) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((50, 90, 3), 200, np.uint8)).save(file, "PNG")
    with house.enter() as session:
        person = Person(session)
        person.join(story="memory")
        person.give(p.Start, text="a robot", num_chunks=30)
        memory = person.wait(p.MemoryChanged)
        first = memory.frames[0]
        pin = person.give(p.Memory, action="pin", frame=p.FrameRef(shot=first.shot, frame=first.frame))
        picture = base64.b64encode(file.getvalue()).decode()
        add = person.give(p.Memory, action="add", picture=picture, caption="a grey wall")
        bad = person.give(p.Memory, action="add", picture="aGVsbG8=", caption="no picture")
        remembered = person.wait(p.MemoryChanged, lambda event: any(f.reason == "picture" for f in event.frames))
        assert person.ended(pin).outcome == "applied"
        assert person.ended(add).outcome == "applied"
        assert "PNG" in person.ended(bad).reason
        assert {f.reason for f in remembered.frames} >= {"pinned", "picture"}
        assert all(base64.b64decode(f.thumbnail)[:2] == b"\xff\xd8" for f in remembered.frames)
        person.give(p.Cut, text="the city")
        opened = person.wait(p.ShotOpened, lambda event: event.shot == 1)
        assert "picture" in {f.reason for f in opened.context}
        person.give(p.Stop)


def test_a_second_story_waits_for_a_slot_and_begins_when_one_is_free(house: House) -> None:
    sessions = [house.enter() for _ in range(SLOTS + 1)]
    people = [Person(session.__enter__()) for session in sessions]
    try:
        for index, person in enumerate(people):
            person.join(story=f"slot{index}")
            person.give(p.Start, text="a knight", num_chunks=50)
        queued = people[-1].wait(p.Status, lambda event: event.state == "queued")
        assert queued.queue_position == 1
        with house.enter() as another:
            snapshot = Person(another).join(story=f"slot{SLOTS}").snapshot
            assert snapshot.status.state == "queued"
            assert [(one.command, one.text) for one in snapshot.pending] == [("start", "a knight")]
        people[0].give(p.Stop)
        assert people[-1].wait(p.ChunkReady).chunk == 0
    finally:
        for person in people:
            person.give(p.Stop)
        for session in sessions:
            session.__exit__(None, None, None)


def test_nonsense_is_answered_in_words_and_a_bystander_does_not_notice(house: House) -> None:
    dice = random.Random(1)
    with house.enter() as one, house.enter() as two:
        bystander, noisy = Person(one), Person(two)
        bystander.join(story="noise")
        bystander.give(p.Start, text="a girl", num_chunks=60)
        bystander.wait(p.ChunkReady)
        noisy.join(story="noise")
        for text in ("", "[]", '{"kind":"cut"}', json.dumps({"kind": "cut", "id": "a", "text": "x" * 70_000})):
            noisy.session.send_text(text)
            assert noisy.wait(p.Error).code == "bad_message"
        noisy.session.send_bytes(b"\x00")
        assert noisy.wait(p.Error).code == "bad_message"
        noisy.send(p.Join(story="noise"))
        assert "joined already" in noisy.wait(p.Error).message
        noisy.send(p.Pause(id="once"))
        noisy.send(p.Resume(id="once"))
        assert noisy.wait(p.Error).code == "duplicate"
        for index in range(60):
            noisy.send(dice.choice([p.Resume(id=f"n{index}"), p.Cancel(id=f"n{index}", target="x")]))
        assert noisy.wait(p.Error).code == "rate_limited"
        bystander.give(p.Resume)
        after = bystander.wait(p.ChunkReady)
        assert bystander.wait(p.ChunkReady).sequence == after.sequence + 1
        bystander.give(p.Stop)


def test_an_id_that_was_answered_without_the_engine_cannot_be_used_again(house: House) -> None:
    sessions = [house.enter() for _ in range(SLOTS + 1)]
    people = [Person(session.__enter__()) for session in sessions]
    try:
        for index, person in enumerate(people):
            person.join(story=f"twice{index}")
            person.give(p.Start, text="a knight", num_chunks=50)
        last = people[-1]
        last.wait(p.Status, lambda event: event.state == "queued")
        last.send(p.Start(id="again", text="a fox"))
        assert last.ended("again").outcome == "failed"
        last.ended(last.give(p.Stop))
        for command in (p.Pause(id="again"), p.Start(id="again", text="a fox")):
            last.send(command)
            assert last.wait(p.Error).code == "duplicate"
        assert last.ended(last.give(p.Extend)).outcome == "failed", "it still answers"
    finally:
        for person in people:
            person.give(p.Stop)
        for session in sessions:
            session.__exit__(None, None, None)


def test_a_first_message_that_is_no_join_ends_the_connection(house: House) -> None:
    for first in ("hello", p.to_json(p.Ack(sequence=1)), p.to_json(p.Join(protocol=99))):
        with house.enter() as session:
            session.send_text(first)
            error, _ = p.parse_event(session.receive_text())
            assert isinstance(error, p.Error)
            assert error.fatal
            with pytest.raises(ConnectionError):
                Person(session).receive()


def test_health_and_metrics(house: House) -> None:
    assert house.client.get("/healthz").json()["state"] == "ok"
    assert house.client.get("/readyz").json()["state"] == "ready"
    metrics = house.client.get("/metrics").text
    assert "# TYPE shotstream_chunks_total counter" in metrics
    assert 'shotstream_commands_total{command="start",outcome="applied"}' in metrics


def test_metrics_have_all_their_digits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_STARTED", 1_785_421_234.5)
    metrics = house.client.get("/metrics").text
    assert "\nshotstream_start_time_seconds 1785421234.5\n" in metrics
    assert f"\nshotstream_slots {SLOTS}\n" in metrics


def test_an_exposed_server_wants_its_token_and_never_in_the_address(guarded_house: House) -> None:
    house = guarded_house
    for token, address in (("", SOCKET), ("wrong", SOCKET), ("", f"{SOCKET}?token={TOKEN}")):
        with house.client.websocket_connect(address) as session:
            session.send_text(p.to_json(p.Join(token=token)))
            error, _ = p.parse_event(session.receive_text())
            assert isinstance(error, p.Error)
            assert (error.code, error.fatal) == ("unauthorized", True)
    with house.enter() as session:
        assert Person(session).join(token=TOKEN).role == "director"
    assert house.client.get("/metrics").status_code == 401
    assert house.client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_cookie_logs_in_and_a_watch_link_watches_until_it_is_revoked(guarded_house: House) -> None:
    house = guarded_house
    assert house.client.post("/api/watch-links").status_code == 401
    assert house.client.post("/api/login", json={"token": "wrong"}).status_code == 401
    answer = house.client.post("/api/login", json={"token": TOKEN})
    assert answer.status_code == 204
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert TOKEN not in answer.headers["set-cookie"]
    link = house.client.post("/api/watch-links").json()
    with house.enter() as one, house.enter() as two:
        director, watcher = Person(one), Person(two)
        assert director.join().role == "director", "the cookie"
        house.client.cookies.clear()
        assert watcher.join(token=link["token"]).role == "watcher"
        watcher.give(p.Start, text="a fox")
        assert watcher.wait(p.Error).code == "read_only"
        house.client.post("/api/login", json={"token": TOKEN})
        assert house.client.delete(f"/api/watch-links/{link['id']}").status_code == 204
        with pytest.raises(ConnectionError):
            watcher.wait(p.Hello)
    house.client.cookies.clear()
    with house.enter() as session:
        session.send_text(p.to_json(p.Join(token=link["token"])))
        error, _ = p.parse_event(session.receive_text())
        assert isinstance(error, p.Error)
        assert (error.code, error.fatal) == ("unauthorized", True)


def test_a_server_says_how_it_gets_ready_and_then_how_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "METRICS_S", 0.2)
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait(20)
        return FakeEngine(FakeConfig(chunk_ms=10, open_ms=5, preset=PRESET))

    app = create_app(ServeConfig(preset=PRESET), load)
    with TestClient(app, base_url=ADDRESS) as client, client.websocket_connect(SOCKET) as session:
        person = Person(session)
        assert person.join().snapshot.status.state == "loading"
        start = person.give(p.Start, text="a fox", num_chunks=30)
        assert client.get("/readyz").status_code == 503
        may_load.set()
        person.wait(p.Metrics)
        states = [event.state for event, _ in person.events if isinstance(event, p.Status)]
        assert [state for state in states if state in ("warming", "idle", "live")][:3] == ["warming", "idle", "live"]
        assert person.ended(start).outcome == "applied", "what was said meanwhile waited"


def test_a_language_model_that_does_not_answer_costs_a_notice_and_no_time() -> None:
    assert OpenAIConfig(base_url="http://127.0.0.1", model="m").timeout_s == 0.4
    dead = OpenAIConfig(base_url=f"http://127.0.0.1:{free_port()}/v1", model="m")
    config = ServeConfig(preset=PRESET, writer="openai", openai=dead)
    app = create_app(config, lambda: FakeEngine(FakeConfig(chunk_ms=10, open_ms=5, preset=PRESET)))
    with TestClient(app, base_url=ADDRESS) as client, client.websocket_connect(SOCKET) as session:
        person = Person(session)
        assert person.join().writer == "openai"
        person.give(p.Start, text="a fox", num_chunks=30)
        person.wait(p.ChunkReady)
        steered = person.ended(person.give(p.Steer, text="please make him wave"))
        assert steered.outcome == "applied"
        assert steered.caption == "a fox. make him wave", "the template wrote it"
        assert "without the language model" in steered.reason


def test_a_writer_that_fails_costs_one_instruction_and_not_those_after_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.enter() as session:
        person = Person(session)
        person.join(story="writing")
        with monkeypatch.context() as broken:
            broken.setattr(TemplateWriter, "write", lambda *_, **__: {}["words"])
            failed = person.ended(person.give(p.Start, text="a fox"))
        assert (failed.outcome, failed.reason) == ("failed", "the writer failed: KeyError: 'words'")
        assert person.ended(person.give(p.Start, text="a fox", num_chunks=1)).outcome == "applied"


@pytest.mark.parametrize("error", [ValueError("no weights: give --weights"), AttributeError("no weights")])
def test_an_engine_that_cannot_be_loaded_is_an_answer_and_not_a_silence(error: Exception) -> None:
    def broken() -> Engine:
        raise error

    app = create_app(ServeConfig(preset=PRESET), broken)
    with TestClient(app, base_url=ADDRESS) as client, client.websocket_connect(SOCKET) as session:
        person = Person(session)
        person.join()
        assert "no weights" in person.ended(person.give(p.Start, text="a fox")).reason
        health = client.get("/readyz")
        assert (health.status_code, health.json()["state"]) == (503, "error")
