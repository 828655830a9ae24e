"""A miniature of all stages, from the codec to the student that lives with its own history, on toy worlds.

It asserts what cannot be true by accident: the codec beats a grey picture, teacher and regression beat the best
constant on held-out data, memory is used, distillation brings the student's samples closer to the teacher's, and what
the student itself drew in one shot it draws again in the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from two_processes import TINY
from worlds import TEXT_LENGTH, PlainCodec, write_library

from shotstream.diffusion.flow import add_noise
from shotstream.diffusion.schedule import FlowSchedule
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import RolloutConfig
from shotstream.engine.teacher import TeacherConfig
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.training.causal_init import (
    CausalConfig,
    OdeStage,
    PairConfig,
    PairStore,
    RealCausalStage,
    make_pairs,
    teacher_states,
)
from shotstream.training.codec import CodecLossConfig, CodecStage, heldout_clips, measure, start_linear
from shotstream.training.codec_data import CodecDataConfig, CropSampler, ShapesSource
from shotstream.training.data import Batch, LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import (
    CRITIC,
    GENERATOR,
    DistillConfig,
    DistillStage,
    InterShotStage,
    RolloutNoise,
    roll_out,
)
from shotstream.training.losses import energy_distance, velocity_loss
from shotstream.training.randomness import generator_at, normal
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import OptimiserConfig, Stage, Trainer, TrainerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
"""All stages together take minutes; a loaded machine may need several times as long."""

SMALL = replace(TINY, dim=64, ffn_dim=128, num_layers=2, freq_dim=32)
CHUNK, FRAMES = 2, 4
CLIPS = SamplerConfig(target_frames=FRAMES, drop_context=0.1, random_context=0.0, important_weight=1.0)
SCHEDULE = FlowSchedule(shift=3.0)
SOLVER = TeacherConfig(sigmas=tuple(SCHEDULE.sampling_sigmas(8).tolist()), guidance_scale=1.0)
PAIRS = PairConfig(sampler=SOLVER, kept_steps=(0, 4), batch_size=64)
CAUSAL = CausalConfig(timesteps=PAIRS.timesteps, chunk_frames=CHUNK)
ROLLOUT = RolloutConfig(
    timesteps=PAIRS.timesteps,
    slab=SlabConfig(context_frames=6, window_frames=FRAMES, sink_frames=0, chunk_frames=CHUNK),
)
WALK_SHOTS = 3


@dataclass
class Miniature:
    """What the stages left behind."""

    teacher: DiT
    first_student: DiT
    student: DiT
    last_student: DiT
    """After the inter-shot stage."""
    held_out: LatentLibrary
    held_out_pairs: PairStore


def _run(stage: Stage, out: Path, steps: int, batch: int = 32, **optimisers: OptimiserConfig) -> Trainer:
    config = TrainerConfig(
        out=str(out),
        steps=steps,
        batch_size=batch,
        precision="float32",
        device="cpu",
        optimisers=optimisers,
        ema_decay=0.98,
        log_every=10_000,
    )
    trainer = Trainer(stage, config)
    trainer.run()
    for name, network in stage.networks.items():
        trainer.emas[name].copy_to(network)
    return trainer


@pytest.fixture(scope="module", autouse=True)
def cpu_seconds_before() -> float:
    return time.process_time()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    folder = tmp_path_factory.mktemp("miniature")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library = LatentLibrary(write_library(folder / "train", stories=160, per_shard=80), text_length=TEXT_LENGTH)
    held_out = LatentLibrary(write_library(folder / "held", stories=80, per_shard=80, seed=1), text_length=TEXT_LENGTH)
    fast = OptimiserConfig(learning_rate=3e-3, warmup_steps=20, schedule="cosine")
    teacher = DiT(SMALL).init_for_training()
    memory = replace(CLIPS, singles=4)
    _run(TeacherStage(teacher, Sampler(library, memory), FlowConfig(shift=1.5)), folder / "memory", 140, model=fast)
    _run(TeacherStage(teacher, Sampler(library, CLIPS), FlowConfig()), folder / "clips", 140, model=fast)
    student = deepcopy(teacher)
    _run(RealCausalStage(student, CAUSAL, sampler=Sampler(library, CLIPS)), folder / "real", 8, model=fast)
    wanted = replace(CLIPS, captions_only=True, drop_text=0.0)
    for name, source in (("pairs", library), ("held pairs", held_out)):
        list(make_pairs(teacher, Sampler(source, wanted), PAIRS, folder / name, range(4 if name == "pairs" else 1)))
    _run(OdeStage(student, CAUSAL, pairs=PairStore(folder / "pairs")), folder / "ode", 8, model=fast)
    first = deepcopy(student)
    config = DistillConfig(rollout=ROLLOUT, guidance_scale=0.0, critic_warmup=40, critic_steps=4)
    stage = DistillStage(student, deepcopy(teacher), teacher, config, Sampler(library, wanted))
    steady = OptimiserConfig(betas=(0.0, 0.999), warmup_steps=5)
    rates = {GENERATOR: replace(steady, learning_rate=1.5e-4), CRITIC: replace(steady, learning_rate=1e-3)}
    _run(stage, folder / "distil", 40 + 5 * 70, **rates)
    distilled = deepcopy(student)
    walks = Sampler(library, replace(wanted, shot_frames=4 * FRAMES - 3))
    walking = InterShotStage(
        student,
        stage.critic,
        teacher,
        replace(config, critic_warmup=0),
        walks,
        codec=PlainCodec(),
        walk_shots=WALK_SHOTS,
    )
    _run(walking, folder / "walks", 5 * 4 * WALK_SHOTS, **rates)
    yield Miniature(teacher, first, distilled, student, held_out, PairStore(folder / "held pairs"))
    torch.set_num_threads(threads)


def test_the_codec_beats_a_grey_picture_and_its_linear_start(tmp_path: Path):
    shapes = ShapesSource(height=32, width=48)
    sizes = {"encoder_widths": (32, 32, 32), "decoder_widths": (32, 32, 32)}
    depths = {"encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1, 1)}
    codec = TinyCodec(TinyCodecConfig(latent_channels=16, **sizes, **depths))
    start_linear(codec, shapes)
    clips = heldout_clips(shapes, 4, 5)
    linear = measure(codec, clips)[0]["psnr_clip"]
    data = CodecDataConfig(crop_sides=(32,), clip_frames=(1, 5), sample_pixels=5 * 32 * 32)
    stage = CodecStage(codec, CropSampler(shapes, data, 0), CodecLossConfig(), torch.device("cpu"), crop_steps=36)
    fast = OptimiserConfig(learning_rate=2e-3, warmup_steps=4, schedule="cosine")
    _run(stage, tmp_path, 40, batch=8, model=fast)
    grey = 10 * np.log10(255**2 / np.mean([clip.frames.astype(float).var() for clip in clips]))
    trained = measure(codec, clips)[0]["psnr_clip"]
    assert trained > max(linear, grey + 6)


def _held_out_batch(miniature: Miniature, count: int, **changes: object) -> Batch:
    config = replace(CLIPS, drop_text=0.0, drop_context=0.0, empty_context_captions=0.0, context_noise=0.0)
    return Sampler(miniature.held_out, replace(config, **changes), ("held out",)).batch(0, range(count))


@torch.no_grad()
def _teacher_losses(miniature: Miniature, data: Batch) -> tuple[float, float]:
    """Mean velocity loss of the teacher, and of the best constant (the mean of the very data)."""
    model, stage = miniature.teacher, TeacherStage(miniature.teacher, Sampler(miniature.held_out, CLIPS), FlowConfig())
    rng = generator_at("judge")
    noise = normal(rng, data.target.shape)
    sigma = torch.from_numpy(rng.uniform(0.3, 1.0, len(noise))).float()[:, None].expand(-1, FRAMES)
    output = stage.predict(data, add_noise(data.target, noise, sigma), sigma, model.encode_captions(data.text))
    constant = data.target.mean(0, keepdim=True).expand_as(data.target)
    losses = [
        velocity_loss(answer, data.target, noise, sigma, prediction="clean").mean().item()
        for answer in (output, constant)
    ]
    return losses[0], losses[1]


def test_the_teacher_beats_the_best_constant_on_held_out_stories(miniature: Miniature):
    teacher, constant = _teacher_losses(miniature, _held_out_batch(miniature, 64))
    assert teacher < 0.4 * constant


def test_true_memory_beats_shuffled_memory(miniature: Miniature):
    data = _held_out_batch(miniature, 64, first_shot=0.0)
    shuffled = data._replace(context=data.context.roll(1, 0))
    assert _teacher_losses(miniature, data)[0] < 0.8 * _teacher_losses(miniature, shuffled)[0]


@torch.no_grad()
def test_regression_beats_the_best_constant_on_held_out_trajectories(miniature: Miniature):
    stage = OdeStage(miniature.first_student, CAUSAL, pairs=miniature.held_out_pairs)
    batch = stage.batch(0, range(64))
    clean = batch.data.target
    constant = (clean - clean.mean(0)).square().mean()
    assert stage.regression(batch).mean() < 0.5 * constant


@torch.no_grad()
def _distances(miniature: Miniature, *, conditions: int = 12, repeats: int = 64) -> dict[str, float]:
    """Energy distance to the teacher's samples, a mean over contexts and captions, before and after distillation."""
    data = _held_out_batch(miniature, conditions, captions_only=True)
    repeated = (t.repeat_interleave(repeats, 0) for t in data._replace(text=data.text[:0]))
    data = Batch(*repeated)._replace(text=data.text)
    samples = range(len(data.context))
    noise = torch.stack([normal(generator_at("teacher samples", i), data.target.shape[1:]) for i in samples])
    wanted = list(teacher_states(miniature.teacher, data, noise, SOLVER))[-1].flatten(1)
    distances = {}
    for name, student in (("before", miniature.first_student), ("after", miniature.student)):
        made = roll_out(student, ROLLOUT, data, RolloutNoise(0, 0, samples), ROLLOUT.num_steps - 1)[1].clean.flatten(1)
        pairs = zip(made.split(repeats), wanted.split(repeats), strict=True)
        distances[name] = sum(energy_distance(a, b).item() for a, b in pairs) / conditions
    return distances


