"""Every stage learns on another device than the CPU, on which it draws. Runs without a GPU: nothing is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import TINY
from worlds import CHANNELS, TEXT_LENGTH

from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import RolloutConfig
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.training.causal_init import CausalConfig, RealCausalStage
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import DistillConfig, DistillStage, InterShotStage
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import Stage

CLIPS = SamplerConfig(target_frames=6)
SLAB = SlabConfig(context_frames=6, window_frames=6, sink_frames=0, chunk_frames=2)
ROLLOUT = RolloutConfig(timesteps=(1000.0, 750.0), slab=SLAB)


@pytest.fixture(scope="module")
def library(toy_library: Path) -> LatentLibrary:
    return LatentLibrary(toy_library, text_length=TEXT_LENGTH)


def learn(stage: Stage, steps: int = 1) -> None:
    for step in range(steps):
        for loss in stage.losses(stage.batch(step, range(2)), step):
            loss.value.backward()
            assert loss.value.is_meta


@pytest.mark.parametrize(
    "samples", [SamplerConfig(context_frames=0, singles=2), SamplerConfig(singles=2), CLIPS], ids=str
)
def test_teacher(library: LatentLibrary, elsewhere: torch.device, samples: SamplerConfig) -> None:
    learn(TeacherStage(DiT(TINY).to(elsewhere), Sampler(library, samples, device=elsewhere), FlowConfig()))


@pytest.mark.parametrize("changes", [{"guidance": 2.0, "own_history": 1.0}, {"history": "noisy"}], ids=str)
def test_causal_student(library: LatentLibrary, elsewhere: torch.device, changes: dict[str, object]) -> None:
    config = CausalConfig(chunk_frames=2, **changes)
    learn(RealCausalStage(DiT(TINY).to(elsewhere), config, sampler=Sampler(library, CLIPS, device=elsewhere)))


def test_distillation_within_a_shot_and_across_shots(library: LatentLibrary, elsewhere: torch.device) -> None:
    networks = [DiT(TINY).to(elsewhere) for _ in range(3)]
    shots = replace(CLIPS, captions_only=True, drop_context=0.0, shot_frames=21)
    sampler, config = Sampler(library, shots, device=elsewhere), DistillConfig(rollout=ROLLOUT, critic_warmup=0)
    learn(DistillStage(*networks, config, sampler), steps=2)
    small = dict.fromkeys(("encoder_widths", "decoder_widths"), (16, 16, 16))
    codec = TinyCodec(TinyCodecConfig(latent_channels=CHANNELS, **small)).to(elsewhere)
    learn(InterShotStage(*networks, config, sampler, codec=codec, walk_shots=2), steps=7)
