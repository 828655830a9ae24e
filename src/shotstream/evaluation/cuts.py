"""Are cuts seen where they were planned, and nowhere else?

The exact detector compares neighbouring frames. Its threshold lies above what changes inside the drawn world's shots
and below most of what changes at its cuts, both through the codec. TransNetV2 (`transnet.py`) is the usual detector.
A boundary before frame k is called k.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import exp

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

CELL = 8
"""Frames are compared as averages over cells of this many pixels: flakes, drops and noise do not count."""
NEIGHBOURS = 6
"""A cut stands out among the changes this many frames before and after it."""
OUTSTANDING = 2.2
"""By this factor. Of 200 stories through the codec: nothing inside 800 shots, 566 of 600 cuts."""
STILL = 1.0
"""Grey levels of change that nobody notices."""


def changes(frames_THWC: Pixels) -> NDArray[np.float64]:
    """Mean absolute difference of each frame from the one before, [T - 1], in grey levels."""
    count, height, width, channels = frames_THWC.shape
    rows, columns = height // CELL, width // CELL
    half = CELL // 2  # every second pixel will do, at a quarter of the price
    sparse = frames_THWC[:, : rows * CELL : 2, : columns * CELL : 2]
    cells = sparse.reshape(count, rows, half, columns, half, channels).mean((2, 4), dtype=np.float32)
    change: NDArray[np.float64] = np.abs(np.diff(cells, axis=0)).mean((1, 2, 3)).astype(np.float64)
    return change


def find_cuts(frames_THWC: Pixels) -> list[int]:
    """First frame of every shot but the first."""
    change = changes(frames_THWC)
    found = []
    for k, value in enumerate(change):
        around = np.concatenate([change[max(0, k - NEIGHBOURS) : k], change[k + 1 : k + 1 + NEIGHBOURS]])
        if value > OUTSTANDING * (STILL + around.max(initial=0.0)):
            found.append(k + 1)
    return found


def planned_cuts(shot_lengths: Sequence[int]) -> list[int]:
    """First frame of every shot but the first."""
    return list(accumulate(shot_lengths))[:-1]


def shot_cut_accuracy(found: Sequence[int], planned: Sequence[int], num_frames: int) -> float:
    """SCA = exp(-(E_matched + E_penalty) / num_frames), 1 is perfect. HoloCine (arXiv:2510.20822), used by ShotStream.

    Cuts are matched one to one, nearest first; an error counts its frames. Neither paper gives the penalty of a missed
    or extra cut: ours is half the mean length of a planned shot, and nothing further away is a match.
    """
    penalty = num_frames / (len(planned) + 1) / 2
    pairs = sorted((abs(f - p), f, p) for f in found for p in planned)
    free_found, free_planned, error = set(found), set(planned), 0.0
    for distance, f, p in pairs:
        if distance <= penalty and f in free_found and p in free_planned:
            free_found.remove(f)
            free_planned.remove(p)
            error += distance
    return exp(-(error + penalty * (len(free_found) + len(free_planned))) / num_frames)


def false_cuts(found: Sequence[int], shot_lengths: Sequence[int], *, tolerance: int = 1) -> list[int]:
    """How many cuts were found inside each shot, further than `tolerance` frames from its planned ends."""
    starts = [0, *planned_cuts(shot_lengths), sum(shot_lengths)]
    return [sum(start + tolerance < cut < end - tolerance for cut in found) for start, end in pairwise(starts)]
