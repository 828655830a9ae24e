"""Every stage shows samples and what a probe reads in them on TensorBoard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import TINY
from worlds import CHANNELS, TEXT_LENGTH

from shotstream.engine.teacher import TeacherConfig
from shotstream.models.checkpoint import save_dit
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.presets import STORYWORLD
from shotstream.recipes import causal_init, watching
from shotstream.recipes.causal_init import CausalRecipe
from shotstream.recipes.watching import WatchConfig
from shotstream.training.causal_init import PairConfig, make_pairs
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig


@pytest.fixture
def regression(toy_library: Path, tmp_path: Path) -> CausalRecipe:
    """One step on a few trajectories of a random teacher, watched."""
    model = DiT(TINY).init_for_training()
    save_dit(tmp_path / "dit.safetensors", model)
    steps = STORYWORLD.student_timesteps
    solver = TeacherConfig(sigmas=tuple(step / 1000 for step in steps), slab=STORYWORLD.slab)
    pairs = PairConfig(sampler=solver, kept_steps=tuple(range(len(steps))), batch_size=2)
    sampler = Sampler(LatentLibrary(toy_library, text_length=TEXT_LENGTH), SamplerConfig(captions_only=True))
    list(make_pairs(model, sampler, pairs, tmp_path / "pairs", range(1)))
    widths = (16, 16, 16)
    codec = TinyCodec(TinyCodecConfig(latent_channels=CHANNELS, encoder_widths=widths, decoder_widths=widths))
    codec.save(tmp_path / "codec.safetensors")
    recipe = causal_init.config("ode", data=str(tmp_path / "pairs"), out=str(tmp_path / "run"))
    trainer = replace(recipe.trainer, steps=1, batch_size=2, image_every=1, precision="float32", device="cpu")
    watch = WatchConfig(codec=str(tmp_path / "codec.safetensors"), heldout=str(toy_library), samples=2)
    return replace(recipe, trainer=trainer, init=str(tmp_path / "dit.safetensors"), watch=watch)


class SeesNobody:
    """A probe that says of every picture that there is no second character."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, frames: torch.Tensor) -> list[dict[str, str]]:
        return [{"second_character": "none"}] * len(frames)


def test_regression_shows_samples_of_held_out_stories_and_their_scores(
    regression: CausalRecipe, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the `train` extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(watching, "ReadPictures", SeesNobody)
    assert regression.watch is not None
    causal_init.run(replace(regression, watch=replace(regression.watch, probe="probe.safetensors")))
    board = EventAccumulator(str(Path(regression.trainer.out) / "board"))
    board.Reload()
    assert [event.step for event in board.Images("samples")] == [1]
    assert [event.step for event in board.Scalars("probe/second_character")] == [1]


def test_regression_cannot_be_watched_on_its_trajectories(regression: CausalRecipe):
    assert regression.watch is not None
    with pytest.raises(ValueError, match="pass --watch-data with a folder of latents"):
        causal_init.run(replace(regression, watch=replace(regression.watch, heldout=None)))
