"""From instructions to captions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shotstream.engine.direction import Scene
from shotstream.engine.writer import (
    Composer,
    NoticingWriter,
    OpenAIConfig,
    OpenAIWriter,
    PassthroughWriter,
    TemplateWriter,
)

LIMIT = 12


def check(caption: str) -> None:
    if len(caption.split()) > LIMIT:
        raise ValueError(f"{len(caption.split())} words, at most {LIMIT}")


COMPOSER = Composer(check=check)
DESCRIBING = Composer(check=check, style="reference")
FOX = Scene(caption="a fox walks along the beach")


def test_what_cannot_be_drawn_is_said_and_written_all_the_same() -> None:
    writer = NoticingWriter(TemplateWriter(COMPOSER), lambda caption: ["no dragon"] if "dragon" in caption else [])
    draft = writer.write(FOX, "please cut to a dragon", opens=True)
    assert "dragon" in draft.caption
    assert draft.notice == "no dragon"
    assert writer.write(FOX, "now he waves", opens=False).notice == ""
    assert writer.name == "template"
    assert writer.fit(FOX).caption == FOX.caption


def test_passthrough_changes_nothing_and_refuses_what_is_too_long() -> None:
    writer = PassthroughWriter(COMPOSER)
    assert writer.write(FOX, " now make him look surprised ", opens=False).caption == "now make him look surprised"
    with pytest.raises(ValueError, match="at most"):
        writer.write(FOX, "word " * 8, opens=False)
    with pytest.raises(ValueError, match="at most"):
        writer.write(FOX, "word " * 13, opens=True)


@pytest.mark.parametrize(
    ("text", "opens", "caption"),
    [
        ("Please make him look surprised.", False, "he looks surprised."),
        ("now make the fox look sad", False, "the fox looks sad"),
        ("make them wave", False, "they wave"),
        ("let her carry a lamp", False, "she carries a lamp"),
        ("make the little fox jump", False, "the little fox jumps"),
        ("make the old man sit down", False, "the old man sits down"),
        ("make the fox in the blue coat run", False, "the fox in the blue coat runs"),
        ("let the two foxes dance", False, "the two foxes dance"),
        ("make the fox and the bear look happy", False, "the fox and the bear look happy"),
        ("make the boss go home", False, "the boss goes home"),
        ("make him have a hat", False, "he has a hat"),
        ("make it rain", False, "it rains"),
        ("make it darker", False, "make it darker"),
        ("make it a rainy night", False, "make it a rainy night"),
        ("make her happy", False, "make her happy"),
        ("now it rains", False, "it rains"),
        ("transition to a wide shot of the city", True, "a wide shot of the city"),
        ("could you cut to the beach please", True, "the beach"),
    ],
)
def test_models_of_descriptions_get_descriptions(text: str, opens: bool, caption: str) -> None:
    assert TemplateWriter(DESCRIBING).write(FOX, text, opens=opens).caption == caption


def test_models_of_instructions_get_them_without_courtesies() -> None:
    writer = TemplateWriter(COMPOSER)
    assert writer.write(FOX, "please  now make him look sad", opens=False).caption == "now make him look sad"
    assert writer.write(FOX, "please", opens=False).caption == "please"


def test_what_does_not_fit_is_left_out_oldest_steers_first_and_reported() -> None:
    writer = TemplateWriter(COMPOSER)
    scene = Scene(caption=FOX.caption, steers=("he runs fast", "it rains a lot", "he looks sad"))
    fitted = writer.fit(scene)
    assert (fitted.caption, fitted.steers) == (FOX.caption, ("he looks sad",))
    assert fitted.left_out == ("he runs fast", "it rains a lot")
    long = writer.fit(Scene(caption="one two three four five six seven eight nine ten", steers=("he looks sad",)))
    assert long.steers == ("he looks sad",)
    assert long.caption == "one two three four five six seven eight nine"
    assert long.left_out == ("ten",)
    with pytest.raises(ValueError, match="global caption"):
        writer.fit(Scene(global_caption="word " * 12, caption="a fox"))


class _Endpoint(BaseHTTPRequestHandler):
    answer: str = json.dumps({"choices": [{"message": {"content": '"A surprised fox on the beach."'}}]})
    delay_s = 0.0
    asked: str = ""

    def do_POST(self) -> None:
        type(self).asked = self.rfile.read(int(self.headers["content-length"])).decode()
        time.sleep(self.delay_s)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[type[_Endpoint]]:
    handler = type("Endpoint", (_Endpoint,), {})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


def _writer(endpoint: type[_Endpoint], timeout_s: float = 5.0) -> OpenAIWriter:
    config = OpenAIConfig(base_url=endpoint.url, model="m", timeout_s=timeout_s)  # type: ignore[attr-defined]
    return OpenAIWriter(COMPOSER, config)


def test_a_language_model_writes_the_whole_caption(endpoint: type[_Endpoint]) -> None:
    draft = _writer(endpoint).write(FOX, "make him look surprised", opens=False)
    assert draft.caption == "A surprised fox on the beach."
    assert draft.replaces
    assert not draft.notice
    assert FOX.caption in endpoint.asked


@pytest.mark.parametrize("answer", ["", "[]", '{"choices": []}', '{"choices":[{"message":{"content":" "}}]}'])
def test_where_the_answer_is_of_no_use_the_template_writes_with_a_notice(
    endpoint: type[_Endpoint], answer: str
) -> None:
    endpoint.answer = answer
    draft = _writer(endpoint).write(FOX, "please make him look sad", opens=False)
    assert draft.caption == "make him look sad"
    assert not draft.replaces
    assert draft.notice


def test_an_endpoint_that_has_no_address_is_refused_at_once_or_the_template_writes() -> None:
    for url in ("ftp://127.0.0.1", "http://", "http://localhost:80a/v1", "http://[/v1"):
        with pytest.raises(ValueError, match="one like http"):
            OpenAIConfig(base_url=url, model="m")
    writer = OpenAIWriter(COMPOSER, OpenAIConfig(base_url="http://999.0.0.1/v1", model="m", timeout_s=5.0))
    assert "InvalidURL" in writer.write(FOX, "make him look sad", opens=False).notice


def test_where_the_answer_takes_too_long_the_template_writes_in_time(endpoint: type[_Endpoint]) -> None:
    endpoint.delay_s = 2.0
    writer = _writer(endpoint, timeout_s=0.3)
    writer.write(FOX, "warm", opens=False)  # imports the client
    start = time.monotonic()
    draft = writer.write(FOX, "make him look sad", opens=False)
    assert time.monotonic() - start < 1.0
    assert draft.caption == "make him look sad"
    assert draft.notice
