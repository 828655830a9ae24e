"""The protocol's JSON schema and reference page, generated from its dataclasses.

`python -m shotstream.server.schema docs` writes `protocol.schema.json` and `protocol.md` into a folder.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shotstream.engine import messages
from shotstream.server import protocol
from shotstream.server.protocol import (
    MAX_MESSAGE,
    MAX_SOCKET_BYTES,
    MEDIA_HEADER_BYTES,
    PROTOCOL_VERSION,
    SOCKET_PATH,
    ClientMessage,
    Command,
    Event,
    MediaHeader,
    ServerMessage,
)

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12; `#/$defs/ClientMessage` and `#/$defs/ServerMessage` are the two directions."""
    classes = _all_classes([*get_args(ClientMessage), *get_args(ServerMessage)])
    definitions: dict[str, Any] = {cls.__name__: _object(cls) for cls in classes}
    for name, union, text in (
        ("ClientMessage", ClientMessage, "What a viewer sends."),
        ("ServerMessage", ServerMessage, "What a viewer receives."),
    ):
        members = [{"$ref": f"#/$defs/{cls.__name__}"} for cls in get_args(union)]
        definitions[name] = {"description": text, "oneOf": members}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"shotstream protocol {PROTOCOL_VERSION}",
        "$defs": definitions,
    }


def command_schema() -> dict[str, Any]:
    """Any command, without references to elsewhere: for OpenAPI."""
    return {"oneOf": [_inlined(_object(cls)) for cls in get_args(Command)]}


