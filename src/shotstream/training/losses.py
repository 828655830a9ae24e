"""The training mathematics as pure functions: tensors in, one loss per sample out.

Latents are [B, F, C, h, w]; sigma is [B, F] in [0, 1], the share of noise. Every loss returns [B], already a mean
over the sample, so that averages over processes and micro-batches are exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shotstream.diffusion.flow import MIN_SIGMA, Prediction


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move a straight sigma towards noise: shift * s / (1 + (shift - 1) * s)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_sigma(
    generator: np.random.Generator,
    count: int,
    *,
    shift: float,
    uniform_share: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Draw training sigmas: a mixture of a logit-normal and a uniform, shifted, then clamped into [low, high].

    Logit-normal: Esser et al. 2024 (arXiv:2403.03206). The uniform part keeps the ends of the path trained; alone
    (the default) it is the published draw of distillation.

    Returns: float32 [count].
    """
    logit_normal = 1 / (1 + np.exp(-generator.standard_normal(count)))
    straight = np.where(generator.random(count) < uniform_share, generator.random(count), logit_normal)
    return shift_sigma(torch.from_numpy(straight), shift).clamp(low, high).float()


def velocity_loss(
    output: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    *,
    prediction: Prediction,
    weight: Tensor | None = None,
    min_sigma: float = MIN_SIGMA,
) -> Tensor:
    """Mean squared error of the velocity, whichever of velocity or clean latent the network predicts.

    For a clean prediction the velocity is (x_t - x_0) / sigma, so its error is the clean error divided by
    max(sigma, min_sigma): the weight stops growing where the division would only amplify noise.

    Args: output the network's raw answer; weight broadcasts against the latents (a mean of one keeps the scale).
    Returns: [B], at least float32.
    """
    target = clean if prediction == "clean" else noise - clean
    error = _wide(output) - _wide(target)
    if prediction == "clean":
        error = error / _frames(sigma).clamp(min=min_sigma)
    squared = error.square()
    return (squared if weight is None else squared * weight).flatten(1).mean(1)


def ode_regression_loss(predicted: Tensor, clean: Tensor, counted: Tensor) -> Tensor:
    """Plain mean squared error of the clean latent over the frames that were noisy.

    CausVid, Yin et al. 2024 (arXiv:2412.07772); frames handed over clean teach nothing and are left out. A sample
    without any counted frame gives 0 where the published code gives NaN.

    Args: counted [B, F], true for frames in the loss.  Returns: [B], at least float32.
    """
    per_frame = (_wide(predicted) - _wide(clean)).square().flatten(2).mean(2)
    counted = counted.to(per_frame.dtype)
    return (per_frame * counted).sum(1) / counted.sum(1).clamp(min=1)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Additive guidance: conditional + scale * (conditional - unconditional). Scale 3 here is 4 in the usual form."""
    return conditional + scale * (conditional - unconditional)


def dmd_gradient(generated: Tensor, fake_clean: Tensor, real_clean: Tensor) -> Tensor:
    """Direction in which the student's samples should not go: (fake - real) / mean|generated - real|.

    Distribution matching distillation, Yin et al. 2023 (arXiv:2311.18828), in clean-latent form. The normaliser is one
    number per sample: the mean over frames, channels and space. NaN (a sample equal to the teacher's) becomes 0.
    """
    difference = fake_clean - real_clean
    scale = (generated - real_clean).abs().flatten(1).mean(1).view(-1, *[1] * (generated.dim() - 1))
    return torch.nan_to_num(difference / scale, nan=0.0, posinf=0.0, neginf=0.0)


def dmd_loss(generated: Tensor, gradient: Tensor) -> Tensor:
    """0.5 * mean((x - stopgrad(x - g))^2): its derivative by x is g / (number of elements). Returns [B]."""
    target = (generated - gradient).detach()
    return 0.5 * (generated - target).square().flatten(1).mean(1)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Szekely's energy distance between two sets of samples [N, D] and [M, D]: 2 E|a-b| - E|a-a'| - E|b-b'|.

    Unbiased: pairs of a sample with itself are left out. Needs at least two samples on each side.
    """
    n, m = len(a), len(b)
    within_a = torch.cdist(a, a).sum() / (n * (n - 1))
    within_b = torch.cdist(b, b).sum() / (m * (m - 1))
    return 2 * torch.cdist(a, b).mean() - within_a - within_b


def _wide(x: Tensor) -> Tensor:
    """At least float32: squares of bfloat16 differences lose what is left to learn."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _frames(sigma: Tensor) -> Tensor:
    return sigma[:, :, None, None, None]
