"""The tree of takes as a director knows it, and the cards of the way from its beginning to the newest shot.

A node is one take of one shot. The way from the story's beginning to `head` is what is live; everything else stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shotstream.engine.direction import GoOn, Made, NewShot, Place
from shotstream.engine.messages import ShotCard, ShotOpened, SteerMark, Take, TreeChanged
from shotstream.engine.underway import RunningShot

_CARDS = 200


class Takes:
    """Which takes there are, which one is at the head of the story, and what leads there."""

    def __init__(self, takes: Iterable[Take] = (), *, head: int | None = None, cards: Iterable[ShotCard] = ()) -> None:
        self._takes = {take.node: take for take in takes}
        self.head = head
        self.cards = list(cards)[-_CARDS:]
        """Of the way to `head`, oldest first; only the newest are kept."""

    def all(self) -> tuple[Take, ...]:
        """Every take, in the order in which they were made."""
        path = self._path()
        return tuple(replace(take, live=take.node in path) for take in self._takes.values())

    def next_number(self) -> int:
        """The take number of a shot that follows the head."""
        return 1 + max((take.take for take in self._takes.values() if take.parent == self.head), default=-1)

    def begin(self) -> None:
        """Another story begins: nothing leads to its first shot."""
        self.head, self.cards = None, []

    def open(self, shot: RunningShot, text: str, made: Made, aired_before: int | None) -> ShotOpened:
        """A shot is on air, after the head, of which so many frames count: it becomes the head."""
        opened = ShotOpened(
            node=self.new_node(),
            parent=self.head,
            shot=shot.index,
            take=shot.take,
            start=shot.start,
            text=text,
            caption=made.caption,
            num_chunks=shot.num_chunks,
            context=made.context,
            aired_before=aired_before,
            thumbnail=made.thumbnail,
        )
        self._takes[opened.node] = Take(
            node=opened.node,
            parent=opened.parent,
            parent_frames=opened.aired_before,
            shot=opened.shot,
            take=opened.take,
            text=opened.text,
            caption=opened.caption,
            num_chunks=opened.num_chunks,
            made_chunks=1,
            thumbnail=opened.thumbnail,
        )
        card = ShotCard(
            node=opened.node,
            shot=opened.shot,
            take=opened.take,
            start=opened.start,
            text=opened.text,
            caption=opened.caption,
            num_chunks=opened.num_chunks,
            made_chunks=1,
            context=made.context,
            thumbnail=opened.thumbnail,
        )
        self.head = opened.node
        self.cards = [*self.cards, card][-_CARDS:]
        return opened

    def new_node(self) -> int:
        """A number that no node has."""
        return 1 + max(self._takes, default=0)

    def update(self, *, num_chunks: int, made_chunks: int, marks: Iterable[SteerMark] = ()) -> None:
        """The newest shot got longer, or was steered."""
        if self.head is None or not self.cards:
            return
        counts = {"num_chunks": num_chunks, "made_chunks": made_chunks}
        self._takes[self.head] = replace(self._takes[self.head], **counts)  # type: ignore[arg-type]
        card = self.cards[-1]
        self.cards[-1] = replace(card, steers=(*card.steers, *marks), **counts)  # type: ignore[arg-type]

    def close(self, start: int) -> None:
        """Frames from `start` on belong to a new shot: marks of steers that were never on air go."""
        if self.cards:
            last = self.cards[-1]
            self.cards[-1] = replace(last, steers=tuple(mark for mark in last.steers if mark.first_frame < start))

    def go_to(self, place: Place) -> TreeChanged:
        """Make the way to a place the live one."""
        new: tuple[Take, ...] = ()
        cards = list(place.cards)
        if isinstance(place, NewShot):
            self.head = place.parent
        else:
            self.head = place.take.node
            if place.fork:
                fork = self._fork(place)
                self._takes[fork.node], self.head = fork, fork.node
                cards[-1] = replace(cards[-1], node=fork.node)
                new = (replace(fork, live=True),)
        self.cards = cards[-_CARDS:]
        return TreeChanged(head=self.head, takes=new, shots=tuple(self.cards), opening=isinstance(place, NewShot))

    def _fork(self, place: GoOn) -> Take:
        take = place.take
        length = max(take.num_chunks, take.made_chunks + 1)
        return replace(take, node=self.new_node(), origin=take.node, num_chunks=length, hidden=False)

    def hide(self, node: int, hidden: bool) -> TreeChanged:
        """Hide a take and all that follow it, or show them. Raises ValueError if it is unknown or live."""
        if node not in self._takes:
            raise ValueError(f"there is no take {node} in this story")
        if hidden and node in self._path():
            raise ValueError("that take is part of what is live: go back to another branch first, then hide it")
        changed = []
        for take in self._below(node):
            self._takes[take] = replace(self._takes[take], hidden=hidden)
            changed.append(self._takes[take])
        path = self._path()
        return TreeChanged(head=self.head, takes=tuple(replace(t, live=t.node in path) for t in changed))

    def _below(self, node: int) -> list[int]:
        found = [node]
        for take in self._takes.values():  # children always come after their parents
            if take.parent in found:
                found.append(take.node)
        return found

    def _path(self) -> set[int]:
        path: set[int] = set()
        node = self.head
        while node is not None and node not in path:
            path.add(node)
            node = self._takes[node].parent
        return path
