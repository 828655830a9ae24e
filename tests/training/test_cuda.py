"""Training on a GPU: it learns, goes on where it stopped, and compiled blocks are the same blocks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import TINY
from worlds import TEXT_LENGTH

from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import RolloutConfig
from shotstream.models.dit import DiT
from shotstream.recipes.runs import compile_blocks
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import CRITIC, GENERATOR, DistillConfig, DistillStage
from shotstream.training.teacher import FlowConfig, TeacherStage
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig

pytestmark = pytest.mark.gpu

FAST = OptimiserConfig(learning_rate=3e-3, warmup_steps=5)


@pytest.fixture(scope="module")
def library(toy_library: Path) -> LatentLibrary:
    return LatentLibrary(toy_library, text_length=TEXT_LENGTH)


def teacher_stage(library: LatentLibrary, device: torch.device) -> TeacherStage:
    torch.manual_seed(0)
    sampler = Sampler(library, SamplerConfig(singles=4, context_noise=0.0), device=device)
    return TeacherStage(DiT(TINY).init_for_training(), sampler, FlowConfig())


def config(out: Path, steps: int, device: torch.device, **changes: object) -> TrainerConfig:
    common = TrainerConfig(out=str(out), steps=steps, batch_size=8, device=str(device), optimisers={"model": FAST})
    return replace(common, **changes)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tiny_teacher_learns(cuda: torch.device, library: LatentLibrary, tmp_path: Path, precision: str) -> None:
    trainer = Trainer(teacher_stage(library, cuda), config(tmp_path, 80, cuda, precision=precision))
    losses = [float(trainer.train_step()["velocity_loss"]) for _ in range(80)]
    assert next(trainer.stage.networks["model"].parameters()).device.type == cuda.type
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    cuda: torch.device, library: LatentLibrary, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    through = Trainer(teacher_stage(library, cuda), config(whole, 6, cuda, precision="float32"))
    through.run()
    Trainer(teacher_stage(library, cuda), config(halves, 3, cuda, precision="float32")).run()
    resumed = Trainer(teacher_stage(library, cuda), config(halves, 6, cuda, precision="float32"))
    resumed.run()
    wanted = through.stage.networks["model"].state_dict()
    for name, tensor in resumed.stage.networks["model"].state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_distillation_moves_both_networks(
    cuda: torch.device, library: LatentLibrary, tmp_path: Path, precision: str
) -> None:
    torch.manual_seed(0)
    networks = [DiT(TINY) for _ in range(3)]
    before = [deepcopy(network.state_dict()) for network in networks[:2]]
    slab = SlabConfig(context_frames=6, window_frames=6, sink_frames=0, chunk_frames=2)
    distill = DistillConfig(rollout=RolloutConfig(timesteps=(1000.0, 500.0), slab=slab), critic_warmup=1)
    networks[2].to(cuda)
    sampler = Sampler(library, SamplerConfig(target_frames=6, captions_only=True), device=cuda)
    rates = {GENERATOR: FAST, CRITIC: FAST}
    Trainer(
        DistillStage(*networks, distill, sampler),
        config(tmp_path, 4, cuda, precision=precision, optimisers=rates),
    ).run()
    for network, old in zip(networks[:2], before, strict=True):
        new = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        assert all(tensor.isfinite().all() for tensor in new.values())
        assert any(not torch.equal(tensor, old[name]) for name, tensor in new.items())


def test_compiled_blocks_give_the_same_loss_and_gradient(cuda: torch.device, library: LatentLibrary) -> None:
    pytest.importorskip("triton", reason="torch.compile needs triton on a GPU")
    plain, compiled = teacher_stage(library, cuda), teacher_stage(library, cuda)
    seen = []
    for stage in (plain, compiled):
        for parameter in stage.model.to(cuda).parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator(cuda).manual_seed(parameter.numel()))
        if stage is compiled:
            compile_blocks(stage.model)
        (loss,) = stage.losses(stage.batch(0, range(8)), 0)
        loss.value.backward()
        seen.append((loss.value.detach(), {name: p.grad for name, p in stage.model.named_parameters()}))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-4)