def test_distillation_brings_the_student_closer_to_the_teacher(miniature: Miniature):
    distances = _distances(miniature)
    assert distances["after"] < 0.75 * distances["before"]


@torch.no_grad()
def _marks_of_a_walk(miniature: Miniature, samples: int = 64) -> list[Tensor]:
    """Which mark the student draws in each shot of stories of its own, [samples]."""
    quiet = replace(CLIPS, captions_only=True, drop_text=0.0, drop_context=0.0, context_noise=0.0)
    walks = Sampler(miniature.held_out, replace(quiet, shot_frames=4 * FRAMES - 3))
    config = DistillConfig(rollout=ROLLOUT, critic_warmup=0)
    networks = (miniature.last_student, miniature.teacher, miniature.teacher)
    stage = InterShotStage(*networks, config, walks, codec=PlainCodec(), walk_shots=WALK_SHOTS)
    marks = []
    for shot in range(WALK_SHOTS):
        last_step = (1 + config.critic_steps) * (shot + 1) - 1
        batch = stage.batch(last_step, range(samples))
        clean = stage.make(batch)[1].clean
        stage._keep(batch, clean)  # decoded, for the next shot to remember
        marks.append(clean[:, :, 3].mean(dim=(1, 2, 3)) > 0)
    return marks


def test_a_student_with_its_own_history_draws_again_the_mark_that_it_drew(miniature: Miniature):
    first, *later = _marks_of_a_walk(miniature)
    for marks in later:
        assert (marks == first).float().mean() > 0.85
        assert (marks == first.roll(1)).float().mean() < 0.7  # it does not draw the same one always


def test_all_of_it_takes_less_than_three_minutes_of_one_core(miniature: Miniature, cpu_seconds_before: float):
    assert time.process_time() - cpu_seconds_before < 180
