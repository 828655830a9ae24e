"""What a store gives out: one frozen dataclass per kind of row."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import cast

from shotstream.engine.direction import Planned
from shotstream.engine.messages import Outcome, Take

RESTARTED = "the server was restarted"
"""Why a command ended that was pending when a server did."""
GIVEN_AGAIN = "the server was restarted: it is given again"
"""The same, of a story file that is played."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoryInfo:
    """A story at a glance."""

    name: str
    """Part of its address; never changes."""
    title: str
    """For people."""
    preset: str
    width: int
    height: int
    fps: int
    created: float
    """Seconds since 1970."""
    changed: float
    head: int | None
    """The take in which it goes on."""
    running: bool
    """Whether it would go on after a restart; false once it was stopped."""
    num_takes: int
    """Hidden ones included."""
    num_frames: int
    """Length of the live path."""
    bytes: int
    """In the files of its takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTake:
    """A node of the tree, with what the page is not told."""

    take: Take
    start: int
    """Story-clock frame of its first frame when it was first on air."""
    num_frames: int
    """Pixel frames of all its chunks."""
    seed: int
    global_caption: str
    created: float
    """Seconds since 1970."""
    plan: tuple[Planned, ...] = ()
    """What a retake was to say after its first chunk, whether or not it came to that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredChunk:
    """One chunk of a take; `StoryArchive.media` and `latent` have what is large."""

    node: int
    chunk: int
    sequence: int
    epoch: int
    start: int
    """Story-clock frame of its first frame when it was first on air."""
    num_frames: int
    caption: str
    """In force, exactly as the text encoder saw it."""
    shot_caption: str
    steers: tuple[str, ...]
    """The parts of it, as they were written: the shot's caption, and the steers in force."""
    applied: tuple[str, ...]
    """Ids of the commands that took effect in it."""
    media_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCommand:
    """A command that was accepted, and what became of it."""

    id: str
    kind: str
    text: str
    body: str
    """The whole command as JSON, as it came over the wire; empty for one that the server gave."""
    accepted: float
    """Seconds since 1970."""
    outcome: Outcome | None
    """None while it is pending."""
    shot: int | None
    chunk: int | None
    first_frame: int | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PathShot:
    """One shot of the way from the story's beginning to a take."""

    take: StoredTake
    num_frames: int
    """How many of its frames are part of the story: fewer than it has where it was cut."""


def read_take(row: sqlite3.Row) -> StoredTake:
    take = Take(
        node=row["node"],
        parent=row["parent"],
        parent_frames=row["parent_frames"],
        origin=row["origin"],
        shot=row["shot"],
        take=row["take"],
        text=row["text"],
        caption=row["caption"],
        num_chunks=row["num_chunks"],
        made_chunks=row["made_chunks"],
        hidden=bool(row["hidden"]),
        thumbnail=row["thumbnail"],
    )
    return StoredTake(
        take=take,
        start=row["start"],
        num_frames=row["num_frames"],
        seed=row["seed"],
        global_caption=row["global_caption"],
        created=row["created"],
        plan=tuple(
            Planned(chunk=chunk, caption=caption, steers=tuple(steers), replaces=replaces)
            for chunk, caption, steers, replaces in json.loads(row["plan"])
        ),
    )


def read_chunk(row: sqlite3.Row) -> StoredChunk:
    return StoredChunk(
        node=row["node"],
        chunk=row["chunk"],
        sequence=row["sequence"],
        epoch=row["epoch"],
        start=row["start"],
        num_frames=row["num_frames"],
        caption=row["caption"],
        shot_caption=row["shot_caption"],
        steers=tuple(json.loads(row["steers"])),
        applied=tuple(json.loads(row["applied"])),
        media_bytes=row["media_bytes"],
    )


def read_command(row: sqlite3.Row) -> StoredCommand:
    return StoredCommand(
        id=row["id"],
        kind=row["kind"],
        text=row["text"],
        body=row["body"],
        accepted=row["accepted"],
        outcome=cast("Outcome | None", row["outcome"]),
        shot=row["shot"],
        chunk=row["chunk"],
        first_frame=row["first_frame"],
        reason=row["reason"],
    )
