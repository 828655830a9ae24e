"""What a teacher that comes from a larger scale is trained by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from two_processes import TINY

from shotstream.models.checkpoint import load_dit, save_dit
from shotstream.models.dit import DiT, DiTConfig
from shotstream.recipes import teacher
from shotstream.training.data import SamplerConfig
from shotstream.training.snapshot import SnapshotReader, newest_snapshot
from shotstream.training.teacher import freeze_all_but_self_attention
from shotstream.training.trainer import OptimiserConfig, TrainerConfig


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_self_attention_learns_alone_and_the_network_stays_whole(
    toy_library: Path, tmp_path: Path, kind: Literal["adamw", "muon"]
) -> None:
    init = tmp_path / "init.safetensors"
    save_dit(init, DiT(TINY), dtype=torch.float32)
    optimisers = {"model": OptimiserConfig(kind=kind, learning_rate=1e-2, warmup_steps=0)}
    trainer = TrainerConfig(
        out=str(tmp_path / "run"), steps=2, batch_size=2, precision="float32", device="cpu", optimisers=optimisers
    )
    recipe = replace(
        teacher.config("shots", data=str(toy_library), out=trainer.out),
        sampler=SamplerConfig(target_frames=3),
        trainer=trainer,
        dit=TINY,
        init=str(init),
        self_attention_only=True,
    )
    teacher.run(recipe)
    assert teacher.run(replace(recipe, trainer=replace(trainer, steps=4))).step == 4
    before = load_dit(init).state_dict()
    after = load_dit(tmp_path / "run" / "weights.safetensors").state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if ".self_attn." in name}
    snapshot = newest_snapshot(tmp_path / "run" / "snapshots")
    assert snapshot is not None
    reader = SnapshotReader(snapshot)
    assert set(reader.names("network/model/")) == set(reader.names("ema/model/")) == set(before)
    assert all(".self_attn." in name for name in reader.names("optimiser/model/"))


def test_self_attention_alone_needs_something_to_start_from() -> None:
    with pytest.raises(ValueError, match="--self-attention-only needs --init"):
        replace(teacher.config("shots", data="d", out="o"), self_attention_only=True)


def test_as_many_weights_learn_as_in_the_published_teacher() -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig())
    freeze_all_but_self_attention(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 283_392_000
