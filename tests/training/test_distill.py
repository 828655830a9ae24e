"""What the student is trained on is what serving does, and its gradient is the one it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from two_processes import TINY
from worlds import CHANNELS, TEXT_LENGTH

from shotstream.diffusion.flow import add_noise, predicted_clean, predicted_velocity
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import Rollout, RolloutConfig
from shotstream.engine.teacher import ContextTime, TeacherConfig, predict_shot_velocity
from shotstream.models.checkpoint import save_dit
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import inter_shot
from shotstream.training.causal_init import (
    CausalConfig,
    GuidedStage,
    OdeStage,
    PairConfig,
    PairStore,
    RealCausalStage,
    block_causal_output,
    guidance_shift,
    make_pairs,
    remembered_context,
    teacher_states,
)
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import CRITIC, GENERATOR, DistillConfig, DistillStage, InterShotStage
from shotstream.training.losses import dmd_loss
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig

TIMESTEPS = (1000.0, 900.0, 750.0, 500.0)
SLAB = SlabConfig(context_frames=6, window_frames=6, sink_frames=0, chunk_frames=2)
ROLLOUT = RolloutConfig(timesteps=TIMESTEPS, slab=SLAB)
SHOTS = SamplerConfig(target_frames=6, captions_only=True, context_noise=0.05)


def lively(seed: int, **changes: object) -> DiT:
    """A random network whose gates are open, so that every path matters."""
    torch.manual_seed(seed)
    model = DiT(replace(TINY, num_layers=2, **changes))
    for name, parameter in model.named_parameters():
        if name.endswith(("modulation", "opening")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def library(toy_library: Path) -> LatentLibrary:
    return LatentLibrary(toy_library, text_length=TEXT_LENGTH)


def distill_stage(library: LatentLibrary, **changes: object) -> DistillStage:
    config = DistillConfig(rollout=ROLLOUT, critic_warmup=2)
    return DistillStage(lively(1), lively(2), lively(3), replace(config, **changes), Sampler(library, SHOTS))


@pytest.mark.parametrize("network", [{}, {"theta": 0.0, "opening_embedding": True}], ids=["theta", "embedding"])
def test_block_causal_training_reads_what_the_serving_caches_hold(library: LatentLibrary, network: dict[str, object]):
    model, config = lively(0, **network), CausalConfig(timesteps=TIMESTEPS, chunk_frames=2)
    data = Sampler(library, replace(SHOTS, captions_only=False)).batch(0, range(3))
    stage = RealCausalStage(model, config, sampler=Sampler(library, replace(SHOTS, captions_only=False)))
    batch = stage.batch(0, range(3))
    torch.testing.assert_close(batch.data.target, data.target)
    with torch.no_grad():
        captions = model.encode_captions(data.text)
        masked = block_causal_output(model, data, batch.noisy, batch.sigma, captions, config)
        masked = predicted_clean(masked, batch.noisy, batch.sigma, model.config.prediction)
        for row in range(3):
            rollout = Rollout(model, ROLLOUT, latent_height=4, latent_width=4)
            one = type(data)(*(t if i == 3 else t[row : row + 1] for i, t in enumerate(data)))
            rollout.open_shot(remembered_context(one, captions))
            for chunk in range(3):
                part = slice(2 * chunk, 2 * chunk + 2)
                step = TIMESTEPS.index(round(1000 * batch.sigma[row, 2 * chunk].item()))
                own = captions.select(one.caption_ids[:, 6 + 2 * chunk])
                rollout.restore_chunk(one.target[:, part], own)
                rollout.commit()
                time = model.embed_time(torch.tensor([[TIMESTEPS[step]]]))
                served = rollout.replay(chunk, batch.noisy[row : row + 1, part], step, own, time)
                torch.testing.assert_close(served, masked[row : row + 1, part], rtol=0, atol=2e-5)


def guided_stage(library: LatentLibrary, *, scale: float, own_history: float = 0.0) -> GuidedStage:
    config = CausalConfig(timesteps=TIMESTEPS, chunk_frames=2, own_history=own_history)
    sampler = Sampler(library, replace(SHOTS, captions_only=False))
    guide = lively(4).eval().requires_grad_(False)
    return GuidedStage(lively(4), config, sampler=sampler, guide=guide, scale=scale)


@pytest.mark.parametrize("own_history", [0.0, 1.0])
def test_guidance_of_one_is_what_the_student_says_already(library: LatentLibrary, own_history: float):
    stage = guided_stage(library, scale=1.0, own_history=own_history)
    assert next(stage.losses(stage.batch(0, range(2)), 0)).value.item() == pytest.approx(0, abs=1e-9)
    stage.scale = 2.0
    assert next(stage.losses(stage.batch(0, range(2)), 0)).value.item() > 1e-4


def test_a_student_learns_to_say_in_one_pass_what_guidance_says_in_two(library: LatentLibrary, tmp_path: Path):
    stage = guided_stage(library, scale=2.0)
    guide = {name: value.clone() for name, value in stage.guide.state_dict().items()}
    batch = stage.batch(0, range(2))
    told = predicted_clean(stage.output(batch), batch.noisy, batch.sigma, stage.model.config.prediction)
    without = batch._replace(data=batch.data.without_text())
    untold = predicted_clean(stage.output(without), batch.noisy, batch.sigma, stage.model.config.prediction)
    torch.testing.assert_close(stage.guided(batch, None), 2 * told - untold, rtol=0, atol=2e-5)
    before = next(stage.losses(batch, 0)).value.item()
    optimisers = {"model": OptimiserConfig(learning_rate=5e-4, warmup_steps=0)}
    config = TrainerConfig(
        out=str(tmp_path), steps=100, batch_size=2, precision="float32", device="cpu", optimisers=optimisers
    )
    Trainer(stage, config).run()
    assert next(stage.losses(batch, 0)).value.item() < 0.8 * before
    assert all(torch.equal(value, guide[name]) for name, value in stage.guide.state_dict().items())


def test_a_replayed_chunk_is_the_chunk_that_was_rolled_out(library: LatentLibrary):
    stage = distill_stage(library)
    batch = stage.batch(2, range(2))
    rollout, made = stage.make(batch)
    parts = [stage.replay(batch, rollout, made, chunk) for chunk in range(3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), made.clean, rtol=0, atol=2e-5)


def test_two_phase_gradient_equals_the_masked_form_with_detached_history(library: LatentLibrary):
    stage = distill_stage(library)
    model, batch = stage.generator, stage.batch(2, range(2))
    _, made = stage.make(batch)
    noise, sigma = stage._comparison(2, batch.samples, made.clean)
    gradient = stage.gradient(batch.data, made.clean, noise, sigma)
    for part in stage.losses(batch, 2):
        part.value.backward()
    two_phase = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    captions = model.encode_captions(batch.data.text)
    own_sigma = torch.full(made.clean.shape[:2], TIMESTEPS[made.step] / 1000)
    noisy = torch.cat(made.noisy, dim=1)
    history = batch.data._replace(target=made.clean)
    config = CausalConfig(timesteps=TIMESTEPS, chunk_frames=2)
    output = block_causal_output(model, history, noisy, own_sigma, captions, config, detached_history=True)
    clean = predicted_clean(output, noisy, own_sigma, model.config.prediction)
    dmd_loss(clean, gradient).mean().backward()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    assert largest > 0
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(two_phase[name], p.grad, rtol=1e-4, atol=1e-5 * largest)


def test_generator_and_critic_take_turns_and_share_rollouts():
    config = DistillConfig(rollout=ROLLOUT, critic_warmup=4, critic_steps=4)
    turns = [config.turn(step) for step in range(14)]
    assert turns == [CRITIC] * 4 + ([GENERATOR] + [CRITIC] * 4) * 2
    assert [config.rollout_number(step) for step in range(14)] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]


def _train(stage: DistillStage, out: Path, steps: int) -> Trainer:
    optimisers = {name: OptimiserConfig(learning_rate=1e-3, warmup_steps=0) for name in stage.networks}
    config = TrainerConfig(
        out=str(out), steps=steps, batch_size=2, precision="float32", device="cpu", optimisers=optimisers
    )
    trainer = Trainer(stage, config)
    trainer.run()
    return trainer


@pytest.mark.parametrize("kind", ["intra", "inter"])
def test_distillation_resumes_in_the_middle_of_a_reused_rollout(library: LatentLibrary, tmp_path: Path, kind: str):
    def stage() -> DistillStage:
        return distill_stage(library) if kind == "intra" else inter_stage(library)

    whole = _train(stage(), tmp_path / "whole", 10)
    _train(stage(), tmp_path / "parts", 4)
    again = _train(stage(), tmp_path / "parts", 10)
    for name, network in whole.stage.networks.items():
        for (key, a), b in zip(
            network.state_dict().items(), again.stage.networks[name].state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), key


def inter_stage(library: LatentLibrary) -> InterShotStage:
    torch.manual_seed(0)
    sizes = TinyCodecConfig(
        latent_channels=CHANNELS,
        patch=1,
        encoder_widths=(8, 8, 8),
        decoder_widths=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        channels_per_norm_group=4,
    )
    config = DistillConfig(rollout=ROLLOUT, critic_warmup=0)
    sampler = Sampler(library, replace(SHOTS, shot_frames=21, drop_context=0.3))
    return InterShotStage(lively(1), lively(2), lively(3), config, sampler, codec=TinyCodec(sizes).eval(), walk_shots=2)


def test_walks_remember_what_the_student_drew(library: LatentLibrary):
    stage = inter_stage(library)
    for step in range(5):
        for part in stage.losses(stage.batch(step, range(4)), step):
            assert torch.isfinite(part.value)
    opening, second = stage.batch(0, range(4)), stage.batch(5, range(4))
    assert opening.data.context.abs().max() == 0
    assert opening.data.shot_ids[0].tolist() == [0] * 6 + [1] * 6
    kept = second.data.context.flatten(1).abs().sum(1) > 0
    assert kept.any()
    assert not kept.all()  # some contexts are dropped
    assert second.data.shot_ids[kept][0].tolist() == [0] * 6 + [1] * 6
    assert stage.last_pass(second.number + 1) == 3  # history is made with all passes


def test_walks_are_decoded_by_the_codec_that_is_given(toy_library: Path, tmp_path: Path):
    pytest.importorskip("diffusers", reason="the Wan codec needs the `wan` extra")
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(base_dim=4, z_dim=CHANNELS, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    vae.save_pretrained(tmp_path / "codec")
    for name in ("student", "critic", "teacher"):
        save_dit(tmp_path / f"{name}.safetensors", lively(1), dtype=torch.float32)
    weights = {name: str(tmp_path / f"{name}.safetensors") for name in ("critic", "teacher")}
    weights |= {"init": str(tmp_path / "student.safetensors"), "codec": str(tmp_path / "codec")}
    recipe = inter_shot.config(data=str(toy_library), out=str(tmp_path / "run"), **weights)
    second_shot = 1 + recipe.distill.critic_steps
    trainer = replace(recipe.trainer, steps=second_shot + 1, batch_size=1, precision="float32", device="cpu")
    sampler = replace(SHOTS, shot_frames=21, drop_context=0.0)
    recipe = replace(recipe, distill=replace(recipe.distill, rollout=ROLLOUT), trainer=trainer, sampler=sampler)
    assert inter_shot.run(replace(recipe, walk_shots=2)).reason == "finished"


def test_trajectories_are_kept_as_the_teacher_walked_them(library: LatentLibrary, tmp_path: Path):
    teacher, sampler = lively(0), Sampler(library, replace(SHOTS, drop_text=0.0))
    config = PairConfig(sampler=TeacherConfig(sigmas=(1.0, 0.9, 0.75, 0.5), guidance_scale=2.0), kept_steps=(0, 2))
    config = replace(config, batch_size=2)
    assert list(make_pairs(teacher, sampler, config, tmp_path, range(2))) == [0, 1]
    assert list(make_pairs(teacher, sampler, config, tmp_path, range(3))) == [2]
    assert config.timesteps == (1000.0, 750.0)
    store = PairStore(tmp_path)
    assert len(store) == 6
    data, states = store.read([3])
    assert states.shape[1] == 3
    again = list(teacher_states(teacher, data, states[:, 0], config.sampler))
    torch.testing.assert_close(again[2], states[:, 1], rtol=0, atol=0.02)
    torch.testing.assert_close(again[4], data.target, rtol=0, atol=0.02)


def test_regression_puts_every_chunk_in_its_own_state(library: LatentLibrary, tmp_path: Path):
    config = PairConfig(sampler=TeacherConfig(sigmas=(1.0, 0.75, 0.5)), kept_steps=(0, 1, 2), batch_size=3)
    list(make_pairs(lively(0), Sampler(library, SHOTS), config, tmp_path, range(1)))
    causal = CausalConfig(timesteps=config.timesteps, chunk_frames=2)
    stage = OdeStage(lively(1), causal, pairs=PairStore(tmp_path))
    batch = stage.batch(0, range(4))
    assert batch.sigma.shape == (4, 6)
    assert set(batch.sigma.flatten().tolist()) <= {1.0, 0.75, 0.5}
    first = batch.sigma == 1.0
    torch.testing.assert_close(batch.noisy[first], batch.noise[first])
    assert all(len(set(batch.sigma[0, c : c + 2].tolist())) == 1 for c in (0, 2, 4))


def test_with_noisy_history_clean_chunks_are_not_counted(library: LatentLibrary):
    config = CausalConfig(timesteps=TIMESTEPS, chunk_frames=2, history="noisy")
    stage = RealCausalStage(lively(0), config, sampler=Sampler(library, replace(SHOTS, captions_only=False)))
    batch = stage.batch(1, range(8))
    assert (batch.sigma == 0).any()
    first = next(iter(stage.losses(batch, 1))).value
    batch.data.target[batch.sigma == 0] += 1
    assert next(iter(stage.losses(batch, 1))).value == first


def test_guidance_in_the_answer_is_that_of_two_answers():
    """Training to the shifted target ends where blank + guidance (truth - blank) is answered."""
    truth, blank, guidance = torch.tensor([0.3, -1.0]), torch.tensor([0.1, 2.0]), 2.5
    asked = torch.zeros(2)
    for _ in range(60):
        asked = truth + guidance_shift(asked, blank, guidance)
    torch.testing.assert_close(asked, blank + guidance * (truth - blank))


def test_guidance_of_one_changes_nothing_and_more_does(library: LatentLibrary):
    sampler = Sampler(library, replace(SHOTS, captions_only=False))
    losses = {}
    for guidance in (1.0, 2.0):
        config = CausalConfig(timesteps=TIMESTEPS, chunk_frames=2, guidance=guidance)
        stage = RealCausalStage(lively(0), config, sampler=sampler)
        batch = stage.batch(0, range(3))
        losses[guidance] = next(iter(stage.losses(batch, 0)))
        output = stage.output(batch)
        if guidance == 1:
            clean, noise = stage._wanted(batch, output, None)
            assert clean is batch.data.target
            assert noise is batch.noise
    assert losses[1.0].logs["velocity_loss"] == losses[2.0].logs["velocity_loss"]
    assert losses[1.0].value != losses[2.0].value


def test_own_history_is_read_by_later_chunks_only_and_carries_no_gradient(library: LatentLibrary):
    sampler = Sampler(library, replace(SHOTS, captions_only=False))
    stages = [
        RealCausalStage(
            lively(0), CausalConfig(timesteps=TIMESTEPS, chunk_frames=2, own_history=share), sampler=sampler
        )
        for share in (0.0, 1.0)
    ]
    batch = stages[0].batch(0, range(3))
    assert stages[0]._history(batch, 0) is None
    history = stages[1]._history(batch, 0)
    assert history is not None
    assert not history.requires_grad
    of_data, of_own = stages[1].output(batch), stages[1].output(batch, history=history)
    torch.testing.assert_close(of_own[:, :2], of_data[:, :2])
    assert (of_own[:, 2:] - of_data[:, 2:]).abs().max() > 1e-3
    assert torch.equal(stages[1].output(batch, history=batch.data.target), of_data)
    assert next(iter(stages[0].losses(batch, 0))).value != next(iter(stages[1].losses(batch, 0))).value


def test_own_history_must_be_a_share_of_steps_with_clean_history():
    with pytest.raises(ValueError, match="share"):
        CausalConfig(own_history=2.0)
    with pytest.raises(ValueError, match="clean"):
        CausalConfig(own_history=0.5, history="noisy")


def test_the_teacher_judges_with_what_noise_it_was_given(library: LatentLibrary):
    """At the student's own sample and equal networks without guidance there is nothing to correct."""
    stage = distill_stage(library, guidance_scale=0.0)
    stage.critic.load_state_dict(stage.teacher.state_dict())
    batch = stage.batch(2, range(2))
    clean = stage.make(batch)[1].clean
    noise, sigma = stage._comparison(2, batch.samples, clean)
    assert sigma.min() >= 0.02
    assert sigma.max() <= 0.98
    assert stage.gradient(batch.data, clean, noise, sigma).abs().max() == 0
    assert add_noise(clean, noise, sigma).shape == clean.shape


