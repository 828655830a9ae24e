"""What each process of test_two_processes_equal_one runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from worlds import CHANNELS, TEXT_LENGTH, TEXT_WIDTH, write_library

from shotstream.models.dit import DiT, DiTConfig
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distributed import barrier, joined, whole
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig

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


def run(out: str, *, sharded: bool = False) -> None:
    """Train a tiny teacher for a few steps, on as many processes as were started."""
    with joined() as world:
        data = Path(out) / "data"
        if world.is_first and not data.exists():
            write_library(data, stories=8)
        barrier(world)
        torch.manual_seed(0)
        library = LatentLibrary(data, text_length=TEXT_LENGTH)
        stage = TeacherStage(DiT(TINY).init_for_training(), Sampler(library, SamplerConfig(singles=2)), FlowConfig())
        optimisers = {"model": OptimiserConfig(learning_rate=1e-3, warmup_steps=0)}
        config = TrainerConfig(out=out, steps=6, batch_size=4, precision="float32", device="cpu", optimisers=optimisers)
        config = replace(config, sharded=sharded)
        trainer = Trainer(stage, config, world)
        trainer.run()
        live = {f"live.{name}": whole(value) for name, value in stage.model.state_dict().items()}
        weights = live | {name: whole(value) for name, value in trainer.emas["model"].shadow.items()}
        if world.is_first:
            torch.save(weights, Path(out) / "weights.pt")
