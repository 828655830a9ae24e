"""What the routes for stories take and give: small pydantic models, for OpenAPI, made from what the archive has."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from shotstream.engine.messages import Command, Outcome
from shotstream.engine.underway import text_of
from shotstream.server.archive import StoredChunk, StoredCommand, StoredTake, StoryArchive
from shotstream.server.protocol import PresetInfo
from shotstream.server.schema import command_schema
from shotstream.story import Shot, Story

COMMAND_BODY = {
    "required": True,
    "description": "A command as the socket takes it, see the protocol",
    "content": {"application/json": {"schema": command_schema()}},
}


STORY_BODY = {
    "required": True,
    "description": "A story file, as `shotstream generate` reads it and as stories are exported",
    "content": {"application/yaml": {"schema": {"type": "string", "minLength": 1}}},
}


class Failure(BaseModel):
    """Why a request cannot be followed."""

    detail: str


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI."""
    return {code: {"model": Failure} for code in codes}


class StoryCard(BaseModel):
    """A story at a glance."""

    name: str
    """Part of its address."""
    title: str
    url: str
    """Of the page with this story."""
    preset: str
    width: int
    height: int
    fps: int
    created: float
    changed: float
    seconds: float
    """Length of the live path."""
    bytes: int
    """On the disk."""
    num_takes: int
    head: int | None
    """The take in which it goes on."""
    live: bool
    """Whether it is running now."""
    viewers: int
    thumbnail: str
    """A small JPEG in base64, or empty."""


class Title(BaseModel):
    """What people see."""

    title: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")


class Copy(BaseModel):
    """Of a story."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """None: one is made up."""


class TakeCard(BaseModel):
    """A take of a shot, a node of the story's tree."""

    node: int
    parent: int | None
    """The take that it follows; none: it begins the story."""
    parent_frames: int | None
    """How many frames of the parent are part of the story that leads here."""
    origin: int | None
    """The take whose first chunks it shares."""
    shot: int
    take: int
    text: str
    caption: str
    num_chunks: int
    num_frames: int
    hidden: bool
    live: bool
    created: float
    thumbnail: str


class Hidden(BaseModel):
    """Whether a take, and all that follow it, are left out of the tree."""

    hidden: bool


class ChunkCard(BaseModel):
    """A chunk as it was announced."""

    chunk: int
    sequence: int
    epoch: int
    start: int
    num_frames: int
    caption: str
    applied: list[str]
    sha256: str | None
    """Of its media, if that was asked for."""


class CommandCard(BaseModel):
    """A command that was accepted, and what became of it."""

    id: str
    command: str
    text: str = ""
    accepted: float
    outcome: Outcome | None = None
    """None while it is pending."""
    shot: int | None = None
    chunk: int | None = None
    first_frame: int | None = None
    reason: str = ""


class PlayedShot(BaseModel):
    """A shot that will be played."""

    caption: str
    seconds: float
    steers: int


class PlayCard(BaseModel):
    """What will be played."""

    title: str
    seed: int
    global_caption: str
    seconds: float
    shots: list[PlayedShot]


def play_card(story: Story, shots: Sequence[Shot], preset: PresetInfo) -> PlayCard:
    """A story file, as it will be on air."""
    played = [
        PlayedShot(
            caption=shot.caption,
            seconds=(preset.first_chunk_frames + (shot.num_chunks - 1) * preset.chunk_frames) / preset.fps,
            steers=len(shot.steers),
        )
        for shot in shots
    ]
    return PlayCard(
        title=story.name,
        seed=story.seed or 0,
        global_caption=story.global_caption,
        seconds=sum(shot.seconds for shot in played),
        shots=played,
    )


def take_cards(archive: StoryArchive) -> list[TakeCard]:
    """The whole tree."""
    path = {shot.take.take.node for shot in archive.path(archive.info().head)}
    return [_take_card(stored, stored.take.node in path) for stored in archive.takes()]


def _take_card(stored: StoredTake, live: bool) -> TakeCard:
    take = stored.take
    return TakeCard(
        node=take.node,
        parent=take.parent,
        parent_frames=take.parent_frames,
        origin=take.origin,
        shot=take.shot,
        take=take.take,
        text=take.text,
        caption=take.caption,
        num_chunks=take.made_chunks,
        num_frames=stored.num_frames,
        hidden=take.hidden,
        live=live,
        created=stored.created,
        thumbnail=take.thumbnail,
    )


def chunk_cards(archive: StoryArchive, node: int, sha256: bool) -> list[ChunkCard]:
    """The chunks of a take. sha256: whether what was sent is read and hashed."""
    return [_chunk_card(archive, chunk, sha256) for chunk in archive.chunks(node)]


def _chunk_card(archive: StoryArchive, chunk: StoredChunk, sha256: bool) -> ChunkCard:
    return ChunkCard(
        chunk=chunk.chunk,
        sequence=chunk.sequence,
        epoch=chunk.epoch,
        start=chunk.start,
        num_frames=chunk.num_frames,
        caption=chunk.caption,
        applied=list(chunk.applied),
        sha256=hashlib.sha256(archive.media(chunk.node, chunk.chunk)).hexdigest() if sha256 else None,
    )


def waiting_card(command: Command) -> CommandCard:
    """A command of which nothing is kept yet."""
    return CommandCard(
        id=command.id,
        command=command.kind,
        text=text_of(command),
        accepted=time.time(),
        reason="it waits for a free slot, or the engine: a restart of the server forgets it",
    )


def command_card(command: StoredCommand) -> CommandCard:
    """A command and its ending."""
    return CommandCard(
        id=command.id,
        command=command.kind,
        text=command.text,
        accepted=command.accepted,
        outcome=command.outcome,
        shot=command.shot,
        chunk=command.chunk,
        first_frame=command.first_frame,
        reason=command.reason,
    )
