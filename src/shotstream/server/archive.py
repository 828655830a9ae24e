"""One kept story: what was announced, in the order in which it was, and everything needed to go on from any point.

`record` is the only way in while a story runs. What it is given (a batch of events, latents, media, pictures) is kept
in one transaction or not at all, and only then is anybody told. The rest reads: `server/lineage.py` finds places in the
tree for a director, `server/reader.py` serves exporters and pages.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.archive import ArchiveError, Batch, ChunkData, MemoryEdit, OpeningData, Past
from shotstream.engine.direction import Place, Saved
from shotstream.engine.director import KNOWN_IDS
from shotstream.engine.messages import (
    Accepted,
    Branch,
    ChunkReady,
    Ended,
    Event,
    Extend,
    MemoryChanged,
    Retake,
    ShotOpened,
    Stop,
    Take,
    TreeChanged,
    Undo,
)
from shotstream.engine.underway import MAX_CHUNKS
from shotstream.server.protocol import to_json
from shotstream.server.reader import KEPT_EVENTS, StoryReader
from shotstream.server.records import GIVEN_AGAIN, RESTARTED
from shotstream.server.records import PathShot as PathShot
from shotstream.server.records import StoredChunk as StoredChunk
from shotstream.server.records import StoredCommand as StoredCommand
from shotstream.server.records import StoredTake as StoredTake
from shotstream.server.records import StoryInfo as StoryInfo
from shotstream.server.takefile import Part, TakeFile, pack_picture

if TYPE_CHECKING:
    from shotstream.server.lineage import Lineage
    from shotstream.server.store import Store

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


class StoryArchive(StoryReader):
    """Keeps one story of a store. Every method may be called from any thread, and may raise ArchiveError."""

    def __init__(self, store: Store, name: str, reached: Callable[[str], None]) -> None:
        super().__init__(store, name)
        self._reached = reached
        self._file: TakeFile | None = None
        self._file_node = 0
        self._prepared: dict[int, _Picture] = {}
        """By id of the array, which they keep alive."""

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
                if self._file is not None and self._is_lasting and (batch.chunks or batch.edit):
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

    @property
    def _is_lasting(self) -> bool:
        """Whether what is kept is to survive the machine."""
        return self._database.durable == "power"

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
            plan=json.dumps([(one.chunk, one.caption, one.steers, one.replaces) for one in data.plan]),
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
                if self._is_lasting:  # a batch may write into two of them
                    self._file.sync()
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

    def keep_performance(self, note: str) -> None:
        """Keep what is needed to go on with a story file that is played; empty: none is any more."""
        with self._database.transaction():
            self._database.run("UPDATE story SET performance = ? WHERE id = ?", note, self._story)

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
        self.end_what_was_pending()
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

    def end_what_was_pending(self, reason: str = RESTARTED) -> None:
        """End the commands that a crash left without an ending. To be called while no worker is at it."""
        story = self._row()
        goes_on = story["running"] and story["performance"]
        played = json.loads(story["performance"])["id"] + "-" if goes_on else None
        open_commands = self._database.rows(
            "SELECT id, kind FROM command WHERE story = ? AND outcome IS NULL ORDER BY number", self._story
        )
        if open_commands:
            endings = [
                Ended(id=row["id"], command=row["kind"], outcome="superseded", reason=GIVEN_AGAIN)
                if played is not None and row["id"].startswith(played)
                else Ended(id=row["id"], command=row["kind"], outcome="failed", reason=reason)
                for row in open_commands
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


def _light(event: Event) -> Event:
    """What is not worth keeping: the pictures of `memory` events, which only the newest of matters."""
    if not isinstance(event, MemoryChanged):
        return event
    return replace(event, frames=tuple(replace(frame, thumbnail="") for frame in event.frames))
