"""One kept story: what was announced, in the order in which it was, and everything needed to go on from any point.

`record` is the only way in while a story runs. What it is given (a batch of events, latents, media, pictures) is kept
in one transaction or not at all, and only then is anybody told. The rest reads: `server/lineage.py` finds places in the
tree for a director, and the methods under "reading" serve exporters and pages.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.archive import ArchiveError, Batch, ChunkData, MemoryEdit, OpeningData, Past
from shotstream.engine.direction import Place, Saved
from shotstream.engine.director import KNOWN_IDS, MAX_CHUNKS
from shotstream.engine.memory import MemoryFrame
from shotstream.engine.messages import (
    Accepted,
    Branch,
    ChunkReady,
    Ended,
    Event,
    Extend,
    MemoryChanged,
    RememberedFrame,
    Retake,
    ShotOpened,
    Stop,
    Take,
    TreeChanged,
    Undo,
)
from shotstream.server.protocol import to_json
from shotstream.server.records import PathShot as PathShot
from shotstream.server.records import StoredChunk as StoredChunk
from shotstream.server.records import StoredCommand as StoredCommand
from shotstream.server.records import StoredTake as StoredTake
from shotstream.server.records import StoryInfo as StoryInfo
from shotstream.server.records import read_chunk, read_command, read_take
from shotstream.server.takefile import Part, TakeFile, pack_picture, read_part, unpack_picture

if TYPE_CHECKING:
    from shotstream.server.lineage import Lineage
    from shotstream.server.store import Store

KEPT_EVENTS = 4096
"""For viewers who reconnect. Who was away for longer gets along with the snapshot."""
RESTARTED = "the server was restarted"
_TRIM = 256


class _Picture:
    """A picture on its way into a file."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.sha = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()[:16]
        self._packed = b""

    def pack(self) -> bytes:
        self._packed = self._packed or pack_picture(self.pixels)
        return self._packed


