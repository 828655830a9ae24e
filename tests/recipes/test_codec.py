"""The codec's recipe: what a run leaves behind, what it may start from, and what the flags ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import codec as recipe
from shotstream.recipes.codec import CodecRecipe
from shotstream.training.codec import CodecWatch, NoisyCodec
from shotstream.training.codec_data import CodecDataConfig, CropSampler

SMALL = TinyCodecConfig(
    latent_channels=8,
    encoder_widths=(16, 16, 16),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(16, 16, 16),
    decoder_blocks=(1, 1, 1),
)


def tiny(out: Path, **changes: object) -> CodecRecipe:
    full = recipe.config(str(out))
    trainer = replace(full.trainer, steps=3, batch_size=2, precision="float32", device="cpu", image_every=2)
    data = CodecDataConfig(crop_sides=(32,), clip_frames=(1, 5), pool=2, sample_pixels=5 * 32 * 32)
    sizes = {"world": "shapes", "height": 32, "width": 48, "statistics_clips": 4, "test_clips": 2, "test_frames": 5}
    made = replace(full, trainer=trainer, data=data, codec=SMALL, **sizes)
    return replace(made, **changes)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_finished_file_has_latents_of_one_scale_and_tells_how_it_was_made(tmp_path: Path) -> None:
    made = tiny(tmp_path)
    metrics = recipe.run(made)
    path = tmp_path / "codec.safetensors"
    assert metrics is not None
    assert metrics["psnr_clip"] > 10
    told = metadata(path)
    assert json.loads(told["metrics"]) == metrics
    assert json.loads(told["recipe"])["codec"]["latent_channels"] == 8
    assert told["step"] == "3"
    codec = TinyCodec.load(path)
    sampler = CropSampler(recipe.sources(made)[0], made.data, seed=0)
    latents = codec.encode(torch.cat([sampler.batch(step, range(4), cropped=False).pixels[:, :1] for step in range(4)]))
    assert 0.4 < latents.square().mean().sqrt() < 2.5
    assert latents.mean().abs() < 0.5
    # Not each channel by itself: what moves the picture most has the largest latents.
    assert codec.latent_sd.unique().numel() == 1
    assert latents.std((0, 1, 3, 4)).max() > 1.5 * latents.std((0, 1, 3, 4)).min()


def test_a_file_is_measured_as_it_was_when_it_was_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny(tmp_path, test_clips=8)
    metrics = recipe.run(made)
    assert metrics is not None
    assert metrics["psnr_face_low"] < metrics["psnr_face"] < metrics["psnr_face_high"]
    monkeypatch.setattr(recipe, "config", lambda *_, **__: made)
    capsys.readouterr()
    recipe.main(["--out", str(tmp_path), "--world", "shapes", "--measure", str(tmp_path / "codec.safetensors")])
    told = json.loads(capsys.readouterr().out)
    assert told == {name: round(value, 3) for name, value in metrics.items() if name != "megabytes"}
    watched = CodecWatch(NoisyCodec(TinyCodec.load(tmp_path / "codec.safetensors")), recipe.sources(made)[1], 8, 5)
    assert watched().scores["psnr_clip"] != metrics["psnr_clip"]  # judged by other clips


def test_time_is_up_leaves_a_codec_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole, parts = tiny(tmp_path / "whole"), tiny(tmp_path / "parts")
    with pytest.raises(ValueError, match=r"no snapshot in .*parts to finish"):
        recipe.run(parts, train=False)
    recipe.run(whole)
    recipe.run(replace(parts, trainer=replace(parts.trainer, minutes=1e-9)))
    path = tmp_path / "parts" / "codec.safetensors"
    assert metadata(path)["step"] == "1"
    path.unlink()
    recipe.run(parts, train=False)  # the file is lost: finished again from the snapshot
    assert metadata(path)["step"] == "1"
    recipe.run(parts)
    assert metadata(path)["step"] == "3"
    finished = [TinyCodec.load(tmp_path / name / "codec.safetensors") for name in ("whole", "parts")]
    assert finished[0].config == finished[1].config
    for name, weight in finished[0].state_dict().items():
        assert torch.equal(weight, finished[1].state_dict()[name]), name


def test_scores_and_pictures_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the `train` extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe.run(tiny(tmp_path))
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert {"loss", "l1", "edge", "samples_per_second", "psnr_clip", "psnr_face"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("truth above drawn")] == [2]


def test_with_the_decoder_alone_latents_keep_their_meaning(tmp_path: Path) -> None:
    recipe.run(tiny(tmp_path / "a"))
    init = tmp_path / "a" / "codec.safetensors"
    before = TinyCodec.load(init)
    recipe.run(tiny(tmp_path / "b", init=str(init), codec=before.config, freeze_encoder=True))
    after = TinyCodec.load(tmp_path / "b" / "codec.safetensors")
    pixels = torch.rand(1, 5, 3, 32, 48)
    latents = before.encode(pixels)
    assert torch.equal(latents, after.encode(pixels))
    assert not torch.equal(before.decode(latents), after.decode(latents))


def test_a_codec_of_fewer_channels_is_widened(tmp_path: Path) -> None:
    recipe.run(tiny(tmp_path / "a"))
    init = tmp_path / "a" / "codec.safetensors"
    recipe.run(tiny(tmp_path / "b", init=str(init), codec=replace(SMALL, latent_channels=12)))
    assert TinyCodec.load(tmp_path / "b" / "codec.safetensors").latent_channels == 12


def flags(*given: str) -> CodecRecipe:
    return recipe.from_flags(recipe.flags().parse_args(["--out", "runs/codec", *given]))


def test_flags_change_the_recipe(tmp_path: Path) -> None:
    made = flags("--steps", "7", "--batch", "8", "--box-weight", "10", "--device", "cpu", "--precision", "bfloat16")
    assert (made.trainer.steps, made.trainer.batch_size, made.trainer.precision) == (7, 8, "bfloat16")
    assert (made.data.box_weight, made.trainer.device, made.codec.latent_channels) == (10, "cpu", 32)
    small = flags("--small")
    assert (small.codec.spatial_stride, small.codec.latent_channels, small.height) == (8, 16, 96)
    TinyCodec(SMALL).save(tmp_path / "init.safetensors")
    assert flags("--init", str(tmp_path / "init.safetensors")).codec.latent_channels == 8
    assert flags("--init", str(tmp_path / "init.safetensors"), "--latent-channels", "12").codec.latent_channels == 12


def test_what_cannot_be_is_said_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match="needs --init"):
        flags("--freeze-encoder")
    with pytest.raises(ValueError, match="leave --sharded out"):
        flags("--sharded")
    with pytest.raises(ValueError, match="multiples of the codec's stride 16"):
        replace(recipe.config("runs/codec"), height=100)
