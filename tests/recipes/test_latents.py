"""What of a story is rendered and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shotstream import storyworld
from shotstream.recipes import latents
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


def test_shards_made_otherwise_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "make_shards", lambda *args, **options: 0)
    recipe = LatentsRecipe(
        codec="runs/codec.safetensors", out=str(tmp_path / "latents"), stories=4, stories_per_shard=2
    )
    latents.run(recipe)
    latents.run(replace(recipe, stories=5, codec="/moved/runs/codec.safetensors", precision="float32"))
    for changes in ({"codec": "runs/other.safetensors"}, {"split": "heldout"}, {"clips": 0.5}):
        with pytest.raises(ValueError, match=f"begun with another {next(iter(changes))}: give another --out"):
            latents.run(replace(recipe, **changes))
    with pytest.raises(ValueError, match="begun for 5 stories, and its last shard is not full"):
        latents.run(replace(recipe, stories=8))
