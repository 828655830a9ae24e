"""Nonsense from the network: the same process answers afterwards, never with 500, and who watches does not notice.

Short here; FUZZ=long runs for minutes and allows a bystander no stall that could be seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import time
import types
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from benchmarks.live_browser import Server, serve

from shotstream.server import protocol as p

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis (pip install shotstream[dev])")
schemathesis = pytest.importorskip("schemathesis", reason="fuzzing needs schemathesis (pip install shotstream[dev])")
sync_client = pytest.importorskip("websockets.sync.client", reason="fuzzing needs websockets")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402

LONG = os.environ.get("FUZZ") == "long"
STALL_S = 0.125 if LONG else 1.0
"""The longest pause that a bystander may see; a busy machine makes some of its own."""
FPS = 16
COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": not LONG,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
SOCKET_SETTINGS = settings(max_examples=300 if LONG else 30, stateful_step_count=60 if LONG else 30, **COMMON)
REST_SETTINGS = settings(max_examples=300 if LONG else 8, **COMMON)
STORIES = ("one", "two", "th-r_ee")

_ids = itertools.count()


# ---------------------------------------------------------------------------------------------------------------------
# The server, and somebody who just watches


class Bystander(threading.Thread):
    """Directs a story of its own and notes when its chunks come."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.arrivals: list[tuple[float, p.MediaHeader]] = []
        self.leaves = threading.Event()
        self.problem = ""

    def run(self) -> None:
        try:
            with sync_client.connect(self.url, max_size=None, compression=None, close_timeout=1) as socket:
                socket.send(p.to_json(p.Join(story="bystander")))
                socket.send(p.to_json(p.Start(id="bystander", text="a fox walks along the beach", num_chunks=1000)))
                while not self.leaves.is_set():
                    self.take(socket, socket.recv(timeout=20))
        except (OSError, TimeoutError, ConnectionClosed) as error:
            self.problem = f"{type(error).__name__}: {error}"

    def take(self, socket: Any, message: str | bytes) -> None:
        if isinstance(message, str):
            return
        header, _ = p.unpack_media(message)
        if not header.flags & (p.MediaFlag.INIT | p.MediaFlag.SLATE):
            self.arrivals.append((time.monotonic(), header))
            socket.send(p.to_json(p.Ack(sequence=header.sequence)))

    def longest_stall(self) -> float:
        """Seconds without a picture, for a player without any store of its own."""
        end, longest = self.arrivals[0][0], 0.0
        for arrival, header in list(self.arrivals):
            longest = max(longest, arrival - end)
            end = max(end, arrival) + header.num_frames / FPS
        return longest

    def check(self) -> None:
        """Raises AssertionError where something was missing, or came late."""
        assert not self.problem, self.problem
        sequences = [header.sequence for _, header in self.arrivals]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences))), "every chunk, in order"
        assert self.longest_stall() < STALL_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("fuzz") / "server.log"
    with serve(command=[str(Path(__file__).with_name("fuzz_server.py"))], log=log) as running:
        yield running
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


@pytest.fixture
def bystander(server: Server) -> Iterator[Bystander]:
    """Watches while a test runs, and is asked afterwards."""
    watcher = Bystander(server.socket_url)
    watcher.start()
    deadline = time.monotonic() + 20
    while not watcher.arrivals:
        assert time.monotonic() < deadline, watcher.problem or "the bystander's story does not begin"
        time.sleep(0.02)
    began = start_time(server)
    yield watcher
    time.sleep(1.0)
    watcher.leaves.set()
    assert server.process.poll() is None
    assert start_time(server) == began, "the same process"
    watcher.check()


def metrics(server: Server) -> list[str]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        lines: list[str] = answer.read().decode().splitlines()
    return lines


def start_time(server: Server) -> str:
    return next(line for line in metrics(server) if line.startswith("shotstream_start_time_seconds"))


# ---------------------------------------------------------------------------------------------------------------------
# The socket

