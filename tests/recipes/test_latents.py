"""What of a story is rendered and kept."""

from __future__ import annotations

import pytest

from shotstream import storyworld
from shotstream.recipes.latents import chosen_clips


def steered_share(weight: float, clips: float = 1.0) -> float:
    """Share of the clips of 60 stories that are of steered shots."""
    stories = {seed: storyworld.sample_story(seed, split="train").shots for seed in range(60)}
    chosen = [
        shots[i]
        for seed, shots in stories.items()
        for i in chosen_clips(shots, seed, clips=clips, steered_weight=weight)
    ]
    assert len(chosen) == pytest.approx(60 * clips, abs=12)
    return sum(bool(spec.steers) for spec in chosen) / len(chosen)


def test_clips_are_of_steered_shots_more_often_where_asked():
    shares = [steered_share(weight) for weight in (1.0, 4.0, 1e6)]
    assert 0.25 < shares[0] < 0.45  # one shot in three is steered
    assert shares[0] + 0.1 < shares[1] < shares[2] - 0.1
    assert shares[2] > 0.75  # some stories have none
    assert steered_share(1e6, clips=2.0) < shares[2]  # most have one only
