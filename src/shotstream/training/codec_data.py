"""Clips for training a codec: short runs of frames, cropped where faces are, made on the fly and without limit.

Every sample is a function of (seed, step, sample) alone, so a resumed run sees exactly what it would have seen, and
several processes see together what one would have.
Boxes are (x0, y0, x1, y1) in pixels of the frame they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.training.randomness import generator_at

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """Consecutive frames of one shot, with what matters most in each."""

    frames: npt.NDArray[np.uint8]
    """[T, H, W, 3]"""
    faces: Sequence[Sequence[Box]]
    marks: Sequence[Sequence[Box]]


class ClipSource(Protocol):
    """Anything that can draw clips."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...

    def clip(self, rng: np.random.Generator, num_frames: int) -> SourceClip:
        """A random clip; equal generators give equal clips."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoryworldSource:
    """Clips of random shots of random stories, from a random frame on."""

    split: str = "train"
    height: int = 192
    width: int = 320
    shot_frames: int = 81

    def clip(self, rng: np.random.Generator, num_frames: int) -> SourceClip:
        from shotstream import storyworld

        story = storyworld.sample_story(int(rng.integers(2**31)), split=self.split)
        spec = story.shots[int(rng.integers(len(story.shots)))]
        first = int(rng.integers(self.shot_frames - num_frames + 1))
        drawn = [storyworld.render_frame(spec, first + i, self.height, self.width) for i in range(num_frames)]
        return SourceClip(
            frames=np.stack([d.pixels for d in drawn]),
            faces=[d.face_boxes for d in drawn],
            marks=[d.mark_boxes for d in drawn],
        )


@dataclass(frozen=True, kw_only=True)
class ShapesSource:
    """Discs with two eyes drifting over a gradient: needs no renderer, for tests and rehearsals."""

    height: int = 192
    width: int = 320

    def clip(self, rng: np.random.Generator, num_frames: int) -> SourceClip:
        ground = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        ramp_H11 = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]
        backdrop_HWC = np.repeat(ground[0] * (1 - ramp_H11) + ground[1] * ramp_H11, self.width, axis=1)
        discs = [_Disc.draw(rng, self.height, self.width) for _ in range(4)]
        frames, faces = [], []
        for t in range(num_frames):
            picture_HWC = backdrop_HWC.copy()
            for disc in discs:
                disc.paint(picture_HWC, t)
            frames.append(picture_HWC.clip(0, 255).astype(np.uint8))
            faces.append([discs[-1].box(t)])
        return SourceClip(frames=np.stack(frames), faces=faces, marks=[[] for _ in frames])


@dataclass(frozen=True)
class _Disc:
    x: float
    y: float
    radius: float
    drift: tuple[float, float]
    colour: tuple[float, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> _Disc:
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        vx, vy = (float(v) for v in rng.uniform(-3, 3, 2))
        return cls(x, y, float(rng.uniform(0.1, 0.25) * height), (vx, vy), tuple(rng.uniform(0, 255, 3)))

    def box(self, t: int) -> Box:
        x, y = self.x + t * self.drift[0], self.y + t * self.drift[1]
        return (x - self.radius, y - self.radius, x + self.radius, y + self.radius)

    def paint(self, picture_HWC: npt.NDArray[np.float32], t: int) -> None:
        """Draw over the picture in place: a filled disc, then its eyes."""
        left, top, right, bottom = self.box(t)
        rows = slice(max(0, int(top) - 1), max(0, int(bottom) + 2))
        columns = slice(max(0, int(left) - 1), max(0, int(right) + 2))
        window_HWC = picture_HWC[rows, columns]
        y_H1, x_1W = np.ogrid[
            rows.start : rows.start + window_HWC.shape[0], columns.start : columns.start + window_HWC.shape[1]
        ]
        cx, cy = (left + right) / 2, (top + bottom) / 2
        for dx, dy, share, colour in (
            (0.0, 0.0, 1.0, self.colour),
            *((side, -0.2, 0.18, (20.0,) * 3) for side in (-0.4, 0.4)),
        ):
            distance_HW = np.hypot(x_1W - cx - dx * self.radius, y_H1 - cy - dy * self.radius) - share * self.radius
            alpha_HW1 = np.clip(0.5 - distance_HW, 0, 1)[..., None].astype(np.float32)
            window_HWC += alpha_HW1 * (np.asarray(colour, dtype=np.float32) - window_HWC)


class Crops(NamedTuple):
    """Pieces of clips, all of one size, and what matters in them. N counts crops."""

    pixels: Tensor
    """[N, T, 3, H, W] in [0, 1]"""
    weight: Tensor
    """[N, T, 1, H, W], 1 or more: what each pixel counts in the loss"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecDataConfig:
    """Shape of the batches. Sides must be multiples of the codec's spatial stride."""

    sample_pixels: int = 9 * 96 * 96
    """About how many pixels one sample holds: many crops of lone frames, one of a long run."""
    crop_sides: tuple[int, ...] = (96, 112, 128)
    clip_frames: tuple[int, ...] = (1, 5, 9, 9, 13)
    """Drawn from with equal chances; 1 teaches lone frames."""
    whole_frames: tuple[int, ...] = (1, 5)
    """The same where nothing is cropped. Short: norms see one frame at a time, and whole frames are dear."""
    steps_per_clip: int = 8
    """Each sample of a batch has clips of its own and gets a new one every so many steps: drawing costs as much as
    learning from it."""
    pool: int = 4
    """A sample's crops are cut from this many of its newest clips."""
    face_bias: float = 0.6
    """Chance that a crop is placed to hold a face, where there is one."""
    box_weight: float = 2.0
    """What a pixel inside a face or mark box counts more than others."""
    motion_weight: float = 2.0
    """What a pixel that just changed counts more than others: without it motion stayed a blur (tried)."""
    motion_levels: int = 8
    """Of 255: a pixel that changes by more is in motion."""


