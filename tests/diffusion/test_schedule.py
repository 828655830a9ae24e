"""Facts of the published schedule, and that its steps are those the student was trained on."""

from __future__ import annotations

import math

import pytest
import torch

from shotstream.diffusion.schedule import FlowSchedule

STUDENT_STEPS = ((1000, 1000.0), (740, 957.928772), (500, 888.888916), (260, 737.588623))
"""Nominal level, timestep."""


@pytest.fixture(scope="module")
def schedule() -> FlowSchedule:
    return FlowSchedule(shift=8.0, num_steps=1000)


def test_sigmas_follow_the_closed_form(schedule: FlowSchedule) -> None:
    for i, sigma in enumerate(schedule.sigmas.tolist()):
        s = 1 - i / 1000
        assert sigma == pytest.approx(8 * s / (1 + 7 * s), abs=1e-6)


def test_table_starts_at_pure_noise_and_ends_just_before_clean(schedule: FlowSchedule) -> None:
    assert schedule.sigmas.shape == (1000,)
    assert schedule.sigmas[0] == 1
    assert schedule.sigmas[-1].item() == pytest.approx(0.00794439, abs=1e-6)
    assert bool((schedule.sigmas.diff() < 0).all())


def test_where_the_shift_puts_the_steps(schedule: FlowSchedule) -> None:
    timesteps = schedule.timesteps
    assert timesteps.median().item() == pytest.approx(888.9, abs=0.2)
    assert (timesteps > 900).float().mean().item() == pytest.approx(0.47, abs=0.005)
    assert (timesteps > 980).float().mean().item() == pytest.approx(0.14, abs=0.005)
    assert int((timesteps < 20).sum()) == 2


def test_shift_of_one_is_the_straight_schedule() -> None:
    torch.testing.assert_close(FlowSchedule(shift=1.0).sigmas, 1 - torch.arange(1000) / 1000)


def test_student_steps(schedule: FlowSchedule) -> None:
    warped = schedule.warp_steps([level for level, _ in STUDENT_STEPS])
    for timestep, (_, expected) in zip(warped, STUDENT_STEPS, strict=True):
        assert timestep / 1000 == pytest.approx(expected / 1000, abs=1e-6)


def test_student_steps_are_states_of_the_teachers_sampler(schedule: FlowSchedule) -> None:
    visited = schedule.sampling_sigmas(50)[[0, 13, 25, 37]]
    expected = torch.tensor([timestep for _, timestep in STUDENT_STEPS]) / 1000
    torch.testing.assert_close(visited, expected, rtol=0, atol=1e-6)


def test_level_beyond_the_table_means_clean(schedule: FlowSchedule) -> None:
    assert schedule.warp_steps([1001]) == (0.0,)


def test_training_weights_are_a_bell_of_mean_one(schedule: FlowSchedule) -> None:
    weights = schedule.training_weights

    def weight_at(timestep: float) -> float:
        return weights[schedule.nearest_index(torch.tensor(timestep))].item()

    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights.min().item() == weight_at(1000) == 0
    assert weight_at(500) == pytest.approx(2.47, abs=0.01)
    assert weight_at(737.588623) == pytest.approx(1.80, abs=0.01)
    assert weights[-1].item() == pytest.approx(0.06, abs=0.01)


def test_training_weight_closed_form(schedule: FlowSchedule) -> None:
    bell = [math.exp(-2 * ((t - 500) / 1000) ** 2) for t in schedule.timesteps.tolist()]
    total = sum(value - min(bell) for value in bell)
    expected = torch.tensor([(value - min(bell)) * 1000 / total for value in bell])
    torch.testing.assert_close(schedule.training_weights, expected, rtol=0, atol=1e-4)


def test_any_timestep_reads_the_nearest_entry(schedule: FlowSchedule) -> None:
    table = schedule.timesteps
    assert torch.equal(schedule.nearest_index(table), torch.arange(1000))
    assert torch.equal(schedule.nearest_index(table[None, :4] + 0.01), torch.arange(4)[None])
    assert schedule.sigma_of(torch.zeros(2, 3)).shape == (2, 3)
    assert schedule.sigma_of(torch.tensor(0.0)) == schedule.sigmas[-1]


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"shift": -1.0}, {"num_steps": 1}])
def test_impossible_schedule(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shift > 0 and num_steps >= 2"):
        FlowSchedule(**settings)


def test_step_outside_the_table(schedule: FlowSchedule) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1001, got \[1002, -1\]"):
        schedule.warp_steps([1000, 1002, -1])