@torch.no_grad()
@pytest.mark.parametrize("context_time", get_args(ContextTime))
def test_teachers_are_trained_and_asked_as_they_are_sampled(library: LatentLibrary, context_time: ContextTime):
    stage = distill_stage(library, context_time=context_time)
    clips = Sampler(library, replace(SHOTS, captions_only=False, first_shot=0.0, drop_context=0.0))
    trained = TeacherStage(stage.teacher, clips, FlowConfig(context_time=context_time))
    data, levels = clips.batch(0, range(2)), torch.full((2, 6), 0.7)
    noisy = add_noise(data.target, torch.randn(data.target.shape), levels)
    captions = stage.teacher.encode_captions(data.text)
    told, context = captions.select(data.caption_ids.flatten()), remembered_context(data, captions)
    sampled = predict_shot_velocity(stage.teacher, noisy, 0.7, context, told, context_time=context_time)
    prediction = stage.teacher.config.prediction
    for output in (trained.predict(data, noisy, levels, captions), stage._score(stage.teacher, data, noisy, levels)):
        velocity = predicted_velocity(output, noisy, levels, prediction)
        torch.testing.assert_close(velocity, sampled, rtol=0, atol=2e-5)


def test_single_frames_cannot_share_their_noise_with_one_context(library: LatentLibrary):
    with pytest.raises(ValueError, match="train on clips"):
        TeacherStage(lively(0), Sampler(library, SamplerConfig(singles=4)), FlowConfig(context_time="shared"))


