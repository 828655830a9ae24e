"""The method with one thing taken away: engines that film as usual but for that.

Nothing is trained; weights, codec and text encoder are those of the engine that is varied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.engine.memory import MemoryFrame, ShotMemory, allocate_context, evenly_spaced
from shotstream.engine.stream import Engine, Stream, Timings
from shotstream.evaluation.film import NoMemory, split_chunks
from shotstream.models.codec import from_uint8

Pick = Literal["even", "first", "first_and_last"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is different. The defaults change nothing."""

    remember: bool = True
    """Whether there is a global cache of earlier shots; without, every shot starts as a story's first."""
    theta: float | None = None
    """Of the indicator, radians per shot; None leaves it."""
    places: int | None = None
    """How many frames are remembered at most. The cache keeps its size: fewer frames are repeated."""
    pick: Pick = "even"
    """Which frames of an earlier shot."""
    target_caption: bool = False
    """Remembered frames carry the new shot's caption instead of their own."""
    steps: int | None = None
    """Denoising steps, of the levels that the student was trained at."""
    sink_frames: int | None = None
    window_frames: int | None = None
    single_shot: bool = False
    """No cut at all: one endless shot whose caption is switched, its cache computed again under the new caption."""


class VariedEngine(Engine):
    """An engine that shares another's weights."""

    def __init__(self, engine: Engine, variant: Variant) -> None:
        preset, slab = engine.preset, engine.preset.slab
        slab = replace(
            slab,
            sink_frames=slab.sink_frames if variant.sink_frames is None else variant.sink_frames,
            window_frames=variant.window_frames or slab.window_frames,
        )
        levels = preset.student_levels
        preset = replace(preset, slab=slab, student_levels=some_of(levels, variant.steps or len(levels)))
        model = engine.model
        if variant.theta is not None:
            config = replace(preset.dit, theta=variant.theta)
            preset, model = replace(preset, dit=config), copy.copy(model)
            model.config = replace(model.config, theta=variant.theta)
        super().__init__(preset, model, engine.codec, engine.text)
        self.variant = variant

    def stream(self, *, seed: int = 0, global_caption: str = "", first_shot: int = 0) -> Stream:
        kind = SingleShotStream if self.variant.single_shot else Stream
        stream = kind(self, seed=seed, global_caption=global_caption, first_shot=first_shot)
        if not isinstance(stream, SingleShotStream):
            stream.memory = self._memory(stream.memory)
        return stream

    def _memory(self, usual: ShotMemory) -> ShotMemory:
        variant = self.variant
        if not variant.remember:
            return NoMemory(usual.capacity)
        if variant.places is None and variant.pick == "even" and not variant.target_caption:
            return usual
        return RuleMemory(usual.capacity, variant)


def some_of(levels: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the levels, evenly spaced from the first on. Raises ValueError if there are fewer."""
    if not 1 <= count <= len(levels):
        raise ValueError(f"the student was trained at {len(levels)} levels, got {count} steps")
    return tuple(levels[int(i * len(levels) / count + 0.5)] for i in range(count))


class RuleMemory(ShotMemory):
    """Remembers by a variant's rule. All frames of finished shots are kept: not for long stories."""

    def __init__(self, capacity: int, variant: Variant) -> None:
        places = capacity if variant.places is None else variant.places
        if not 1 <= places <= capacity:
            raise ValueError(f"the cache has {capacity} places, got {places}")
        super().__init__(capacity)
        self.places, self.variant = places, variant

    def choose(self, caption: str) -> tuple[MemoryFrame, ...]:
        counts = allocate_context(self.num_shots, self.places)
        chosen = [
            self._shots[shot][index]
            for shot, count in enumerate(counts)
            for index in _picked(max(self._shots[shot]), count, self.variant.pick)
        ]
        return tuple(replace(f, caption=caption) if self.variant.target_caption else f for f in chosen)

    def _asked_for(self, num_shots: int, last: int) -> list[int]:
        return list(range(last + 1))


def _picked(last: int, count: int, pick: Pick) -> tuple[int, ...]:
    ends = {"first": (0,), "first_and_last": (0, last)}
    return ends[pick][:count] if pick != "even" else evenly_spaced(0, last, count)


class _Prologue(NoMemory):
    """Remembers nothing, but holds the shots that a story begins with."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.given: list[npt.NDArray[np.uint8]] = []

    def add_shot(self, frames_THWC: npt.NDArray[np.uint8], captions: Sequence[str]) -> None:
        self.given.append(frames_THWC)


class SingleShotStream(Stream):
    """A cut only switches the caption: the picture goes on, and the cache is computed again under the new caption.

    The nearest that a method without shots comes to a story (as LongLive, arXiv:2509.22622, switches prompts). At most
    one shot can be given beforehand.
    """

    def __init__(self, engine: Engine, *, seed: int, global_caption: str = "", first_shot: int = 0) -> None:
        super().__init__(engine, seed=seed, global_caption=global_caption, first_shot=first_shot)
        self.memory: _Prologue = _Prologue(self.memory.capacity)
        self._made: list[Tensor] = []
        """Latents of all chunks so far."""
        self._going_on = engine.codec.new_decoder_state(1)
        """The one state in which everything is decoded."""
        self._restored = 0

    @property
    def chunk_index(self) -> int:
        return super().chunk_index - self._restored

    def _open_next(self, timings: Timings) -> bool:
        self._take_over_given()
        opened = super()._open_next(timings)
        if opened:
            self._decoder = self._going_on
            self._recache()
        return opened

    def _recache(self) -> None:
        """The sink and the newest chunks, as if this shot had made them."""
        assert self._running is not None
        captions = self.engine.caption_kv(self._compose(self._running.shot, 0, self._running.index))
        slab = self.engine.preset.slab
        sink = slab.sink_frames // slab.chunk_frames
        room = slab.window_chunks - 1
        made = self._made
        kept = made if len(made) <= room else [*made[:sink], *made[len(made) - room + sink :]]
        for latent in kept:
            self._rollout.restore_chunk(latent, captions)
        self._restored = len(kept)

    @torch.no_grad()
    def _take_over_given(self) -> None:
        encoder = self.engine.codec.new_encoder_state(1)
        for frames in self.memory.given:
            for chunk in split_chunks(frames):
                pixels = from_uint8(torch.from_numpy(chunk)[None]).to(self.engine.model.device)
                self._made.append(self.engine.codec.encode_chunk(pixels, encoder).float())
                self.engine.codec.decode_chunk(self._made[-1], self._going_on)
        self.memory.given.clear()

    def _denoise(self, *args: object) -> Tensor:
        latent: Tensor = super()._denoise(*args)  # type: ignore[arg-type]
        self._made.append(latent)
        return latent
