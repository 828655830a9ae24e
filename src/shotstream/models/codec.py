"""What a video codec is to the rest of the library.

Shapes: B batch, T pixel frames, N separate pictures, F latent frames, C latent channels, H W pixels, h w latent cells.
Pixels are RGB in [0, 1] as floats, or uint8. Latents are normalised: zero mean and unit sd per channel over the data
the codec was made for. One latent frame holds one pixel frame when it is the first of a clip, and
`temporal_stride` of them afterwards, so T = 1 + temporal_stride * (F - 1).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn


def nothing() -> None:
    """Between two parts of a piece of work."""


@runtime_checkable
class CodecState(Protocol):
    """What a codec remembers between two chunks of one stream. Belongs to one stream; weights are never in it."""

    def clone(self) -> Self:
        """An independent copy: going on from it, or from the original, gives the same result."""
        ...


class Codec(Protocol):
    """Turns pixels into normalised latents and back, whole or chunk by chunk, with the same result."""

    @property
    def device(self) -> torch.device: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def spatial_stride(self) -> int: ...
    @property
    def temporal_stride(self) -> int: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, T, 3, H, W] in [0, 1], T = 1 + 4k, to latents [B, 1 + k, C, h, w]."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 [B, N, H, W, 3] on any device, each picture alone, to latents [B, N, C, h, w] on the codec's.

        A picture gets the first latent of any clip that begins with it.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] to pixels [B, 1 + 4 (F - 1), 3, H, W] in [0, 1], float32."""
        ...

    def new_decoder_state(self, batch: int = 1) -> Any: ...

    def decode_chunk(self, latents: Tensor, state: Any, *, between: Callable[[], None] = nothing) -> Tensor:
        """The next latents of a stream [B, F, C, h, w] to uint8 [B, T, H, W, 3]; `state` is updated in place.

        T = 4 F - 3 for a fresh state, 4 F later.

        Args: between is called before the work and, where it takes long, between its parts. What it raises ends the
            work; the state is then as before.
        """
        ...

    def new_encoder_state(self, batch: int = 1) -> Any: ...

    def encode_chunk(self, pixels: Tensor, state: Any) -> Tensor:
        """The next pixels of a stream, T = 1 + 4k for a fresh state and 4k later; `state` is updated in place."""
        ...


class ChunkedCodec(ABC, nn.Module):
    """What any codec that works chunk by chunk can do with whole clips and separate pictures."""

    def prepare_for_serving(self) -> Self:
        """Make ready what only serving needs, on the final device, for weights that change no more. Returns self."""
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def new_encoder_state(self, batch: int = 1) -> Any: ...

    @abstractmethod
    def new_decoder_state(self, batch: int = 1) -> Any: ...

    @abstractmethod
    def encode_chunk(self, pixels: Tensor, state: Any) -> Tensor:
        """The next pixels of a stream to latents; `state` is updated in place. Raises ValueError."""

    @abstractmethod
    def decode_raw(self, latents: Tensor, state: Any) -> Tensor:
        """As `decode_chunk`, before clamping and rounding: float32 [B, T, 3, H, W], [0, 1] up to overshoot.

        What a loss wants.
        """

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 1 + 4k, 3, H, W] in [0, 1] to latents [B, 1 + k, C, h, w], float32. Raises ValueError."""
        return self.encode_chunk(pixels, self.new_encoder_state(pixels.shape[0]))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 [B, N, H, W, 3] on any device, each picture alone, to latents [B, N, C, h, w] without gradient."""
        pixels_BTCHW = from_uint8(frames.to(self.device))  # remembered pictures lie on the CPU
        batch = pixels_BTCHW.shape[0]
        return split_frames(self.encode(pixels_BTCHW.flatten(0, 1).unsqueeze(1)).squeeze(1), batch)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] to pixels [B, 4F - 3, 3, H, W] in [0, 1], float32. Raises ValueError."""
        return self.decode_raw(latents, self.new_decoder_state(latents.shape[0])).clamp(0, 1)

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: Any, *, between: Callable[[], None] = nothing) -> Tensor:
        """The next latents of a stream to uint8 [B, T, H, W, 3]; `state` is updated in place. Raises ValueError.

        Args: between is called before the work; what it raises ends it.
        """
        between()
        with unchanged_if_it_fails(state):
            return to_uint8(self.decode_raw(latents, state))


@contextmanager
def unchanged_if_it_fails(state: Any, before: Any = None) -> Iterator[None]:
    """Whatever is raised inside leaves a codec's state as it was.

    Args: before is a copy of the state, where its tensors are written to; where they are replaced, none is needed.
    """
    saved = {field.name: copy.copy(getattr(before or state, field.name)) for field in fields(state)}
    try:
        yield
    except BaseException:  # an interrupt from the keyboard, too: the chunk will be decoded again
        for name, value in saved.items():
            setattr(state, name, value)
        raise


def to_uint8(pixels_BTCHW: Tensor) -> Tensor:
    """Floats [B, T, 3, H, W] in [0, 1] to what a screen takes, uint8 [B, T, H, W, 3] (clamped, rounded)."""
    # Adding a half and cutting off is rounding, at a fraction of the price of round() on a CPU.
    levels = pixels_BTCHW.float().mul(255).add_(0.5).clamp_(0, 255)
    return levels.to(torch.uint8).movedim(2, -1).contiguous()


def from_uint8(frames_BTHWC: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] to floats [B, T, 3, H, W] in [0, 1]."""
    if frames_BTHWC.dtype != torch.uint8 or frames_BTHWC.ndim != 5 or frames_BTHWC.shape[-1] != 3:
        got = f"{frames_BTHWC.dtype} {list(frames_BTHWC.shape)}"
        raise ValueError(f"frames must be uint8 [B, N, H, W, 3], got {got}; floats go through encode()")
    return frames_BTHWC.movedim(-1, 2).float() / 255


def check_pixels(pixels: Tensor, *, spatial_stride: int, temporal_stride: int, fresh: bool) -> None:
    """Raises ValueError unless pixels are [B, T, 3, H, W] with sizes the strides divide."""
    if pixels.ndim != 5 or pixels.shape[2] != 3 or not pixels.is_floating_point():
        got = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"pixels must be floats [B, T, 3, H, W] in [0, 1], got {got}")
    _, frames, _, height, width = pixels.shape
    if height % spatial_stride or width % spatial_stride or not height or not width:
        raise ValueError(f"pixels are {height}x{width}: both sides must be multiples of {spatial_stride}; crop or pad")
    extra = frames - 1 if fresh else frames
    if frames < 1 or extra % temporal_stride:
        rule = f"1 + {temporal_stride}k" if fresh else f"{temporal_stride}k (the stream has begun)"
        raise ValueError(f"a clip must have {rule} frames, got {frames}; drop or repeat frames at its end")


def check_latents(latents: Tensor, *, channels: int) -> None:
    """Raises ValueError unless latents are [B, F, channels, h, w] with F >= 1."""
    if latents.ndim != 5 or latents.shape[2] != channels or latents.shape[1] < 1:
        raise ValueError(f"latents must be [B, F >= 1, {channels}, h, w], got {list(latents.shape)}")


def check_batch(x: Tensor, batch: int) -> None:
    """Raises ValueError unless x is for the `batch` streams of a state."""
    if x.shape[0] != batch:
        raise ValueError(f"the stream's state is for a batch of {batch}, got {x.shape[0]}: make a new state")


def split_frames(x: Tensor, batch: int) -> Tensor:
    """[B * T, ...] to [B, T, ...]."""
    return x.reshape(batch, -1, *x.shape[1:])
