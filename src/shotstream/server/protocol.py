"""The wire: JSON text messages both ways, binary media messages to the viewer.

Commands and story events are the dataclasses of `engine/messages.py`; what only concerns a connection (`join`, `ack`,
`hello`, `gap`, `metrics`, `error`) is added here. Reading is strict: an unknown kind or field, a wrong type or a text
that is too long raises `ProtocolError` with a sentence for people. The JSON schema and `docs/protocol.md` are generated
from these classes by `server/schema.py`.
"""

from __future__ import annotations

import json
import math
import struct
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from shotstream.engine import messages
from shotstream.engine.messages import (
    MAX_COUNT,
    MAX_ID,
    MAX_PICTURE,
    Accepted,
    At,
    Branch,
    Cancel,
    ChunkReady,
    Command,
    Cut,
    Ended,
    Event,
    Extend,
    FrameRef,
    Hide,
    Memory,
    MemoryChanged,
    Pause,
    Pending,
    Performance,
    PerformanceChanged,
    RememberedFrame,
    Resume,
    Retake,
    ShotCard,
    ShotOpened,
    Start,
    State,
    Status,
    Steer,
    SteerMark,
    Stop,
    StorySnapshot,
    Take,
    TreeChanged,
    Undo,
    number_field,
    text_field,
)

PROTOCOL_VERSION = 1
MAX_MESSAGE = 64 * 1024
"""Characters of one JSON message; `memory` with a picture may have MAX_PICTURE more."""
MAX_SOCKET_BYTES = 4 * MAX_MESSAGE + MAX_PICTURE
"""Of one message to the server; a character of text has up to four, a picture in base64 one."""
SOCKET_PATH = "/ws"

__all__ = [
    "MAX_MESSAGE",
    "MAX_SOCKET_BYTES",
    "PROTOCOL_VERSION",
    "SOCKET_PATH",
    "Accepted",
    "Ack",
    "At",
    "Branch",
    "Cancel",
    "ChunkReady",
    "ClientMessage",
    "Command",
    "Cut",
    "Ended",
    "Error",
    "Event",
    "Extend",
    "FrameRef",
    "Gap",
    "Hello",
    "Hide",
    "Join",
    "MediaFlag",
    "MediaHeader",
    "Memory",
    "MemoryChanged",
    "Metrics",
    "Pause",
    "Pending",
    "Performance",
    "PerformanceChanged",
    "PresetInfo",
    "ProtocolError",
    "RememberedFrame",
    "Resume",
    "Retake",
    "ServerMessage",
    "ShotCard",
    "ShotOpened",
    "Start",
    "State",
    "Status",
    "Steer",
    "SteerMark",
    "Stop",
    "StorySnapshot",
    "Take",
    "TreeChanged",
    "Undo",
    "pack_media",
    "parse",
    "parse_event",
    "to_json",
    "unpack_media",
]


class ProtocolError(ValueError):
    """A message that cannot be understood, in words for the person who sent it."""

    def __init__(self, message: str, *, id: str = "") -> None:
        super().__init__(message)
        self.id = id
        """Id of the command, where it could be read."""


