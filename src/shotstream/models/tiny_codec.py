"""A small causal video autoencoder: 2-D convolutions that remember the previous frame, parallel over a chunk.

It belongs to the TAEHV family (see `taehv.py` for the published one) but is made to be trained from scratch: residual
blocks with group norm, no convolution at full resolution, and a memory that begins as the first frame's own features.
That last choice stands for three copies of the first frame put in front of the clip: all copies look alike until they
are pooled, so a lone frame costs one frame, not four, and encodes exactly as the first latent of any clip it begins.
Norm statistics are taken per frame, so no frame depends on a later one and chunks give what one pass gives.

Shapes: B batch, T frames at the level in hand, N = B * T, C channels, H W size at the level in hand.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.models.checkpoint import load_strictly, read_ours, reading
from shotstream.models.codec import (
    ChunkedCodec,
    check_batch,
    check_latents,
    check_pixels,
    nothing,
    split_frames,
    unchanged_if_it_fails,
)
from shotstream.models.shelf import apart
from shotstream.models.winograd import WinogradConv

FORMAT = "shotstream.tiny_codec.1"


@dataclass(frozen=True, kw_only=True)
class TinyCodecConfig:
    """Sizes of a tiny codec, and the statistics that normalise its latents."""

    latent_channels: int = 32
    patch: int = 4
    """Side of the pixel squares that become channels before the first convolution. Spatial stride is 4 * patch."""
    encoder_widths: tuple[int, int, int] = (48, 128, 192)
    """Channels at strides patch, 2 patch, 4 patch; time is halved at each step down."""
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_widths: tuple[int, int, int] = (256, 128, 48)
    """Channels at strides 4 patch, 2 patch, patch; time is doubled at each step up."""
    decoder_blocks: tuple[int, int, int] = (3, 3, 2)
    channels_per_norm_group: int = 16
    latent_mean: tuple[float, ...] = ()
    """Per channel, measured on renders; empty means zeros."""
    latent_sd: tuple[float, ...] = ()
    """Per channel, measured on renders; empty means ones."""

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "decoder_widths"):
            for width in getattr(self, name):
                if width % self.channels_per_norm_group:
                    raise ValueError(f"{name} holds {width}, not a multiple of {self.channels_per_norm_group}")
        for name in ("latent_mean", "latent_sd"):
            if len(getattr(self, name)) not in (0, self.latent_channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.latent_channels} channels")
        if any(sd <= 0 for sd in self.latent_sd):
            raise ValueError("latent_sd must be positive in every channel")

    @property
    def spatial_stride(self) -> int:
        return 4 * self.patch

    @property
    def temporal_stride(self) -> int:
        return 4

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From what json made of `asdict`; raises ValueError for a field this version does not know."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"codec config has unknown fields {sorted(unknown)}: made by a newer version?")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


@dataclass
class TinyCodecState:
    """Memory of one stream through one half of the codec: for each block, the last frame it saw."""

    batch: int
    memories: dict[str, Tensor] = field(default_factory=dict)
    fresh: bool = True

    def remember(self, name: str, last: Tensor) -> None:
        """Keep a copy of a block's last frame."""
        if torch.is_grad_enabled():
            self.memories[name] = last.clone()
        elif name in self.memories:
            self.memories[name].copy_(last)
        else:
            self.memories[name] = apart(last)

    def clone(self) -> TinyCodecState:
        return TinyCodecState(self.batch, {name: m.clone() for name, m in self.memories.items()}, self.fresh)


