"""What of a story is rendered and kept."""

from __future__ import annotations

import pytest

from shotstream import storyworld
from shotstream.recipes.latents import LatentsRecipe, chosen_clips, stories_of


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


def test_only_stories_in_which_two_people_meet() -> None:
    recipe = LatentsRecipe(codec="", out="", stories=30, first_seed=5, stories_per_shard=20, two_people=True)
    everything = LatentsRecipe(codec="", out="", stories=30, first_seed=5, stories_per_shard=20)
    stories = [pair for shard in range(2) for pair in stories_of(everything, shard)]
    meeting = [seed for seed, story in stories if any(spec.second_character != "none" for spec in story.shots)]
    assert [seed for seed, _ in stories] == list(range(5, 35))
    assert [seed for shard in range(2) for seed, _ in stories_of(recipe, shard)] == meeting
    assert 0 < len(meeting) < 15
