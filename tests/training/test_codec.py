"""Codec training: samples that depend on their number alone, a start that already draws, going on, two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_runs import DATA, SHAPES, SMALL, make_stage, make_trainer, weights_of
from launching import assert_same_weights, launch
from torch import Tensor, nn

from shotstream.models.tiny_codec import TinyCodec
from shotstream.training.codec import CodecLossConfig, CodecWatch, heldout_clips, measure, start_linear, widened
from shotstream.training.codec_data import CropSampler, box_mask


def test_a_sample_is_a_function_of_seed_step_and_number() -> None:
    walked = CropSampler(SHAPES, DATA, seed=1)
    for step in range(7):
        last = walked.batch(step, range(4))
    alone = CropSampler(SHAPES, DATA, seed=1).batch(6, [2])
    each = len(alone.pixels)
    assert torch.equal(last.pixels[2 * each : 3 * each], alone.pixels)
    assert torch.equal(last.weight[2 * each : 3 * each], alone.weight)
    other = CropSampler(SHAPES, DATA, seed=2).batch(6, [2])
    assert not torch.equal(other.pixels.mean(), alone.pixels.mean())


def test_batches_hold_the_wanted_shapes_and_weights() -> None:
    sampler = CropSampler(SHAPES, DATA, seed=0)
    for step in range(6):
        pixels, weight = sampler.batch(step, range(2))
        assert pixels.shape[1] in DATA.clip_frames
        assert pixels.shape[3] == pixels.shape[4] in DATA.crop_sides
        assert len(pixels) == 2 * max(1, round(DATA.sample_pixels / pixels[0, :, 0].numel()))
        assert weight.min() == 1
        assert weight.max() <= 1 + DATA.box_weight + DATA.motion_weight
    whole = sampler.batch(7, range(2), cropped=False)
    assert whole.pixels.shape[3:] == (64, 96)


def test_a_sample_keeps_no_clip_that_it_will_not_need_again() -> None:
    sampler = CropSampler(SHAPES, replace(DATA, steps_per_clip=1), seed=0)
    for step in range(12):
        sampler.batch(step, range(3))
    assert len(sampler._clips) <= 3 * DATA.pool


def test_boxes_are_cut_at_the_picture() -> None:
    mask = box_mask([[(-5.0, 2.0, 3.0, 99.0)], []], 8, 8)
    assert mask[0].sum() == 3 * 6
    assert not mask[1].any()


@pytest.mark.parametrize("patch", [4, 2])
def test_the_linear_start_beats_a_grey_picture_and_a_random_start(patch: int) -> None:
    torch.manual_seed(0)
    codec, clips = TinyCodec(replace(SMALL, patch=patch)), heldout_clips(SHAPES, 2, 5)
    random, _ = measure(codec, clips)
    start_linear(codec, SHAPES, clips=12)
    linear, _ = measure(codec, clips)
    grey = 10 * np.log10(255**2 / np.mean([c.frames.astype(float).var() for c in clips]))
    assert linear["psnr_clip"] > max(grey, random["psnr_clip"]) + 6


def test_whole_frames_come_last() -> None:
    stage = make_stage(crop_steps=3)
    assert stage.batch(2, range(2)).pixels.shape[3] in DATA.crop_sides
    assert stage.batch(3, range(2)).pixels.shape[3:] == (SHAPES.height, SHAPES.width)


def test_noise_has_the_size_of_each_channel() -> None:
    stage = make_stage()
    list(stage.losses(stage.batch(0, range(2)), 0))
    model, pixels = stage.model, stage.sampler.fixed(4, 5).pixels
    with torch.no_grad():
        torch.testing.assert_close(model.latent_sd, model.encode(stage._measured_on).std((0, 1, 3, 4)))
        silent, _ = model(pixels, torch.zeros(4, 2, 16, 3, 3))
        loud, _ = model(pixels, torch.full((4, 2, 16, 3, 3), 0.5))
    assert (loud - silent).abs().mean() > 1e-3
    sizes = stage.batch(1, range(64)).noise.flatten(1).std(1)
    assert 0.1 < (sizes == 0).float().mean() < 0.45
    assert sizes.max() < 1.2 * CodecLossConfig().latent_noise


def _held_out_error(codec: TinyCodec) -> tuple[float, float]:
    """Mean squared error on held-out clips, of the codec and of the best constant picture (each colour's mean)."""
    clips = np.stack([clip.frames for clip in heldout_clips(SHAPES, 4, 5)]) / 255.0
    drawn = [drawn / 255.0 for _, drawn in measure(codec, heldout_clips(SHAPES, 4, 5))[1]]
    constant = clips.mean((0, 1, 2, 3))
    return float(((np.stack(drawn) - clips) ** 2).mean()), float(((constant - clips) ** 2).mean())


def test_without_a_linear_start_training_beats_the_best_constant_on_held_out_clips(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=40, linear=False, learning_rate=4e-3)
    before, constant = _held_out_error(trainer.stage.model.codec)
    trainer.run()
    error, _ = _held_out_error(trainer.stage.model.codec)
    assert error < 0.85 * constant < before


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", steps=5, measure_every=2, crop_steps=4)
    whole.run()
    first = make_trainer(tmp_path / "parts", steps=5, measure_every=2, crop_steps=4)
    for _ in range(3):
        first.train_step()
    first.save()
    torch.rand(17)  # another process has other global random numbers
    second = make_trainer(tmp_path / "parts", steps=5, measure_every=2, crop_steps=4, linear=False)
    assert second.run().step == 5
    for (name, a), b in zip(weights_of(whole).items(), weights_of(second).values(), strict=True):
        assert torch.equal(a, b), name


def test_micro_batches_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    runs = [make_trainer(tmp_path / str(n), steps=3, accumulation=n) for n in (1, 4)]
    for trainer in runs:
        trainer.run()
    for (name, a), b in zip(weights_of(runs[0]).items(), weights_of(runs[1]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


def test_convolutions_stay_channels_last_when_a_run_goes_on(tmp_path: Path) -> None:
    def strides(tensors: list[Tensor]) -> bool:
        return all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors if t.ndim == 4)

    make_trainer(tmp_path, steps=1).run()
    trainer = make_trainer(tmp_path, steps=2)
    trainer.run()
    network, (optimiser,) = trainer.stage.networks["model"], trainer.optimisers["model"]
    assert strides(list(network.parameters()))
    assert strides(list(trainer.emas["model"].shadow.values()))
    assert strides([value for state in optimiser.state.values() for value in state.values()])


def test_a_frozen_encoder_stays(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=1, freeze_encoder=True)
    codec: nn.Module = trainer.stage.model.codec
    before = {name: weight.clone() for name, weight in codec.state_dict().items()}
    trainer.train_step()
    after = codec.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("decoder."))


@torch.no_grad()
def test_a_widened_codec_draws_as_before() -> None:
    torch.manual_seed(0)
    codec = TinyCodec(SMALL)
    start_linear(codec, SHAPES, clips=4)
    clips = heldout_clips(SHAPES, 2, 5)
    wide = widened(codec, 20)
    assert wide.latent_channels == 20
    for (_, narrow_drawn), (_, wide_drawn) in zip(measure(codec, clips)[1], measure(wide, clips)[1], strict=True):
        assert np.abs(narrow_drawn.astype(int) - wide_drawn.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="cannot be widened"):
        widened(codec, 8)


def test_scores_and_pictures_of_held_out_clips_are_watched(tmp_path: Path) -> None:
    stage = make_stage()
    watch = CodecWatch(stage.model, SHAPES, num_clips=2, num_frames=5)
    seen = watch()
    assert {"psnr_clip", "psnr_face", "psnr_motion", "psnr_lone"} <= set(seen.scores)
    (picture,) = seen.pictures.values()
    assert picture.shape == (4 * SHAPES.height, 2 * SHAPES.width, 3)
    assert np.array_equal(picture[: SHAPES.height, : SHAPES.width], watch._clips[0].frames[2])


# A process that has finished sometimes aborts while PyTorch takes its threads down ("terminate called ...").
@pytest.mark.flaky(reruns=2, only_rerun="At index")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The same global batch in one process and in two: weights and the latents' sd agree to 1e-5."""
    runs = [
        launch(f"codec_runs.run({str(tmp_path / name)!r})", tmp_path / name, processes=count)
        for name, count in (("one", 1), ("pair", 2))
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    assert_same_weights(tmp_path / "one", tmp_path / "pair")
