"""What each process of test_two_processes_equal_one runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from worlds import CHANNELS, TEXT_LENGTH, TEXT_WIDTH, SignCodec, write_library

from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import RolloutConfig
from shotstream.engine.teacher import TeacherConfig
from shotstream.models.dit import DiT, DiTConfig
from shotstream.training.causal_init import CausalConfig, OdeStage, PairConfig, PairStore, RealCausalStage, make_pairs
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import DistillConfig, DistillStage, InterShotStage
from shotstream.training.distributed import World, barrier, joined, whole
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import OptimiserConfig, Stage, Trainer, TrainerConfig

TINY = DiTConfig(
    dim=24,
    ffn_dim=32,
    num_heads=2,
    num_layers=1,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    text_dim=TEXT_WIDTH,
    text_len=TEXT_LENGTH,
    freq_dim=16,
    prediction="clean",
)


TIMESTEPS = (1000.0, 750.0)
SLAB = SlabConfig(context_frames=6, window_frames=4, sink_frames=0, chunk_frames=2)
CAUSAL = CausalConfig(timesteps=TIMESTEPS, chunk_frames=2)
DISTILL = DistillConfig(rollout=RolloutConfig(timesteps=TIMESTEPS, slab=SLAB), critic_warmup=0)
CLIPS = SamplerConfig(target_frames=4)
SHOTS = replace(CLIPS, captions_only=True)
STAGES = ("teacher", "real", "ode", "intra", "inter")


def build(name: str, data: Path) -> Stage:
    """A stage of random networks on the toy library."""
    library = LatentLibrary(data / "library", text_length=TEXT_LENGTH)
    if name == "teacher":
        return TeacherStage(DiT(TINY).init_for_training(), Sampler(library, SamplerConfig(singles=2)), FlowConfig())
    if name == "real":
        return RealCausalStage(DiT(TINY), CAUSAL, sampler=Sampler(library, CLIPS))
    if name == "ode":
        return OdeStage(DiT(TINY), CAUSAL, pairs=PairStore(data / "pairs"))
    networks = (DiT(TINY), DiT(TINY), DiT(TINY))
    if name == "intra":
        return DistillStage(*networks, DISTILL, Sampler(library, SHOTS))
    walks = Sampler(library, replace(SHOTS, shot_frames=13))
    return InterShotStage(*networks, DISTILL, walks, codec=SignCodec(), walk_shots=2)


def write_data(data: Path) -> None:
    library = LatentLibrary(write_library(data / "library", stories=8), text_length=TEXT_LENGTH)
    solver = TeacherConfig(sigmas=(1.0, 0.75), slab=SLAB)
    pairs = PairConfig(sampler=solver, kept_steps=(0, 1), batch_size=4)
    list(make_pairs(DiT(TINY), Sampler(library, SHOTS), pairs, data / "pairs", range(2)))


def run(out: str, stages: Sequence[str] = STAGES, *, sharded: bool = False) -> None:
    """Train tiny networks for a few steps in these stages, on as many processes as were started."""
    with joined() as world:
        torch.manual_seed(0)
        if world.is_first and not (Path(out) / "data").exists():
            write_data(Path(out) / "data")
        barrier(world)
        for name in stages:
            torch.manual_seed(0)
            train(build(name, Path(out) / "data"), Path(out) / name, world, sharded=sharded)


def train(stage: Stage, out: Path, world: World, *, sharded: bool) -> None:
    """Seven steps: two updates of a generator, the second one in a walk's second shot."""
    optimisers = {name: OptimiserConfig(learning_rate=1e-3, warmup_steps=0) for name in stage.networks}
    config = TrainerConfig(
        out=str(out), steps=7, batch_size=4, precision="float32", device="cpu", optimisers=optimisers, sharded=sharded
    )
    trainer = Trainer(stage, config, world)
    trainer.run()
    weights = {}
    for name, network in stage.networks.items():
        weights |= {f"live.{name}.{key}": whole(value) for key, value in network.state_dict().items()}
        weights |= {f"{name}.{key}": whole(value) for key, value in trainer.emas[name].shadow.items()}
    if world.is_first:
        torch.save(weights, out / "weights.pt")