@torch.no_grad()
def test_guidance_steers_away_from_the_negative_prompt(library: LatentLibrary):
    """Asked for what is steered away from, the guided teacher is the teacher without guidance."""
    stage = distill_stage(library, guidance_scale=2.0)
    stage.critic.load_state_dict(stage.teacher.state_dict())
    stage.negative = library.states_of("red")
    batch = stage.batch(2, range(2))
    red, blue = (batch.data.without_text(library.states_of(colour)) for colour in ("red", "blue"))
    clean = stage.make(batch)[1].clean
    noise, sigma = stage._comparison(2, batch.samples, clean)
    assert stage.gradient(red, clean, noise, sigma).abs().max() < 1e-4
    assert stage.gradient(blue, clean, noise, sigma).abs().max() > 1e-2


def test_trajectories_steer_away_from_the_negative_prompt(library: LatentLibrary):
    data, teacher = Sampler(library, SHOTS).batch(0, range(2)), lively(0)
    red, blue = (library.states_of(colour) for colour in ("red", "blue"))
    noise = torch.randn(data.target.shape)
    plain = TeacherConfig(sigmas=(1.0, 0.75, 0.5))
    guided = replace(plain, guidance_scale=3.0)
    asked = data.without_text(red)
    *_, wanted = teacher_states(teacher, asked, noise, plain)
    *_, cancelled = teacher_states(teacher, asked, noise, guided, negative=red)
    *_, otherwise = teacher_states(teacher, asked, noise, guided, negative=blue)
    torch.testing.assert_close(cancelled, wanted, rtol=0, atol=1e-4)
    assert (otherwise - wanted).abs().max() > 1e-2


