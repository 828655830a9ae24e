"""The shifted flow-matching schedule: sigma tables, step lists, training weights.

Numbers come from Wan2.1 and the published ShotStream code. Sigma is the share of noise (data at 0, noise at 1); a
timestep is 1000 * sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TIMESTEP_SCALE = 1000.0


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """Sigmas shifted towards noise: sigma = shift * s / (1 + (shift - 1) * s), s from 1 down to 1 / num_steps."""

    shift: float = 8.0
    """1 is the straight schedule. Larger spends more steps near pure noise, where layout is decided."""
    num_steps: int = 1000
    """Entries of the training table."""

    def __post_init__(self) -> None:
        if self.shift <= 0 or self.num_steps < 2:
            raise ValueError(f"need shift > 0 and num_steps >= 2, got shift={self.shift}, num_steps={self.num_steps}")

    @cached_property
    def sigmas(self) -> Tensor:
        """[num_steps] float32, descending from 1; zero is not included."""
        return self.sampling_sigmas(self.num_steps)

    @cached_property
    def timesteps(self) -> Tensor:
        """[num_steps] float32, 1000 * sigma."""
        return self.sigmas * TIMESTEP_SCALE

    def sampling_sigmas(self, num_steps: int) -> Tensor:
        """Sigmas of a sampler with `num_steps` Euler steps: [num_steps] float32, the final 0 left out."""
        s = torch.linspace(1.0, 0.0, num_steps + 1)[:-1]
        return self.shift * s / (1 + (self.shift - 1) * s)

    @cached_property
    def training_weights(self) -> Tensor:
        """[num_steps] loss weights of the published teacher: a bell around t = 500, zero at its lowest, mean one."""
        bell = torch.exp(-2 * ((self.timesteps - 500) / TIMESTEP_SCALE) ** 2)
        bell = bell - bell.min()
        return bell * (self.num_steps / bell.sum())

    def nearest_index(self, timesteps: Tensor) -> Tensor:
        """Index of the table entry nearest to each timestep, same shape, int64."""
        table = self.timesteps.to(timesteps.device)
        return (table - timesteps.float()[..., None]).abs().argmin(-1)

    def sigma_of(self, timesteps: Tensor) -> Tensor:
        """Sigma of the nearest table entry, same shape as `timesteps`, float32."""
        return self.sigmas.to(timesteps.device)[self.nearest_index(timesteps)]

    def warp_steps(self, nominal: Sequence[int]) -> tuple[float, ...]:
        """Turn nominal steps such as (1000, 740, 500, 260) into timesteps of this table.

        Level L reads entry num_steps - L; L = num_steps + 1 means clean (timestep 0).
        """
        table = [*self.timesteps.tolist(), 0.0]
        bad = [level for level in nominal if not 0 <= level <= self.num_steps + 1]
        if bad:
            raise ValueError(f"denoising steps must lie in 0..{self.num_steps + 1}, got {bad}")
        return tuple(table[self.num_steps - level] for level in nominal)