class MemoryBlock(nn.Module):
    """x + conv(act(conv(a) + memory(a of the previous frame))) with a = act(norm(x)).

    The memory is a 1x1 convolution, a ninth of the price of the published block's; the 3x3 after it looks around.
    """

    def __init__(self, width: int, channels_per_group: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(width // channels_per_group, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.memory = nn.Linear(width, width, bias=False)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        # A block starts as the identity: deep stacks then train at once.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self.fast_convs: tuple[WinogradConv, WinogradConv] | None = None

    def forward(self, x_NCHW: Tensor, state: TinyCodecState, name: str) -> Tensor:
        # Fresh results are overwritten where no gradient needs them: half of the time outside convolutions is spent on
        # moving memory.
        spare = not torch.is_grad_enabled()
        fast = self.fast_convs if spare and WinogradConv.fits(x_NCHW) else None
        conv_in, conv_out = fast or (self.conv_in, self.conv_out)
        a_NCHW = F.silu(self.norm(x_NCHW), inplace=spare)
        h_NCHW = conv_in(a_NCHW)
        _add_previous(h_NCHW.permute(0, 2, 3, 1), self.memory(a_NCHW.permute(0, 2, 3, 1)), state, name)
        out: Tensor = conv_out(F.silu(h_NCHW, inplace=spare)).add_(x_NCHW)
        return out


def _add_previous(h_NHWC: Tensor, x_NHWC: Tensor, state: TinyCodecState, name: str) -> None:
    """Add to each frame of h, in place, what x holds for the frame before; for a stream's first frame its own.

    Remembers the last frame.
    """
    h_BTHWC, x_BTHWC = split_frames(h_NHWC, state.batch), split_frames(x_NHWC, state.batch)
    h_BTHWC[:, 1:] += x_BTHWC[:, :-1]
    h_BTHWC[:, :1] += state.memories.get(name, x_BTHWC[:, :1])
    state.remember(name, x_BTHWC[:, -1:])


class Down(nn.Module):
    """Halves height, width and time by one matrix product. A fresh stream's first frame is taken twice."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.project = nn.Linear(8 * width_in, width_out)
        nn.init.orthogonal_(self.project.weight)

    def forward(self, x_NCHW: Tensor, state: TinyCodecState) -> Tensor:
        x_BTHWC = split_frames(x_NCHW.permute(0, 2, 3, 1), state.batch)
        if state.fresh:
            x_BTHWC = torch.cat([x_BTHWC[:, :1], x_BTHWC], dim=1)
        x_NHWC: Tensor = rearrange(x_BTHWC, "b (t s) (h p) (w q) c -> (b t) h w (s p q c)", s=2, p=2, q=2)
        out: Tensor = self.project(x_NHWC).permute(0, 3, 1, 2)
        return out


class Up(nn.Module):
    """Doubles height, width and time by one matrix product. A fresh stream drops the first frame it makes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.project = nn.Linear(width_in, 8 * width_out)
        nn.init.orthogonal_(self.project.weight, gain=(8 * width_out / width_in) ** 0.5)

    def forward(self, x_NCHW: Tensor, state: TinyCodecState) -> Tensor:
        x_NHWC = self.project(x_NCHW.permute(0, 2, 3, 1))
        x_BTHWC: Tensor = rearrange(
            x_NHWC, "(b t) h w (s p q c) -> b (t s) (h p) (w q) c", b=state.batch, s=2, p=2, q=2
        )
        if state.fresh:
            x_BTHWC = x_BTHWC[:, 1:]
        return x_BTHWC.flatten(0, 1).contiguous().permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Pixels to raw latents."""

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        widths, group = config.encoder_widths, config.channels_per_norm_group
        self.patch = config.patch
        self.first = _linear_conv(3 * config.patch**2, widths[0])
        self.levels = _levels(widths, config.encoder_blocks, group)
        self.downs = nn.ModuleList(Down(a, b) for a, b in itertools.pairwise(widths))
        self.last = _linear_conv(widths[-1], config.latent_channels)

    def forward(self, pixels_BTCHW: Tensor, state: TinyCodecState) -> Tensor:
        x_NHWC = rearrange(pixels_BTCHW * 2 - 1, "b t c (h p) (w q) -> (b t) h w (c p q)", p=self.patch, q=self.patch)
        x_NCHW = self.first(x_NHWC.contiguous().permute(0, 3, 1, 2))
        for index, level in enumerate(self.levels):
            x_NCHW = self.downs[index - 1](x_NCHW, state) if index else x_NCHW
            x_NCHW = _run(level, x_NCHW, state, f"{index}")
        latents: Tensor = self.last(x_NCHW)
        state.fresh = False
        return split_frames(latents, state.batch)


class Decoder(nn.Module):
    """Raw latents to pixels, not clamped."""

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        widths, group = config.decoder_widths, config.channels_per_norm_group
        self.patch = config.patch
        self.first = _linear_conv(config.latent_channels, widths[0])
        self.levels = _levels(widths, config.decoder_blocks, group)
        self.ups = nn.ModuleList(Up(a, b) for a, b in itertools.pairwise(widths))
        self.last = _linear_conv(widths[-1], 3 * config.patch**2)

    def forward(self, latents_BTCHW: Tensor, state: TinyCodecState) -> Tensor:
        patches_NCHW = self.last(self._features(latents_BTCHW, state)).float() * 0.5 + 0.5
        return split_frames(F.pixel_shuffle(patches_NCHW, self.patch), state.batch)

    def frames(self, latents_BTCHW: Tensor, state: TinyCodecState, *, between: Callable[[], None] = nothing) -> Tensor:
        """The same, clamped and rounded, uint8 [B, T, H, W, 3]; without gradient.

        The last level works on a latent frame's time at once: its tensors are the largest, and so they are a third as
        large, in the same time.

        Args: between is called before each level, and before each part of the last one.
        """
        small_BTCHW = split_frames(self._small_features(latents_BTCHW, state, between), state.batch)
        # Two for each latent frame; a stream's first is one.
        lengths = [1] * state.fresh + [2] * (small_BTCHW.shape[1] // 2)
        parts = []
        for part_BTCHW in torch.split(small_BTCHW, lengths, dim=1):
            between()
            x_NCHW = part_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            parts.append(split_frames(self._screen(self._last_level(x_NCHW, state)), state.batch))
            state.fresh = False
        return torch.cat(parts, dim=1)

    def _screen(self, x_NCHW: Tensor) -> Tensor:
        """Features of the last level to uint8 [N, H, W, 3].

        A chunk's floats take more time to move than its last convolution to compute. So that convolution puts its
        channels in the order of the screen, and each frame becomes bytes while it is in the cache.
        """
        order = torch.arange(3 * self.patch**2, device=x_NCHW.device).view(3, -1).t().flatten()
        assert self.last.bias is not None
        patches_NCHW = F.conv2d(x_NCHW, self.last.weight[order], self.last.bias[order], padding=1)
        patches_NHWC = patches_NCHW.permute(0, 2, 3, 1)
        num, rows, columns, _ = patches_NHWC.shape
        frames = patches_NHWC.new_empty(num, rows, self.patch, columns, self.patch * 3, dtype=torch.uint8)
        for frame, patches_HWC in zip(frames, patches_NHWC, strict=True):
            # 127.5 x + 128, cut off, is (x / 2 + 1 / 2) * 255, rounded.
            levels = patches_HWC.float().mul_(127.5).add_(128).clamp_(0, 255).to(torch.uint8).contiguous()
            patch_rows = levels.view(rows, columns, self.patch, self.patch * 3)
            _words(frame).copy_(_words(patch_rows).transpose(1, 2))
        return frames.view(num, rows * self.patch, columns * self.patch, 3)

    def _features(self, latents_BTCHW: Tensor, state: TinyCodecState) -> Tensor:
        x_NCHW = self._last_level(self._small_features(latents_BTCHW, state), state)
        state.fresh = False
        return x_NCHW

    def _small_features(
        self, latents_BTCHW: Tensor, state: TinyCodecState, between: Callable[[], None] = nothing
    ) -> Tensor:
        """What the levels before the last make; to the state, nothing has begun yet."""
        x_NCHW: Tensor = self.first(latents_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        for index, level in enumerate(self.levels[:-1]):
            between()
            x_NCHW = self.ups[index - 1](x_NCHW, state) if index else x_NCHW
            x_NCHW = _run(level, x_NCHW, state, f"{index}")
        return x_NCHW

    def _last_level(self, x_NCHW: Tensor, state: TinyCodecState) -> Tensor:
        index = len(self.levels) - 1
        return _run(self.levels[index], self.ups[index - 1](x_NCHW, state), state, f"{index}")


def _words(bytes_HWQ: Tensor) -> Tensor:
    """Runs of bytes as whole words where they fit: a strided copy takes as long for a word as for a byte."""
    return bytes_HWQ.view(torch.int32) if bytes_HWQ.shape[-1] % 4 == 0 else bytes_HWQ


def _linear_conv(width_in: int, width_out: int) -> nn.Conv2d:
    """A 3x3 convolution that starts as one orthogonal map per pixel.

    With blocks that start as the identity, the whole codec starts as a linear autoencoder, which learns colours and
    coarse shapes at once; a norm before the last convolution would hide brightness and stall it (tried).
    """
    conv = nn.Conv2d(width_in, width_out, 3, padding=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.mul_(0.1)
        nn.init.orthogonal_(conv.weight[:, :, 1, 1])
    return conv


def _levels(widths: tuple[int, ...], depths: tuple[int, ...], group: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleList(MemoryBlock(width, group) for _ in range(depth))
        for width, depth in zip(widths, depths, strict=True)
    )


def _run(level: nn.Module, x_NCHW: Tensor, state: TinyCodecState, name: str) -> Tensor:
    assert isinstance(level, nn.ModuleList)
    for index, block in enumerate(level):
        x_NCHW = block(x_NCHW, state, f"{name}.{index}")
    return x_NCHW


class TinyCodec(ChunkedCodec):
    """The normalised tiny codec; implements `models.codec.Codec`. Runs in the dtype of its own weights."""

    latent_mean: Tensor
    latent_sd: Tensor

    def __init__(self, config: TinyCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TinyCodecConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        ones = (1.0,) * config.latent_channels
        self.register_buffer("latent_mean", torch.tensor(config.latent_mean or (0.0,) * len(ones)), persistent=False)
        self.register_buffer("latent_sd", torch.tensor(config.latent_sd or ones), persistent=False)
        # Several times faster on a CPU; the package's stubs do not know the argument.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_stride

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.first.weight.dtype

    def new_encoder_state(self, batch: int = 1) -> TinyCodecState:
        return TinyCodecState(batch)

    def new_decoder_state(self, batch: int = 1) -> TinyCodecState:
        return TinyCodecState(batch)

    def encode_chunk(self, pixels: Tensor, state: TinyCodecState) -> Tensor:
        """The next pixels of a stream to normalised latents; `state` is updated in place. Raises ValueError."""
        check_pixels(pixels, spatial_stride=self.spatial_stride, temporal_stride=4, fresh=state.fresh)
        check_batch(pixels, state.batch)
        return self.normalise(self.encoder(pixels.to(self.dtype), state).float())

    def decode_raw(self, latents: Tensor, state: TinyCodecState) -> Tensor:
        """As `decode_chunk`, before clamping and rounding: float32 [B, T, 3, H, W]; what a loss wants."""
        check_latents(latents, channels=self.latent_channels)
        check_batch(latents, state.batch)
        pixels: Tensor = self.decoder(self.denormalise(latents.float()).to(self.dtype), state)
        return pixels

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: TinyCodecState, *, between: Callable[[], None] = nothing) -> Tensor:
        """The next latents of a stream to uint8 [B, T, H, W, 3]; `state` is updated in place. Raises ValueError.

        Args: between is called about every fifth of the work; what it raises ends it, and the state is as before.
        """
        check_latents(latents, channels=self.latent_channels)
        check_batch(latents, state.batch)
        with unchanged_if_it_fails(state, state.clone()):  # 0.2 of the 90 ms of a chunk
            frames: Tensor = self.decoder.frames(
                self.denormalise(latents.float()).to(self.dtype), state, between=between
            )
        return frames

    def normalise(self, raw_BFCHW: Tensor) -> Tensor:
        return (raw_BFCHW - self.latent_mean.float().view(-1, 1, 1)) / self.latent_sd.float().view(-1, 1, 1)

    def denormalise(self, latents_BFCHW: Tensor) -> Tensor:
        return latents_BFCHW * self.latent_sd.float().view(-1, 1, 1) + self.latent_mean.float().view(-1, 1, 1)

    def prepare_for_serving(self) -> Self:
        """Give blocks the fast twins of their convolutions where they measured faster. Returns self.

        On the final device, for weights that change no more. Only used without gradient. On a CPU with AVX2 only the
        shipped codec then takes 0.82 of the time for a chunk, 0.79 for six pictures and 0.88 for one, and 92 MB more.
        """
        for block in self.modules():
            if isinstance(block, MemoryBlock) and WinogradConv.worth_it(block.conv_in):
                block.fast_convs = (WinogradConv(block.conv_in), WinogradConv(block.conv_out))
        return self

    def set_latent_statistics(self, mean: Tensor, sd: Tensor) -> None:
        """Put measured statistics of the raw latents ([C] each) into the config, in place."""
        self.config = replace(self.config, latent_mean=tuple(mean.tolist()), latent_sd=tuple(sd.tolist()))
        self.latent_mean.copy_(mean)
        self.latent_sd.copy_(sd)

    def save(self, path: str | Path, extra_metadata: dict[str, str] | None = None) -> None:
        """Write weights in their own dtype and the config (as metadata) to one safetensors file."""
        metadata = {"format": FORMAT, "config": json.dumps(asdict(self.config)), **(extra_metadata or {})}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.state_dict().items()}, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> TinyCodec:
        """Read a file that `save` wrote. Raises ValueError when it is another kind of file or does not fit."""
        weights, config, _ = read_ours(path, FORMAT)
        with reading(path):
            codec = cls(TinyCodecConfig.from_dict(config))
        load_strictly(codec, weights, str(path))
        return codec.to(dtype).eval()
