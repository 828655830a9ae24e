"""Addressed noise: every draw is named by where in the story it is used, never by what was drawn before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def addressed_noise(*, seed: int, shot: int, take: int, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 on the CPU, a pure function of its arguments.

    Philox, a counter-based generator (Salmon et al. 2011): the key is (seed, shot and take), the counter starts at
    (chunk, step). The same numbers on a retake, a branch, a resume and an offline export.
    """
    key = np.array([seed % 2**64, (shot % 2**32) << 32 | take % 2**32], dtype=np.uint64)
    counter = np.array([0, 0, step, chunk], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
