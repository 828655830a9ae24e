"""What travels is exactly what was meant, and anything else is answered in words."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shotstream.server import protocol as p
from shotstream.server.schema import json_schema, reference_page

DOCS = Path(__file__).parents[2] / "docs"

COMMANDS: list[p.ClientMessage] = [
    p.Join(story="main", token="secret", resume_from=3),
    p.Ack(sequence=7),
    p.Start(id="a", text="a fox", global_caption="a story", seed=4, num_chunks=2),
    p.Cut(id="a", text="the city", at=p.At(shot=1, chunk=2)),
    p.Steer(id="a", text="he waves\nand smiles 🦊"),
    p.Extend(id="a", num_chunks=2),
    p.Pause(id="a"),
    p.Resume(id="a"),
    p.Stop(id="a"),
    p.Memory(id="a", action="pin", frame=p.FrameRef(shot=0, frame=80)),
    p.Memory(id="a", action="add", picture="aGk=", caption="a bear"),
    p.Branch(id="a", node=3, chunk=2, text="the city"),
    p.Branch(id="a", node=3),
    p.Retake(id="a", node=1),
    p.Undo(id="a"),
    p.Hide(id="a", node=2, hidden=False),
    p.Cancel(id="a", target="b"),
]

EVENTS: list[p.ServerMessage] = [
    p.Accepted(id="a", command="cut", text="x", at=p.At(shot=1, chunk=2)),
    p.Ended(id="a", command="cut", outcome="applied", shot=0, chunk=1, first_frame=2, left_out=("x", "y")),
    p.TreeChanged(
        head=2,
        takes=(p.Take(node=2, parent=1, shot=1, take=0, text="a", caption="a", num_chunks=7, made_chunks=3),),
        shots=(p.ShotCard(node=2, shot=1, take=0, start=9, text="a", caption="a", num_chunks=7, made_chunks=3),),
    ),
    p.ShotOpened(
        node=1,
        parent=None,
        shot=0,
        take=0,
        start=0,
        text="a",
        caption="a",
        num_chunks=7,
        context=(p.RememberedFrame(shot=0, frame=1, reason="pinned"),),
    ),
    p.MemoryChanged(frames=()),
    p.PerformanceChanged(performance=p.Performance(title="fox", state="playing", opened=1, num_shots=3)),
    p.Status(state="late", late_ms=3.5),
    p.Gap(first_sequence=1, last_sequence=2, num_frames=24),
    p.Error(code="bad_message", message="no"),
]


@pytest.mark.parametrize("message", COMMANDS, ids=lambda m: m.kind)
def test_a_command_survives_the_wire(message: p.ClientMessage) -> None:
    assert p.parse(p.to_json(message)) == message


@pytest.mark.parametrize("event", EVENTS, ids=lambda m: m.kind)
def test_an_event_survives_the_wire_with_its_number(event: p.ServerMessage) -> None:
    assert p.parse_event(p.to_json(event, seq=5)) == (event, 5)
    assert p.parse_event(p.to_json(event)) == (event, None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"kind":"extend","id":"a","num_chunks":NaN}', "not JSON"),
        ("3", "object"),
        ("{}", "unknown kind"),
        ('{"kind":"explode","id":"a"}', "unknown kind 'explode'"),
        ('{"kind":"hello"}', "unknown kind"),
        ('{"kind":"cut","id":"a"}', "'text' is missing"),
        ('{"kind":"cut","id":"a","text":"x","wild":1}', "unknown field 'wild'"),
        ('{"kind":"cut","id":7,"text":"x"}', "must be text, got a whole number"),
        ('{"kind":"cut","id":"a","text":"   "}', "is empty"),
        ('{"kind":"cut","id":"a","text":"\\ud800"}', "not text"),
        ('{"kind":"cut","id":"a","text":"x\\u0000"}', "not text"),
        ('{"kind":"cut","id":"a","text":"x","at":{"shot":-1,"chunk":0}}', "from 0"),
        ('{"kind":"cut","id":"a","text":"x","at":[1,2]}', "must be an object, got a list"),
        ('{"kind":"cut","id":"a","text":"x","num_chunks":true}', "whole number, got true or false"),
        ('{"kind":"extend","id":"a","num_chunks":1e99}', "whole number"),
        ('{"kind":"memory","id":"a","action":"eat"}', "one of pin, remove, add"),
        ('{"kind":"memory","id":"a","action":"pin"}', "give `frame`"),
        ('{"kind":"memory","id":"a","action":"add","picture":"x"}', "`caption`"),
        (json.dumps({"kind": "cut", "id": "a", "text": "x" * 2001}), "2001 characters"),
        (json.dumps({"kind": "cut", "id": "a" * 65, "text": "x"}), "65 characters"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(text: str, complaint: str) -> None:
    with pytest.raises(p.ProtocolError, match=complaint):
        p.parse(text)


def test_a_refusal_names_the_command_where_it_can() -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.parse('{"kind":"cut","id":"c7"}')
    assert caught.value.id == "c7"


def test_no_garbage_gets_past_the_reader_as_anything_but_a_message_or_a_refusal() -> None:
    dice = random.Random(0)
    values: list[Any] = [None, True, -1, 0, 10**30, 0.5, "", "x", "x" * 5000, [], {}, {"shot": 0, "chunk": 1}, [None]]
    names = sorted({f.name for message in COMMANDS for f in fields(message)} | {"wild"})
    kinds = [message.kind for message in COMMANDS]
    understood = 0
    for _ in range(3000):
        body = {name: dice.choice(values) for name in dice.sample(names, dice.randrange(4))}
        base = json.loads(p.to_json(dice.choice(COMMANDS)))
        text = json.dumps({**(base if dice.random() < 0.7 else {"kind": dice.choice(kinds)}), **body})
        if dice.random() < 0.1:
            text = text[: dice.randrange(len(text))]
        try:
            message = p.parse(text)
        except p.ProtocolError:
            continue
        understood += 1
        assert p.parse(p.to_json(message)) == message
    assert understood > 100


def test_a_media_message_survives_the_wire() -> None:
    header = p.MediaHeader(
        flags=p.MediaFlag.NEW_EPOCH, num_frames=12, shot=3, chunk=2, take=1, sequence=2**31, epoch=4, start=1000
    )
    message = p.pack_media(header, b"payload")
    assert len(message) == p.MEDIA_HEADER_BYTES + 7 == 35
    assert p.unpack_media(message) == (header, b"payload")
    with pytest.raises(p.ProtocolError):
        p.unpack_media(message[:10])
    with pytest.raises(p.ProtocolError):
        p.unpack_media(b"\x02" + message[1:])


def test_the_schema_and_the_reference_page_are_in_date() -> None:
    """If this fails, run `python -m shotstream.server.schema docs`."""
    assert (DOCS / "protocol.schema.json").read_text() == json.dumps(json_schema(), indent=2) + "\n"
    assert (DOCS / "protocol.md").read_text() == reference_page()


def test_the_schema_describes_every_message_and_field() -> None:
    definitions = json_schema()["$defs"]
    for message in [*COMMANDS, *EVENTS]:
        properties = definitions[type(message).__name__]["properties"]
        assert set(properties) - {"kind", "seq"} == {f.name for f in fields(message)}
        assert properties["kind"] == {"const": message.kind}
    for definition in definitions.values():
        assert definition.get("description"), "every class and its docstring"
