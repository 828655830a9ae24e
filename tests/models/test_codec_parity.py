"""The Wan VAE and TAEHV against vectors of the published implementations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from shotstream.models.taehv import Taehv

pytestmark = pytest.mark.parity

Check = Callable[[str, Tensor, Tensor], None]


@torch.no_grad()
def test_wan_vae(parity_dir: Path, assert_parity: Check) -> None:
    pytest.importorskip("diffusers", reason="the Wan codec needs the `wan` extra")
    from shotstream.models.wan_codec import WanCodec

    with safe_open(str(parity_dir / "vae_tiny.safetensors"), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    vectors = load_file(parity_dir / "vae_io.safetensors")
    codec = WanCodec.from_official(
        load_file(parity_dir / "vae_tiny.safetensors"),
        base_dim=config["dim"],
        z_dim=config["z_dim"],
        dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"],
        attn_scales=config["attn_scales"],
        temperal_downsample=config["temperal_downsample"],
        latents_mean=vectors["mean"].tolist(),
        latents_std=vectors["std"].tolist(),
    )
    pixels_BCTHW = vectors["pixels"] * 0.5 + 0.5
    assert_parity("vae_io.safetensors", codec.encode(pixels_BCTHW.transpose(1, 2)), vectors["latent"].transpose(1, 2))
    latents = vectors["decode.latent"].transpose(1, 2)
    drawn = codec.decode_raw(latents, codec.new_decoder_state(latents.shape[0]))
    assert_parity("vae_io.safetensors", drawn * 2 - 1, vectors["decode.pixels"].transpose(1, 2))


@torch.no_grad()
def test_taehv(parity_dir: Path, assert_parity: Check) -> None:
    path = parity_dir / "taehv_io.safetensors"
    with safe_open(str(path), framework="pt") as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()["shapes"])
    generator = torch.Generator().manual_seed(11)
    weights = {}
    for name in sorted(shapes):
        value = torch.randn(shapes[name], generator=generator)
        fan_in = value[0].numel()
        weights[name] = value / fan_in**0.5 if value.ndim > 1 else value * 0.05
    codec, vectors = Taehv.from_weights(weights), load_file(path)
    assert_parity(path.name, codec.encode(vectors["encode.pixels"]), vectors["encode.latent"])
    assert_parity(path.name, codec.decode(vectors["decode.latent"]), vectors["decode.pixels"])
