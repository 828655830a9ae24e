"""Films are ordered with OpenAI's own client, and never make a live story late."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from tests.server.running import Person, running  # type: ignore[import-not-found]

from shotstream.engine.stream import Engine
from shotstream.engine.turns import Turn
from shotstream.presets import Preset
from shotstream.server import protocol as p
from shotstream.server.store import StoreConfig

openai = pytest.importorskip("openai", reason="ordering films as others do needs openai (pip install shotstream[dev])")

TOKEN = "a-token-of-twenty-ch"


@pytest.fixture(autouse=True)
def _not_ours() -> Iterator[None]:
    """The client says that OpenAI's own server ends soon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none is needed here", max_retries=0)


def _num_frames(film: bytes) -> int:
    with av.open(io.BytesIO(film)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_official_client_orders_polls_downloads_and_deletes(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt="a fox in the snow", seconds="2", size="160x96", model="fake")
    assert (video.status, video.object, video.seconds) == ("queued", "video", "2")
    done = client.videos.poll(video.id, poll_interval_ms=50)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.completed_at >= done.created_at
    assert _num_frames(client.videos.download_content(video.id).read()) == 32
    picture = client.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(picture)).size == (160, 96)
    assert Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").read())).width > 500
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="no video"):
        client.videos.retrieve(video.id)


def test_jobs_are_listed_page_by_page_newest_first(client: openai.OpenAI) -> None:
    for video in client.videos.list():
        client.videos.delete(video.id)
    ids = [client.videos.create(prompt=f"fox {n}", seconds="1").id for n in range(3)]
    page = client.videos.list(limit=2)
    assert ([video.id for video in page.data], page.has_more) == ([ids[2], ids[1]], True)
    assert [video.id for video in client.videos.list(limit=1)] == ids[::-1]
    assert [video.id for video in client.videos.list(order="asc")] == ids
    for id in ids:
        client.videos.delete(id)


def test_what_cannot_be_made_is_refused_in_words(client: openai.OpenAI, server: str) -> None:
    for wrong, match in (
        ({"prompt": "x", "size": "1280x720"}, "160x96"),
        ({"prompt": "x", "model": "sora-2"}, "fake"),
        ({"prompt": "x", "seconds": "900"}, "from 1 to 60"),
        ({"prompt": " "}, "say what"),
        ({"prompt": "x", "input_reference": b"no picture"}, "PNG"),
    ):
        with pytest.raises(openai.BadRequestError, match=match):
            client.videos.create(**wrong)
    for body in (b"{", b"\xff", b"[" * 10_000, b'{"prompt": "\\ud800"}', b"[]"):
        answer = httpx.post(f"{server}/v1/videos", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_film_remembers_a_picture_that_came_along(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(file, "PNG")
    video = client.videos.create_and_poll(
        prompt="a fox", seconds="1", input_reference=("fox.png", file.getvalue(), "image/png"), poll_interval_ms=50
    )
    assert video.status == "completed"


def test_only_who_has_the_token_orders_films() -> None:
    with running(token=TOKEN) as url:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).videos.create(prompt="a fox")
        good = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)
        assert good.videos.create(prompt="a fox", seconds="1").status == "queued"


def test_a_live_story_stays_in_time_while_films_are_made(client: openai.OpenAI, server: str) -> None:
    person = Person(server, "live")
    person.applied(person.give(p.Start, text="a fox", num_chunks=40))
    before = _metric(server, "late_chunks_total")
    videos = [client.videos.create(prompt="a bear", seconds="3").id for _ in range(2)]
    end = time.monotonic() + 30
    while any(client.videos.retrieve(id).status != "completed" for id in videos):
        assert time.monotonic() < end, [client.videos.retrieve(id) for id in videos]
        person.wait(lambda event: isinstance(event, p.ChunkReady))
    assert _metric(server, "late_chunks_total") <= before + 1, "a busy machine may make one late by itself"
    person.applied(person.give(p.Stop))
    person.leave()


def _metric(server: str, name: str) -> float:
    lines = httpx.get(f"{server}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"shotstream_{name} ")))


def test_the_same_seed_gives_the_same_film(tiny_preset: Preset, tiny_engine: Engine) -> None:
    with running(preset=tiny_preset, engine=lambda: tiny_engine) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        films = []
        for seed in (3, 3, 4):
            video = client.videos.create(prompt="a fox", seconds="1", extra_body={"seed": seed})
            assert client.videos.poll(video.id, poll_interval_ms=50).status == "completed"
            films.append(client.videos.download_content(video.id).read())
    assert films[0] == films[1]
    assert films[0] != films[2]


def test_work_that_can_wait_never_gets_the_engine_before_a_live_story() -> None:
    turn = Turn()
    with turn.spare() as first, turn.spare() as second:
        assert (first, second, turn.wanted) == (True, False, False)
    with turn:
        assert turn.wanted
        with turn.spare() as is_free:
            assert not is_free
    with turn.spare() as is_free:
        assert is_free


def test_films_are_kept_and_unfinished_ones_are_begun_again(tmp_path: Path) -> None:
    config = StoreConfig(folder=tmp_path / "data")
    with running(data=config) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        done = client.videos.create_and_poll(prompt="a fox", seconds="1", poll_interval_ms=50)
        left = client.videos.create(prompt="a bear", seconds="60")
    with running(data=config) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        assert _num_frames(client.videos.download_content(done.id).read()) == 16
        assert client.videos.retrieve(left.id).status in ("queued", "in_progress")
        assert client.videos.delete(left.id).deleted
    names = sorted(file.name for file in (tmp_path / "data" / "videos").iterdir())
    assert names == [f"{done.id}.json", f"{done.id}.mp4"]
