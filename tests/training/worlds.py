"""A toy world in latent space: coloured squares whose hidden corner mark only memory can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from shotstream.training.data import Captions, chunk_of_latent, chunk_of_pixel, frames_ever_asked_for, write_shard

CHANNELS, HEIGHT, WIDTH = 4, 4, 4
TEXT_LENGTH, TEXT_WIDTH = 4, 8
FRAMES = 81
LATENTS = 21
COLOURS = ("red", "blue", "green", "grey")


def latent(
    colour: int, mark: int, time: float, rng: np.random.Generator, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> np.ndarray:
    """The colour sets two channels, the mark another; a bright row moves down with time (which row is not told)."""
    out = np.zeros((CHANNELS, *size), np.float32)
    out[0] = 1.5 if colour & 1 else -1.5
    out[1] = 1.5 if colour & 2 else -1.5
    out[2, int(time * size[0]) % size[0]] = 2
    out[3] = 1.5 if mark else -1.5
    return (out + 0.05 * rng.standard_normal(out.shape)).astype(np.float16)


class PlainCodec:
    """Latents as pictures and back: the four channels lie side by side in squares of 2 x 2 grey pixels, nothing is
    learnt. What is drawn is then what will be remembered, up to the rounding of bytes."""

    RANGE = 8.0

    def decode(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        """[B, F, 4, h, w] to [B, 4 F - 3, 3, 2 h, 2 w] in [0, 1]; every picture stands for its whole latent."""
        grey = F.pixel_shuffle(latents_BFCHW, 2).expand(-1, -1, 3, -1, -1)
        times = torch.tensor([1] + [4] * (grey.shape[1] - 1))
        return (grey / self.RANGE + 0.5).clamp(0, 1).repeat_interleave(times, dim=1)

    def encode_frames(self, frames_BNHWC: torch.Tensor) -> torch.Tensor:
        """uint8 [B, N, 2 h, 2 w, 3] to [B, N, 4, h, w]."""
        grey = frames_BNHWC[..., :1].movedim(-1, 2).float() / 255
        return F.pixel_unshuffle((grey - 0.5) * self.RANGE, 2)


class SignCodec(PlainCodec):
    """Draws only the signs of latents: two walks that differ in their last bits remember the same pictures."""

    def decode(self, latents_BFCHW: torch.Tensor) -> torch.Tensor:
        return super().decode(latents_BFCHW.sign())


def states(captions: list[str]) -> torch.Tensor:
    """Token states of captions, any fixed code will do."""
    out = torch.zeros(len(captions), TEXT_LENGTH, TEXT_WIDTH)
    for row, caption in enumerate(captions):
        code = COLOURS.index(caption)
        out[row, 0, code] = 3.0
        out[row, 1] = 0.5
    return out


def write_library(
    folder: Path,
    *,
    stories: int = 24,
    shots: int = 3,
    per_shard: int = 12,
    seed: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    first_shard: int = 0,
) -> Path:
    """A library of stories in which the mark is the same in all shots of a story, and named in no caption."""
    for shard, first in enumerate(range(0, stories, per_shard), first_shard):
        _write_shard(folder / f"shard-{shard:05d}", range(first, min(first + per_shard, stories)), shots, seed, size)
    return folder


def _write_shard(path: Path, stories: range, shots: int, seed: int, size: tuple[int, int]) -> None:
    frames: dict[str, list] = {}
    clips: dict[str, list] = {}
    shot_rows: dict[str, list] = {}
    captions = Captions()
    for story in stories:
        rng = np.random.default_rng((seed, story))
        mark = int(rng.integers(2))
        for shot in range(shots):
            colour, phase = int(rng.integers(len(COLOURS))), float(rng.random())
            caption = captions.id_of(COLOURS[colour])
            asked = frames_ever_asked_for(shot, shots, 6, FRAMES)
            for p in sorted({0, *rng.choice(FRAMES, 2, replace=False).tolist(), *asked}):
                row = {"story": story, "shot": shot, "pixel_frame": p, "roundtrip": False, "caption": caption}
                row |= {
                    "important": np.eye(*size, dtype=bool),
                    "latent": latent(colour, mark, phase + p / FRAMES, rng, size),
                }
                _add(frames, row)
                assert chunk_of_pixel(p) < 7
            row = {"story": story, "shot": shot, "caption": np.full(7, caption)}
            _add(shot_rows, row)
            row |= {"important": np.zeros((LATENTS, *size), bool)}
            row |= {"latent": np.stack([latent(colour, mark, phase + f / LATENTS, rng, size) for f in range(LATENTS)])}
            assert chunk_of_latent(LATENTS - 1) == 6
            _add(clips, row)
    tables = [{name: np.stack(column) for name, column in table.items()} for table in (frames, clips, shot_rows)]
    second = ["none", "fox"]  # in every second shot
    labels = [
        {"story": story, "shots": [{"second_character": second[i % 2]} for i in range(shots)]} for story in stories
    ]
    write_shard(
        path,
        frames=tables[0],
        clips=tables[1],
        shots=tables[2],
        captions=captions.texts,
        text_states=states(captions.texts),
        stories=labels,
    )


def _add(table: dict[str, list], row: dict) -> None:
    for name, value in row.items():
        table.setdefault(name, []).append(np.asarray(value))
