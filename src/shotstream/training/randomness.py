"""Addressed randomness: every draw is named by (seed, purpose, step, sample), so nothing depends on what ran before.

A run that was stopped and resumed, or spread over other processes, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Address = Sequence[int | str]


def generator_at(*address: int | str) -> np.random.Generator:
    """A fresh generator that belongs to this address alone."""
    digest = hashlib.blake2b("/".join(map(repr, address)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def drawn_group(sizes: Sequence[int], *address: int | str) -> int:
    """Index of the group that a member drawn from all groups would be of."""
    return int(np.searchsorted(np.cumsum(sizes), generator_at(*address).integers(sum(sizes)), side="right"))


def normal(generator: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 tensor on the CPU."""
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
