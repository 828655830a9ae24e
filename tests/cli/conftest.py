"""What the commands are tried with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shotstream import presets
from shotstream.engine import loading
from shotstream.engine.stream import Engine
from shotstream.models.checkpoint import save_dit


@pytest.fixture
def tiny_weights(tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights for a preset "tiny", whose text encoder is that of the tiny engine."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for role in ("student", "teacher"):
        save_dit(folder / f"{role}.safetensors", tiny_engine.model, dtype=torch.float32)
    tiny_engine.codec.save(folder / "codec.safetensors")
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny_engine.preset})
    monkeypatch.setattr(loading, "load_text", lambda *_: tiny_engine.text)
    return folder
