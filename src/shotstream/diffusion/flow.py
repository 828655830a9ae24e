"""Linear-path (rectified flow) arithmetic: x_t = (1 - sigma) * x_0 + sigma * noise, velocity = noise - x_0.

Rectified flow, Liu et al. 2022 (arXiv:2209.03003); we put data at sigma 0, the paper at t = 1.
Shapes: latents are [B, F, C, h, w]; sigma is [B, F], one per latent frame.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["flow", "clean"]

MIN_SIGMA = 0.05
"""Below this, turning a clean prediction into a velocity divides by too little; training weights stop here."""


def _per_frame(sigma: Tensor, x: Tensor) -> Tensor:
    if sigma.shape != x.shape[:2]:
        raise ValueError(f"sigma must be [B, F] = {list(x.shape[:2])}, got {list(sigma.shape)}")
    # At least float32: near sigma 0 the correction is below bfloat16 resolution and would vanish.
    return sigma.to(torch.promote_types(x.dtype, torch.float32))[:, :, None, None, None]


def add_noise(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noisy latent x_t, shape of x_0, dtype of noise."""
    s = _per_frame(sigma, x_0)
    return ((1 - s) * x_0 + s * noise).to(noise.dtype)


def velocity_to_clean(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_t - sigma * velocity, shape and dtype of x_t."""
    return (x_t - _per_frame(sigma, x_t) * velocity).to(x_t.dtype)


def clean_to_velocity(x_t: Tensor, x_0: Tensor, sigma: Tensor, *, min_sigma: float = MIN_SIGMA) -> Tensor:
    """velocity = (x_t - x_0) / max(sigma, min_sigma), shape and dtype of x_t. Exact where sigma >= min_sigma."""
    return ((x_t - x_0) / _per_frame(sigma, x_t).clamp(min=min_sigma)).to(x_t.dtype)


def predicted_clean(output: Tensor, x_t: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Read a network's raw output as x_0."""
    return output.to(x_t.dtype) if prediction == "clean" else velocity_to_clean(x_t, output, sigma)


def predicted_velocity(output: Tensor, x_t: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Read a network's raw output as a velocity."""
    return clean_to_velocity(x_t, output, sigma) if prediction == "clean" else output.to(x_t.dtype)


def euler_step(x_t: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """One step of the flow ODE from sigma to next_sigma, shape and dtype of x_t."""
    return x_t + velocity * (next_sigma - sigma)
