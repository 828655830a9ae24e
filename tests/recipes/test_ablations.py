"""Fine-tunes for comparison start from the same weights and differ in what they say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("skia", reason="what is trained here is measured in drawn stories: pip install 'shotstream[eval]'")

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # worlds.py: tests are not a package

from two_processes import TINY
from worlds import CHANNELS, write_library

from shotstream.evaluation.ablations import TRAINED
from shotstream.models.checkpoint import config_of, load_dit, save_dit
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import ablations, causal_init
from shotstream.recipes.ablations import ABLATIONS, Start, changed, real_recipe, recipe_of, run, stages
from shotstream.training.trainer import Outcome


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("fine-tunes")
    torch.manual_seed(0)
    model = DiT(TINY)
    save_dit(folder / "dit.safetensors", model, dtype=torch.float32)
    sizes = TinyCodecConfig(
        latent_channels=CHANNELS,
        patch=1,
        encoder_widths=(8, 8, 8),
        decoder_widths=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        channels_per_norm_group=4,
    )
    TinyCodec(sizes).save(folder / "codec.safetensors")
    write_library(folder / "latents", stories=6, shots=3, per_shard=6)
    network = str(folder / "dit.safetensors")
    return Start(
        data=str(folder / "latents"),
        init=network,
        critic=network,
        teacher=network,
        codec=str(folder / "codec.safetensors"),
        out=str(folder / "runs"),
        walk_shots=2,
        batch=2,
        real_steps=2,
        steps=2,
    )


def test_everything_that_is_measured_as_trained_can_be_trained():
    assert set(ABLATIONS) == set(TRAINED)


def test_all_fine_tunes_of_a_kind_are_equally_long(common: Start):
    for ablation in ABLATIONS.values():
        if ablation.intra_share is None:
            trainer = real_recipe(common, Path("runs")).trainer
            assert (trainer.steps, trainer.minutes_in_all) == (common.real_steps, None)
            continue
        recipes = [recipe_of(stage, ablation, common, Path("runs")) for stage in stages(ablation)]
        assert sum(recipe.trainer.minutes_in_all or 0 for recipe in recipes) == common.minutes
        assert all(recipe.distill.critic_warmup == 0 for recipe in recipes)


def test_a_distillation_says_which_files_it_lacks(common: Start):
    with pytest.raises(ValueError, match="both_stages is a distillation: pass --teacher FILE, --codec FILE"):
        run("both_stages", replace(common, teacher=None, codec=None, out=f"{common.out}/none"))


def test_a_learnable_embedding_starts_as_nothing(tiny_dit: DiT):
    other = changed(tiny_dit, {"theta": 0.0, "opening_embedding": True})
    assert other.opening is not None
    assert other.opening.abs().max() == 0
    assert torch.equal(other.head.head.weight, tiny_dit.head.head.weight)


@pytest.mark.parametrize("name", ["trained_learnable_embedding", "context_9"])
def test_a_fine_tune_leaves_a_student_that_says_what_it_is(common: Start, name: str):
    common = replace(common, out=f"{common.out}/{name}")
    path = run(name, common)
    expected = replace(TINY, **ABLATIONS[name].network)
    assert config_of(path) == expected
    before, after = load_dit(common.init), load_dit(path)
    assert not torch.equal(before.head.head.weight, after.head.head.weight)
    if after.opening is not None:
        assert after.opening.abs().max() > 0
    written = path.stat().st_mtime_ns
    assert run(name, common) == path
    assert path.stat().st_mtime_ns == written  # what is finished is not trained longer than the others
    with pytest.raises(ValueError, match=r"begun with another seed: give another --out"):
        run(name, replace(common, seed=5))


def test_a_fine_tune_that_is_stopped_is_not_finished(common: Start, monkeypatch: pytest.MonkeyPatch):
    common = replace(common, out=f"{common.out}/stopped")
    monkeypatch.setattr(
        ablations.causal_init, "run", lambda recipe: Outcome(step=1, reason="stopped", samples_per_second=1.0, logs={})
    )
    with pytest.raises(KeyboardInterrupt, match="step 1"):
        run("theta_1", common)
    assert not (Path(common.out) / "theta_1" / "student.safetensors").exists()


def test_a_student_that_learns_its_own_guided_answers_needs_guidance(common: Start, tmp_path: Path):
    recipe = causal_init.config("guided", data=common.data, out=str(tmp_path))
    assert recipe.causal.guidance == 2.0
    trainer = replace(recipe.trainer, steps=2, batch_size=2)
    sampler = replace(recipe.sampler, lengths=(3,), target_frames=12)
    recipe = replace(recipe, init=common.init, dit=TINY, trainer=trainer, sampler=sampler)
    none = replace(recipe, causal=replace(recipe.causal, guidance=1.0))
    with pytest.raises(ValueError, match="--guidance above 1"):
        causal_init.run(none)
    causal_init.run(recipe)
    before, after = load_dit(common.init), load_dit(tmp_path / "weights.safetensors")
    assert not torch.equal(before.head.head.weight, after.head.head.weight)


def test_an_unknown_fine_tune_is_refused(common: Start):
    with pytest.raises(ValueError, match="theta_1_12"):
        run("theta_2", common)
