"""A story file is played live, as ordinary commands, until it ends or a director takes over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.server.running import Person, running  # type: ignore[import-not-found]

from shotstream.engine.stream import Engine
from shotstream.server import protocol as p
from shotstream.server.performer import Performer
from shotstream.server.store import StoreConfig
from shotstream.story import PICTURE, Making, Picture, Recall, Shot, Steer, Story, parse_story, story_yaml

ROOT = Path(__file__).resolve().parents[2]
_names = (f"film{n}" for n in itertools.count())

THREE = Story(
    name="fox",
    seed=7,
    global_caption="in the snow",
    shots=(
        Shot(
            caption="please show a fox",
            num_chunks=3,
            steers=(
                Steer(chunk=0, caption="it is night"),
                Steer(chunk=1, caption="he waves"),
                Steer(chunk=2, caption="he sleeps", replaces=True),
            ),
        ),
        Shot(caption="the city", num_chunks=1),
        Shot(
            caption="a boat", num_chunks=2, steers=(Steer(chunk=0, caption="it rains"), Steer(chunk=1, caption="fog"))
        ),
    ),
)
CAPTIONS = [
    "in the snow. please show a fox. it is night",
    "in the snow. please show a fox. it is night. he waves",
    "in the snow. he sleeps",
    "in the snow. the city",
    "in the snow. a boat. it rains",
    "in the snow. a boat. it rains. fog",
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def person(server: str) -> Iterator[Person]:
    """Directs and watches a story of their own."""
    name = next(_names)
    person = Person(server, name)
    person.name = name
    person.wait(lambda event: isinstance(event, p.Hello))
    yield person
    person.leave()


def play(server: str, person: Person, story: Story | str) -> httpx.Response:
    text = story if isinstance(story, str) else story_yaml(story)
    return httpx.post(f"{server}/api/stories/{person.name}/play", content=text.encode(), timeout=30)


def commands(server: str, person: Person) -> list[dict[str, object]]:
    return list(httpx.get(f"{server}/api/stories/{person.name}/commands").json())


def until(person: Person, state: str) -> list[object]:
    """Everything that was said until a performance came to a state, this last."""
    seen: list[object] = []

    def note(event: object) -> bool:
        seen.append(event)
        return isinstance(event, p.PerformanceChanged) and event.performance.state == state

    person.wait(note)
    return seen


def chunks_of(seen: list[object]) -> list[p.ChunkReady]:
    return [event for event in seen if isinstance(event, p.ChunkReady)]


def test_a_story_file_is_played_to_the_chunk_as_it_is_written(server: str, person: Person) -> None:
    answer = play(server, person, THREE)
    assert answer.status_code == 202
    card = answer.json()
    assert (card["title"], card["seed"], card["global_caption"]) == ("fox", 7, "in the snow")
    assert [(shot["caption"], shot["steers"]) for shot in card["shots"]] == [
        ("please show a fox", 3), ("the city", 0), ("a boat", 2),
    ]  # fmt: skip
    assert card["seconds"] == pytest.approx((33 + 9 + 21) / 16)
    seen = until(person, "finished")
    chunks = chunks_of(seen)
    assert [chunk.caption for chunk in chunks] == CAPTIONS, "word by word, no writer between"
    assert [(chunk.shot, chunk.chunk) for chunk in chunks] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert [chunk.start for chunk in chunks] == [0, 9, 21, 33, 42, 51], "cuts at shot ends, without a break"
    opened = [event.performance.opened for event in seen if isinstance(event, p.PerformanceChanged)]
    assert opened == [0, 1, 2, 3, 3]
    given = commands(server, person)
    assert [one["command"] for one in given] == ["start", "steer", "steer", "steer", "cut", "cut", "steer", "steer"]
    assert {one["outcome"] for one in given} == {"applied"}
    takes = httpx.get(f"{server}/api/stories/{person.name}/takes").json()
    assert [(take["shot"], take["parent"]) for take in takes] == [(0, None), (1, 1), (2, 2)]


def test_a_story_of_many_shots_and_steers_never_has_more_than_a_few_commands_pending(
    server: str, person: Person
) -> None:
    steers = tuple(Steer(chunk=number // 4, caption=f"word {number}") for number in range(12))
    story = Story(shots=(Shot(caption="a fox", num_chunks=3, steers=steers), Shot(caption="the city", num_chunks=1)))
    assert play(server, person, story).status_code == 202
    pending, most = set[str](), 0
    for event in until(person, "finished"):
        if isinstance(event, p.Accepted):
            pending.add(event.id)
        elif isinstance(event, p.Ended):
            assert event.outcome == "applied", event
            pending.remove(event.id)
        most = max(most, len(pending))
    assert not pending
    assert most <= 8


@pytest.mark.parametrize(
    ("kind", "rest", "shots"),
    [(p.Cut, {"text": "a bear", "num_chunks": 2}, 2), (p.Steer, {"text": "look up"}, 1), (p.Stop, {}, 1)],
)
def test_a_director_takes_over_and_the_rest_is_dropped(
    server: str, person: Person, kind: type, rest: dict[str, object], shots: int
) -> None:
    steers = (Steer(chunk=15, caption="he waves"),)
    shot = Shot(caption="a fox", num_chunks=16, steers=steers)
    assert play(server, person, Story(shots=(shot, shot, shot))).status_code == 202
    person.wait(lambda event: isinstance(event, p.ChunkReady) and event.chunk == 1)
    mine = person.give(kind, **rest)
    seen = until(person, "interrupted")
    dropped = [event for event in seen if isinstance(event, p.Ended) and event.outcome == "superseded"]
    assert {event.reason for event in dropped} == {"the director took over"}
    assert isinstance(seen[-1], p.PerformanceChanged)
    assert (seen[-1].performance.reason, seen[-1].performance.opened) == ("the director took over", 1)
    person.applied(mine)
    given = commands(server, person)
    assert all(one["outcome"] for one in given), "every command of it ended"
    assert [one["outcome"] for one in given if one["id"] == mine] == ["applied"]
    assert len(httpx.get(f"{server}/api/stories/{person.name}/takes").json()) == shots
    if kind is p.Steer:
        person.give(p.Stop)


def test_taking_over_without_a_command_lets_the_running_shot_go_on(server: str, person: Person) -> None:
    story = Story(shots=(Shot(caption="a fox", num_chunks=4), Shot(caption="the city", num_chunks=4)))
    assert play(server, person, story).status_code == 202
    person.wait(lambda event: isinstance(event, p.ChunkReady))
    path = f"{server}/api/stories/{person.name}/play"
    assert httpx.delete(path).status_code == 204
    assert httpx.delete(path).status_code == 409
    person.hold()
    assert len(httpx.get(f"{server}/api/stories/{person.name}/takes").json()) == 1


def test_a_performance_goes_on_through_a_pause_and_while_viewers_come_and_go(server: str, person: Person) -> None:
    assert play(server, person, THREE).status_code == 202
    person.wait(lambda event: isinstance(event, p.ChunkReady) and event.chunk == 1)
    person.applied(person.give(p.Pause))
    other = Person(server, person.name)
    hello = other.wait(lambda event: isinstance(event, p.Hello))
    assert isinstance(hello, p.Hello)
    performance = hello.snapshot.performance
    assert performance is not None
    assert (performance.title, performance.num_shots, performance.following) == ("fox", 3, "the city")
    assert hello.snapshot.status.state == "paused"
    person.leave()
    other.applied(other.give(p.Resume))
    assert [chunk.caption for chunk in chunks_of(until(other, "finished"))][-3:] == CAPTIONS[-3:]
    again = Person(server, person.name)
    hello = again.wait(lambda event: isinstance(event, p.Hello))
    assert isinstance(hello, p.Hello)
    assert hello.snapshot.performance is None
    other.leave(), again.leave()


def test_a_shot_that_is_cancelled_ends_the_performance(server: str, person: Person) -> None:
    story = Story(shots=(Shot(caption="a fox", num_chunks=9), Shot(caption="the city"), Shot(caption="a boat")))
    assert play(server, person, story).status_code == 202
    cut = person.wait(lambda event: isinstance(event, p.Accepted) and event.text == "the city")
    assert isinstance(cut, p.Accepted)
    person.applied(person.give(p.Cancel, target=cut.id))
    assert all(one["outcome"] for one in commands(server, person) if one["command"] == "cut")
    person.give(p.Stop)


def test_a_file_cannot_be_played_into_a_story_that_runs(server: str, person: Person) -> None:
    person.applied(person.give(p.Start, text="a fox", num_chunks=1))
    answer = play(server, person, THREE)
    assert answer.status_code == 409
    assert "stop it first" in answer.json()["detail"]
    person.applied(person.give(p.Stop))
    assert play(server, person, THREE).status_code == 202
    until(person, "finished")
    assert [take["node"] for take in httpx.get(f"{server}/api/stories/{person.name}/takes").json()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "`shots`"),
        ("shots: []", "at least one shot"),
        ("shots: [a fox]\nwild: 1", "no key wild"),
        ("shots: [{caption: a fox, steers: [{chunk: 9, caption: x}]}]", "chunks 0..6"),
        ("shots: [{caption: a fox, num_chunks: 5000}]", "from 1 to 1000"),
        (f"shots: [{'x' * 2001}]", "2001 characters"),
        ("shots: [a fox]\nseed: 99999999999", "from 0 to"),
        ("shots: [" + ", ".join(["a"] * 1001) + "]", "at most 1000 shots"),
        ("shots: [a: [", "not readable as YAML"),
        ("shots: !!bool fox", "not readable as YAML"),
        ("shots: [{caption: a, steers: [" + 9 * "{chunk: 1, caption: x}, " + "]}]", "at one chunk"),
        ("[" * 5000, "not readable as YAML"),
        ("shots: [{caption: a, made: {id: 1, shot: 0, frames: 0}}]", "none of its shots"),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_in_words_and_nothing_happens(
    server: str, person: Person, text: str, complaint: str
) -> None:
    answer = play(server, person, text)
    assert answer.status_code == 422
    assert complaint in answer.json()["detail"]
    assert httpx.get(f"{server}/api/stories/{person.name}").status_code == 404


def test_bytes_that_are_no_text_and_files_that_are_too_long_are_refused(server: str) -> None:
    path = f"{server}/api/stories/new/play"
    assert "UTF-8" in httpx.post(path, content=b"\xff\xfe").json()["detail"]
    assert httpx.post(path, content=b"#" * (9 * 2**20)).status_code == 413


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_can_be_played(path: Path) -> None:
    story = parse_story(path.read_text())
    performer = Performer(story, first_frames=9, chunk_frames=12)
    assert performer.shots == story.shots


def test_pictures_come_into_memory_before_the_first_shot_that_recalls_them() -> None:
    made = [Making(id=number + 1, number=number) for number in range(3)]
    made[1] = replace(made[1], recalls=(Recall(id=PICTURE, frame=0), Recall(id=1, frame=0)))
    made[2] = replace(made[2], recalls=(Recall(id=PICTURE, frame=0),), frames=10)
    shots = tuple(Shot(caption=f"shot {one.number}", making=one) for one in made)
    story = Story(shots=shots, pictures=(Picture(caption="a house", png="iVBORw0K"),), order=(2, 1, 2, 3))
    performer = Performer(story, first_frames=9, chunk_frames=12)
    assert [(shot.caption, shot.num_chunks) for shot in performer.shots] == [
        ("shot 1", 7), ("shot 0", 7), ("shot 1", 7), ("shot 2", 2),
    ]  # fmt: skip
    given, opened = [], 0
    while performer.has_next:
        step = performer.next()
        performer.gave(step)
        given.append((step.command.kind, opened))
        if step.opens:
            performer.note_event(p.Ended(id=step.command.id, command="cut", outcome="applied"))
            opened = performer.performance.opened
    assert given == [("start", 0), ("cut", 1), ("memory", 2), ("cut", 2), ("cut", 3)]


def test_what_was_exported_is_played_again_to_the_same_frames(tiny_engine: Engine) -> None:
    """Where its shots are first takes and run to their end."""
    with running(preset=tiny_engine.preset, engine=lambda: tiny_engine) as url:
        one, two = Person(url, "one"), Person(url, "two")
        one.name, two.name = "one", "two"
        assert play(url, one, THREE).status_code == 202
        until(one, "finished")
        exported = httpx.get(f"{url}/api/stories/one/export.yaml", timeout=30).text
        assert parse_story(exported).is_exact
        one.applied(one.give(p.Stop))
        assert play(url, two, exported).status_code == 202
        assert [chunk.caption for chunk in chunks_of(until(two, "finished"))] == CAPTIONS
        hashes = [
            [
                chunk["sha256"]
                for node in (1, 2, 3)
                for chunk in httpx.get(f"{url}/api/stories/{name}/takes/{node}/chunks?sha256=1").json()
            ]
            for name in ("one", "two")
        ]
        assert hashes[0] == hashes[1]
        assert len(hashes[0]) == 6
        one.leave(), two.leave()


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, Person]]:
    """A life of a server on a folder, and somebody at its story."""
    with running(data=StoreConfig(folder=folder)) as url:
        person = Person(url, "film")
        person.name = "film"
        yield url, person
        person.leave()


def _hello(person: Person) -> p.Hello:
    hello = person.wait(lambda event: isinstance(event, p.Hello))
    assert isinstance(hello, p.Hello)
    return hello


@pytest.mark.parametrize("seen", [(0, 2), (2, 0)])
def test_a_story_file_goes_on_after_a_restart_where_it_was(tmp_path: Path, seen: tuple[int, int]) -> None:
    with _served(tmp_path) as (url, person):
        assert play(url, person, THREE).status_code == 202
        person.wait(lambda event: isinstance(event, p.ChunkReady) and (event.shot, event.chunk) == seen)
    with _served(tmp_path) as (url, person):
        status = _hello(person).snapshot.status
        assert status.state == "paused"
        back = person.wait(lambda event: isinstance(event, p.PerformanceChanged))
        assert isinstance(back, p.PerformanceChanged)
        assert (back.performance.title, back.performance.state, back.performance.opened) == (
            "fox",
            "playing",
            seen[0] + 1,
        )
        person.give(p.Resume)
        until(person, "finished")
        given = commands(url, person)
        assert {one["outcome"] for one in given} == {"applied", "superseded"}
        again = [one for one in given if one["outcome"] == "superseded"]
        assert {one["reason"] for one in again} == {"the server was restarted: it is given again"}
        assert sum(one["outcome"] == "applied" and one["command"] != "resume" for one in given) == 8, "each step once"
        path = f"{url}/api/stories/film/takes"
        chunks = [chunk for node in (1, 2, 3) for chunk in httpx.get(f"{path}/{node}/chunks").json()]
        assert [chunk["caption"] for chunk in chunks] == CAPTIONS
        assert [chunk["start"] for chunk in chunks] == [0, 9, 21, 33, 42, 51]
    with _served(tmp_path) as (url, person):
        assert _hello(person).snapshot.performance is None
        assert httpx.delete(f"{url}/api/stories/film/play").status_code == 409, "it is over"


def test_a_director_who_takes_over_after_a_restart_has_taken_over(tmp_path: Path) -> None:
    with _served(tmp_path) as (url, person):
        assert play(url, person, THREE).status_code == 202
        person.wait(lambda event: isinstance(event, p.ChunkReady))
    with _served(tmp_path) as (url, person):
        person.wait(lambda event: isinstance(event, p.PerformanceChanged))
        person.give(p.Resume)
        person.applied(person.give(p.Cut, text="a bear", num_chunks=1))
        person.hold()
        assert all(one["outcome"] for one in commands(url, person))
    with _served(tmp_path) as (url, person):
        assert _hello(person).snapshot.performance is None
        person.applied(person.give(p.Resume))
        assert httpx.delete(f"{url}/api/stories/film/play").status_code == 409
        assert len(httpx.get(f"{url}/api/stories/film/takes").json()) == 2
