"""Who may connect, from where, and how often.

A server on this machine alone needs no token. One that others can reach always has one: it is given in the first
message of the socket, or exchanged for an HttpOnly cookie, and is never part of a URL that is sent. Watch links carry a
token of their own behind the `#`, which browsers keep to themselves; they can watch and can be revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "shotstream"
MAX_BODY = 16 * 1024
MAX_UPLOAD = 2 * 1024 * 1024
UPLOAD_PATH = "/v1/videos"
"""Takes a picture along."""
MAX_STORY = 8 * 1024 * 1024
"""Of a story file, which may hold pictures."""
_STORY_PATH = re.compile(r"/api/stories/[^/]+/play")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """What a server lets in."""

    host: str = "127.0.0.1"
    """Where it listens."""
    token: str = field(default="", repr=False)
    """Of the directors. A server that others can reach must have one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names it may be called by, besides addresses and this machine's own name."""
    allowed_origins: tuple[str, ...] = ()
    """Pages from elsewhere that may connect, for example https://example.org"""
    tls: bool = False
    max_viewers: int = 64
    commands_per_s: float = 10.0
    messages_per_s: float = 60.0
    requests_per_s: float = 30.0

    def __post_init__(self) -> None:
        if self.is_exposed and len(self.token) < 16:
            raise ValueError(f"a server on {self.host} can be reached by others: it needs a token of 16 characters")

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach it."""
        return not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is for this machine alone."""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Bucket:
    """A rate limit: `rate` per second, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._time = burst, time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._time) * self._rate)
        self._time = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Buckets:
    """A bucket per client, for the newest clients."""

    def __init__(self, rate: float, burst: float, *, capacity: int = 1024) -> None:
        self._rate, self._burst, self._capacity = rate, burst, capacity
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, client: str) -> bool:
        bucket = self._buckets.setdefault(client, Bucket(self._rate, self._burst))
        self._buckets.move_to_end(client)
        while len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return bucket.take()


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection may do."""

    role: Literal["director", "watcher"]
    link: str = ""
    """Id of the watch link it came by."""


class Security:
    """The server's doorkeeper. Holds the watch links; tokens are kept as hashes."""

    def __init__(self, config: SecurityConfig) -> None:
        self.config = config
        self._links: dict[str, str] = {}
        names = (config.host, *config.allowed_hosts, socket.gethostname(), *_LOOPBACK_NAMES)
        self._names = {name.lower() for name in names}
        self._origins = {_normalised(origin) for origin in config.allowed_origins}
        self.logins = Buckets(rate=0.2, burst=10)
        self.requests = Buckets(rate=config.requests_per_s, burst=8 * config.requests_per_s)

    def access(self, *, token: str = "", cookie: str = "") -> Access | None:
        """What a token or a cookie opens; None: nothing."""
        link = next((id for id, digest in self._links.items() if _same(digest, _digest(token))), "") if token else ""
        if link:
            return Access("watcher", link)
        expected = self.config.token
        if not expected or (token and _same(token, expected)) or (cookie and _same(cookie, self.cookie_value())):
            return Access("director")
        return None

    def cookie_value(self) -> str:
        """What the cookie of a director holds: not the token itself."""
        return hmac.new(self.config.token.encode(), b"shotstream director", hashlib.sha256).hexdigest()

    def new_link(self) -> tuple[str, str]:
        """A new watch link: its id and its token, which is not kept. Raises ValueError if there are too many."""
        if len(self._links) >= 256:
            raise ValueError("there are 256 watch links already: revoke some")
        id, token = secrets.token_hex(4), secrets.token_urlsafe(24)
        self._links[id] = _digest(token)
        return id, token

    def links(self) -> list[str]:
        return list(self._links)

    def revoke(self, id: str) -> bool:
        """Whether there was such a link."""
        return self._links.pop(id, None) is not None

    def host_is_allowed(self, host: str) -> bool:
        """A name of ours or an address: no stranger's name that was made to point here (DNS rebinding)."""
        name = _hostname(host)
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.config.is_exposed

    def origin_is_allowed(self, origin: str | None, host: str) -> bool:
        """Our own page, one that was allowed, or no page at all."""
        ours = {f"http://{host.lower()}", f"https://{host.lower()}"}
        return origin is None or _normalised(origin) in ours | self._origins


def _normalised(origin: str) -> str:
    """As browsers write it: in lower case, with nothing behind the host. What is no origin stays as it is."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return origin
    return f"{parts.scheme}://{parts.netloc.lower()}" if parts.scheme and parts.netloc else origin


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


class Guard:
    """ASGI middleware: checks host, origin, rate and size of every request, and adds the security headers."""

    def __init__(self, app: ASGIApp, security: Security) -> None:
        self.app, self.security = app, security

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self.security.host_is_allowed(host):
            return 400, "this server does not go by that name: start it with --allow-host"
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and not self.security.origin_is_allowed(headers.get("origin"), host):
            return 403, "this page may not connect: start the server with --allow-origin"
        if not self.security.requests.take(_client(scope)):
            return 429, "too many requests: wait a little"
        return _too_large(scope, headers)


def _too_large(scope: Scope, headers: Headers) -> tuple[int, str] | None:
    if scope["type"] != "http":
        return None
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers:
        return 411, "give the length of the body"
    limit = _limit(scope["path"])
    digits = length.lstrip("0")
    if not (length.isascii() and length.isdecimal()) or len(digits) > 12 or int(digits or 0) > limit:
        return 413, f"a body has at most {limit} bytes"
    return None


def _limit(path: str) -> int:
    if _STORY_PATH.fullmatch(path):
        return MAX_STORY
    return MAX_UPLOAD if path == UPLOAD_PATH else MAX_BODY


def _client(scope: Scope) -> str:
    client: Iterable[Any] | None = scope.get("client")
    return str(next(iter(client))) if client else ""


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-cache")
        await send(message)

    return wrapped
