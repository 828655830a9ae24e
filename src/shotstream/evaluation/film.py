"""Films stories of the drawn world over the live path, in the ways that the suite compares.

Everything generated here comes out of `engine.stream`, chunk by chunk, as it would for a viewer. A story can also begin
with given shots (rendered, or filmed before), which then are all that the stream remembers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream.engine.memory import MemoryFrame, ShotMemory
from shotstream.engine.stream import Engine, Stream, TeacherStream
from shotstream.models.codec import Codec, from_uint8
from shotstream.story import Steer
from shotstream.storyworld import ShotSpec, WorldStory, first_frame, render_shot
from shotstream.storyworld.sampler import NUM_CHUNKS
from shotstream.storyworld.spec import MARKS, NOBODY

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmedShot:
    """The chunks of one shot, uint8 [T, H, W, 3] each, and the caption in force in each."""

    chunks: tuple[Pixels, ...]
    captions: tuple[str, ...]
    seconds: float = 0.0
    """Wall clock of making it; 0 for renders."""

    @property
    def frames(self) -> Pixels:
        return np.concatenate(self.chunks)

    @property
    def frame_captions(self) -> list[str]:
        return [caption for chunk, caption in zip(self.chunks, self.captions, strict=True) for _ in chunk]


class NoMemory(ShotMemory):
    """Remembers nothing, so that every shot begins as a story's first."""

    def choose(self, caption: str) -> tuple[MemoryFrame, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Take:
    """How a story is to be filmed."""

    seed: int
    given: Sequence[FilmedShot] = field(default_factory=tuple)
    """The story's first shots, which are not generated."""
    last_shot: int | None = None
    """Stop after this shot."""
    steered: bool = True
    """Whether steers are given."""
    remember: bool = True
    num_chunks: int = NUM_CHUNKS
    last_chunks: int | None = None
    """Chunks of the last shot that are made; None is all."""


def film(engine: Engine, story: WorldStory, take: Take) -> list[FilmedShot]:
    """All shots of a story: those given, then those generated."""
    first = len(take.given)
    stream = engine.stream(seed=take.seed, global_caption=story.global_caption, first_shot=first)
    if not take.remember:
        stream.memory = NoMemory(stream.memory.capacity)
    for shot in take.given:
        stream.memory.add_shot(shot.frames, shot.frame_captions)
    last = len(story.shots) - 1 if take.last_shot is None else take.last_shot
    filmed = [
        film_shot(stream, story.shots[index], take, take.last_chunks if index == last else None)
        for index in range(first, last + 1)
    ]
    return [*take.given, *filmed]


def film_shot(stream: Stream, spec: ShotSpec, take: Take, stop: int | None = None) -> FilmedShot:
    """Cut to a shot and play it, up to chunk `stop`; steers arrive while it plays, as a viewer's would."""
    wanted = [
        Steer(chunk=c.chunk, caption=c.caption) for c in spec.steers if take.steered and c.chunk < take.num_chunks
    ]
    ahead = isinstance(stream, TeacherStream)  # a teacher makes the shot as a whole
    began = time.perf_counter()
    stream.cut(spec.caption, num_chunks=take.num_chunks, steers=wanted if ahead else ())
    chunks, captions = [], []
    for index in range(take.num_chunks if stop is None else stop):
        for steer in wanted:
            if steer.chunk == index and not ahead:
                stream.steer(steer.caption)
        chunk = next(stream)
        chunks.append(chunk.frames)
        captions.append(chunk.caption)
    return FilmedShot(chunks=tuple(chunks), captions=tuple(captions), seconds=time.perf_counter() - began)


def rendered(story: WorldStory, index: int, *, height: int, width: int, num_chunks: int = NUM_CHUNKS) -> FilmedShot:
    """A shot as the drawn world has it."""
    shot = render_shot(story.shots[index], num_frames=first_frame(num_chunks), height=height, width=width)
    return FilmedShot(
        chunks=tuple(split_chunks(shot.pixels)),
        captions=tuple(story.captions(index, chunk) for chunk in range(num_chunks)),
    )


@torch.no_grad()
def through_codec(shot: FilmedShot, codec: Codec) -> FilmedShot:
    """Encoded and decoded, chunk by chunk as a stream is."""
    encoder, decoder = codec.new_encoder_state(1), codec.new_decoder_state(1)
    chunks = []
    for chunk in shot.chunks:
        pixels = from_uint8(torch.from_numpy(chunk)[None].to(codec.device))
        latents = codec.encode_chunk(pixels, encoder)
        chunks.append(np.asarray(codec.decode_chunk(latents, decoder)[0].cpu().numpy()))
    return replace(shot, chunks=tuple(chunks))


def split_chunks(frames_THWC: Pixels) -> list[Pixels]:
    """Frames of a shot by chunk: the first 9, then 12 each."""
    bounds = [first_frame(chunk) for chunk in range(1, NUM_CHUNKS + 1) if first_frame(chunk) < len(frames_THWC)]
    return np.split(frames_THWC, bounds)


def with_uniform_marks(story: WorldStory, rng: np.random.Generator) -> WorldStory:
    """The same story and captions with every person's hidden mark drawn anew, all marks equally likely."""
    names = sorted({s.character for s in story.shots} | {s.second_character for s in story.shots} - {NOBODY})
    marks = {name: MARKS[int(rng.integers(len(MARKS)))] for name in names} | {NOBODY: NOBODY}
    shots = [replace(s, mark=marks[s.character], second_mark=marks[s.second_character]) for s in story.shots]
    return replace(story, shots=tuple(shots))
