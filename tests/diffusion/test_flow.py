"""Noise, velocity and clean latent turn into one another without loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shotstream.diffusion.flow import (
    MIN_SIGMA,
    add_noise,
    clean_to_velocity,
    euler_step,
    predicted_clean,
    predicted_velocity,
    velocity_to_clean,
)

SIGMAS = torch.tensor([[1.0, 0.95, 0.5], [0.3, 0.1, MIN_SIGMA]], dtype=torch.float64)


@pytest.fixture
def x_0() -> Tensor:
    return torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)


@pytest.fixture
def noise(x_0: Tensor) -> Tensor:
    return torch.randn_like(x_0)


def test_path_runs_from_clean_to_noise(x_0: Tensor, noise: Tensor) -> None:
    assert torch.equal(add_noise(x_0, noise, torch.zeros_like(SIGMAS)), x_0)
    assert torch.equal(add_noise(x_0, noise, torch.ones_like(SIGMAS)), noise)


def test_every_frame_has_its_own_sigma(x_0: Tensor, noise: Tensor) -> None:
    x_t = add_noise(x_0, noise, SIGMAS)
    for b, f in [(0, 1), (1, 2)]:
        expected = (1 - SIGMAS[b, f]) * x_0[b, f] + SIGMAS[b, f] * noise[b, f]
        torch.testing.assert_close(x_t[b, f], expected, rtol=0, atol=1e-15)


def test_velocity_gives_the_clean_latent_back(x_0: Tensor, noise: Tensor) -> None:
    x_t = add_noise(x_0, noise, SIGMAS)
    torch.testing.assert_close(velocity_to_clean(x_t, noise - x_0, SIGMAS), x_0, rtol=0, atol=1e-12)


def test_clean_latent_gives_the_velocity_back(x_0: Tensor, noise: Tensor) -> None:
    x_t = add_noise(x_0, noise, SIGMAS)
    torch.testing.assert_close(clean_to_velocity(x_t, x_0, SIGMAS), noise - x_0, rtol=0, atol=1e-12)


def test_velocity_stays_bounded_where_sigma_is_zero(x_0: Tensor) -> None:
    wrong_by_one = clean_to_velocity(x_0, x_0 - 1, torch.zeros_like(SIGMAS))
    torch.testing.assert_close(wrong_by_one, torch.full_like(x_0, 1 / MIN_SIGMA))


@pytest.mark.parametrize("prediction", ["flow", "clean"])
def test_both_predictions_are_read_as_the_same_facts(x_0: Tensor, noise: Tensor, prediction: str) -> None:
    x_t = add_noise(x_0, noise, SIGMAS)
    output = noise - x_0 if prediction == "flow" else x_0
    torch.testing.assert_close(predicted_clean(output, x_t, SIGMAS, prediction), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(predicted_velocity(output, x_t, SIGMAS, prediction), noise - x_0, rtol=0, atol=1e-12)


def test_euler_steps_along_the_true_velocity_end_at_the_clean_latent(x_0: Tensor, noise: Tensor) -> None:
    x_t = noise
    for sigma, next_sigma in [(1.0, 0.7), (0.7, 0.2), (0.2, 0.0)]:
        x_t = euler_step(x_t, noise - x_0, sigma, next_sigma)
    torch.testing.assert_close(x_t, x_0, rtol=0, atol=1e-12)


def test_small_sigma_survives_bfloat16_input(x_0: Tensor, noise: Tensor) -> None:
    # In bfloat16 arithmetic 1 - 0.001 would round to 1.
    sigma = torch.full((2, 3), 0.001)
    clean = velocity_to_clean(x_0.float(), noise.bfloat16(), sigma)
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean, (x_0 - 0.001 * noise.bfloat16().double()).float(), rtol=0, atol=1e-6)


def test_dtypes_follow_noise_and_noisy_latent(x_0: Tensor, noise: Tensor) -> None:
    assert add_noise(x_0, noise.bfloat16(), SIGMAS).dtype == torch.bfloat16
    assert velocity_to_clean(x_0.bfloat16(), noise.float(), SIGMAS).dtype == torch.bfloat16
    assert clean_to_velocity(x_0.bfloat16(), noise.float(), SIGMAS).dtype == torch.bfloat16
    assert predicted_clean(noise.bfloat16(), x_0.float(), SIGMAS, "clean").dtype == torch.float32


@pytest.mark.parametrize("convert", [add_noise, velocity_to_clean, clean_to_velocity])
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 1, 1, 1)])
def test_sigma_of_another_shape(convert: object, shape: tuple[int, ...], x_0: Tensor, noise: Tensor) -> None:
    with pytest.raises(ValueError, match=r"sigma must be \[B, F\] = \[2, 3\], got"):
        convert(x_0, noise, torch.ones(shape))  # type: ignore[operator]
