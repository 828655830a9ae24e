"""Candidate latents differ in nothing but themselves, and what was found is told in full."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="latents are compared on drawn stories: pip install 'shotstream[eval]'")

from PIL import Image

from shotstream.evaluation.report import plain
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import compare_latents as recipe
from shotstream.storyworld.probe import HEIGHT, WIDTH, ProbeScores
from shotstream.storyworld.spec import ATTRIBUTES

STORIES = recipe.heldout_stories(6)
SURE = {name: {"wide": 1.0, "medium": 1.0, "close-up": 1.0} for name in ("character", "place")}
SCORES = ProbeScores(accuracy={}, still_accuracy=SURE)


class Reader:
    """Reads what the stories' labels say, or always something else."""

    def __init__(self, *, right: bool) -> None:
        self.right, self.next = right, 0

    def read(self, frames: torch.Tensor) -> list[dict[str, str]]:
        labels = [story.shots[0].labels(0) for story in STORIES[self.next : self.next + len(frames)]]
        self.next += len(frames)
        wrong = {name: values[-1] for name, values in ATTRIBUTES.items()}
        return [found if self.right else wrong | {"place": found["place"]} for found in labels]


def answers(*, right: bool) -> Any:
    reader: Any = Reader(right=right)
    return recipe.answers(reader, SCORES, STORIES, np.zeros((len(STORIES), 2, 2, 3), np.uint8))


def test_candidates_have_equal_budgets_and_equal_grids(tmp_path: Path) -> None:
    comparison = recipe.Comparison(out=str(tmp_path), codec_steps=40)
    made = [recipe.codec_recipe(candidate, comparison, tmp_path) for candidate in recipe.CANDIDATES.values()]
    assert len({(codec.trainer.steps, codec.trainer.batch_size) for codec in made}) == 1
    for candidate, codec in zip(recipe.CANDIDATES.values(), made, strict=True):
        stride = codec.codec.spatial_stride
        assert (candidate.height // stride, candidate.width // stride) == (12, 20)
        assert codec.codec.latent_channels == candidate.channels
        assert (codec.height, codec.width, stride) == (candidate.height, candidate.width, candidate.stride)
    assert len({recipe.dit_recipe(comparison, tmp_path / name).trainer.steps for name in recipe.CANDIDATES}) == 1


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"found": 3}

    first = recipe.once(tmp_path / "work.json", work)
    assert recipe.once(tmp_path / "work.json", work) == first
    assert len(calls) == 1
    assert first["found"] == 3
    assert first["cpu_s"] >= 0


def test_a_picture_reads_its_own_caption_and_remembers_nothing() -> None:
    text = torch.randn(3, 4, 8)
    data = recipe.lone_frames(text, torch.randn(3, 1, 2, 4, 6))
    assert data.context.shape == (3, 0, 2, 4, 6)
    assert torch.equal(data.text[data.caption_ids[:, 0]], text)
    assert not data.without_text().text.any()


def test_small_pictures_are_enlarged_and_the_rest_left_alone() -> None:
    small = np.full((2, HEIGHT // 2, WIDTH // 2, 3), 77, np.uint8)
    large = recipe.enlarged(small)
    assert large.shape == (2, HEIGHT, WIDTH, 3)
    assert (large == 77).all()
    assert recipe.enlarged(large) is large


def test_a_small_codec_is_measured_at_the_size_of_the_screen() -> None:
    sizes: dict[str, Any] = {"encoder_widths": (8, 8, 8), "decoder_widths": (8, 8, 8), "channels_per_norm_group": 4}
    small = TinyCodec(TinyCodecConfig(latent_channels=4, patch=2, **sizes)).eval()
    seen = recipe.OnScreen(small)
    with torch.no_grad():
        latents = seen.encode(torch.rand(1, 1, 3, HEIGHT, WIDTH))
    assert latents.shape == (1, 1, 4, 12, 20)
    assert seen.decode_chunk(latents, seen.new_decoder_state()).shape == (1, 1, HEIGHT, WIDTH, 3)


def test_only_what_a_caption_says_is_asked_and_said_is_what_the_probe_knows() -> None:
    told = answers(right=True).answers
    assert all(answer.right for group in told.values() for answer in group)
    assert len(told["said"]) == len(told["character"]) + len(told["place"])
    assert "mark" not in told
    guessed = answers(right=False)
    assert guessed.measures()["place"].value == 1
    assert guessed.measures()["said"].value < 1


def test_the_record_tells_of_every_candidate_and_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    tallies = {"renders": answers(right=True)}
    for name in recipe.CANDIDATES:
        tallies |= {f"drawn/{name}": answers(right=True), f"codec/{name}": answers(right=True)}
        tallies[f"samples/{name}"] = answers(right=name == "b")
    done = {"cpu_s": 60.0, "psnr": {"clip": 26.0, "face": 21.0, "lone": 28.0}, "parameters": 7_000_000}
    done |= {"frames": 9, "channel_sd": [2.0, 0.5], "loss": 0.8, "steps": 5}
    done["circumstances"] = {"command": "compare", "hardware": "a CPU", "date": "today", "commit": "abc"}
    stages = dict.fromkeys(("codec", "ceiling", "latents", "dit", "samples"), done)
    results = {
        "config": asdict(recipe.Comparison(out="runs")),
        "candidates": {name: asdict(candidate) for name, candidate in recipe.CANDIDATES.items()},
        "measured": dict.fromkeys(recipe.CANDIDATES, stages),
        "read": {name: plain(tally.measures()) for name, tally in tallies.items()},
        "differences": recipe.differences(tallies),
        "sharpness": dict.fromkeys(tallies, 2.0),
    }
    assert results["differences"]["a - b"]["value"] < 0 < results["differences"]["b - c"]["value"]
    path = tmp_path / "latents"
    recipe.write_record(path, results, Image.new("RGB", (8, 8)))
    text = path.with_suffix(".md")
    text.write_text(f"{text.read_text()}\n{recipe.MEANING}\n\nNothing is decided.\n")
    recipe.write_record(path, results, Image.new("RGB", (8, 8)))
    assert text.read_text().endswith("Nothing is decided.\n")
    assert text.read_text().count(recipe.MEANING) == 1
    assert all(candidate.title in text.read_text() for candidate in recipe.CANDIDATES.values())
    assert json.loads(path.with_suffix(".json").read_text()) == json.loads(json.dumps(results))
