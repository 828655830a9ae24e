"""Films a story that says how each of its shots was made: the very same frames again.

A shot is a function of its captions, its address in the noise (seed, number, take) and the frames it remembers. An
exported story names all three, so every shot is made by a stream of its own, whatever the tree was that it came from.
"""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from shotstream.engine.memory import PICTURE_SHOT, FrameId, MemoryFrame, ShotMemory
from shotstream.engine.stream import Chunk, Engine, Stream
from shotstream.presets import Preset
from shotstream.story import PICTURE, Making, Picture, Recall, Shot, Story, num_pixel_frames


def film_shot(stream: Stream, shot: Shot) -> Iterator[Chunk]:
    """Cut to a shot, steer it as it says, and yield its chunks."""
    take = shot.making.take if shot.making is not None else 0
    stream.cut(shot.caption, num_chunks=shot.num_chunks, steers=shot.steers, take=take)
    yield from stream


def retell(engine: Engine, story: Story) -> Iterator[Chunk]:
    """Film an exact story (`Story.is_exact`) and yield its chunks as the film shows them.

    `Chunk.shot` is the place of the shot in `story.shots`; its frames are those that are part of the film. Shots that
    the film shows later than they are made wait in memory until they were shown: 15 MB each in storyworld.

    Raises: ValueError for a frame that a shot recalls but no shot has.
    """
    teller = _Teller(engine, story)
    order = deque(story.order or [making.id for making in teller.makings if making.frames != 0])
    waiting: dict[int, list[Chunk]] = {}
    for place, (shot, making) in enumerate(zip(story.shots, teller.makings, strict=True)):
        is_next, made = bool(order) and order[0] == making.id, list[Chunk]()
        for chunk in _shown(teller.film(shot, making), place, making.frames):
            made.append(chunk)
            if is_next:
                yield chunk
        if is_next:
            order.popleft()
        if making.id in order:
            waiting[making.id] = made
        while order and order[0] in waiting:
            id = order.popleft()
            yield from waiting[id] if id in order else waiting.pop(id)


def check_recalls(preset: Preset, story: Story) -> None:
    """Raise ValueError for what a shot of an exact story recalls and the story does not have: before any is filmed."""
    lengths = {shot.making.id: num_pixel_frames(shot.num_chunks) for shot in story.shots if shot.making is not None}
    for making in (shot.making for shot in story.shots if shot.making is not None):
        _check_places(preset.slab.context_frames, making.recalls)
        for recall in making.recalls:
            if recall.id == PICTURE:
                _read_png(story.pictures[recall.frame], preset.width, preset.height)
            elif recall.frame >= lengths[recall.id]:
                raise ValueError(
                    f"shot {making.id} recalls frame {recall.frame} of shot {recall.id}, which has "
                    f"{lengths[recall.id]}: leave every shot as long as it was"
                )


def _check_places(capacity: int, recalls: Sequence[Recall]) -> None:
    if len(recalls) > capacity:
        raise ValueError(f"a shot recalls {len(recalls)} frames, this preset remembers at most {capacity}")


def _shown(chunks: Iterator[Chunk], place: int, num_frames: int | None) -> Iterator[Chunk]:
    """The first frames of a shot; all of it is made, since others may recall the rest."""
    for chunk in chunks:
        frames = chunk.frames[:num_frames]
        if num_frames is not None:
            num_frames -= len(frames)
        if len(frames):
            yield replace(chunk, shot=place, frames=frames)


class _Teller:
    """Keeps what later shots recall while the shots before them are made."""

    def __init__(self, engine: Engine, story: Story) -> None:
        self._engine, self._story = engine, story
        self.makings = [shot.making for shot in story.shots if shot.making is not None]
        self._numbers = {making.id: making.number for making in self.makings}
        self._wanted = {recall for making in self.makings for recall in making.recalls}
        self._kept: dict[Recall, MemoryFrame] = {}

    def film(self, shot: Shot, making: Making) -> Iterator[Chunk]:
        stream = self._engine.stream(
            seed=(self._story.seed or 0) if making.seed is None else making.seed,
            global_caption=self._story.global_caption if making.global_caption is None else making.global_caption,
            first_shot=making.number,
        )
        _check_places(self._engine.preset.slab.context_frames, making.recalls)
        frames = [self._recalled(making, recall) for recall in making.recalls]
        stream.memory = _FixedMemory(self._engine.preset.slab.context_frames, making.number, frames)
        first = 0
        for chunk in film_shot(stream, shot):
            self._keep(making.id, first, chunk)
            first += len(chunk.frames)
            yield chunk

    def _keep(self, id: int, first: int, chunk: Chunk) -> None:
        for offset, pixels in enumerate(chunk.frames):
            recall = Recall(id=id, frame=first + offset)
            if recall in self._wanted:
                place: FrameId = (self._numbers[id], recall.frame)
                self._kept[recall] = MemoryFrame(id=place, pixels=pixels.copy(), caption=chunk.caption)

    def _recalled(self, making: Making, recall: Recall) -> MemoryFrame:
        if recall.id == PICTURE:
            picture = self._story.pictures[recall.frame]
            pixels = _read_png(picture, self._engine.preset.width, self._engine.preset.height)
            return MemoryFrame(id=(PICTURE_SHOT, recall.frame), pixels=pixels, caption=picture.caption)
        if recall not in self._kept:
            raise ValueError(f"shot {making.id} recalls frame {recall.frame} of shot {recall.id}, which is not so long")
        return self._kept[recall]


class _FixedMemory(ShotMemory):
    """Remembers what it is told, whatever the caption."""

    def __init__(self, capacity: int, num_shots: int, frames: Sequence[MemoryFrame]) -> None:
        super().__init__(capacity)
        self._earlier, self._chosen = num_shots, tuple(frames)

    @property
    def num_shots(self) -> int:
        return self._earlier

    def choose(self, caption: str) -> tuple[MemoryFrame, ...]:
        return self._chosen


def _read_png(picture: Picture, width: int, height: int) -> npt.NDArray[np.uint8]:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(picture.png, validate=True)), formats=("PNG",))
        size, pixels = image.size, np.array(image.convert("RGB"))
    # SyntaxError: a broken PNG.
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the story's picture {picture.caption!r} is not a PNG file in base64") from error
    if size != (width, height):
        raise ValueError(f"the picture {picture.caption!r} is {size}, the video is {(width, height)}")
    return pixels
