"""Training mathematics against closed forms in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shotstream.diffusion.flow import add_noise, clean_to_velocity, predicted_clean, velocity_to_clean
from shotstream.diffusion.schedule import FlowSchedule
from shotstream.training.losses import (
    dmd_gradient,
    dmd_loss,
    draw_sigma,
    energy_distance,
    guided,
    ode_regression_loss,
    shift_sigma,
    velocity_loss,
)
from shotstream.training.randomness import generator_at, normal

SHAPE = (2, 3, 4, 2, 2)


def _latents(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_velocity_loss_of_a_flow_prediction_is_the_mean_squared_velocity_error():
    clean, noise, output = _latents(0), _latents(1), _latents(2)
    sigma = torch.full((2, 3), 0.3, dtype=torch.float64)
    loss = velocity_loss(output, clean, noise, sigma, prediction="flow")
    expected = [((output[b] - (noise[b] - clean[b])) ** 2).mean() for b in range(2)]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_velocity_loss_is_the_same_whichever_the_network_predicts():
    clean, noise, guess = _latents(0), _latents(1), _latents(2)
    sigma = torch.tensor([[0.05, 0.4, 1.0], [0.9, 0.06, 0.2]], dtype=torch.float64)
    noisy = add_noise(clean, noise, sigma)
    as_clean = velocity_loss(guess, clean, noise, sigma, prediction="clean")
    velocity = clean_to_velocity(noisy, guess, sigma)
    as_flow = velocity_loss(velocity, clean, noise, sigma, prediction="flow")
    torch.testing.assert_close(as_clean, as_flow)


def test_clean_prediction_stops_gaining_weight_below_the_smallest_sigma():
    clean, guess = torch.zeros(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 0.1)
    losses = [
        velocity_loss(guess, clean, clean, torch.tensor([[s]]), prediction="clean").item() for s in (0.0, 0.05, 0.1)
    ]
    assert losses == pytest.approx([4.0, 4.0, 1.0])


def test_velocity_loss_weights_cells():
    clean, noise, output = _latents(0), _latents(1), _latents(2)
    sigma = torch.ones(2, 3, dtype=torch.float64)
    weight = torch.ones(2, 3, 1, 2, 2)
    weight[:, :, :, 0, 0] = 3
    loss = velocity_loss(output, clean, noise, sigma, prediction="flow", weight=weight)
    squared = (output - noise + clean).square()
    by_hand = (squared.sum((1, 2, 3, 4)) + 2 * squared[..., 0, 0].sum((1, 2))) / squared[0].numel()
    torch.testing.assert_close(loss, by_hand)


def test_ode_regression_counts_only_noisy_frames_and_survives_when_there_are_none():
    predicted, clean = _latents(0), _latents(1)
    counted = torch.tensor([[True, False, True], [False, False, False]])
    loss = ode_regression_loss(predicted, clean, counted)
    expected = (predicted - clean)[0, [0, 2]].square().mean()
    assert loss[0].item() == pytest.approx(expected.item())
    assert loss[1].item() == 0


def test_additive_guidance_of_three_is_four_in_the_usual_form():
    cond, uncond = _latents(0), _latents(1)
    torch.testing.assert_close(guided(cond, uncond, 3.0), uncond + 4.0 * (cond - uncond))


def test_dmd_gradient_in_closed_form():
    x, fake, real = _latents(0), _latents(1), _latents(2)
    g = dmd_gradient(x, fake, real)
    for b in range(2):
        scale = (x[b] - real[b]).abs().sum() / x[b].numel()
        torch.testing.assert_close(g[b], (fake[b] - real[b]) / scale)


def test_dmd_gradient_is_zero_where_the_sample_is_already_the_teachers():
    x = _latents(0)
    assert dmd_gradient(x, x, x).abs().max() == 0
    far = dmd_gradient(x, x + 1, x)
    assert torch.isfinite(far).all()


def test_dmd_loss_pulls_by_the_gradient_over_the_number_of_elements():
    x, g = _latents(0).requires_grad_(), _latents(1)
    dmd_loss(x, g).mean().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, g / x.numel())


def test_critic_learns_noise_minus_sample():
    """Its velocity loss is zero exactly when it answers with the clean sample, so its target is noise - sample."""
    x, noise = _latents(0), _latents(1)
    sigma = torch.full((2, 3), 0.5, dtype=torch.float64)
    assert velocity_loss(noise - x, x, noise, sigma, prediction="flow").max() == 0
    noisy = add_noise(x, noise, sigma)
    torch.testing.assert_close(velocity_to_clean(noisy, noise - x, sigma), x)
    torch.testing.assert_close(predicted_clean(x, noisy, sigma, "clean"), x)


def test_shift_keeps_the_ends_and_matches_the_schedule():
    straight = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    shifted = shift_sigma(straight, 3.0)
    assert shifted.tolist() == pytest.approx([0.0, 0.5, 0.75, 0.9, 1.0])
    table = FlowSchedule(shift=3.0).sampling_sigmas(24)
    assert table[[0, 6, 12, 18]].tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5])
    assert FlowSchedule(shift=3.0).warp_steps((1000, 750, 500, 250)) == pytest.approx((1000, 900, 750, 500), rel=1e-5)


def test_published_step_table():
    steps = FlowSchedule(shift=8.0).warp_steps((1000, 740, 500, 260, 1001))
    assert steps == pytest.approx((1000, 957.928772, 888.888916, 737.588623, 0), abs=1e-3)


def test_drawn_sigmas_follow_their_law():
    rng = generator_at(0, "law")
    normal_part = draw_sigma(rng, 20_000, shift=1.0, uniform_share=0.0)
    within_one_sd = ((normal_part > 1 / (1 + math.e)) & (normal_part < math.e / (1 + math.e))).float().mean()
    assert within_one_sd.item() == pytest.approx(0.6827, abs=0.012)
    uniform = draw_sigma(rng, 20_000, shift=3.0)
    assert (uniform < 0.75).float().mean().item() == pytest.approx(0.5, abs=0.012)
    clamped = draw_sigma(rng, 20_000, shift=8.0, low=0.02, high=0.98)
    assert clamped.min() >= 0.02
    assert (clamped == 0.98).float().mean().item() == pytest.approx(0.14, abs=0.012)


def test_energy_distance_is_near_zero_for_equal_laws_and_grows_with_the_gap():
    a, b = (normal(generator_at(name), (200, 3)) for name in ("a", "b"))
    same, near, far = (energy_distance(a, b + shift).item() for shift in (0.0, 1.0, 2.0))
    assert abs(same) < 0.05 < near < far


def test_an_address_always_gives_the_same_numbers_and_another_gives_others():
    first = generator_at(1, "noise", 7, 3).standard_normal(4)
    assert np.array_equal(first, generator_at(1, "noise", 7, 3).standard_normal(4))
    assert not np.array_equal(first, generator_at(1, "noise", 7, 4).standard_normal(4))
    assert not np.array_equal(first, generator_at(1, "other", 7, 3).standard_normal(4))
