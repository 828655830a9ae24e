"""Which frames of earlier shots are remembered.

Every earlier shot gets the same number of frames and the most recent ones share what is left; within a shot they are
evenly spaced, both ends included (ShotStream, arXiv 2603.25746). Where shots outnumber the places, captions decide.
"""

from __future__ import annotations

import copy
import mmap
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch


def allocate_context(num_shots: int, capacity: int) -> tuple[int, ...]:
    """How many of `capacity` remembered frames each earlier shot gets, oldest first; (2, 2, 2) for 3 shots and 6."""
    if num_shots < 0 or capacity < 0:
        raise ValueError(f"num_shots and capacity must not be negative, got {num_shots} and {capacity}")
    if num_shots == 0:
        return ()
    base, rest = divmod(capacity, num_shots)
    return tuple(base + (i >= num_shots - rest) for i in range(num_shots))


def evenly_spaced(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` frame numbers from `first` to `last`, both included; one means the first, none gives ().

    Spacing in float32, rounded half to even, as the published code does.
    """
    if count < 0 or last < first:
        raise ValueError(f"need count >= 0 and last >= first, got count={count}, first={first}, last={last}")
    return tuple(torch.linspace(first, last, count, dtype=torch.float32).round().long().tolist())


FrameId = tuple[int, int]
"""(shot, pixel frame of the shot). Pictures of the user's own are (-1, running number)."""

PICTURE_SHOT = -1

REMEMBERED_SHOTS = 32
"""Shots further back are forgotten, so that what a story takes is soon all that it will ever take."""
_IN_PASSING = 16
"""Pictures beyond one of each remembered shot: what the first cuts may ask for of the newest, and a preview of it."""

Similarity = Callable[[str, Sequence[str]], Sequence[float]]
"""How well each of some captions fits a new one; larger is better, 1 is the same."""

NEARLY_EQUAL = 0.998
"""Captions at least so similar tell of the same. Not lower: of two that share a global caption and differ in one person
the directions of MiniLM's early states have a cosine of up to 0.997 (measured)."""


@dataclass(frozen=True, kw_only=True)
class MemoryFrame:
    """One remembered picture and why it was chosen."""

    id: FrameId
    pixels: npt.NDArray[np.uint8]
    """[H, W, 3], as it was shown."""
    caption: str
    """In force when it was shown."""
    reason: Literal["allotted", "matches", "pinned", "picture"] = "allotted"


class Pages:
    """Copies of pictures in pages of their own, which are used again.

    On the heap, what stays for an hour comes to lie among what is gone in a moment, whose room is then not used again.
    """

    def __init__(self, reserve: int) -> None:
        """Args: reserve is the number of pictures there is room for, taken and touched when the first of a size comes;
        more are taken where they do not suffice.
        """
        self._reserve = reserve
        self._free: dict[int, list[mmap.mmap]] = {}
        self.num_bytes = 0
        """Taken so far, in use or not."""

    def copy(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The same picture, or pictures; its room is used again once nobody has it any more."""
        missing = 1 if pixels.nbytes in self._free else max(1, self._reserve)
        free = self._free.setdefault(pixels.nbytes, [])
        if not free:
            free += [self._touched(pixels.nbytes) for _ in range(missing)]
        page = free.pop()
        owner = np.frombuffer(page, np.uint8)  # every view of it, however far derived, keeps it
        weakref.finalize(owner, free.append, page).atexit = False
        copy = owner.reshape(pixels.shape)
        copy[...] = pixels
        return copy

    def _touched(self, num_bytes: int) -> mmap.mmap:
        page = mmap.mmap(-1, num_bytes)
        page.write(bytes(num_bytes))
        self.num_bytes += num_bytes
        return page


class ShownFrames:
    """The frames of a running shot, kept losslessly until it is known which will be remembered.

    Of a shot longer than `limit` frames every second, fourth, ... is kept, and always the last: memory stays flat. What
    is left when some go has pages of its own: a view would keep all frames it came with.
    """

    def __init__(self, limit: int = 1024) -> None:
        self.num_frames = 0
        self._limit, self._stride = limit, 1
        self._pages = Pages(0)
        self._frames: dict[int, tuple[npt.NDArray[np.uint8], str]] = {}
        self._last: tuple[npt.NDArray[np.uint8], str] | None = None
        self._last_number = -1

    def add(self, frames_THWC: npt.NDArray[np.uint8], caption: str) -> None:
        """Append uint8 [T, H, W, 3], shown while `caption` was in force."""
        for frame in frames_THWC:
            self._last, self._last_number = (frame, caption), self.num_frames
            if self.num_frames % self._stride == 0:
                self._frames[self.num_frames] = self._last if self._stride == 1 else self._own(self._last)
            self.num_frames += 1
        if len(self._frames) > self._limit:
            first_time, self._stride = self._stride == 1, self._stride * 2
            left = {i: frame for i, frame in self._frames.items() if i % self._stride == 0}
            self._frames = {i: self._own(frame) for i, frame in left.items()} if first_time else left

    def _own(self, frame: tuple[npt.NDArray[np.uint8], str]) -> tuple[npt.NDArray[np.uint8], str]:
        return self._pages.copy(frame[0]), frame[1]

    @property
    def last_caption(self) -> str:
        """In force at the last frame. There must be one."""
        return self.at(self.num_frames - 1)[1]

    def first(self, num_frames: int | None) -> ShownFrames:
        """The first `num_frames` of them, pixels shared; None or more than there are is all."""
        if num_frames is None or num_frames >= self.num_frames:
            return self
        part = ShownFrames(self._limit)
        part.num_frames, part._stride = num_frames, self._stride
        part._frames = {i: frame for i, frame in self._frames.items() if i < num_frames}
        if num_frames:
            part._last, part._last_number = self.at(num_frames - 1), self.kept(num_frames - 1)
        return part

    def kept(self, index: int) -> int:
        """Number of the nearest kept frame at or before `index`."""
        return self._last_number if index == self.num_frames - 1 else index - index % self._stride

    def at(self, index: int) -> tuple[npt.NDArray[np.uint8], str]:
        """Frame `index` and its caption, or those of the nearest kept frame before it."""
        if index == self.num_frames - 1 and self._last is not None:
            return self._last
        return self._frames[self.kept(index)]


class ShotMemory:
    """Frames of finished shots, kept losslessly as long as a rule may ask for them, and the rule that picks.

    Up to `capacity` earlier shots share the memory by the published allotment. Beyond that the newest shot and those
    whose captions fit the new one best give their newest frame, each person or place once as far as captions tell;
    without a `similarity` the newest shots give their first one, as published.
    Pinned frames and own pictures come first and take their places from the rule. Shots further back than `max_shots`
    are forgotten, apart from pins.
    """

    def __init__(
        self,
        capacity: int,
        *,
        similarity: Similarity | None = None,
        max_shots: int = REMEMBERED_SHOTS,
        picture_size: tuple[int, int] | None = None,
    ) -> None:
        """Args: picture_size is (height, width) of the video, which pictures of the user's own must have."""
        self.capacity, self._similarity, self._max_shots = capacity, similarity, max_shots
        self._picture_size = picture_size
        self._pages = Pages(max_shots + _IN_PASSING)
        self._shots: list[dict[int, MemoryFrame]] = []
        self._pinned: dict[FrameId, MemoryFrame] = {}
        self._removed: set[FrameId] = set()
        self._pictures = 0

    def copy(self) -> ShotMemory:
        """An independent memory of the same pictures."""
        other = copy.copy(self)
        other._shots = [dict(shot) for shot in self._shots]
        other._pinned, other._removed = dict(self._pinned), set(self._removed)
        return other

    @property
    def num_shots(self) -> int:
        return len(self._shots)

    @property
    def num_page_bytes(self) -> int:
        """Room for pictures, in use or not."""
        return self._pages.num_bytes

    def add_shot(self, frames_THWC: npt.NDArray[np.uint8], captions: Sequence[str]) -> None:
        """Take over a finished shot: uint8 [T, H, W, 3] and the caption in force at each of its T frames."""
        shown = ShownFrames(limit=len(frames_THWC))
        for frame, caption in zip(frames_THWC, captions, strict=True):
            shown.add(frame[None], caption)
        self.add_shown(shown)

    def add_shown(self, shown: ShownFrames) -> None:
        """Take over a finished shot; one of which nothing was shown is not remembered."""
        if not shown.num_frames:
            return
        shot = self.num_shots
        frames = {shown.kept(i): shown.at(i) for i in self._asked_for(1, shown.num_frames - 1)}
        self._shots.append(
            {
                i: MemoryFrame(id=(shot, i), pixels=self._pages.copy(p), caption=caption)
                for i, (p, caption) in frames.items()
            }
        )
        self._thin()

    def recall(self, frames: Sequence[MemoryFrame]) -> None:
        """Take over a finished shot of which only these frames are left: what `kept` gave right after `add_shown`."""
        self._shots.append({frame.id[1]: frame for frame in frames})
        self._thin()

    def kept(self, shot: int) -> tuple[MemoryFrame, ...]:
        """What is kept of a finished shot."""
        return tuple(self._shots[shot].values()) if 0 <= shot < self.num_shots else ()

    def _asked_for(self, num_shots: int, last: int) -> list[int]:
        """Frames of a shot that ends with frame `last` that the rule for `num_shots` or more shots can name."""
        counts = {count for n in range(num_shots, self.capacity + 1) for count in allocate_context(n, self.capacity)}
        later = 0 if self._similarity is None else last
        return sorted({later, *(index for count in counts for index in evenly_spaced(0, last, count))})

    def _thin(self) -> None:
        """Drop what no later rule can ask for: a longer story takes fewer frames of each shot."""
        for shot, kept in enumerate(self._shots):
            numbers = sorted(kept)
            wanted = self._asked_for(self.num_shots, max(kept, default=0))
            asked = {numbers[max(0, bisect_right(numbers, index) - 1)] for index in wanted} if numbers else set()
            forgotten = shot < self.num_shots - self._max_shots
            self._shots[shot] = {} if forgotten else {i: frame for i, frame in kept.items() if i in asked}

    def choose(self, caption: str) -> tuple[MemoryFrame, ...]:
        """At most `capacity` frames for a shot with this caption, in story order, own pictures first."""
        pinned = list(self._pinned.values())[: self.capacity]
        room = self.capacity - len(pinned)
        ruled = [f for f in self._by_rule(caption, room) if f.id not in self._pinned and f.id not in self._removed]
        return tuple(sorted([*pinned, *ruled[:room]], key=lambda frame: frame.id))

    def pin(self, id: FrameId) -> None:
        """Remember a kept frame at every following cut. Raises ValueError if it is not kept or there is no place."""
        frame = self._find(id)
        self.check_place(id)
        self.pin_frame(replace(frame, reason="pinned"))

    def check_place(self, id: FrameId) -> None:
        """Raises ValueError if a frame cannot be pinned because others are, in every place there is."""
        if id not in self._pinned and len(self._pinned) >= self.capacity:
            raise ValueError(
                f"{len(self._pinned)} pictures are pinned already, and no more are remembered: remove one of them first"
            )

    def pin_frame(self, frame: MemoryFrame) -> None:
        """Pin a frame that is not kept, of the running shot or a picture of the user's own, whether or not there is a
        place: beyond `capacity` the oldest pins count."""
        self._pinned[frame.id] = frame
        self._removed.discard(frame.id)
        if frame.id[0] == PICTURE_SHOT:
            self._pictures = max(self._pictures, frame.id[1] + 1)

    def remove(self, id: FrameId) -> None:
        """Leave a frame out of every following cut. Raises ValueError if it is not kept."""
        self._find(id)
        self.forget_frame(id)

    def forget_frame(self, id: FrameId) -> None:
        """Leave a frame out that is not kept yet: one of the running shot."""
        self._pinned.pop(id, None)
        self._removed.add(id)

    def add_picture(self, pixels_HWC: npt.NDArray[np.uint8], caption: str) -> FrameId:
        """Pin a picture of the user's own, uint8 [H, W, 3] in the preset's size. Returns its id.

        Raises ValueError if there is no place for it, or it is no such picture.
        """
        shape = (*(self._picture_size or pixels_HWC.shape[:2]), 3)
        if pixels_HWC.shape != shape or pixels_HWC.dtype != np.uint8:
            got = f"{pixels_HWC.dtype} {list(pixels_HWC.shape)}"
            raise ValueError(f"a picture to remember must be uint8 {list(shape)} [H, W, 3], got {got}: scale it first")
        id = (PICTURE_SHOT, self._pictures)
        self.check_place(id)
        self.pin_frame(MemoryFrame(id=id, pixels=pixels_HWC, caption=caption, reason="picture"))
        return id

    def pinned(self, id: FrameId) -> MemoryFrame:
        """A pinned frame, or a picture of the user's own."""
        return self._pinned[id]

    def _find(self, id: FrameId) -> MemoryFrame:
        if id in self._pinned:
            return self._pinned[id]
        shot, frame = id
        if not 0 <= shot < self.num_shots or frame not in self._shots[shot]:
            raise ValueError(f"frame {frame} of shot {shot} is not in memory: choose one that `frames()` lists")
        return self._shots[shot][frame]

    def frames(self) -> tuple[MemoryFrame, ...]:
        """Everything that can be pinned or removed."""
        return (*self._pinned.values(), *(frame for shot in self._shots for frame in shot.values()))

    def _by_rule(self, caption: str, room: int) -> list[MemoryFrame]:
        if self.num_shots > self.capacity and self._similarity is not None:
            return self._best_matching(caption, room, self._similarity)
        return [
            self._nearest(shot, index)
            for shot, count in enumerate(allocate_context(self.num_shots, room))
            if self._shots[shot]  # of a shot that was kept without a frame nothing can be remembered
            for index in evenly_spaced(0, max(self._shots[shot]), count)
        ]

    def _best_matching(self, caption: str, room: int, similarity: Similarity) -> list[MemoryFrame]:
        """Walk from the best; a shot told in nearly the words of one that is taken waits until no other is left."""
        taken, waiting = list[MemoryFrame](), list[MemoryFrame]()
        for frame in self._ranked(caption, similarity):
            if len(taken) == room:
                break
            alike = similarity(frame.caption, [other.caption for other in taken])
            known = any(score >= NEARLY_EQUAL for score in alike) or frame.caption in {f.caption for f in taken}
            (waiting if known else taken).append(frame)
        return [replace(frame, reason="matches") for frame in [*taken, *waiting][:room]]

    def _ranked(self, caption: str, similarity: Similarity) -> list[MemoryFrame]:
        """The newest frame of every shot: the newest shot's, then best matches first, newer ones first among equals."""
        newest = [shot[max(shot)] for shot in reversed(self._shots) if shot]
        free = [frame for frame in newest if frame.id not in self._pinned and frame.id not in self._removed]
        scores = similarity(caption, [frame.caption for frame in free])
        return [frame for _, frame in sorted(zip(scores, free, strict=True), key=lambda pair: self._rank(*pair))]

    def _rank(self, score: float, frame: MemoryFrame) -> tuple[bool, float]:
        return frame.id[0] != self.num_shots - 1, -score

    def _nearest(self, shot: int, index: int) -> MemoryFrame:
        """The kept frame at, or next to, an index: fewer places than usual ask for frames that no allotment keeps."""
        kept = self._shots[shot]
        return kept[min(kept, key=lambda i: (abs(i - index), i))]