def test_every_stage_but_the_walks_learns_from_shots_of_several_lengths(library: LatentLibrary, tmp_path: Path):
    clips = replace(SHOTS, captions_only=False, lengths=(2, 4, 6))
    several, shots = Sampler(library, clips), Sampler(library, replace(clips, captions_only=True))
    seen = {several.num_frames(step) for step in range(8)}
    assert len(seen) > 1
    distill = DistillConfig(rollout=ROLLOUT, critic_warmup=2)
    stages = {
        "teacher": TeacherStage(lively(1), several, FlowConfig()),
        "causal": RealCausalStage(lively(1), CausalConfig(timesteps=TIMESTEPS, chunk_frames=2), sampler=several),
        "distill": DistillStage(lively(1), lively(2), lively(3), distill, shots),
    }
    for name, stage in stages.items():
        rates = {network: OptimiserConfig() for network in stage.networks}
        config = TrainerConfig(
            out=str(tmp_path / name), batch_size=2, precision="float32", device="cpu", optimisers=rates
        )
        trainer = Trainer(stage, config)
        for _ in range(8):
            assert trainer.train_step()["loss"].isfinite()
    with pytest.raises(ValueError, match="walks are made of whole shots"):
        InterShotStage(
            *(lively(i) for i in range(3)), replace(distill, critic_warmup=0), shots, codec=None, walk_shots=2
        )


