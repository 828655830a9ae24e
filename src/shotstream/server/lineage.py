"""Finds places in a kept story's tree: where a branch, a retake or an undo leads, and what going on there needs.

Reads only. The way to a take is the chain of its parents; each says how many frames of the one before are part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from shotstream.engine.archive import MemoryEdit, Past
from shotstream.engine.direction import GoOn, NewShot, Place, Planned
from shotstream.engine.memory import REMEMBERED_SHOTS, MemoryFrame
from shotstream.engine.messages import Branch, Retake, ShotCard, Steer, SteerMark, Undo
from shotstream.engine.stream import KeptChunk, KeptShot
from shotstream.server.archive import PathShot, StoredChunk, StoredTake, StoryArchive
from shotstream.server.protocol import parse

MAX_CARDS = 200
"""Of the shots that lead to a place the newest are shown."""


class Lineage:
    """The tree of one story."""

    def __init__(self, archive: StoryArchive) -> None:
        self._archive = archive

    # ------------------------------------------------------------------------------------------------- for a director

    def locate(self, command: Branch | Retake | Undo, head: int | None) -> Place:
        """Where a command leads. Raises ValueError, in words for people, if there is no such place."""
        match command:
            case Branch():
                return self._branch(command)
            case Retake():
                return self._retake(command.node)
            case Undo():
                return self._undo(head)

    def _branch(self, command: Branch) -> Place:
        take = self._archive.take(command.node)
        made = take.take.made_chunks
        chunk = made if command.chunk is None else command.chunk
        if chunk > made:
            raise ValueError(f"take {command.node} has {made} chunks: branch at one from 0 to {made}")
        if not command.text.strip():
            if chunk == 0:
                raise ValueError("say what another shot there should show, or retake this one")
            return self.go_on(command.node, chunk)
        place = self._beside(take) if chunk == 0 else self._after(take, chunk)
        return replace(place, text=command.text, num_chunks=command.num_chunks)

    def _beside(self, take: StoredTake) -> NewShot:
        """Where a take was opened."""
        parent, frames = take.take.parent, take.take.parent_frames
        chunks = self._chunks_for(parent, frames or 0) if parent is not None else 0
        siblings = [t for t in self._archive.takes() if t.take.parent == parent]
        if parent is None:  # other beginnings of the same story, not other stories
            siblings = [t for t in siblings if (t.seed, t.global_caption) == (take.seed, take.global_caption)]
        return NewShot(
            seed=take.seed,
            global_caption=take.global_caption,
            parent=parent,
            parent_chunks=chunks,
            parent_frames=frames,
            like=take.take.node,
            shot=take.take.shot,
            take=1 + max(sibling.take.take for sibling in siblings),
            cards=self._cards(parent, chunks),
            clock_frame=self._clock(parent, chunks),
        )

    def _after(self, take: StoredTake, chunk: int) -> NewShot:
        """Behind the first chunks of a take."""
        node = take.take.node
        followers = [t.take.take for t in self._archive.takes() if t.take.parent == node]
        return NewShot(
            seed=take.seed,
            global_caption=take.global_caption,
            parent=node,
            parent_chunks=chunk,
            parent_frames=self._num_frames(node, chunk),
            shot=take.take.shot + 1,
            take=1 + max(followers, default=-1),
            cards=self._cards(node, chunk),
            clock_frame=self._clock(node, chunk),
        )

    def _retake(self, node: int) -> NewShot:
        take = self._archive.take(node)
        chunks = self._archive.chunks(node)
        first = chunks[0]
        return replace(
            self._beside(take),
            text=take.take.text,
            caption=first.shot_caption,
            steers=first.steers,
            num_chunks=take.take.num_chunks,
            plan=(*_plan(chunks), *_rest(take, len(chunks))),
        )

    def _undo(self, head: int | None) -> GoOn:
        if head is None:
            raise ValueError("there is nothing to undo: the story has not begun")
        chunks = self._archive.chunks(head)
        given = self._archive.given([id for chunk in chunks for id in chunk.applied])
        steered = [chunk.chunk for chunk in chunks[1:] if any(given[id].kind == Steer.kind for id in chunk.applied)]
        if steered:
            return self.go_on(head, steered[-1])
        retakes = [parse(given[id].body) for id in chunks[0].applied if given[id].kind == Retake.kind]
        if retakes and isinstance(retakes[0], Retake):
            return self.go_on(retakes[0].node, None)
        take = self._archive.take(head).take
        if take.parent is None:
            raise ValueError("there is nothing to undo: this is the story's first shot, as it was asked for")
        return self.go_on(take.parent, self._chunks_for(take.parent, take.parent_frames or 0))

    def go_on(self, node: int, num_chunks: int | None) -> GoOn:
        """After the first chunks of a take, or all of them."""
        stored = self._archive.take(node)
        made = stored.take.made_chunks
        count = made if num_chunks is None else num_chunks
        if count < 1:
            raise ValueError(f"nothing of take {node} was on air: branch at a take that was")
        last = self._archive.chunks(node, count)[-1]
        return GoOn(
            seed=stored.seed,
            global_caption=stored.global_caption,
            take=replace(stored.take, made_chunks=count),
            fork=count < made,
            caption=last.shot_caption,
            steers=last.steers,
            num_frames=self._num_frames(node, count),
            cards=self._cards(node, count),
            clock_frame=last.start + last.num_frames,
            plan=() if count < made else _rest(stored, count),
        )

    def _num_frames(self, node: int, chunks: int) -> int:
        return sum(chunk.num_frames for chunk in self._archive.chunks(node, chunks))

    def _chunks_for(self, node: int, num_frames: int) -> int:
        """How many chunks it takes to have so many frames of a take."""
        return _count(self._archive.chunks(node), num_frames)

    def _clock(self, node: int | None, num_chunks: int) -> int:
        if node is None or not num_chunks:
            return 0
        last = self._archive.chunks(node, num_chunks)[-1]
        return last.start + last.num_frames

    def _cards(self, node: int | None, num_chunks: int) -> tuple[ShotCard, ...]:
        """Of the way to a take, of which so many chunks are part of it."""
        path = self._archive.path(node)[-MAX_CARDS:]
        nodes = [shot.take.take.node for shot in path]
        contexts, chunks = self._archive.context_names(nodes), self._archive.chunks_of(nodes)
        given = self._archive.given([id for shot in nodes for chunk in chunks[shot] for id in chunk.applied])
        texts = {id: command.text for id, command in given.items() if command.kind == Steer.kind}
        cards = []
        for shot in path:
            take = shot.take.take
            made = num_chunks if take.node == node else _count(chunks[take.node], shot.num_frames)
            cards.append(
                ShotCard(
                    node=take.node,
                    shot=take.shot,
                    take=take.take,
                    start=shot.take.start,
                    text=take.text,
                    caption=take.caption,
                    num_chunks=take.num_chunks,
                    made_chunks=made,
                    context=contexts.get(take.node, ()),
                    steers=_marks(chunks[take.node][:made], texts),
                    thumbnail=take.thumbnail,
                )
            )
        return tuple(cards)

    # --------------------------------------------------------------------------------------------------- for a stream

    def past(self, node: int | None, num_chunks: int, *, like: int | None = None) -> Past:
        """See `engine.archive.Archive.past`."""
        if like is not None:
            path = self._archive.path(like)
            before = path[:-1]
            return Past(
                seed=path[-1].take.seed,
                global_caption=path[-1].take.global_caption,
                shots=self._kept(path),
                edits=self._edits(before),
            )
        path = self._archive.path(node)
        own = path[-1].take
        return Past(
            seed=own.seed,
            global_caption=own.global_caption,
            shots=self._kept(path),
            edits=(*self._edits(path[:-1]), *self._archive.edits(own.take.node, num_chunks)),
            running=self._running(own, num_chunks),
        )

    def _kept(self, path: Sequence[PathShot]) -> tuple[tuple[MemoryFrame, ...], ...]:
        """Of every shot but the last what memory kept of it when the next one was opened."""
        forgotten = max(0, len(path) - 1 - REMEMBERED_SHOTS)
        return tuple(
            self._archive.remembered(shot.take.take.node, "kept") if index >= forgotten else ()
            for index, shot in enumerate(path[1:])
        )

    def _edits(self, path: Sequence[PathShot]) -> tuple[MemoryEdit, ...]:
        return tuple(
            edit
            for shot in path
            for edit in self._archive.edits(shot.take.take.node, self._chunks_for(shot.take.take.node, shot.num_frames))
        )

    def _running(self, stored: StoredTake, num_chunks: int) -> KeptShot:
        take = stored.take
        chunks = self._archive.chunks(take.node, num_chunks)
        return KeptShot(
            index=take.shot,
            take=take.take,
            caption=chunks[-1].shot_caption,
            steers=chunks[-1].steers,
            num_chunks=10_000,
            context=self._archive.remembered(take.node),
            chunks=[self._kept_chunk(chunk) for chunk in chunks],
        )

    def _kept_chunk(self, chunk: StoredChunk) -> KeptChunk:
        latent = torch.from_numpy(self._archive.latent(chunk.node, chunk.chunk).copy())[None]
        return KeptChunk(latent=latent, caption=chunk.caption)


def _count(chunks: Sequence[StoredChunk], num_frames: int) -> int:
    """How many of these it takes to have so many frames."""
    ends = accumulate(chunk.num_frames for chunk in chunks)
    return min(len(chunks), sum(end < num_frames for end in ends) + 1) if num_frames > 0 else 0


def _marks(chunks: Sequence[StoredChunk], texts: Mapping[str, str]) -> tuple[SteerMark, ...]:
    """Of the steers in a take. texts: what people wrote, by the id of the command."""
    planned = {plan.chunk: plan for plan in _plan(chunks)}
    marks = []
    for chunk in chunks:
        given = [(id, texts[id]) for id in chunk.applied if id in texts]
        plan = planned.get(chunk.chunk)
        if plan is not None and not given:  # a retake repeats what was said in another take
            given = [("", text) for text in (plan.steers or (plan.caption,))]
        marks += [SteerMark(id=id, chunk=chunk.chunk, first_frame=chunk.start, text=text) for id, text in given]
    return tuple(marks)


def _rest(stored: StoredTake, made: int) -> tuple[Planned, ...]:
    """What a retake that was left early had still to say."""
    return tuple(planned for planned in stored.plan if planned.chunk >= made)


def _plan(chunks: Sequence[StoredChunk]) -> tuple[Planned, ...]:
    """Where, after its first chunk, a take was steered, and how."""
    plan = []
    for before, chunk in pairwise(chunks):
        if (chunk.shot_caption, chunk.steers) == (before.shot_caption, before.steers):
            continue
        adds = chunk.shot_caption == before.shot_caption and chunk.steers[: len(before.steers)] == before.steers
        steers = chunk.steers[len(before.steers) :] if adds else chunk.steers
        plan.append(Planned(chunk=chunk.chunk, caption=chunk.shot_caption, steers=steers, replaces=not adds))
    return tuple(plan)
