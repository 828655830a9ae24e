"""Rotary positions in time, height and width, with the shot indicator.

Head channels are D / 2 interleaved pairs (channel 2k real, 2k + 1 imaginary), split into time, height and width. The
angle of a temporal pair is `position * frequency + shot_id * theta`: the indicator is one constant phase on all of
them, so two tokens see each other's distance in time and, apart from it, how many cuts lie between them.
ShotStream (arXiv 2603.25746, "RoPE discontinuity indicator"); frequencies as Wan2.1. The plain form is real-valued.

B batch, F latent frames, P tokens a frame, L = F * P tokens, N heads, D head width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10000.0


class Rotary(NamedTuple):
    """Cosines and sines of every token's angles: each [B, L, 1, D / 2], B may be 1."""

    cos: Tensor
    sin: Tensor

    def tokens(self, start: int, stop: int) -> Rotary:
        """A view of tokens start..stop."""
        return Rotary(self.cos[:, start:stop], self.sin[:, start:stop])


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many rotary pairs of a head belong to time, height and width: (22, 21, 21) for 128 channels."""
    if head_dim % 2:
        raise ValueError(f"head width must be even, got {head_dim}")
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


@lru_cache(maxsize=64)
def _frequencies(pairs: int, device: torch.device) -> Tensor:
    return BASE ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


@lru_cache(maxsize=16)
def _spatial_angles(head_dim: int, height: int, width: int, device: torch.device) -> Tensor:
    """[P, height pairs + width pairs], row-major tokens."""
    _, pairs_h, pairs_w = split_pairs(head_dim)
    rows = torch.arange(height, dtype=torch.float64, device=device)[:, None] * _frequencies(pairs_h, device)
    columns = torch.arange(width, dtype=torch.float64, device=device)[:, None] * _frequencies(pairs_w, device)
    grid = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)


def rotary_table(
    positions_BF: Tensor, shot_ids_BF: Tensor, *, head_dim: int, height: int, width: int, theta: float
) -> Rotary:
    """Build the table for F frames of height x width tokens.

    Args: positions_BF temporal positions, shot_ids_BF the indicator's shot numbers (both [B, F], any real dtype);
        theta radians per shot, 0 switches the indicator off.
    """
    pairs_t, _, _ = split_pairs(head_dim)
    device = positions_BF.device
    batch, frames = positions_BF.shape
    time = positions_BF.double()[..., None] * _frequencies(pairs_t, device) + shot_ids_BF.double()[..., None] * theta
    space = _spatial_angles(head_dim, height, width, device)
    angles = torch.cat(
        [
            time[:, :, None].expand(-1, -1, height * width, -1),
            space.expand(batch, frames, -1, -1),
        ],
        dim=-1,
    )
    angles = angles.flatten(1, 2)[:, :, None]
    return Rotary(angles.cos().float(), angles.sin().float())


def rotate_plain(x_BLND: Tensor, rotary: Rotary) -> Tensor:
    """Turn every channel pair by its token's angle. Computed in float32, returned in the dtype of x."""
    real, imaginary = torch.unflatten(x_BLND.float(), -1, (-1, 2)).unbind(-1)
    turned = torch.stack(
        [real * rotary.cos - imaginary * rotary.sin, real * rotary.sin + imaginary * rotary.cos], dim=-1
    )
    return turned.flatten(-2).to(x_BLND.dtype)


def rotate_complex(x_BLND: Tensor, rotary: Rotary) -> Tensor:
    """The same as one complex product: a sixth of the time on a CPU, where strided halves are not vectorised."""
    pairs = torch.view_as_complex(torch.unflatten(x_BLND.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(rotary.cos, rotary.sin)).flatten(-2).to(x_BLND.dtype)


def rotate(x_BLND: Tensor, rotary: Rotary) -> Tensor:
    """Rotation by whichever twin is faster on this device: complex on CPUs, real (which compiles) elsewhere."""
    return rotate_complex(x_BLND, rotary) if x_BLND.device.type == "cpu" else rotate_plain(x_BLND, rotary)