class CropSampler:
    """Crops as a function of (seed, step, sample) alone; remembers clips only so as not to draw them again."""

    def __init__(self, source: ClipSource, config: CodecDataConfig, seed: int) -> None:
        self.source, self.config, self.seed = source, config, seed
        self._clips: dict[tuple[int, int], SourceClip] = {}

    def batch(self, step: int, samples: Sequence[int], *, cropped: bool = True) -> Crops:
        """The crops of some samples of a step, each sample's behind one another; as many of each.

        Every step has a size of its own. With `cropped` false, runs of whole frames.
        """
        size = self._size(step, cropped)
        count = max(1, round(self.config.sample_pixels / math.prod(size)))
        return _stack([crop for sample in samples for crop in self._sample(step, sample, count, size)])

    def fixed(self, count: int, num_frames: int) -> Crops:
        """Crops of the largest side that belong to no step: always the same, to measure on."""
        side = max(self.config.crop_sides)
        crops = []
        for index in range(count):
            rng = generator_at(self.seed, "fixed crop", index)
            crops.append(_crop(rng, self.source.clip(rng, num_frames), num_frames, side, side, self.config))
        return _stack(crops)

    def _size(self, step: int, cropped: bool) -> tuple[int, int, int]:
        config, rng = self.config, generator_at(self.seed, "crop size", step)
        if not cropped:
            return int(rng.choice(config.whole_frames)), self.source.height, self.source.width
        num_frames, side = int(rng.choice(config.clip_frames)), int(rng.choice(config.crop_sides))
        return num_frames, side, side

    def _sample(self, step: int, sample: int, count: int, size: tuple[int, int, int]) -> Iterator[_Crop]:
        config, rng = self.config, generator_at(self.seed, "crop", step, sample)
        # Shifted by the sample, so that not all get their new clips at the same step.
        newest = config.pool + (step + sample) // config.steps_per_clip
        ages = rng.permutation(config.pool)
        for i in range(count):
            clip = self._clip(sample, newest - int(ages[i % config.pool]), newest)
            yield _crop(rng, clip, *size, config)

    def _clip(self, sample: int, index: int, newest: int) -> SourceClip:
        key = (sample, index)
        if key not in self._clips:
            longest = max(*self.config.clip_frames, *self.config.whole_frames)
            self._clips[key] = self.source.clip(generator_at(self.seed, "clip", *key), longest)
            oldest = newest - self.config.pool
            self._clips = {k: clip for k, clip in self._clips.items() if k[0] != sample or k[1] > oldest}
        return self._clips[key]


