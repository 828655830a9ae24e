"""An engine without a model: it takes a set time for each chunk and draws what a test wants to know.

Everything around the model is the real thing (instructions, shots, memory, captions, abandoned chunks), so that the
server and the page can be built and tested on any machine. Its frames carry a barcode (`barcode.py`) and readable text.
"""

from __future__ import annotations

import colorsys
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shotstream.engine.barcode import Barcode, barcode_height, caption_hash, draw_barcode
from shotstream.engine.memory import MemoryFrame
from shotstream.engine.rollout import ChunkAbandoned, Context
from shotstream.engine.stream import Applied, Chunk, Engine, KeptChunk, ShotMaker, Stream, Timings, _RunningShot
from shotstream.models.dit import CaptionKV
from shotstream.presets import STORYWORLD, Preset

FAKE = replace(STORYWORLD, name="fake", files={})
"""Sizes and schedule of storyworld, no weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeConfig:
    """How long the engine pretends to work."""

    chunk_ms: float = 250.0
    """For one chunk, in as many equal steps as the student has passes; a cut ends it at the next step."""
    open_ms: float = 40.0
    """For opening a shot: the text, and the frames that it remembers."""
    preset: Preset = FAKE

    def __post_init__(self) -> None:
        if not (0 <= self.chunk_ms < math.inf and 0 <= self.open_ms < math.inf):
            raise ValueError(
                f"compute times must not be negative or endless, got {self.chunk_ms} and {self.open_ms} ms"
            )


class FakeEngine(Engine):
    """Streams numbered pictures. It has no `model`, no `codec` and no `text`."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        self.config = config or FakeConfig()
        self.preset = self.config.preset
        self._stories = itertools.count()

    def stream(self, *, seed: int = 0, global_caption: str = "", first_shot: int = 0) -> FakeStream:
        """A new story; its barcodes carry a number that counts up with each."""
        return FakeStream(
            self, seed=seed, global_caption=global_caption, first_shot=first_shot, story=next(self._stories)
        )

    def caption_kv(self, caption: str) -> CaptionKV:
        """Captions are only drawn."""
        return CaptionKV((), ())

    def check_caption(self, caption: str) -> None:
        """A word counts as a token. Raises ValueError if there are more than the preset reads."""
        tokens, limit = len(caption.split()), self.preset.dit.text_len
        if tokens > limit:
            raise ValueError(
                f"the caption has {tokens} tokens, at most {limit} are read: shorten it ({caption[:60]}...)"
            )

    def similarity(self, caption: str, others: Sequence[str]) -> list[float]:
        """Cosine of their sets of words."""
        words, sets = set(caption.lower().split()), [set(other.lower().split()) for other in others]
        return [len(words & other) / max(1, len(words) * len(other)) ** 0.5 for other in sets]


class _Counter:
    """Stands where the rollout does and counts chunks."""

    def __init__(self) -> None:
        self.chunk_index = 0

    def open_shot(self, context: Context) -> None:
        self.chunk_index = 0

    def take_back(self) -> None:
        self.chunk_index -= 1


class FakeStream(Stream):
    """A stream whose chunks are drawn instead of denoised."""

    engine: FakeEngine

    def __init__(
        self, engine: FakeEngine, *, seed: int = 0, global_caption: str = "", first_shot: int = 0, story: int = 0
    ) -> None:
        super().__init__(engine, seed=seed, global_caption=global_caption, first_shot=first_shot)
        self.story = story

    def _new_maker(self) -> ShotMaker:
        self._counter = _Counter()
        return self._counter

    def _begin_shot(self, shot: _RunningShot, caption: str) -> None:
        time.sleep(self.engine.config.open_ms / 1000)
        self._counter.chunk_index = 0

    def encode_ahead(self) -> None:
        """Pictures are drawn, not encoded."""

    def _replay(self, shot: _RunningShot, chunk: KeptChunk) -> NDArray[np.uint8]:
        frames = self._draw(shot, self._counter.chunk_index, chunk.caption)
        self._counter.chunk_index += 1
        return frames

    def _make_chunk(self, shot: _RunningShot, applied: tuple[Applied, ...], timings: Timings) -> Chunk:
        index = self.chunk_index
        caption = self._compose(shot.shot, index, shot.index)
        with timings.measure("denoise"):
            self._pretend_to_denoise(index)
        with timings.measure("decode"):
            frames = self._draw(shot, index, caption)
        self._counter.chunk_index += 1
        self._show(shot, frames, caption)
        preset = self.engine.preset
        return Chunk(
            frames=frames,
            shot=shot.index,
            index=index,
            take=shot.take,
            latent=torch.zeros(
                1, preset.slab.chunk_frames, preset.dit.in_channels, preset.latent_height, preset.latent_width
            ),
            caption=caption,
            applied=applied,
            context=shot.context,
            timings=timings,
        )

    def _pretend_to_denoise(self, index: int) -> None:
        steps = len(self.engine.preset.student_levels)
        for step in range(steps):
            if not self._wanted():
                raise ChunkAbandoned(f"chunk {index} was abandoned before pass {step}")
            time.sleep(self.engine.config.chunk_ms / 1000 / steps)

    def _draw(self, shot: _RunningShot, index: int, caption: str) -> NDArray[np.uint8]:
        preset, shown = self.engine.preset, shot.shown.num_frames
        count = 9 if index == 0 else 12
        backdrop = draw_backdrop(preset.width, preset.height, shot.index, caption)
        frames = np.repeat(backdrop[None], count, axis=0)
        for offset, picture in enumerate(frames):
            code = Barcode(
                story=self.story,
                shot=shot.index,
                take=shot.take,
                chunk=index,
                frame=shown + offset,
                caption=caption_hash(caption),
            )
            _draw_ball(picture, shown + offset)
            draw_barcode(picture, code)
        return frames

    def _filled(self, chosen: tuple[MemoryFrame, ...]) -> list[MemoryFrame]:
        return list(chosen)


@lru_cache(maxsize=16)
def draw_backdrop(width: int, height: int, shot: int, caption: str) -> NDArray[np.uint8]:
    """A dusk of the shot's own hue with its number and caption: uint8 [H, W, 3]."""
    hue = shot * 0.38196601 % 1  # the golden angle: neighbours differ
    top, bottom = (np.array(colorsys.hsv_to_rgb(hue + turn, 0.55, value)) for turn, value in ((0.0, 0.25), (0.08, 0.7)))
    rows = np.linspace(0, 1, height)[:, None]
    sky = ((top * (1 - rows) + bottom * rows) * 255).astype(np.uint8)
    picture = Image.fromarray(np.repeat(sky[:, None], width, axis=1))
    pen = ImageDraw.Draw(picture)
    margin = width // 26
    pen.text((margin, margin), f"shot {shot + 1}", fill="white", font=ImageFont.load_default(size=height // 9))
    font = ImageFont.load_default(size=height // 15)
    pen.multiline_text(
        (margin, margin + height // 6), _wrap(caption, font, width - 2 * margin), fill="white", font=font
    )
    return np.asarray(picture)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:4])


def _draw_ball(picture: NDArray[np.uint8], frame: int) -> None:
    """A ball that hops along above the barcode, so that motion is seen."""
    height, width = picture.shape[:2]
    radius = height // 14
    floor = height - barcode_height(width) - radius - 2
    x = radius + (frame * width // 48) % (width - 2 * radius)
    y = floor - abs(math.sin(frame / 5)) * height / 6
    rows, columns = np.ogrid[:height, :width]
    picture[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = (250, 240, 220)
