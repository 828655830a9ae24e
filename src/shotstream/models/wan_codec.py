"""The Wan 2.1 video codec: Diffusers' `AutoencoderKLWan`, official key names converted, and streaming both ways.

Its causal convolutions keep the last two frames each of them saw; Diffusers throws these away at the end of every call,
here they live in a state that belongs to one stream. Pixels are [0, 1] outside, [-1, 1] inside. Latents are the mean of
the posterior, normalised per channel by the published statistics. Needs the `wan` extra.

Shapes: B batch, T pixel frames, F latent frames, C channels, H W size; the network itself wants [B, C, T, H, W].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shotstream.models.checkpoint import read_tensors, reading
from shotstream.models.codec import ChunkedCodec, check_batch, check_latents, check_pixels

Feature = Tensor | str | None
"""What one causal convolution keeps: nothing yet, its last frames, or a mark that its first frame was skipped."""


@dataclass
class WanCodecState:
    """Memory of one stream through the encoder or the decoder."""

    batch: int
    features: list[Feature]
    fresh: bool = True

    def clone(self) -> WanCodecState:
        copied = [f.clone() if isinstance(f, Tensor) else f for f in self.features]
        return WanCodecState(self.batch, copied, self.fresh)


class WanCodec(ChunkedCodec):
    """Wraps an `AutoencoderKLWan`; implements `models.codec.Codec`. Strides 8 in space, 4 in time."""

    temporal_stride = 4
    latent_mean: Tensor
    latent_sd: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("latent_mean", torch.tensor(vae.config.latents_mean), persistent=False)
        self.register_buffer("latent_sd", torch.tensor(vae.config.latents_std), persistent=False)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    @property
    def spatial_stride(self) -> int:
        return int(2 ** (len(self.vae.config.dim_mult) - 1))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def new_encoder_state(self, batch: int = 1) -> WanCodecState:
        return WanCodecState(batch, [None] * _count_causal_convolutions(self.vae.encoder))

    def new_decoder_state(self, batch: int = 1) -> WanCodecState:
        return WanCodecState(batch, [None] * _count_causal_convolutions(self.vae.decoder))

    def encode_chunk(self, pixels: Tensor, state: WanCodecState) -> Tensor:
        """The next pixels of a stream to normalised latents; `state` is updated in place. Raises ValueError."""
        check_pixels(pixels, spatial_stride=self.spatial_stride, temporal_stride=4, fresh=state.fresh)
        check_batch(pixels, state.batch)
        x_BCTHW = (pixels * 2 - 1).to(self.dtype).transpose(1, 2)
        sizes = [1] * state.fresh + [4] * ((x_BCTHW.shape[2] - state.fresh) // 4)
        parts = [self._step(self.vae.encoder, part, state) for part in torch.split(x_BCTHW, sizes, dim=2)]
        moments_BCFHW = self.vae.quant_conv(torch.cat(parts, dim=2))
        mean_BFCHW = moments_BCFHW[:, : self.latent_channels].transpose(1, 2).float()
        normalised: Tensor = (mean_BFCHW - self.latent_mean.float().view(-1, 1, 1)) / self.latent_sd.float().view(
            -1, 1, 1
        )
        return normalised

    def decode_raw(self, latents: Tensor, state: WanCodecState) -> Tensor:
        """As `decode_chunk`, before clamping and rounding: float32 [B, T, 3, H, W], [0, 1] up to overshoot."""
        check_latents(latents, channels=self.latent_channels)
        check_batch(latents, state.batch)
        raw_BFCHW = latents.float() * self.latent_sd.float().view(-1, 1, 1) + self.latent_mean.float().view(-1, 1, 1)
        z_BCFHW = self.vae.post_quant_conv(raw_BFCHW.to(self.dtype).transpose(1, 2))
        parts = [self._step(self.vae.decoder, part, state) for part in z_BCFHW.split(1, dim=2)]
        return torch.cat(parts, dim=2).transpose(1, 2).float() * 0.5 + 0.5

    def _step(self, half: nn.Module, x_BCTHW: Tensor, state: WanCodecState) -> Tensor:
        """One step through the encoder or decoder, which walks down the list of features with a counter of its own."""
        out: Tensor = half(x_BCTHW, feat_cache=state.features, feat_idx=[0])
        state.fresh = False
        return out

    @classmethod
    def from_official(cls, weights: Mapping[str, Tensor], **config: Any) -> WanCodec:
        """From the official state dict. Widths are read from the shapes; `config` goes to `AutoencoderKLWan`.

        Raises ValueError when the tensors are not those of a Wan 2.1 VAE.
        """
        if "encoder.conv1.weight" not in weights or "decoder.conv1.weight" not in weights:
            raise ValueError(f"not official Wan 2.1 VAE weights: no encoder.conv1.weight among {sorted(weights)[:3]}")
        config.setdefault("base_dim", weights["encoder.conv1.weight"].shape[0])
        config.setdefault("z_dim", weights["decoder.conv1.weight"].shape[1])
        vae = _autoencoder(**config)
        converted = convert_official_keys(weights, num_res_blocks=int(vae.config.num_res_blocks))
        expected = vae.state_dict()
        missing, unexpected = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
        wrong = [n for n in expected if n in converted and expected[n].shape != converted[n].shape]
        if missing or unexpected or wrong:
            raise ValueError(
                f"these weights do not fit the Wan 2.1 VAE of width {config['base_dim']}: "
                f"missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape {wrong[:3]}"
            )
        vae.load_state_dict(converted)
        return cls(vae).eval()

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> WanCodec:
        """From the official file (`Wan2.1_VAE.pth` or a safetensors of it) or a Diffusers folder.

        Pickles are read without running any code they may hold. Raises ValueError for any other kind of file.
        """
        path = Path(path)
        if path.is_dir():
            with reading(path):
                return cls(_autoencoder_class().from_pretrained(path)).to(dtype).eval()
        weights, _ = read_tensors(path)
        with reading(path):  # shapes that no width explains
            return cls.from_official(weights).to(dtype)


_RENAMED = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def convert_official_keys(weights: Mapping[str, Tensor], *, num_res_blocks: int = 2) -> dict[str, Tensor]:
    """Official names to Diffusers'. The decoder's flat list holds, per level, its blocks and then its up-sampler."""
    per_level = num_res_blocks + 2

    def place(match: re.Match[str]) -> str:
        level, index = divmod(int(match[1]), per_level)
        inner = "upsamplers.0" if index == per_level - 1 else f"resnets.{index}"
        return f".up_blocks.{level}.{inner}."

    converted = {}
    for name, weight in weights.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        converted[re.sub(r"\.upsamples\.(\d+)\.", place, name)] = weight
    return converted


def _autoencoder_class() -> Any:
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as missing:
        raise ValueError("the Wan codec needs Diffusers: pip install 'shotstream[wan]'") from missing
    return AutoencoderKLWan


def _autoencoder(**config: Any) -> Any:
    return _autoencoder_class()(**config)


def _count_causal_convolutions(half: nn.Module) -> int:
    """Diffusers gives every causal 3-D convolution a place in its list of features, used or not."""
    return sum(type(module).__name__ == "WanCausalConv3d" for module in half.modules())