@pytest.mark.parametrize("name", ["teacher", "causal", "ode", "intra", "inter"])
def test_every_stage_learns_from_latents_of_two_sizes(library_of_two_sizes: Path, tmp_path: Path, name: str):
    library, widths = LatentLibrary(library_of_two_sizes, text_length=TEXT_LENGTH), set[int]()
    clips = Sampler(library, replace(SHOTS, captions_only=False))
    pairs = PairConfig(sampler=TeacherConfig(sigmas=(1.0, 0.75)), kept_steps=(0, 1), batch_size=2)
    causal = CausalConfig(timesteps=pairs.timesteps, chunk_frames=2)
    if name == "ode":
        list(make_pairs(lively(0), Sampler(library, SHOTS), pairs, tmp_path / "pairs", range(6)))

    def trained(out: str, *steps: int) -> Trainer:
        stages = {
            "teacher": lambda: TeacherStage(lively(1), clips, FlowConfig()),
            "causal": lambda: RealCausalStage(lively(1), causal, sampler=clips),
            "ode": lambda: OdeStage(lively(1), causal, pairs=PairStore(tmp_path / "pairs")),
            "intra": lambda: distill_stage(library),
            "inter": lambda: inter_stage(library),
        }
        for until in steps:
            stage = stages[name]()
            judge = stage.networks.get(CRITIC, getattr(stage, "model", None))
            judge.register_forward_pre_hook(lambda _, inputs: widths.add(inputs[0].shape[-1]))
            trainer = _train(stage, tmp_path / out, until)
        return trainer

    steps = 30 if name == "inter" else 8  # three walks of two shots
    whole, again = trained("whole", steps), trained("parts", steps // 2, steps)
    assert widths == {4, 6}
    for network, other in zip(whole.stage.networks.values(), again.stage.networks.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_half_a_chunk_is_refused(library: LatentLibrary):
    stage = distill_stage(library)
    stage.sampler = Sampler(library, replace(SHOTS, target_frames=5))
    with pytest.raises(ValueError, match="a shot must be chunks of 2 frames, at most 6: 5"):
        stage.make(stage.batch(0, range(1)))
