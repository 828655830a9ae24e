"""The shipped file: small, and complete enough to train on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shotstream.models.checkpoint import load_dit, read_tensors, save_dit
from shotstream.models.dit import DiT
from shotstream.recipes import ship


def test_shipping_keeps_config_recipe_and_step(tiny_dit: DiT, tmp_path: Path) -> None:
    source, target = tmp_path / "weights.safetensors", tmp_path / "package" / "student.safetensors"
    save_dit(
        source,
        tiny_dit,
        dtype=torch.float32,
        recipe='{"part": "real", "trainer": {"out": "/home/me/runs/c1"}}',
        step="7",
    )
    assert ship.main([str(source), "--to", str(target)]) == 0
    tensors, metadata = read_tensors(target)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads(metadata["recipe"]) == {"part": "real", "trainer": {"out": "runs/c1"}}
    assert metadata["step"] == "7"
    assert load_dit(target).config == tiny_dit.config


def test_a_network_too_large_for_one_file_is_refused(
    tiny_dit: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dit(tmp_path / "weights.safetensors", tiny_dit)
    monkeypatch.setattr(ship, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match="a shipped file may have"):
        ship.ship(tmp_path / "weights.safetensors", tmp_path / "student.safetensors")
    assert not (tmp_path / "student.safetensors").exists()