# ---------------------------------------------------------------------------------------------------------------------
# Messages of a connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """Always the first message. `hello` answers, then the init segment and a slate chunk as media."""

    kind: ClassVar[str] = "join"
    protocol: int = number_field(1, 1000, PROTOCOL_VERSION)
    story: str = text_field(MAX_ID, "main")
    """Which story to watch or direct: letters, digits, - and _."""
    token: str = text_field(256, "")
    """The server's token, or a watch token; not needed where a cookie brings it or the server is local."""
    resume_from: int | None = number_field(0, MAX_COUNT, optional=True)
    """Sequence number of the last event seen: every later one is sent again, once, after `hello`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """The media message with this sequence number, and all before it, arrived. Never answered."""

    kind: ClassVar[str] = "ack"
    sequence: int = number_field(0, MAX_COUNT)


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetInfo:
    """What is being streamed."""

    name: str
    width: int
    height: int
    fps: int
    mime: str
    """For MediaSource.isTypeSupported and addSourceBuffer."""
    first_chunk_frames: int
    chunk_frames: int
    chunks_per_shot: int
    memory_frames: int
    suggestions: tuple[str, ...] = ()
    """Prompts that suit the preset, first shots first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """Answers `join`: everything needed to draw the page. Story events after it have sequence numbers above `seq`."""

    kind: ClassVar[str] = "hello"
    protocol: int
    viewer: str
    story: str
    role: Literal["director", "watcher"]
    """A watcher's commands are refused, apart from `ack`."""
    seq: int
    """The snapshot holds all events up to this one."""
    replayed: int = 0
    """How many missed events follow, for `resume_from`; they are already part of the snapshot."""
    preset: PresetInfo
    writer: str
    """Who turns instructions into captions: passthrough, template or openai."""
    snapshot: StorySnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Chunks were left out for this viewer, whose acknowledgements are missing. Only media is ever left out."""

    kind: ClassVar[str] = "gap"
    first_sequence: int
    last_sequence: int
    num_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Every two seconds from a story's start to its end, also while it is paused, holds, or waits to be resumed."""

    kind: ClassVar[str] = "metrics"
    frames_per_second: float
    """What the engine could make, from the median chunk."""
    chunk_ms_p50: float
    chunk_ms_p95: float
    encode_ms_p50: float
    late_chunks: int
    """Since the server opened the story."""
    viewers: int
    instruction_ms: float | None = None
    """From acceptance until the first chunk that shows it was ready, newest instruction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Error:
    """A message could not be used. The connection stays open unless `fatal`."""

    kind: ClassVar[str] = "error"
    code: Literal["bad_message", "unauthorized", "read_only", "rate_limited", "too_large", "duplicate", "unavailable"]
    message: str
    """For people; show it as text."""
    id: str = ""
    """Of the command, where it could be read."""
    fatal: bool = False


ClientMessage = Join | Ack | Command
ServerMessage = Event | Hello | Gap | Metrics | Error

_CLIENT: dict[str, type[Any]] = {c.kind: c for c in get_args(ClientMessage)}
_SERVER: dict[str, type[Any]] = {c.kind: c for c in get_args(ServerMessage)}


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def to_json(message: ClientMessage | ServerMessage, *, seq: int | None = None) -> str:
    """One line of JSON. Story events carry `seq`; what concerns one viewer alone does not."""
    body = {"kind": message.kind, **({} if seq is None else {"seq": seq}), **asdict(message)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def parse(data: str) -> ClientMessage:
    """Read a client's message. Raises ProtocolError for anything that is not exactly one of them."""
    if len(data) > MAX_MESSAGE + MAX_PICTURE:
        raise ProtocolError(f"the message has {len(data)} characters, at most {MAX_MESSAGE + MAX_PICTURE} are read")
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the message is not JSON") from error
    if not isinstance(body, dict):
        raise ProtocolError(f"a message is a JSON object, got {_name(body)}")
    id = body.get("id")
    try:
        message = _read_client(body)
    except ProtocolError as error:
        raise ProtocolError(str(error), id=id if isinstance(id, str) and len(id) <= MAX_ID else "") from error
    if len(data) > MAX_MESSAGE and not isinstance(message, Memory):
        raise ProtocolError(f"the message has {len(data)} characters, at most {MAX_MESSAGE} are read")
    return message


def parse_event(data: str) -> tuple[ServerMessage, int | None]:
    """Read a server's message: what a client in Python needs. Returns it and its sequence number, if it has one."""
    body = json.loads(data)
    kind = body.pop("kind")
    seq = None if kind == Hello.kind else body.pop("seq", None)
    message: ServerMessage = _read(_SERVER[kind], body, kind)
    return message, seq


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _read_client(body: dict[str, Any]) -> ClientMessage:
    rest = dict(body)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in _CLIENT:
        raise ProtocolError(f"unknown kind {_quote(kind)}: one of {', '.join(_CLIENT)}")
    message: ClientMessage = _read(_CLIENT[kind], rest, kind)
    if isinstance(message, Memory):
        _check_memory(message)
    return message


def _check_memory(command: Memory) -> None:
    if command.action == "add" and (not command.picture or not command.caption.strip()):
        raise ProtocolError("memory: to add a picture, give `picture` and `caption`")
    if command.action != "add" and (command.frame is None or command.picture):
        raise ProtocolError(f"memory: to {command.action} a frame, give `frame` and no `picture`")


