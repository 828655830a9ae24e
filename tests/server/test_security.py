"""Who is let in."""

from __future__ import annotations

import socket

import pytest
from starlette.websockets import WebSocketDisconnect
from tests.server.conftest import House  # type: ignore[import-not-found]

from shotstream.server.security import CONTENT_SECURITY_POLICY, Bucket, Security, SecurityConfig


def test_a_server_that_others_can_reach_must_have_a_token() -> None:
    with pytest.raises(ValueError, match="token"):
        SecurityConfig(host="0.0.0.0")
    assert not SecurityConfig().is_exposed
    assert SecurityConfig(host="192.168.1.4", token="x" * 16).is_exposed


@pytest.mark.parametrize(
    ("host", "local", "exposed"),
    [
        ("127.0.0.1:8000", True, True),
        ("localhost", True, True),
        ("[::1]:8000", True, True),
        ("192.168.1.4:8000", False, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("demo.example:443", True, True),
        ("", False, False),
        ("[", False, False),
    ],
)
def test_only_our_own_names_and_addresses_are_answered(host: str, local: bool, exposed: bool) -> None:
    at_home = Security(SecurityConfig(allowed_hosts=("demo.example",)))
    outside = Security(SecurityConfig(host="0.0.0.0", token="x" * 16, allowed_hosts=("demo.example",)))
    assert at_home.host_is_allowed(host) is local
    assert outside.host_is_allowed(host) is exposed


def test_only_our_own_page_and_allowed_ones_may_connect() -> None:
    security = Security(SecurityConfig(allowed_origins=("https://friend.example",)))
    assert security.origin_is_allowed(None, "localhost:8000")
    assert security.origin_is_allowed("http://localhost:8000", "localhost:8000")
    assert security.origin_is_allowed("https://friend.example", "localhost:8000")
    for origin in (
        "http://localhost:9000",
        "http://evil.example",
        "null",
        "file://",
        "http://localhost:8000.evil.example",
    ):
        assert not security.origin_is_allowed(origin, "localhost:8000")


def test_names_and_origins_are_the_same_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Studio-Mac")
    security = Security(SecurityConfig(host="Film.example", token="x" * 16, allowed_hosts=("Demo.example",)))
    assert all(security.host_is_allowed(host) for host in ("studio-mac:8000", "FILM.example", "demo.example"))
    friendly = Security(SecurityConfig(allowed_origins=("https://Friend.example/", "friend.example")))
    assert friendly.origin_is_allowed("https://friend.example", "localhost:8000")
    for origin in ("http://friend.example", "null", "http://[", "://"):
        assert not friendly.origin_is_allowed(origin, "localhost:8000"), origin


def test_tokens_open_what_they_should() -> None:
    security = Security(SecurityConfig(host="0.0.0.0", token="0123456789abcdef"))
    id, link = security.new_link()
    director, watcher = security.access(token="0123456789abcdef"), security.access(token=link)
    assert director is not None
    assert director.role == "director"
    assert watcher is not None
    assert (watcher.role, watcher.link) == ("watcher", id)
    assert security.access(cookie=security.cookie_value()) == director
    assert security.access() is None
    assert security.access(token="ä") is None
    assert security.revoke(id)
    assert security.access(token=link) is None
    assert not security.revoke(id)


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(rate=0.001, burst=3)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]


def test_requests_are_checked_and_answers_carry_the_headers(house: House) -> None:
    client = house.client
    answer = client.get("/healthz")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/api/logout", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/login", content=b"x" * 20_000).status_code == 413
    for length in ("0" * 12 + "20000", "1" + "0" * 12, "-1", "²", ""):
        assert client.post("/api/login", headers={"content-length": length.encode()}).status_code == 413, length
    assert client.post("/api/login", content=b"{").status_code == 422
    with pytest.raises(WebSocketDisconnect) as refused, house.enter(origin="http://evil.example"):
        pass
    assert refused.value.code == 1008
