"""TAEHV, the published tiny codec for Wan latents (`taew2_1`), with its own key names; parallel over a whole chunk.

Facts: madebyollin/taehv (MIT); written from a description of the architecture. It differs from our own tiny codec in
three ways that its weights were trained with: memories begin as zeros; clips are padded at the *end*, by repeating the
last frame up to a multiple of 4, so a lone frame is not the first latent of a clip; and all 4 frames of the first
latent are decoded, of which 3 are dropped. Latents are Wan's diffusion latents as they are: no mean, no sd.

Shapes: B batch, T frames at the level in hand, N = B * T, C channels, H W size at the level in hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.models.checkpoint import read_tensors, reading
from shotstream.models.codec import ChunkedCodec, check_batch, check_latents, check_pixels, split_frames


@dataclass(frozen=True, kw_only=True)
class TaehvConfig:
    """Widths; the defaults are the published ones. Strides are fixed: 8 in space, 4 in time."""

    latent_channels: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)


@dataclass
class TaehvState:
    """Memory of one stream through the encoder or the decoder."""

    batch: int
    memories: dict[int, Tensor] = field(default_factory=dict)
    fresh: bool = True

    def clone(self) -> TaehvState:
        return TaehvState(self.batch, {place: m.clone() for place, m in self.memories.items()}, self.fresh)


class MemBlock(nn.Module):
    """ReLU(conv stack of [x, the previous frame's x] + skip(x)); before the first frame there are zeros."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width_in, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        self.skip: nn.Module = nn.Identity()
        if width_in != width_out:
            self.skip = nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x_NCHW: Tensor, state: TaehvState, place: int) -> Tensor:
        x_BTCHW = split_frames(x_NCHW, state.batch)
        before_B1CHW = state.memories.get(place)
        if before_B1CHW is None:
            before_B1CHW = torch.zeros_like(x_BTCHW[:, :1])
        state.memories[place] = x_BTCHW[:, -1:].clone()
        previous_NCHW = torch.cat([before_B1CHW, x_BTCHW[:, :-1]], dim=1).flatten(0, 1)
        y_NCHW = self.conv(torch.cat([x_NCHW, previous_NCHW], dim=1))
        return F.relu(y_NCHW + self.skip(x_NCHW))


class TPool(nn.Module):
    """`stride` consecutive frames become one, by a 1x1 convolution of their stacked channels."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(x_NCHW.reshape(-1, self.stride * x_NCHW.shape[1], *x_NCHW.shape[2:]))
        return out


class TGrow(nn.Module):
    """One frame becomes `stride` consecutive ones, by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        grown: Tensor = self.conv(x_NCHW)
        return grown.reshape(-1, grown.shape[1] // self.stride, *grown.shape[2:])


class SoftClamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _conv(width_in: int, width_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=bias)


def _encoder(config: TaehvConfig) -> nn.Sequential:
    """Places in the sequence are the numbers in the published key names."""
    width = config.encoder_width
    layers: list[nn.Module] = [_conv(3, width), nn.ReLU()]
    for time_stride in (2, 2, 1):
        layers += [TPool(width, time_stride), _conv(width, width, stride=2, bias=False)]
        layers += [MemBlock(width, width) for _ in range(3)]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def _decoder(config: TaehvConfig) -> nn.Sequential:
    """Places in the sequence are the numbers in the published key names."""
    widths = config.decoder_widths
    layers: list[nn.Module] = [SoftClamp(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
    for width, narrower, time_stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True):
        layers += [MemBlock(width, width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TGrow(width, time_stride), _conv(width, narrower, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))


def _run(layers: nn.Sequential, x_BTCHW: Tensor, state: TaehvState) -> Tensor:
    x_NCHW = x_BTCHW.flatten(0, 1)
    for place, layer in enumerate(layers):
        x_NCHW = layer(x_NCHW, state, place) if isinstance(layer, MemBlock) else layer(x_NCHW)
    return split_frames(x_NCHW, state.batch)


class Taehv(ChunkedCodec):
    """The published tiny codec; implements `models.codec.Codec`. Runs in the dtype of its own weights."""

    spatial_stride = 8
    temporal_stride = 4

    def __init__(self, config: TaehvConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TaehvConfig()
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def new_encoder_state(self, batch: int = 1) -> TaehvState:
        return TaehvState(batch)

    def new_decoder_state(self, batch: int = 1) -> TaehvState:
        return TaehvState(batch)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 1 + 4k, 3, H, W] in [0, 1] to latents [B, 1 + k, C, h, w]; the last frame is repeated 3 times."""
        check_pixels(pixels, spatial_stride=8, temporal_stride=4, fresh=True)
        padded = torch.cat([pixels, pixels[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
        return self.encode_chunk(padded, self.new_encoder_state(pixels.shape[0]))

    def encode_chunk(self, pixels: Tensor, state: TaehvState) -> Tensor:
        """The next 4k frames of a stream to k latents; `state` is updated in place.

        Since padding is at the end, groups of 4 count from the very first frame: when the stream ends, repeat its last
        frame to fill the group. Raises ValueError for any other number of frames.
        """
        check_pixels(pixels, spatial_stride=8, temporal_stride=4, fresh=False)
        check_batch(pixels, state.batch)
        state.fresh = False
        return _run(self.encoder, pixels.to(self.dtype), state).float()

    def decode_raw(self, latents: Tensor, state: TaehvState) -> Tensor:
        """As `decode_chunk`, before rounding; this codec clamps by itself: float32 [B, T, 3, H, W] in [0, 1]."""
        check_latents(latents, channels=self.latent_channels)
        check_batch(latents, state.batch)
        pixels_BTCHW = _run(self.decoder, latents.to(self.dtype), state).float().clamp(0, 1)
        first, state.fresh = (3 if state.fresh else 0), False
        return pixels_BTCHW[:, first:]

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Taehv:
        """From tensors under the published names. Raises ValueError when they are not this architecture.

        Some published files hold growing kernels for a larger time stride than is used: the last channels count.
        """
        codec = cls(_config_of(weights))
        expected = codec.state_dict()
        missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(f"not TAEHV weights for Wan 2.1: missing {missing[:3]}, unexpected {unexpected[:3]}")
        fitted = {name: _last_channels(weights[name], expected[name].shape, name) for name in expected}
        codec.load_state_dict(fitted)
        return codec.eval()

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Taehv:
        """From a published file, `.safetensors` or `.pth` (read without running any code it may hold)."""
        weights, _ = read_tensors(path)
        with reading(path):  # shapes that no width explains
            return cls.from_weights(weights).to(dtype)


def is_taehv(names: Collection[str]) -> bool:
    """Whether tensors of these names are of this family, and not of the Wan VAE."""
    return "encoder.0.weight" in names


def _config_of(weights: Mapping[str, Tensor]) -> TaehvConfig:
    try:
        latent_channels = weights["encoder.17.weight"].shape[0]
        encoder_width = weights["encoder.0.weight"].shape[0]
        wide, middle, narrow, last = (weights[f"decoder.{i}.weight"].shape[0] for i in (1, 8, 14, 20))
    except KeyError as missing:
        raise ValueError(f"not TAEHV weights for Wan 2.1: no tensor {missing}") from missing
    return TaehvConfig(
        latent_channels=latent_channels, encoder_width=encoder_width, decoder_widths=(wide, middle, narrow, last)
    )


def _last_channels(weight: Tensor, shape: torch.Size, name: str) -> Tensor:
    if weight.shape == shape:
        return weight
    if weight.shape[1:] != shape[1:] or weight.shape[0] < shape[0] or not name.endswith(".conv.weight"):
        raise ValueError(f"{name} is {list(weight.shape)}, expected {list(shape)}: another variant of TAEHV?")
    return weight[-shape[0] :]