words = st.text(max_size=60)
captions = st.one_of(words, st.sampled_from(["a fox", "now he jumps", "x" * 2000, "y" * 2001, "wort " * 300]))
numbers = st.one_of(st.integers(0, 5), st.integers(0, 5), st.integers(-2, 2**31))
small = st.integers(0, 5)
ids = st.builds(lambda n: f"id{n}" if n < 2 else f"new{next(_ids)}", st.integers(0, 9))


def fields_of(cls: type[Any], *, valid: bool = False) -> st.SearchStrategy[Any]:
    """Objects with fields of the right kind: as they may be, or many of them beyond what is allowed."""
    hints = get_type_hints(cls)
    return st.builds(cls, **{f.name: field_of(f, hints[f.name], valid) for f in dataclasses.fields(cls)})


def field_of(spec: dataclasses.Field[Any], hint: Any, valid: bool) -> st.SearchStrategy[Any]:
    if spec.name in ("id", "target"):
        return ids
    if valid and spec.name == "at":
        return st.none()  # at once: what is named by its place is mostly over or far away
    if not valid:
        return captions if spec.name == "text" else values_of(hint, valid)
    if "min" in spec.metadata:
        return st.integers(spec.metadata["min"], min(spec.metadata["max"], spec.metadata["min"] + 5))
    return st.sampled_from(["a fox", "now he jumps"]) if hint is str else values_of(hint, valid)


def values_of(hint: Any, valid: bool) -> st.SearchStrategy[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*(values_of(option, valid) for option in get_args(hint)))
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if dataclasses.is_dataclass(hint):
        return fields_of(hint, valid=valid)  # type: ignore[arg-type]
    plain = {type(None): st.none(), str: words, int: numbers, float: st.floats(), bool: st.booleans()}
    return plain[hint]


valid_commands = st.one_of(*(fields_of(cls, valid=True) for cls in get_args(p.Command)))
wild_commands = st.one_of(*(fields_of(cls) for cls in get_args(p.Command)))
kinds = st.one_of(
    st.sampled_from(["join", "ack", "start", "cut", "steer", "memory", "cancel", "hello", "status"]), words
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
values = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4))
)
objects = st.builds(
    lambda kind, rest: {**rest, "kind": kind},
    kinds,
    st.dictionaries(st.one_of(st.sampled_from(["id", "text", "at", "frame", "sequence"]), words), values, max_size=5),
)
nonsense = st.one_of(
    words, st.binary(max_size=200), objects.map(json.dumps), st.just("[" * 5000), st.just('"' + "x" * 70_000 + '"')
)
joins = st.builds(
    p.Join,
    protocol=st.sampled_from([1, 1, 1, 1, 2, 0]),
    story=st.one_of(st.sampled_from(STORIES), st.sampled_from(STORIES), words),
    token=words,
    resume_from=st.one_of(st.none(), st.integers(-1, 50), numbers),
)