class StoryArchive:
    """Keeps one story of a store. Every method may be called from any thread, and may raise ArchiveError."""

    def __init__(self, store: Store, name: str, reached: Callable[[str], None]) -> None:
        self.store, self.name, self._reached = store, name, reached
        self._database = store.database
        row = self._database.row("SELECT id, seq FROM story WHERE name = ?", name)
        self._story = int(row["id"]) if row else 0
        self._seq = int(row["seq"]) if row else 0
        self._file: TakeFile | None = None
        self._file_node = 0
        self._prepared: dict[int, _Picture] = {}
        """By id of the array, which they keep alive."""

    @property
    def exists(self) -> bool:
        """Whether anything is kept: a story of which nothing was said yet leaves no trace."""
        return self._story != 0

    def knows(self, id: str) -> bool:
        """Whether a command with this id was ever accepted."""
        return self._database.row("SELECT 1 FROM command WHERE story = ? AND id = ?", self._story, id) is not None

    # ---------------------------------------------------------------------------------------------------------- writing

    def prepare(self, opening: OpeningData) -> None:
        """Compress the pictures of a shot that is about to be announced."""
        arrays = {id(frame.pixels): frame.pixels for frame in (*opening.kept, *opening.context)}
        self._prepared = {key: self._prepared.get(key) or _Picture(pixels) for key, pixels in arrays.items()}
        for picture in self._prepared.values():
            if not self._has_picture(picture.sha):
                picture.pack()

    def record(self, batch: Batch) -> int:
        """Keep a batch, all of it or nothing; returns the number of its first event.

        Raises ArchiveError where there is no room for it, or none may be taken; nothing changed then.
        """
        if not self.exists and not any(isinstance(event, Accepted) for event in batch.events):
            return self.number(batch.events)
        before = self._file.end if self._file else 0
        node_before, seq, story = self._file_node, self._seq, self._story
        try:
            with self._database.transaction():
                self._begin()
                for event in batch.events:
                    self._keep(event, batch)
                if batch.edit is not None:
                    self._keep_edit(batch.edit)
                self._keep_events(batch.events)
                if self._file is not None and self._database.durable == "power" and (batch.chunks or batch.edit):
                    self._file.sync()
        except ArchiveError:
            self._seq, self._story = seq, story
            self._forget_written(node_before, before)
            raise
        return self._seq - len(batch.events) + 1

    def number(self, events: Sequence[Event]) -> int:
        """Number events that are not kept; returns the number of the first."""
        self._seq += len(events)
        return self._seq - len(events) + 1

    def _begin(self) -> None:
        if not self.exists:
            self._story = self.store.new_story(self.name, self._seq)
        self._database.run("UPDATE story SET changed = ? WHERE id = ?", time.time(), self._story)

    def _keep(self, event: Event, batch: Batch) -> None:
        match event:
            case Accepted():
                self._keep_command(event, batch)
            case ShotOpened():
                self._keep_opening(event, batch.openings[event.shot])
            case ChunkReady():
                self._keep_chunk(event, batch.chunks[event.shot, event.chunk])
            case TreeChanged():
                self._keep_tree(event)
            case Ended():
                self._keep_ending(event, batch)

    def _keep_command(self, event: Accepted, batch: Batch) -> None:
        command = batch.command
        body = to_json(command) if command is not None and command.id == event.id else ""
        self._database.run(
            "INSERT INTO command (story, id, kind, text, body, accepted) VALUES (?, ?, ?, ?, ?, ?)",
            *(self._story, event.id, event.command, event.text, body, time.time()),
        )

    def _keep_ending(self, event: Ended, batch: Batch) -> None:
        changed = self._database.run(
            "UPDATE command SET outcome = ?, shot = ?, chunk = ?, first_frame = ?, caption = ?, reason = ?"
            " WHERE story = ? AND id = ? AND outcome IS NULL",
            *(event.outcome, event.shot, event.chunk, event.first_frame, event.caption, event.reason),
            *(self._story, event.id),
        )
        assert changed == 1, f"command {event.id} ended without having been accepted, or twice"
        if event.command == Stop.kind and event.outcome == "applied":
            self._database.run("UPDATE story SET running = 0 WHERE id = ?", self._story)
        if isinstance(batch.command, Extend) and batch.command.id == event.id and event.chunk is not None:
            self._database.run(
                "UPDATE take SET num_chunks = ? WHERE story = ?2 AND shot = ?3"
                " AND node = (SELECT head FROM story WHERE id = ?2)",
                *(min(MAX_CHUNKS, event.chunk + batch.command.num_chunks), self._story, event.shot),
            )

    def _keep_opening(self, event: ShotOpened, data: OpeningData) -> None:
        self._database.insert(
            "take",
            story=self._story,
            node=event.node,
            parent=event.parent,
            parent_frames=event.aired_before if event.parent is not None else None,
            shot=event.shot,
            take=event.take,
            text=event.text,
            caption=event.caption,
            start=event.start,
            num_chunks=event.num_chunks,
            seed=data.seed,
            global_caption=data.global_caption,
            thumbnail=event.thumbnail,
            created=time.time(),
        )
        for kind, frames in (("kept", data.kept), ("context", data.context)):
            for position, frame in enumerate(frames):
                self._database.insert(
                    "remembered",
                    story=self._story,
                    node=event.node,
                    kind=kind,
                    position=position,
                    shot=frame.id[0],
                    frame=frame.id[1],
                    caption=frame.caption,
                    reason=frame.reason,
                    picture=self._keep_picture(frame.pixels, event.node),
                )
        self._database.run("UPDATE story SET head = ?, running = 1 WHERE id = ?", event.node, self._story)

    def _keep_chunk(self, event: ChunkReady, data: ChunkData) -> None:
        shape = data.latent.shape
        latent = self._append(np.ascontiguousarray(data.latent, np.float32).tobytes(), event.node)
        media = self._append(data.media, event.node)
        self._database.insert(
            "chunk",
            story=self._story,
            node=event.node,
            chunk=event.chunk,
            sequence=event.sequence,
            epoch=event.epoch,
            start=event.start,
            num_frames=event.num_frames,
            caption=event.caption,
            shot_caption=data.caption,
            steers=json.dumps(data.steers),
            applied=json.dumps(event.applied),
            file=event.node,
            latent_at=latent.at,
            latent_bytes=latent.bytes,
            latent_crc=latent.crc,
            latent_shape=json.dumps(shape),
            media_at=media.at,
            media_bytes=media.bytes,
            media_crc=media.crc,
        )
        self._database.run(
            "UPDATE take SET made_chunks = made_chunks + 1, num_frames = num_frames + ?, num_chunks = ?"
            " WHERE story = ? AND node = ?",
            *(event.num_frames, event.num_chunks, self._story, event.node),
        )
        self._database.run(
            "UPDATE story SET sequence = ?, epoch = ?, clock = ? WHERE id = ?",
            *(event.sequence, event.epoch, event.start + event.num_frames, self._story),
        )

    def _keep_tree(self, event: TreeChanged) -> None:
        for take in event.takes:
            if take.origin is not None and not self._has(take.node):
                self._fork(take)
            self._database.run(
                "UPDATE take SET hidden = ? WHERE story = ? AND node = ?", take.hidden, self._story, take.node
            )
        if event.shots is not None and not event.opening:
            self._database.run("UPDATE story SET head = ?, running = 1 WHERE id = ?", event.head, self._story)

    def _has(self, node: int) -> bool:
        return self._database.row("SELECT 1 FROM take WHERE story = ? AND node = ?", self._story, node) is not None

    def _fork(self, take: Take) -> None:
        """Another take that shares the first chunks of its origin, and all that was remembered until then."""
        story, origin, node, chunks = self._story, take.origin, take.node, take.made_chunks
        self._database.run(
            "INSERT INTO take (story, node, parent, parent_frames, origin, shot, take, text, caption, start,"
            " num_chunks, made_chunks, num_frames, seed, global_caption, thumbnail, created)"
            " SELECT story, ?, parent, parent_frames, node, shot, take, text, caption, start, ?, ?,"
            " (SELECT sum(num_frames) FROM chunk WHERE story = t.story AND node = t.node AND chunk < ?),"
            " seed, global_caption, thumbnail, ? FROM take t WHERE story = ? AND node = ?",
            *(node, take.num_chunks, chunks, chunks, time.time(), story, origin),
        )
        columns = "sequence, epoch, start, num_frames, caption, shot_caption, steers, applied, file, latent_at,"
        columns += " latent_bytes, latent_crc, latent_shape, media_at, media_bytes, media_crc"
        self._database.run(
            f"INSERT INTO chunk (story, node, chunk, {columns}) SELECT story, ?, chunk, {columns} FROM chunk"
            " WHERE story = ? AND node = ? AND chunk < ?",
            *(node, story, origin, chunks),
        )
        columns = "kind, position, shot, frame, caption, reason, picture"
        self._database.run(
            f"INSERT INTO remembered (story, node, {columns}) SELECT story, ?, {columns} FROM remembered"
            " WHERE story = ? AND node = ?",
            *(node, story, origin),
        )
        columns = "command, chunk, action, shot, frame, caption, reason, picture"
        self._database.run(
            f"INSERT INTO edit (story, node, {columns}) SELECT story, ?, {columns} FROM edit"
            " WHERE story = ? AND node = ? AND chunk <= ? ORDER BY number",
            *(node, story, origin, chunks),
        )

    def _keep_edit(self, edit: MemoryEdit) -> None:
        frame = edit.frame
        picture = self._keep_picture(frame.pixels, edit.node or 0) if frame is not None else None
        self._database.insert(
            "edit",
            story=self._story,
            command=edit.command,
            node=edit.node,
            chunk=edit.chunk,
            action=edit.action,
            shot=edit.id[0],
            frame=edit.id[1],
            caption=frame.caption if frame else "",
            reason=frame.reason if frame else "pinned",
            picture=picture,
        )

    def _keep_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._seq += 1
            self._database.insert("event", story=self._story, seq=self._seq, body=to_json(_light(event), seq=self._seq))
        self._database.run("UPDATE story SET seq = ? WHERE id = ?", self._seq, self._story)
        if self._seq % _TRIM < len(events):
            self._database.run(
                "DELETE FROM event WHERE story = ? AND seq <= ?", self._story, self._seq - KEPT_EVENTS - _TRIM
            )

    def _keep_picture(self, pixels: NDArray[np.uint8], node: int) -> bytes:
        """Each picture is kept once per story, wherever it is remembered."""
        picture = self._prepared.get(id(pixels)) or _Picture(pixels)
        sha = picture.sha
        if not self._has_picture(sha):
            part = self._append(picture.pack(), node)
            self._database.insert(
                "picture",
                story=self._story,
                sha=sha,
                file=node,
                at=part.at,
                bytes=part.bytes,
                crc=part.crc,
                height=pixels.shape[0],
                width=pixels.shape[1],
            )
        return sha

    def _has_picture(self, sha: bytes) -> bool:
        row = self._database.row("SELECT 1 FROM picture WHERE story = ? AND sha = ?", self._story, sha)
        return row is not None

    def _append(self, data: bytes, node: int) -> Part:
        self.store.check_room(self._story, len(data))
        part = self._file_of(node).append(data)
        self._database.run("UPDATE story SET bytes = bytes + ? WHERE id = ?", len(data), self._story)
        return part

    def _file_of(self, node: int) -> TakeFile:
        if self._file is None or self._file_node != node:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._file = TakeFile(self._path(node), self._committed_end(node), reached=self._reached)
            self._file_node = node
        return self._file

    def _committed_end(self, node: int) -> int:
        row = self._database.row(
            "SELECT max((SELECT coalesce(max(max(latent_at + latent_bytes, media_at + media_bytes)), 0) FROM chunk"
            " WHERE story = ?1 AND file = ?2), (SELECT coalesce(max(at + bytes), 0) FROM picture"
            " WHERE story = ?1 AND file = ?2)) AS end",
            self._story,
            node,
        )
        assert row is not None
        return int(row["end"])

    def _forget_written(self, node: int, end: int) -> None:
        """A transaction failed: what was added to files is overwritten by what comes next."""
        if self._file is not None and self._file_node == node:
            self._file.end = end
        elif self._file is not None:
            self._file.close()
            self._file, self._file_node = None, 0

    def _path(self, node: int) -> Path:
        return self.store.folder / "takes" / str(self._story) / f"{node}.take"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ------------------------------------------------------------------------------------------------------- going on

    def load(self) -> Saved:
        """What is kept so far. Ends, as failed, the commands that a crash left without an ending.

        To be called while no worker is at it.
        """
        if not self.exists:
            return Saved()
        self._end_what_was_pending()
        row = self._row()
        head = None
        if row["running"] and row["head"] is not None:
            head = replace(self._lineage.go_on(int(row["head"]), None), clock_frame=int(row["clock"]))
        ids = self._database.rows(
            "SELECT id FROM command WHERE story = ? ORDER BY number DESC LIMIT ?", self._story, KNOWN_IDS
        )
        return Saved(
            head=head,
            takes=tuple(stored.take for stored in self.takes()),
            last_node=row["head"],
            sequence=row["sequence"],
            epoch=row["epoch"],
            known_ids=tuple(one["id"] for one in reversed(ids)),
        )

    def _end_what_was_pending(self) -> None:
        open_commands = self._database.rows(
            "SELECT id, kind FROM command WHERE story = ? AND outcome IS NULL ORDER BY number", self._story
        )
        if open_commands:
            endings = [
                Ended(id=row["id"], command=row["kind"], outcome="failed", reason=RESTARTED) for row in open_commands
            ]
            self.record(Batch(events=endings))

    @property
    def _lineage(self) -> Lineage:
        from shotstream.server.lineage import Lineage

        return Lineage(self)

    def locate(self, command: Branch | Retake | Undo, head: int | None) -> Place:
        """The place that a command names. Raises ValueError, in words for people, if there is none."""
        return self._lineage.locate(command, head)

    def past(self, node: int | None, num_chunks: int, *, like: int | None = None) -> Past:
        """What a stream needs to go on after so many chunks of a take; see `engine.archive.Archive`."""
        return self._lineage.past(node, num_chunks, like=like)

    # ---------------------------------------------------------------------------------------------------------- reading

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
        return tuple(
            PathShot(take=read_take(row), num_frames=row["num_frames"] if row["shown"] is None else row["shown"])
            for row in rows
        )

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

    def command_texts(self, ids: Sequence[str]) -> dict[str, str]:
        """What people wrote in some steers, by id."""
        rows = self._database.rows(
            "SELECT id, text FROM command WHERE story = ? AND kind = 'steer'"
            " AND id IN (SELECT value FROM json_each(?))",
            *(self._story, json.dumps(list(ids))),
        )
        return {row["id"]: row["text"] for row in rows}

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

    @property
    def seq(self) -> int:
        """Number of the newest event."""
        return self._seq


def _light(event: Event) -> Event:
    """What is not worth keeping: the pictures of `memory` events, which only the newest of matters."""
    if not isinstance(event, MemoryChanged):
        return event
    return replace(event, frames=tuple(replace(frame, thumbnail="") for frame in event.frames))