def box_mask(boxes: Sequence[Sequence[Box]], height: int, width: int) -> npt.NDArray[np.bool_]:
    """[T, H, W], true inside any of a frame's boxes."""
    mask_THW = np.zeros((len(boxes), height, width), dtype=bool)
    for frame, in_frame in enumerate(boxes):
        for x0, y0, x1, y1 in in_frame:
            top, left = max(0, math.floor(y0)), max(0, math.floor(x0))
            mask_THW[frame, top : max(0, math.ceil(y1)), left : max(0, math.ceil(x1))] = True
    return mask_THW


def motion_mask(frames_THWC: npt.NDArray[np.uint8], levels: int) -> npt.NDArray[np.bool_]:
    """[T, H, W], true where a pixel differs from the frame before by more than `levels`; false in the first frame."""
    moving_THW = np.zeros(frames_THWC.shape[:3], dtype=bool)
    moving_THW[1:] = np.abs(np.diff(frames_THWC.astype(np.int16), axis=0)).max(-1) > levels
    return moving_THW


_Crop = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
"""Pixels [T, H, W, 3] and what each counts [T, H, W]."""


def _stack(crops: Sequence[_Crop]) -> Crops:
    pixels_NTCHW = torch.from_numpy(np.stack([pixels for pixels, _ in crops])).movedim(-1, 2).float() / 255
    return Crops(pixels_NTCHW, torch.from_numpy(np.stack([weight for _, weight in crops])).unsqueeze(2))


def _crop(
    rng: np.random.Generator, clip: SourceClip, num_frames: int, height: int, width: int, config: CodecDataConfig
) -> _Crop:
    """A random run of frames and a window of them, with what each pixel counts."""
    first = int(rng.integers(len(clip.frames) - num_frames + 1))
    run = slice(first, first + num_frames)
    y, x = _corner(rng, clip, first + num_frames // 2, height, width, config.face_bias)
    _, frame_height, frame_width, _ = clip.frames.shape
    inside_THW = box_mask(clip.faces[run], frame_height, frame_width)
    inside_THW |= box_mask(clip.marks[run], frame_height, frame_width)
    window = (slice(None), slice(y, y + height), slice(x, x + width))
    pixels_THWC = clip.frames[run][window]
    moving_THW = motion_mask(pixels_THWC, config.motion_levels)
    weight_THW = 1 + config.box_weight * inside_THW[window] + config.motion_weight * moving_THW
    return pixels_THWC, weight_THW.astype(np.float32)


def _corner(
    rng: np.random.Generator, clip: SourceClip, frame: int, height: int, width: int, bias: float
) -> tuple[int, int]:
    _, frame_height, frame_width, _ = clip.frames.shape
    y, x = int(rng.integers(frame_height - height + 1)), int(rng.integers(frame_width - width + 1))
    faces = clip.faces[frame]
    if not faces or rng.random() > bias:
        return y, x
    x0, y0, x1, y1 = faces[int(rng.integers(len(faces)))]
    x = round((x0 + x1) / 2 - width * rng.uniform(0.2, 0.8))
    y = round((y0 + y1) / 2 - height * rng.uniform(0.2, 0.8))
    return min(max(y, 0), frame_height - height), min(max(x, 0), frame_width - width)