class Socket(RuleBasedStateMachine):
    """People, and things that are none, at the socket of one server."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[Any] = []

    @initialize()
    def a_story_begins(self) -> None:
        self.enter(STORIES[0])
        self.begin(0)

    def has_socket(self) -> bool:
        return bool(self.sockets)

    def pick(self, which: int) -> Any:
        return self.sockets[which % len(self.sockets)]

    def send(self, which: int, message: str | bytes) -> None:
        with suppress(ConnectionClosed):  # the server may have had enough; what is done next must not depend on it
            self.pick(which).send(message)

    @rule(story=st.sampled_from(STORIES))
    def enter(self, story: str) -> None:
        self.enter_oddly(p.to_json(p.Join(story=story)))

    @rule(first=st.one_of(joins.map(p.to_json), nonsense))
    def enter_oddly(self, first: str | bytes) -> None:
        if len(self.sockets) < 6:
            self.sockets.append(sync_client.connect(self.url, max_size=None, compression=None, close_timeout=1))
            self.send(-1, first)

    @precondition(has_socket)
    @rule(which=small, story=st.sampled_from(STORIES))
    def come_again(self, which: int, story: str) -> None:
        self.send(which, p.to_json(p.Join(story=story)))

    @precondition(has_socket)
    @rule(which=small)
    def begin(self, which: int) -> None:
        self.send(which, p.to_json(p.Start(id=f"new{next(_ids)}", text="a fox", num_chunks=1000)))

    @precondition(has_socket)
    @rule(which=small, commands=st.lists(valid_commands, min_size=1, max_size=4))
    def direct(self, which: int, commands: list[p.Command]) -> None:
        for command in commands:
            self.send(which, p.to_json(command))

    @precondition(has_socket)
    @rule(which=small, command=wild_commands)
    def demand(self, which: int, command: p.Command) -> None:
        self.send(which, p.to_json(command))

    @precondition(has_socket)
    @rule(which=small, sequence=st.one_of(small, numbers))
    def acknowledge(self, which: int, sequence: int) -> None:
        self.send(which, p.to_json(p.Ack(sequence=sequence)))

    @precondition(has_socket)
    @rule(which=small, message=nonsense)
    def talk_nonsense(self, which: int, message: str | bytes) -> None:
        self.send(which, message)

    @precondition(has_socket)
    @rule(which=small)
    def listen(self, which: int) -> None:
        with suppress(TimeoutError, ConnectionClosed):
            for _ in range(20):
                message = self.pick(which).recv(timeout=0.005)
                if isinstance(message, str):
                    p.parse_event(message)

    @precondition(has_socket)
    @rule(which=small, politely=st.booleans())
    def leave(self, which: int, politely: bool) -> None:
        socket = self.pick(which)
        self.sockets.remove(socket)
        if politely:
            socket.close()
        else:
            socket.socket.close()

    def teardown(self) -> None:
        """Somebody new is served as if nothing had happened."""
        for socket in self.sockets:
            socket.socket.close()
        with sync_client.connect(self.url, max_size=None, compression=None, close_timeout=1) as socket:
            socket.send(p.to_json(p.Join(story=STORIES[0])))
            hello, _ = p.parse_event(socket.recv(timeout=10))
            assert isinstance(hello, p.Hello), hello
            asked = p.Cancel(id=f"last{next(_ids)}", target="nothing")
            socket.send(p.to_json(asked))
            assert ended(socket, asked.id).outcome == "failed"


def ended(socket: Any, id: str) -> p.Ended:
    """What became of a command. Raises TimeoutError if nothing is said about it."""
    while True:
        message = socket.recv(timeout=10)
        event = p.parse_event(message)[0] if isinstance(message, str) else None
        if isinstance(event, p.Ended) and event.id == id:
            return event


def test_the_socket_takes_everything_that_people_and_machines_send(server: Server, bystander: Bystander) -> None:
    Socket.url = server.socket_url
    run_state_machine_as_test(Socket, settings=SOCKET_SETTINGS)
    reached = {line.split('"')[1] for line in metrics(server) if line.startswith("shotstream_commands_total{")}
    assert len(reached) >= 6, f"too little nonsense comes as far as a story: {reached}"


# ---------------------------------------------------------------------------------------------------------------------
# REST


def test_no_request_ends_in_a_server_error(server: Server, bystander: Bystander) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [operation.ok() for operation in api.get_all_operations()]
    assert len(operations) >= 8

    for operation in operations:

        @given(case=operation.as_strategy())
        @REST_SETTINGS
        def ask(case: Any) -> None:
            if case.operation.path.endswith("live.mp4"):  # of a story that there is it never ends
                case.path_parameters["name"] = f"{case.path_parameters['name']}-without-end"[-64:]
            answer = case.call()
            assert answer.status_code < 500, f"{answer.request.method} {answer.request.url}: {answer.text[:300]}"

        ask()