def _inlined(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_inlined(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        part = next(cls for cls in _all_classes(get_args(Command)) if schema["$ref"].endswith(f"/{cls.__name__}"))
        return {**_object(part), **{key: _inlined(value) for key, value in schema.items() if key != "$ref"}}
    return {key: _inlined(value) for key, value in schema.items()}


def _object(cls: type[Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    kind = getattr(cls, "kind", None)
    if kind is not None:
        properties["kind"] = {"const": kind}
    if cls in get_args(Event):
        properties["seq"] = {"type": "integer", "minimum": 1}
    hints, notes = _hints(cls), _notes(cls)
    for spec in fields(cls):
        properties[spec.name] = _described(_type(hints[spec.name]), spec, notes.get(spec.name, ""))
    required = (["kind"] if kind is not None else []) + [f.name for f in fields(cls) if f.default is MISSING]
    return {
        "description": _doc(cls),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _described(schema: dict[str, Any], spec: Field[Any], note: str) -> dict[str, Any]:
    limits = (
        {"max": "maxLength", "min": "minimum"} if "min" not in spec.metadata else {"min": "minimum", "max": "maximum"}
    )
    target = schema["anyOf"][0] if "anyOf" in schema else schema
    target |= {limits[key]: value for key, value in spec.metadata.items() if key in limits}
    if spec.metadata.get("blank") is False:
        target["pattern"] = r"\S"
    if spec.default is not MISSING:
        schema["default"] = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    return {**schema, "description": note} if note else schema


def _type(hint: Any) -> dict[str, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return {
            "anyOf": [_type(option) for option in get_args(hint) if option is not types.NoneType] + [{"type": "null"}]
        }
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _type(get_args(hint)[0])}
    if is_dataclass(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}  # type: ignore[union-attr]
    return {"type": _PLAIN[hint]}


def reference_page() -> str:
    """`docs/protocol.md`."""
    commands, events = get_args(Command), get_args(Event)
    connection = [c for c in get_args(ClientMessage) if c not in commands]
    answers = [c for c in get_args(ServerMessage) if c not in events]
    parts = _all_classes([*commands, *events, *connection, *answers])
    parts = [c for c in parts if not hasattr(c, "kind")]
    sections = [
        _INTRODUCTION.format(
            version=PROTOCOL_VERSION, path=SOCKET_PATH, limit=MAX_MESSAGE // 1024, most=MAX_SOCKET_BYTES
        ),
        "## The connection\n",
        *map(_section, [*connection, *answers]),
        "## Commands\n\nEach has an `id` of the sender's choice, used once per story (a UUID, say).\n",
        *map(_section, commands),
        "## Events of the story\n\nAll of them also carry `seq`, which counts them without a hole.\n",
        *map(_section, events),
        "## Parts of messages\n",
        *map(_section, parts),
        _MEDIA.format(size=MEDIA_HEADER_BYTES),
        _rows(MediaHeader),
    ]
    return "\n".join(sections)


_INTRODUCTION = """\
# Protocol {version}

*Generated from `server/protocol.py` and `engine/messages.py` by `python -m shotstream.server.schema docs`.
A JSON schema lies beside it: `protocol.schema.json`.*

One WebSocket per viewer, at `{path}`. Text messages are JSON objects with a `kind`; binary messages are media.
The first message is `join`; `hello` answers with a snapshot of everything, then the init segment, a slate chunk and
the newest chunks follow. A command is `accepted` or answered with `error`; an accepted one `ended` exactly once.
Reading is strict: an unknown kind or field, a wrong type or a message over {limit} KiB (`memory` may bring a picture)
is answered with `error`, and the connection stays open. A message over {most} bytes ends the connection.

After a lost connection, `join` with `resume_from` and the last `seq` seen: `hello` says how many missed events are
`replayed` after it. Media is not replayed; it goes on at the live edge.

Story time is counted in frames on air (`start`, `first_frame`, `clock_frame`). Every `chunk` event comes before its
media message and names the same `sequence`. Each media message is acknowledged with `ack`. While three are not, the
server sends this viewer no further one, and drops all but the newest that wait: a `gap` says which.
"""

_MEDIA = """\
## Media messages

A header of {size} bytes, little endian, then one fMP4 segment. A chunk is one fragment and one closed group of
pictures, and its decode time is 0: the player places it by `timestampOffset`.
"""


def _section(cls: type[Any]) -> str:
    name = f"`{cls.kind}`" if hasattr(cls, "kind") else cls.__name__
    return f"### {name}\n\n{_doc(cls)}\n\n{_rows(cls)}"


def _rows(cls: type[Any]) -> str:
    if not fields(cls):
        return ""
    hints, notes = _hints(cls), _notes(cls)
    rows = ["| field | type | meaning |", "|---|---|---|"]
    rows += [f"| `{f.name}` | {_words(hints[f.name], f)} | {notes.get(f.name, '')} |" for f in fields(cls)]
    return "\n".join(rows) + "\n"


def _words(hint: Any, spec: Field[Any]) -> str:
    words = _type_words(hint)
    low, high = spec.metadata.get("min"), spec.metadata.get("max")
    if low is not None and high is not None:
        words += f", {low} to {high}" if high < 2**31 - 1 else f", from {low}"
    elif high is not None:
        words += f", at most {high} characters"
    if spec.default is not MISSING and spec.default not in (None, ()):
        words += f", default `{json.dumps(spec.default)}`"
    return words


def _type_words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_words(o) for o in get_args(hint) if o is not types.NoneType) + " or null"
    if get_origin(hint) is Literal:
        return " \\| ".join(f"`{option}`" for option in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_type_words(get_args(hint)[0])}"
    if is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"  # type: ignore[union-attr]
    return {str: "text", int: "integer", float: "number", bool: "boolean"}[hint]


def _all_classes(start: Iterable[type[Any]]) -> list[type[Any]]:
    """These and every dataclass in their fields, in order of first mention."""
    found: dict[type[Any], None] = {}

    def visit(hint: Any) -> None:
        if is_dataclass(hint) and isinstance(hint, type) and hint not in found:
            found[hint] = None
            for inner in _hints(hint).values():
                visit(inner)
        for inner in get_args(hint):
            visit(inner)

    for cls in start:
        visit(cls)
    return list(found)


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, vars(messages) | vars(protocol))
    return {f.name: hints[f.name] for f in fields(cls)}


def _doc(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def _notes(cls: type[Any]) -> dict[str, str]:
    """The text under each field in the source."""
    tree = _source(inspect.getsourcefile(cls) or "")
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    notes = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            notes[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return notes


@cache
def _source(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def main(argv: Sequence[str]) -> None:
    """Write both files into the folder named by the first argument."""
    folder = Path(argv[0] if argv else "docs")
    (folder / "protocol.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    (folder / "protocol.md").write_text(reference_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
