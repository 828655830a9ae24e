"""Reads one kept story: its tree, what was sent of every take, what each remembers, its commands and events.

Everything is given as frozen dataclasses (`records.py`); bytes are checked against their checksums.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.archive import ArchiveError, MemoryEdit
from shotstream.engine.memory import MemoryFrame
from shotstream.engine.messages import Cut, RememberedFrame
from shotstream.server.records import (
    PathShot,
    StoredChunk,
    StoredCommand,
    StoredTake,
    StoryInfo,
    read_chunk,
    read_command,
    read_take,
)
from shotstream.server.takefile import Part, read_part, unpack_picture

if TYPE_CHECKING:
    from shotstream.server.store import Store

KEPT_EVENTS = 4096
"""For viewers who reconnect. Who was away for longer gets along with the snapshot."""


class StoryReader:
    """One story of a store. Every method may be called from any thread, and may raise ArchiveError."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._database = store.database
        row = self._database.row("SELECT id, seq FROM story WHERE name = ?", name)
        self._story = int(row["id"]) if row else 0
        self._seq = int(row["seq"]) if row else 0

    @property
    def exists(self) -> bool:
        """Whether anything is kept: a story of which nothing was said yet leaves no trace."""
        return self._story != 0

    def knows(self, id: str) -> bool:
        """Whether a command with this id was ever accepted."""
        return self._database.row("SELECT 1 FROM command WHERE story = ? AND id = ?", self._story, id) is not None

    @property
    def seq(self) -> int:
        """Number of the newest event."""
        return self._seq

    def info(self) -> StoryInfo:
        """Raises ArchiveError if nothing is kept of it."""
        row = self._row()
        count = self._database.row("SELECT count(*) AS n FROM take WHERE story = ?", self._story)
        assert count is not None
        return StoryInfo(
            name=row["name"],
            title=row["title"],
            preset=row["preset"],
            width=row["width"],
            height=row["height"],
            fps=row["fps"],
            created=row["created"],
            changed=row["changed"],
            head=row["head"],
            running=bool(row["running"]),
            num_takes=count["n"],
            num_frames=sum(shot.num_frames for shot in self.path(row["head"])),
            bytes=row["bytes"],
        )

    def _row(self) -> sqlite3.Row:
        row = self._database.row("SELECT * FROM story WHERE id = ?", self._story)
        if row is None:
            raise ArchiveError(f"there is no story {self.name!r} in {self.store.folder}")
        return row

    def takes(self) -> tuple[StoredTake, ...]:
        """The whole tree, in the order in which it was made; hidden takes are marked."""
        rows = self._database.rows("SELECT * FROM take WHERE story = ? ORDER BY node", self._story)
        return tuple(read_take(row) for row in rows)

    def take(self, node: int) -> StoredTake:
        """Raises ValueError if there is none of this number."""
        row = self._database.row("SELECT * FROM take WHERE story = ? AND node = ?", self._story, node)
        if row is None:
            raise ValueError(f"there is no take {node} in this story")
        return read_take(row)

    def path(self, node: int | None) -> tuple[PathShot, ...]:
        """The shots that lead to a take, itself, with all its frames, at the end; none for None."""
        if node is None:
            return ()
        rows = self._database.rows(
            "WITH RECURSIVE way (node, shown, depth) AS (SELECT ?2, NULL, 0 UNION ALL"
            " SELECT take.parent, take.parent_frames, depth + 1 FROM way JOIN take"
            " ON take.story = ?1 AND take.node = way.node AND take.parent IS NOT NULL)"
            " SELECT take.*, way.shown FROM way JOIN take ON take.story = ?1 AND take.node = way.node"
            " ORDER BY depth DESC",
            *(self._story, node),
        )
        if not rows:
            raise ValueError(f"there is no take {node} in this story")
        on_air = self._on_air([row["node"] for row in rows])
        shown = [max(row["shown"], frames) for row, frames in zip(rows[:-1], on_air, strict=True)]
        lengths = [*shown, rows[-1]["num_frames"]]
        return tuple(
            PathShot(take=read_take(row), num_frames=length) for row, length in zip(rows, lengths, strict=True)
        )

    def _on_air(self, nodes: Sequence[int]) -> list[int]:
        """How many frames of each take but the last were on air before the take after it, which a cut opened, began.

        They are more than that one remembers: a shot goes on while the next one's first chunk is made. 0 where it was
        not so: somebody went back, or something else came in between.
        """
        sent: dict[int, list[sqlite3.Row]] = {node: [] for node in nodes}
        for row in self._database.rows(
            "SELECT node, sequence, start, num_frames, applied FROM chunk"
            " WHERE story = ? AND node IN (SELECT value FROM json_each(?)) ORDER BY node, chunk",
            *(self._story, json.dumps(list(nodes))),
        ):
            sent[row["node"]].append(row)
        first = {node: json.loads(rows[0]["applied"]) for node, rows in sent.items() if rows}
        given = self.given([id for ids in first.values() for id in ids])
        by_cut = {node for node, ids in first.items() if any(id in given and given[id].kind == Cut.kind for id in ids)}
        frames = []
        for before, after in itertools.pairwise(nodes):
            shot, following = sent[before], sent[after]
            direct = after in by_cut and shot and following[0]["sequence"] == shot[-1]["sequence"] + 1
            end = following[0]["start"] if direct else 0
            frames.append(sum(min(row["num_frames"], max(0, end - row["start"])) for row in shot))
        return frames

    def chunks(self, node: int, num_chunks: int | None = None) -> tuple[StoredChunk, ...]:
        """The chunks of a take in order, or the first few."""
        rows = self._database.rows(
            "SELECT * FROM chunk WHERE story = ? AND node = ? AND chunk < ? ORDER BY chunk",
            *(self._story, node, 2**31 if num_chunks is None else num_chunks),
        )
        return tuple(read_chunk(row) for row in rows)

    def chunks_of(self, nodes: Sequence[int]) -> dict[int, tuple[StoredChunk, ...]]:
        """The chunks of some takes, by take."""
        rows = self._database.rows(
            "SELECT * FROM chunk WHERE story = ? AND node IN (SELECT value FROM json_each(?)) ORDER BY node, chunk",
            *(self._story, json.dumps(list(nodes))),
        )
        found: dict[int, list[StoredChunk]] = {node: [] for node in nodes}
        for row in rows:
            found[row["node"]].append(read_chunk(row))
        return {node: tuple(chunks) for node, chunks in found.items()}

    def media(self, node: int, chunk: int) -> bytes:
        """What was sent of a chunk: one fMP4 fragment. Raises ValueError for a chunk that was not made."""
        row = self._chunk_row(node, chunk)
        return self._read(row["file"], row["media_at"], row["media_bytes"], row["media_crc"])

    def latent(self, node: int, chunk: int) -> NDArray[np.float32]:
        """A chunk's latents, float32 [F, C, h, w]. Raises ValueError for a chunk that was not made."""
        row = self._chunk_row(node, chunk)
        data = self._read(row["file"], row["latent_at"], row["latent_bytes"], row["latent_crc"])
        return np.frombuffer(data, np.float32).reshape(json.loads(row["latent_shape"]))

    def _chunk_row(self, node: int, chunk: int) -> sqlite3.Row:
        row = self._database.row(
            "SELECT * FROM chunk WHERE story = ? AND node = ? AND chunk = ?", self._story, node, chunk
        )
        if row is None:
            raise ValueError(f"take {node} has no chunk {chunk}")
        return row

    def _read(self, file: int, at: int, size: int, crc: int) -> bytes:
        return read_part(self._path(file), Part(at=at, bytes=size, crc=crc))

    def _path(self, node: int) -> Path:
        return self.store.folder / "takes" / str(self._story) / f"{node}.take"

    def remembered(self, node: int, kind: str = "context") -> tuple[MemoryFrame, ...]:
        """What a take remembers, with pixels. kind "kept": all that memory kept of the shot before it, at its cut."""
        rows = self._database.rows(
            "SELECT * FROM remembered WHERE story = ? AND node = ? AND kind = ? ORDER BY position",
            *(self._story, node, kind),
        )
        return tuple(self.frame(row) for row in rows)

    def frame(self, row: sqlite3.Row) -> MemoryFrame:
        """A remembered frame of a row that names its picture."""
        found = self._database.row("SELECT * FROM picture WHERE story = ? AND sha = ?", self._story, row["picture"])
        assert found is not None
        data = self._read(found["file"], found["at"], found["bytes"], found["crc"])
        return MemoryFrame(
            id=(row["shot"], row["frame"]),
            pixels=unpack_picture(data, found["height"], found["width"]),
            caption=row["caption"],
            reason=row["reason"],
        )

    def context_names(self, nodes: Sequence[int]) -> dict[int, tuple[RememberedFrame, ...]]:
        """Which frames some takes remember, without their pictures."""
        names: dict[int, tuple[RememberedFrame, ...]] = {}
        for row in self._database.rows(
            "SELECT * FROM remembered WHERE story = ? AND kind = 'context'"
            " AND node IN (SELECT value FROM json_each(?)) ORDER BY position",
            *(self._story, json.dumps(list(nodes))),
        ):
            frame = RememberedFrame(shot=row["shot"], frame=row["frame"], reason=row["reason"], caption=row["caption"])
            names[row["node"]] = (*names.get(row["node"], ()), frame)
        return names

    def edits(self, node: int, num_chunks: int) -> tuple[MemoryEdit, ...]:
        """What was done to the memory during the first chunks of a take."""
        rows = self._database.rows(
            "SELECT * FROM edit WHERE story = ? AND node = ? AND chunk <= ? ORDER BY number",
            *(self._story, node, num_chunks),
        )
        return tuple(
            MemoryEdit(
                command=row["command"],
                node=node,
                chunk=row["chunk"],
                action=row["action"],
                id=(row["shot"], row["frame"]),
                frame=self.frame(row) if row["picture"] is not None else None,
            )
            for row in rows
        )

    def commands(self) -> tuple[StoredCommand, ...]:
        """Every command that was accepted, in order."""
        rows = self._database.rows("SELECT * FROM command WHERE story = ? ORDER BY number", self._story)
        return tuple(read_command(row) for row in rows)

    @property
    def performance(self) -> str:
        """The note of the story file that is played, see `Performer.note`, or empty."""
        row = self._database.row("SELECT performance FROM story WHERE id = ?", self._story)
        return str(row["performance"]) if row is not None else ""

    def given(self, ids: Sequence[str]) -> dict[str, StoredCommand]:
        """Some commands, by id."""
        rows = self._database.rows(
            "SELECT * FROM command WHERE story = ? AND id IN (SELECT value FROM json_each(?))",
            *(self._story, json.dumps(list(ids))),
        )
        return {row["id"]: read_command(row) for row in rows}

    def events(self, after: int) -> tuple[tuple[int, str], ...] | None:
        """Number and JSON of every event after a number; None if they are not kept so far back.

        Pictures in `memory` events are left out.
        """
        if after >= self._seq:
            return ()
        rows = self._database.rows(
            "SELECT seq, body FROM event WHERE story = ? AND seq > ? ORDER BY seq LIMIT ?",
            *(self._story, after, KEPT_EVENTS + 1),
        )
        if not rows or rows[0]["seq"] != after + 1 or len(rows) > KEPT_EVENTS:
            return None
        return tuple((row["seq"], row["body"]) for row in rows)
