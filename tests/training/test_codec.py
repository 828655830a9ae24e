"""Codec training: batches that depend on nothing but seed and step, a start that already draws, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import codec as recipe
from shotstream.training.codec import CodecTrainConfig, CodecTrainer, heldout_clips, measure, start_linear
from shotstream.training.codec_data import BatchMaker, CodecDataConfig, ShapesSource, box_mask

SHAPES = ShapesSource(height=64, width=96)
SMALL = TinyCodecConfig(
    latent_channels=16,
    encoder_widths=(32, 32, 32),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(32, 32, 32),
    decoder_blocks=(1, 1, 1),
)
DATA = CodecDataConfig(crop_sides=(32, 48), clip_frames=(1, 5), pool=3, pixel_budget=4 * 5 * 32 * 32)


def trainer(out: Path, **changes: object) -> CodecTrainer:
    config = CodecTrainConfig(codec=SMALL, data=DATA, minutes=1.0, warmup_steps=1, evaluation_clips=2)
    made = CodecTrainer(replace(config, **changes), SHAPES, SHAPES, out)  # type: ignore[arg-type]
    made.start_fresh()
    return made


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    walked = BatchMaker(SHAPES, DATA, seed=1)
    for step in range(7):
        last = walked.batch(step)
    jumped = BatchMaker(SHAPES, DATA, seed=1).batch(6)
    assert torch.equal(last.pixels, jumped.pixels)
    assert torch.equal(last.weight, jumped.weight)
    assert not torch.equal(BatchMaker(SHAPES, DATA, seed=2).batch(6).pixels.mean(), jumped.pixels.mean())


def test_batches_hold_the_wanted_shapes_and_weights() -> None:
    maker = BatchMaker(SHAPES, DATA, seed=0)
    for step in range(6):
        batch = maker.batch(step)
        assert batch.pixels.shape[1] in DATA.clip_frames
        assert batch.pixels.shape[3] == batch.pixels.shape[4] in DATA.crop_sides
        assert batch.weight.min() == 1
        assert batch.weight.max() <= 1 + DATA.box_weight + DATA.motion_weight
    whole = maker.batch(7, full_frames=True)
    assert whole.pixels.shape[3:] == (64, 96)


def test_boxes_are_cut_at_the_picture() -> None:
    mask = box_mask([[(-5.0, 2.0, 3.0, 99.0)], []], 8, 8)
    assert mask[0].sum() == 3 * 6
    assert not mask[1].any()


def test_the_linear_start_beats_a_grey_picture_and_a_random_start() -> None:
    torch.manual_seed(0)
    codec, clips = TinyCodec(SMALL), heldout_clips(SHAPES, 2, 5)
    random, _ = measure(codec, clips)
    start_linear(codec, SHAPES, clips=12)
    linear, _ = measure(codec, clips)
    grey = 10 * np.log10(255**2 / np.mean([c.frames.astype(float).var() for c in clips]))
    assert linear["psnr_clip"] > max(grey, random["psnr_clip"]) + 6


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, learning_rate=2e-3)
    batch = run.batches.batch(0)
    before = run.loss(batch, torch.Generator().manual_seed(0))[0].item()
    for _ in range(12):
        run.train_step()
    assert run.loss(batch, torch.Generator().manual_seed(0))[0].item() < before


def test_a_resumed_run_goes_on_identically(tmp_path: Path) -> None:
    straight, first = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for _ in range(4):
        straight.train_step()
    for _ in range(2):
        first.train_step()
    (tmp_path / "b").mkdir()
    first.save()
    second = trainer(tmp_path / "b")
    assert second.resume()
    for _ in range(2):
        second.train_step()
    for name, weight in straight.codec.state_dict().items():
        assert torch.equal(weight, second.codec.state_dict()[name]), name
    for name, weight in straight.ema.state_dict().items():
        assert torch.equal(weight, second.ema.state_dict()[name]), name


def test_a_frozen_encoder_stays(tmp_path: Path) -> None:
    run = trainer(tmp_path, freeze_encoder=True)
    before = {name: weight.clone() for name, weight in run.codec.state_dict().items()}
    run.train_step()
    after = run.codec.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("decoder."))


def test_a_finished_file_has_latents_of_one_scale_and_tells_how_it_was_made(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    path = tmp_path / "codec.safetensors"
    metrics = recipe.finish(run, path, statistics_clips=4)
    assert metrics["psnr_clip"] > 10
    codec = TinyCodec.load(path)
    pixels = torch.cat([run.batches.batch(step, full_frames=True).pixels[:, :1] for step in range(8)])
    latents = codec.encode(pixels)
    assert 0.4 < latents.square().mean().sqrt() < 2.5
    assert latents.mean().abs() < 0.5
    # Not each channel by itself: what moves the picture most has the largest latents.
    assert codec.latent_sd.unique().numel() == 1
    assert latents.std((0, 1, 3, 4)).max() > 1.5 * latents.std((0, 1, 3, 4)).min()


def test_a_decoder_is_not_tuned_to_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --init"):
        recipe.main(["--minutes", "1", "--out", str(tmp_path), "--freeze-encoder", "--world", "shapes"])