def _read(cls: type[Any], body: Mapping[str, Any], path: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(body) - set(known)):
        raise ProtocolError(f"{path}: unknown field {_quote(unknown[0])}: the fields are {', '.join(known)}")
    hints = _hints(cls)
    values = {}
    for name, spec in known.items():
        if name in body:
            values[name] = _value(hints[name], body[name], spec.metadata, f"{path}.{name}")
        elif spec.default is MISSING:
            raise ProtocolError(f"{path}: field {name!r} is missing")
    return cls(**values)


def _value(hint: Any, value: Any, limits: Mapping[str, Any], path: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise ProtocolError(f"{path} must be one of {', '.join(get_args(hint))}, got {_quote(value)}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{path} must be a list, got {_name(value)}")
        return tuple(_value(get_args(hint)[0], item, {}, f"{path}[{i}]") for i, item in enumerate(value))
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ProtocolError(f"{path} must be an object, got {_name(value)}")
        return _read(hint, value, path)  # type: ignore[arg-type]
    return _plain(hint, value, limits, path)


def _plain(hint: Any, value: Any, limits: Mapping[str, Any], path: str) -> Any:
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not hint:
        raise ProtocolError(f"{path} must be {_NAMES[hint]}, got {_name(value)}")
    if hint is str:
        _check_text(value, limits, path)
    low, high = limits.get("min"), limits.get("max")
    if hint is int and low is not None and not low <= value <= high:
        raise ProtocolError(f"{path} must be from {low} to {high}, got {value if abs(value) < 10**12 else 'far more'}")
    return value


def _check_text(value: str, limits: Mapping[str, Any], path: str) -> None:
    if len(value) > limits.get("max", MAX_MESSAGE):
        raise ProtocolError(f"{path} has {len(value)} characters, at most {limits['max']} are allowed")
    if not limits.get("blank", True) and not value.strip():
        raise ProtocolError(f"{path} is empty")
    if any((ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise ProtocolError(f"{path} holds characters that are not text")


_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _name(value: Any) -> str:
    if value is None:
        return "nothing"
    return _NAMES.get(type(value), "something else")


def _quote(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else _name(value)


def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls, vars(messages) | globals())


# ---------------------------------------------------------------------------------------------------------------------
# Media

MEDIA_VERSION = 1
_MEDIA = struct.Struct("<BBHIIIIII")


class MediaFlag:
    """Bits of a media message's flags."""

    INIT = 1
    """The payload is the init segment: once per connection, before any chunk."""
    SLATE = 2
    """A plain picture that warms the decoder up; not part of the story."""
    NEW_EPOCH = 4
    """The clock broke here: jump to this chunk as soon as it can be shown; whatever was sent before is void."""
    LIVE_EDGE = 8
    """The first chunk after joining: it is on air already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaHeader:
    """The 28 bytes, little endian, in front of each fMP4 segment of a binary message."""

    version: int = MEDIA_VERSION
    """u8"""
    flags: int = 0
    """u8, bits: 1 init segment, 2 slate, 4 new epoch, 8 live edge"""
    num_frames: int = 0
    """u16"""
    shot: int = 0
    """u32"""
    chunk: int = 0
    """u32"""
    take: int = 0
    """u32"""
    sequence: int = 0
    """u32, as in the `chunk` event"""
    epoch: int = 0
    """u32, as in the `chunk` event"""
    start: int = 0
    """u32, story-clock frame of the first frame; decode time inside the fragment starts at 0"""


MEDIA_HEADER_BYTES = _MEDIA.size


def pack_media(header: MediaHeader, payload: bytes) -> bytes:
    """A binary message: header, then one fMP4 segment."""
    return _MEDIA.pack(*(getattr(header, f.name) for f in fields(header))) + payload


def unpack_media(message: bytes) -> tuple[MediaHeader, bytes]:
    """Undo `pack_media`. Raises ProtocolError for a message that is too short or of another version."""
    if len(message) < _MEDIA.size or message[0] != MEDIA_VERSION:
        raise ProtocolError(f"not a media message of version {MEDIA_VERSION}")
    values = _MEDIA.unpack_from(message)
    return MediaHeader(**dict(zip((f.name for f in fields(MediaHeader)), values, strict=True))), message[_MEDIA.size :]
