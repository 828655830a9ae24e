"""The story library over REST, and the live mp4."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from typing import get_args

import av
import httpx
import numpy as np
import pytest
from tests.server.running import PRESET, Person, running  # type: ignore[import-not-found]

from shotstream.engine.barcode import read_barcode
from shotstream.server import protocol as p
from shotstream.server.live_mp4 import Projector, one_picture, samples
from shotstream.server.media import ChunkEncoder

TOKEN = "a-token-of-twenty-ch"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def api(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


def _film(server: str, name: str, *texts: str) -> Person:
    person = Person(server, name)
    for index, text in enumerate(texts):
        person.applied(person.give(p.Cut if index else p.Start, text=text, num_chunks=1))
        person.hold()
    return person


def _until(test: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not test():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_library_lists_renames_copies_and_deletes(server: str, api: httpx.Client) -> None:
    _film(server, "first", "a fox", "the city").leave()
    card = next(card for card in api.get("/api/stories").json() if card["name"] == "first")
    assert (card["title"], card["url"], card["num_takes"]) == ("first", "/#story=first", 2)
    assert card["seconds"] == 18 / 16
    assert card["bytes"] > 1000
    assert card["thumbnail"]
    assert api.patch("/api/stories/first", json={"title": "The fox"}).json()["title"] == "The fox"
    copy = api.post("/api/stories/first/duplicate", json={}).json()
    assert (copy["name"], copy["title"], copy["seconds"]) == ("first-2", "The fox", card["seconds"])
    assert api.post("/api/stories/first/duplicate", json={"name": "first-2"}).status_code == 409
    person = Person(server, "first-3")
    person.wait(lambda event: isinstance(event, p.Hello))  # somebody is there, and nothing is kept of it yet
    assert api.post("/api/stories/first/duplicate", json={}).json()["name"] == "first-4"
    person.leave()
    _until(lambda: api.get("/api/stories/first").json()["viewers"] == 0)
    assert api.delete("/api/stories/first").status_code == 204
    assert api.get("/api/stories/first").status_code == 404
    assert api.get("/api/stories/first-2/export.mp4").status_code == 200


def test_a_story_that_is_watched_is_not_deleted(server: str, api: httpx.Client) -> None:
    person = _film(server, "watched", "a fox")
    answer = api.delete("/api/stories/watched")
    assert (answer.status_code, "watch this story" in answer.json()["detail"]) == (409, True)
    person.leave()


def test_everything_that_was_sent_can_be_had_again_with_its_hash(server: str, api: httpx.Client) -> None:
    person = _film(server, "sent", "a fox", "the city")
    told = {header.sequence: hashlib.sha256(payload).hexdigest() for header, payload in person.media}
    person.leave()
    path = "/api/stories/sent/takes"
    cards = {take["node"]: api.get(f"{path}/{take['node']}/chunks?sha256=1").json() for take in api.get(path).json()}
    assert {chunk["sequence"]: chunk["sha256"] for chunks in cards.values() for chunk in chunks} == told
    media = api.get(f"{path}/2/chunks/0").content
    assert hashlib.sha256(media).hexdigest() == cards[2][0]["sha256"]
    with av.open(io.BytesIO(api.get("/api/stories/sent/init.mp4").content + media)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    latent = np.load(io.BytesIO(api.get(f"{path}/1/chunks/0/latent.npy").content))
    assert latent.shape[0] == 3
    outcomes = [command["outcome"] for command in api.get("/api/stories/sent/commands").json()]
    assert outcomes == ["applied", "applied"]


def test_takes_are_listed_hidden_and_shown_again(server: str, api: httpx.Client) -> None:
    person = _film(server, "tree", "a fox", "the city")
    person.applied(person.give(p.Retake, node=2))
    person.hold()
    takes = api.get("/api/stories/tree/takes").json()
    assert [(t["node"], t["parent"], t["shot"], t["take"], t["live"]) for t in takes] == [
        (1, None, 0, 0, True),
        (2, 1, 1, 0, False),
        (3, 1, 1, 1, True),
    ]
    assert api.patch("/api/stories/tree/takes/2", json={"hidden": True}).json()["hidden"] is True
    person.wait(lambda event: isinstance(event, p.TreeChanged) and event.takes[0].hidden)
    assert [t["node"] for t in api.get("/api/stories/tree/takes?hidden=false").json()] == [1, 3]
    live = api.patch("/api/stories/tree/takes/3", json={"hidden": True})
    assert (live.status_code, "live" in live.json()["detail"]) == (409, True)
    assert api.patch("/api/stories/tree/takes/2", json={"hidden": False}).json()["hidden"] is False
    person.leave()


def test_a_story_is_directed_over_rest(server: str, api: httpx.Client) -> None:
    path = "/api/stories/rest/commands"

    def give(id: str, **command: object) -> str:
        answer = api.post(path, json={"id": id, **command})
        assert (answer.status_code, answer.json()["id"]) == (202, id)
        _until(lambda: all(one["outcome"] for one in api.get(path).json()))
        return str(next(one for one in api.get(path).json() if one["id"] == id)["outcome"])

    assert give("a", kind="start", text="a fox", num_chunks=1) == "applied"
    assert give("b", kind="cut", text="the city", num_chunks=1) == "applied"
    assert give("c", kind="retake", node=2) == "applied"
    assert give("d", kind="retake", node=7) == "failed"
    assert [take["take"] for take in api.get("/api/stories/rest/takes").json()] == [0, 0, 1]
    assert api.post(path, json={"id": "a", "kind": "undo"}).status_code == 409
    for body in (b'{"id": "x", "kind": "fly"}', b"\xff", b"[" * 9000, b'{"id": "e", "kind": "cut", "text": "\\ud800"}'):
        assert api.post(path, content=body).status_code == 422, body


def test_commands_that_wait_for_a_free_slot_are_listed_and_those_that_fail_at_once_say_so() -> None:
    with running(slots=1) as server, httpx.Client(base_url=server) as api:

        def give(story: str, id: str, **command: object) -> dict[str, object]:
            answer = api.post(f"/api/stories/{story}/commands", json={"id": id, **command})
            assert answer.status_code == 202
            return dict(answer.json())

        give("live", "a", kind="start", text="a fox")
        _until(lambda: api.get("/api/stories/live/takes").json())
        waiting = give("later", "b", kind="start", text="a bear")
        assert (waiting["text"], waiting["outcome"]) == ("a bear", None)
        assert "free slot" in str(waiting["reason"])
        refused = give("later", "c", kind="cut", text="the city")
        assert (refused["outcome"], "start it" in str(refused["reason"])) == ("failed", True)

        def listed() -> dict[str, object]:
            return {one["id"]: one["outcome"] for one in api.get("/api/stories/later/commands").json()}

        assert listed() == {"b": None, "c": "failed"}
        give("live", "d", kind="stop")
        _until(lambda: listed() == {"b": "applied", "c": "failed"})
        assert api.get("/api/stories/never/commands").status_code == 404


def test_films_are_exported_with_any_cut_list(server: str, api: httpx.Client) -> None:
    _film(server, "film", "a fox", "the city").leave()
    for format, start in (
        ("yaml", b"# `shotstream generate --preset fake"),
        ("vtt", b"WEBVTT"),
        ("otio", b"{"),
        ("png", b"\x89PNG"),
        ("zip", b"PK"),
    ):
        answer = api.get(f"/api/stories/film/export.{format}")
        assert (answer.status_code, answer.content[: len(start)]) == (200, start)
        assert f'filename="film.{format}"' in answer.headers["content-disposition"]
    film = api.get("/api/stories/film/export.mp4", params={"takes": [2, 1, 2]}).content
    with av.open(io.BytesIO(film)) as container:
        codes = [read_barcode(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert [code.shot for code in codes] == [1] * 9 + [0] * 9 + [1] * 9
    take = api.get("/api/stories/film/takes/2/film.mp4", headers={"range": "bytes=0-9"})
    assert (take.status_code, len(take.content)) == (206, 10)


def test_the_film_of_a_take_has_all_of_it_though_the_story_shows_only_its_beginning(
    server: str, api: httpx.Client
) -> None:
    person = Person(server, "whole")
    person.applied(person.give(p.Start, text="a fox", num_chunks=3))
    person.hold()
    person.applied(person.give(p.Branch, node=1, chunk=1, text="the city", num_chunks=1))
    person.leave()
    assert _num_frames(api.get("/api/stories/whole/takes/1/film.mp4").content) == 33
    assert _num_frames(api.get("/api/stories/whole/export.mp4").content) == 18


def _num_frames(film: bytes) -> int:
    with av.open(io.BytesIO(film)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_what_is_not_there_or_makes_no_sense_is_said_clearly(server: str, api: httpx.Client) -> None:
    person = Person(server, "empty")
    _film(server, "some", "a fox").leave()
    asked = {
        404: [
            "/api/stories/nowhere",
            "/api/stories/nowhere/export.mp4",
            "/stories/nowhere/live.mp4",
            "/api/stories/some/takes/9",
            "/api/stories/some/takes/1/chunks/7",
            "/api/stories/some/takes/9/chunks/0/latent.npy",
        ],
        422: ["/api/stories/some/export.avi", "/api/stories/some/export.mp4?takes=9", "/api/stories/a b"],
    }
    for status, paths in asked.items():
        for path in paths:
            answer = api.get(path)
            assert answer.status_code == status, path
            assert answer.json()["detail"], path
    person.leave()
    for body in (b'{"title": ""}', b'{"title": "\\ud800"}', b'{"title": "a\\u0000"}', b"{}", b"[1]", b"{"):
        answer = api.patch("/api/stories/some", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, body
        assert isinstance(answer.json()["detail"], str)


def test_directors_give_a_token_and_watchers_see_only_the_live_film() -> None:
    with running(token=TOKEN) as url, httpx.Client(base_url=url, timeout=30) as api:
        director = {"authorization": f"Bearer {TOKEN}"}
        assert api.get("/api/stories").status_code == 401
        assert api.get("/api/stories", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert api.get("/api/stories", headers=director).json() == []
        api.post("/api/login", json={"token": TOKEN})
        made = api.post("/api/watch-links").json()
        link, id, cookie = made["token"], made["id"], f"shotstream={api.cookies['shotstream']}"
        api.cookies.clear()
        person = Person(url, "main", TOKEN)
        person.applied(person.give(p.Start, text="a fox", num_chunks=1))
        assert api.get("/api/stories/main", headers={"authorization": f"Bearer {link}"}).status_code == 403
        assert api.get("/stories/main/live.mp4").headers["www-authenticate"].startswith("Basic")
        with api.stream("GET", "/stories/main/live.mp4", auth=("watch", link)) as answer:
            assert answer.status_code == 200
            parts = answer.iter_bytes()
            assert next(parts)[4:8] == b"ftyp"
            api.delete(f"/api/watch-links/{id}", headers={"cookie": cookie})
            assert len(list(parts)) < 1000, "it ended with its link"
        assert api.get("/stories/main/live.mp4", auth=("watch", link)).status_code == 401
        person.leave()


def test_the_live_film_goes_on_through_cuts_and_pauses_in_even_time(server: str, api: httpx.Client) -> None:
    person = Person(server, "live")
    person.applied(person.give(p.Start, text="a fox", num_chunks=20))
    data, start = b"", time.monotonic()
    with api.stream("GET", "/stories/live/live.mp4") as answer:
        assert answer.headers["content-type"] == "video/mp4"
        for part in answer.iter_bytes():
            data += part
            elapsed = time.monotonic() - start
            if elapsed > 2 and person is not None:
                person.applied(person.give(p.Cut, text="the city", num_chunks=1))
                person.leave()
                person = None
            if elapsed > 5:
                break
    with av.open(io.BytesIO(data), format="mp4") as container:
        frames = list(container.decode(video=0))
    times = [float(frame.time) for frame in frames]
    assert times == pytest.approx([index / 16 for index in range(len(times))])
    assert 4 < times[-1] < 5.5, "as many pictures as time went by, though the story held"
    codes = [read_barcode(frame.to_ndarray(format="rgb24")) for frame in frames]
    shown = [(code.shot, code.frame) for code in codes if code is not None]
    assert shown == sorted(shown), "nothing is shown twice but stills"
    assert shown[-1] == (1, 8), "it stands still at the last picture"
    _until(lambda: api.get("/api/stories/live").json()["viewers"] == 0)


def test_players_made_of_ffmpegs_libraries_open_the_live_film_by_its_address(server: str) -> None:
    """ffplay, mpv, and the Media Source of OBS, which gives such options."""
    person = Person(server, "obs")
    person.applied(person.give(p.Start, text="a fox", num_chunks=40))
    options = {"reconnect": "1", "reconnect_at_eof": "1", "seekable": "0"}
    begun, times = time.monotonic(), list[float]()
    with av.open(f"{server}/stories/obs/live.mp4", options=options, timeout=20) as container:
        assert (container.format.name, container.streams.video[0].codec_context.name) == (
            "mov,mp4,m4a,3gp,3g2,mj2",
            "h264",
        )
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            if len(times) == 40:
                break
    assert times == pytest.approx([index / 16 for index in range(40)])
    assert time.monotonic() - begun > 1.5, "in the time of the story, not ahead of it"
    person.give(p.Stop)
    person.leave()


def test_pictures_that_a_cut_made_void_are_left_out() -> None:
    encoder = ChunkEncoder(64, 32)
    chunk = [encoder.encode(np.full((12, 32, 64, 3), shade, np.uint8)) for shade in (50, 200)]
    first, ticks = samples(chunk[0])
    projector = Projector(encoder.slate)
    projector.push(p.MediaHeader(epoch=1, start=0, num_frames=12), chunk[0])
    while projector.next() != first[0]:
        pass
    projector.push(p.MediaHeader(epoch=2, start=4, num_frames=12), chunk[1])
    following = [projector.next() for _ in range(5)]
    assert following == [*first[1:4], *samples(chunk[1])[0][:2]]
    whole = encoder.init_segment + b"".join(one_picture(n, s, ticks) for n, s in enumerate(first))
    with av.open(io.BytesIO(whole)) as container:
        frames = [(frame.time, int(frame.to_ndarray(format="rgb24").mean())) for frame in container.decode(video=0)]
    assert [time for time, _ in frames] == [n / 16 for n in range(12)]
    assert all(abs(shade - 50) < 3 for _, shade in frames)


def test_the_routes_are_documented(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert {"get", "patch", "delete"} <= paths["/api/stories/{name}"].keys()
    assert "get" in paths["/stories/{name}/live.mp4"]
    body = paths["/api/stories/{name}/commands"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    commands = {one["properties"]["kind"]["const"]: one for one in body["oneOf"]}
    assert commands.keys() == {command.kind for command in get_args(p.Command)}
    assert commands["start"]["properties"].keys() == {"kind", "id", "text", "global_caption", "seed", "num_chunks"}
    assert commands["cut"]["properties"]["at"]["anyOf"][0]["properties"].keys() == {"shot", "chunk"}
    assert "#/$defs/" not in json.dumps(body)
    assert PRESET.name == api.get("/api/stories").json()[0]["preset"]


def test_no_request_about_a_story_ends_in_a_server_error(server: str) -> None:
    """What schemathesis sends about names that there are; `test_fuzz.py` has those that there are not."""
    schemathesis = pytest.importorskip(
        "schemathesis", reason="fuzzing needs schemathesis (pip install shotstream[dev])"
    )
    hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis (pip install shotstream[dev])")
    _film(server, "fuzzed", "a fox", "the city").leave()
    real = {"name": "fuzzed", "node": 1, "chunk": 0}
    quick = hypothesis.settings(
        max_examples=6,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def send(case: schemathesis.Case) -> None:
        case.path_parameters.update({key: value for key, value in real.items() if key in case.path_parameters})
        assert case.call().status_code < 500

    for result in schemathesis.openapi.from_url(f"{server}/openapi.json").get_all_operations():
        operation = result.ok()
        if "{name}" in operation.path and not operation.path.endswith("live.mp4") and operation.method != "delete":
            quick(hypothesis.given(case=operation.as_strategy())(send))()
