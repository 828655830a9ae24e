"""Starting a stage from weights for fewer latent channels, and from flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shotstream.models.attention import SegmentAttention
from shotstream.models.checkpoint import save_dit
from shotstream.models.dit import DiT
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes import causal_init, inter_shot, intra_shot, teacher, watching
from shotstream.recipes.runs import parser, read_codec, widened, with_frames
from shotstream.training.data import SamplerConfig
from shotstream.training.distill import CRITIC, GENERATOR


def predict(model: DiT, latents: torch.Tensor) -> torch.Tensor:
    captions = model.encode_captions(torch.ones(1, 5, 8))
    zeros = torch.zeros(1, latents.shape[1])
    return model(
        latents,
        zeros,
        positions_BF=zeros,
        shot_ids_BF=zeros,
        captions=captions,
        caption_ids_BF=zeros.long(),
        attention=SegmentAttention(sizes=(latents.shape[1],), tokens_per_frame=4),
    )


@torch.no_grad()
def test_new_channels_leave_the_old_ones_alone(tiny_dit: DiT) -> None:
    latents = torch.randn(1, 2, 4, 4, 4)
    more = torch.cat([latents, torch.randn(1, 2, 3, 4, 4)], dim=2)
    wide = predict(widened(tiny_dit, 7), more)
    torch.testing.assert_close(wide[:, :, :4], predict(tiny_dit, latents), atol=1e-5, rtol=0)
    assert wide[:, :, 4:].abs().max() == 0


@pytest.mark.parametrize("frames", [(0,), (-3,), (4,), (3, 8)])
def test_shots_are_trained_in_whole_chunks(frames: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="whole chunks, multiples of 3"):
        with_frames(SamplerConfig(), frames)
    assert with_frames(SamplerConfig(), (3, 6)) == SamplerConfig(target_frames=6, lengths=(3, 6))


@pytest.mark.parametrize(
    ("recipe", "arguments", "flag"),
    [
        (causal_init, ["pairs", "--batch", "4"], "--batch"),
        (causal_init, ["pairs", "--frames", "3"], "--frames"),
        (causal_init, ["pairs", "--watch-codec", "k"], "--watch-codec"),
        (causal_init, ["pairs", "--watch-probe", "p"], "--watch-probe"),
        (causal_init, ["pairs", "--watch-data", "w"], "--watch-data"),
        (causal_init, ["ode", "--guidance", "2"], "--guidance"),
        (causal_init, ["real", "--negative-prompt", "blur"], "--negative-prompt"),
        (teacher, ["memory", "--frames", "3"], "--frames"),
        (intra_shot, ["--teacher", "t", "--compile"], "--compile"),
        (inter_shot, ["--teacher", "t", "--critic", "c", "--codec", "k", "--compile"], "--compile"),
    ],
)
def test_flags_that_do_nothing_are_refused(
    recipe: ModuleType, arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.main([*arguments, "--data", "d", "--out", "o", "--init", "i"])
    assert f"{flag} does nothing for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        (["--watch-probe", "p", "--image-every", "5"], "--watch-codec"),
        (["--watch-data", "d", "--image-every", "5"], "--watch-codec"),
        (["--watch-codec", "k"], "--image-every"),
    ],
)
def test_watching_says_what_it_lacks_to_show_anything(given: list[str], lacking: str) -> None:
    flags = parser(None)
    watching.add_flags(flags)
    with pytest.raises(ValueError, match=f"pass {lacking}"):
        watching.from_flags(flags.parse_args(["--out", "o", "--data", "d", *given]))


def test_fewer_channels_are_refused(tiny_dit: DiT) -> None:
    with pytest.raises(ValueError, match="4-channel latents, the data has 3"):
        widened(tiny_dit, 3)


def test_distillation_flags_reach_the_network_they_are_for() -> None:
    flags = parser(None)
    intra_shot.add_flags(flags)
    names = ["--out", "o", "--data", "d", "--init", "s", "--teacher", "t"]
    unwanted = ["--negative-prompt", "blur"]
    rates_given = ["--critic-rate", "0.5", "--learning-rate", "0.25"]
    given = flags.parse_args([*names, *rates_given, "--critic-steps", "2", "--lowest-sigma", "0.3", *unwanted])
    before = intra_shot.config(data="d", out="o", init="s", teacher="t")
    after = intra_shot.with_distill_flags(before, given)
    rates = {name: optimiser.learning_rate for name, optimiser in after.trainer.optimisers.items()}
    assert rates == {GENERATOR: 0.25, CRITIC: 0.5}
    assert after.negative_prompt == "blur"
    assert after.distill == replace(before.distill, critic_steps=2, lowest_sigma=0.3)


def test_a_codec_is_of_the_kind_that_its_file_is(tiny_dit: DiT, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the Wan codec needs the `wan` extra")
    from diffusers import AutoencoderKLWan

    from shotstream.models.wan_codec import WanCodec

    cpu, small = torch.device("cpu"), dict.fromkeys(("encoder_widths", "decoder_widths"), (8, 8, 8))
    TinyCodec(TinyCodecConfig(latent_channels=4, channels_per_norm_group=4, **small)).save(
        tmp_path / "codec.safetensors"
    )
    AutoencoderKLWan(base_dim=4).save_pretrained(tmp_path / "wan")
    for name, kind in (("codec.safetensors", TinyCodec), ("wan", WanCodec)):
        codec = read_codec(tmp_path / name, cpu)
        assert isinstance(codec, kind)
        assert not any(parameter.requires_grad for parameter in codec.parameters())
    save_dit(tmp_path / "student.safetensors", tiny_dit)
    with pytest.raises(ValueError, match="expected a file of format"):
        read_codec(tmp_path / "student.safetensors", cpu)
    with pytest.raises(ValueError, match="no weights file"):
        read_codec(tmp_path / "nothing.safetensors", cpu)
