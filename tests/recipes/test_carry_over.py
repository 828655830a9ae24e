"""What a stage learnt, added to a newer network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shotstream.models.checkpoint import load_dit, read_tensors, save_dit
from shotstream.models.dit import DiT
from shotstream.recipes import carry_over


def saved(path: Path, model: DiT) -> Path:
    save_dit(path, model, dtype=torch.float32)
    return path


@torch.no_grad()
def moved(model: DiT, by: float) -> DiT:
    other = DiT(model.config)
    for (name, value), start in zip(other.state_dict().items(), model.state_dict().values(), strict=True):
        value.copy_(start + by * len(name))
    return other


def test_the_newer_network_moves_as_the_stage_moved_the_older_one(tiny_dit: DiT, tmp_path: Path) -> None:
    before = saved(tmp_path / "before.safetensors", tiny_dit)
    after = saved(tmp_path / "after.safetensors", moved(tiny_dit, 0.5))
    newer = saved(tmp_path / "newer.safetensors", moved(tiny_dit, 1.0))
    target = tmp_path / "start.safetensors"
    assert carry_over.main([str(newer), "--after", str(after), "--before", str(before), "-o", str(target)]) == 0
    torch.testing.assert_close(load_dit(target).state_dict(), moved(tiny_dit, 1.5).state_dict())


def test_part_of_a_stage_can_be_taken_back(tiny_dit: DiT, tmp_path: Path) -> None:
    before = saved(tmp_path / "before.safetensors", tiny_dit)
    after, target = tmp_path / "after.safetensors", tmp_path / "half.safetensors"
    save_dit(after, moved(tiny_dit, 1.0), dtype=torch.float32, recipe='{"steps": 7}', step="7")
    files = [str(before), "--after", str(after), "--before", str(before), "-o", str(target)]
    assert carry_over.main([*files, "--share", "0.5"]) == 0
    torch.testing.assert_close(load_dit(target).state_dict(), moved(tiny_dit, 0.5).state_dict())
    _, metadata = read_tensors(target)
    recipe = json.loads(metadata["recipe"])
    assert (recipe["share"], recipe["stage"], metadata["step"]) == (0.5, {"steps": 7}, "7")


def test_networks_of_another_kind_are_refused(tiny_dit: DiT, tmp_path: Path) -> None:
    same = saved(tmp_path / "same.safetensors", tiny_dit)
    other = saved(tmp_path / "other.safetensors", DiT(replace(tiny_dit.config, theta=0.5)))
    with pytest.raises(ValueError, match=r"other\.safetensors is a network of"):
        carry_over.carry_over(same, other, same, tmp_path / "start.safetensors")
    assert not (tmp_path / "start.safetensors").exists()
