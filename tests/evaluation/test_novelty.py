"""Samples that were learnt by heart are told from new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="evaluation draws the truth: pip install 'shotstream[eval]'")

from shotstream.engine.stream import Engine
from shotstream.evaluation.novelty import Nearest, find_nearest, nearest, novelty, picture, summary
from shotstream.training.data import CLIP_FIELDS, FRAME_FIELDS, SHOT_FIELDS, LatentLibrary, write_shard


@pytest.fixture
def library(tmp_path: Path, tiny_engine: Engine) -> LatentLibrary:
    preset = tiny_engine.preset
    rng = np.random.default_rng(0)
    shape = (preset.dit.in_channels, preset.latent_height, preset.latent_width)

    def table(fields: tuple[str, ...], *latent: int) -> dict[str, np.ndarray]:
        return {
            name: rng.standard_normal((20, *latent)).astype(np.float16) if name == "latent" else np.zeros(20, np.int64)
            for name in fields
        }

    write_shard(
        tmp_path / "shard-00000",
        frames=table(FRAME_FIELDS, *shape),
        clips=table(CLIP_FIELDS, 2, *shape),
        shots=table(SHOT_FIELDS),
        captions=["a fox"],
        text_states=torch.ones(1, 3, preset.dit.text_dim),
        stories=[],
    )
    return LatentLibrary(tmp_path)


def test_the_nearest_row_is_found(library: LatentLibrary):
    rows = library.frame["latent"].rows([7, 3]).astype(np.float32)
    distance, index = nearest(torch.from_numpy(rows) + 0.1, library)
    assert index.tolist() == [7, 3]
    assert distance == pytest.approx([0.1, 0.1], rel=1e-3)


def test_a_copy_of_a_training_frame_is_learnt_by_heart():
    pixels, latents = np.zeros((4, 8, 8, 3), np.uint8), torch.zeros(4, 4, 1, 1)
    distance, usual = np.array([0.0, 0.1, 0.9, 1.1]), np.ones(4)
    found = summary(Nearest(samples=pixels, latents=latents, distance=distance, heldout_distance=usual))
    assert found["learnt_by_heart"] == 0.5
    assert found["sample"]["value"] == pytest.approx(0.525)


def test_samples_of_a_model_are_looked_up(tiny_engine: Engine, library: LatentLibrary, tmp_path: Path):
    assert novelty(tiny_engine, tmp_path, 3)["samples"] == 3
    found = find_nearest(tiny_engine, library, 3)
    assert picture(found, tiny_engine.codec, columns=2).shape == (2 * 2 * 32, 2 * 64, 3)
