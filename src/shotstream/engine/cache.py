"""The K/V slab of a stream: per layer one preallocated tensor laid out [context | local], written in place.

The global cache (frames remembered from earlier shots) is the first `context_frames` of the slab, the local cache (this
shot so far) the rest, so a chunk reads one contiguous prefix, unless part of its shot was let go. Keys are stored
rotated.

B batch, L query tokens, S slab tokens, P tokens a frame, N heads, D head width. Slabs are [B, N, S, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.models.attention import attend
from shotstream.models.rope import Rotary, rotate


@dataclass(frozen=True, kw_only=True)
class SlabConfig:
    """Size of a slab, in latent frames."""

    context_frames: int = 6
    """Capacity for remembered frames. The shot's own frames start at this temporal position."""
    window_frames: int = 21
    """Frames of the running shot that stay readable."""
    sink_frames: int = 3
    """Leading frames of the shot that a longer shot never overwrites."""
    chunk_frames: int = 3

    def __post_init__(self) -> None:
        if self.window_frames % self.chunk_frames or self.sink_frames % self.chunk_frames:
            raise ValueError(
                f"window_frames={self.window_frames} and sink_frames={self.sink_frames} must be whole chunks "
                f"of {self.chunk_frames} frames"
            )
        if self.sink_frames + self.chunk_frames > self.window_frames:
            raise ValueError(f"window_frames={self.window_frames} leaves no room beside sink_frames={self.sink_frames}")

    @property
    def total_frames(self) -> int:
        return self.context_frames + self.window_frames

    @property
    def window_chunks(self) -> int:
        return self.window_frames // self.chunk_frames

    @property
    def anchored_frames(self) -> int:
        """Frames whose keys keep their distance to the window: context and sink."""
        return self.context_frames + self.sink_frames

    def chunk_slot(self, chunk: int) -> int:
        """First frame slot, counted from the slab's start, that chunk `chunk` of a shot writes to."""
        slots, sink = self.window_chunks, self.sink_frames // self.chunk_frames
        slot = chunk if chunk < slots else sink + (chunk - sink) % (slots - sink)
        return self.context_frames + slot * self.chunk_frames

    def anchor_shift(self, chunk: int) -> int:
        """How far, in frames, context and sink have moved along when chunk `chunk` is made."""
        return max(0, chunk - self.window_chunks + 1) * self.chunk_frames

    def readable(self, chunk: int, since: int = 0) -> tuple[slice, ...]:
        """Frame slots that chunk `chunk` reads, itself included: the context, and of its shot all that the slab holds.

        Args: since: of the shot, read nothing before this frame.
        """
        stop = min(self.context_frames + (chunk + 1) * self.chunk_frames, self.total_frames)
        if not since:
            return (slice(0, stop),)
        held = {self.chunk_slot(made): made for made in range(chunk + 1)}
        slots = [*range(self.context_frames)]
        for slot, made in sorted(held.items()):
            slots += [slot + i for i in range(self.chunk_frames) if made * self.chunk_frames + i >= since]
        return _runs(slots)


def _runs(ascending: Sequence[int]) -> tuple[slice, ...]:
    """Ascending numbers as slices of neighbours."""
    starts = [n for n in ascending if n - 1 not in ascending]
    stops = [n + 1 for n in ascending if n + 1 not in ascending]
    return tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))


class KVSlab:
    """Keys and values of one stream (or a batch of streams that share the chunk index)."""

    def __init__(
        self,
        config: SlabConfig,
        *,
        num_layers: int,
        batch: int,
        num_heads: int,
        head_dim: int,
        tokens_per_frame: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.tokens_per_frame = tokens_per_frame
        shape = (num_layers, batch, num_heads, config.total_frames * tokens_per_frame, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._unrotated_anchors: Tensor | None = None

    def tokens(self, frames: int) -> int:
        return frames * self.tokens_per_frame

    def forget_shot(self) -> None:
        """Start a new shot: the slab's content is about to be overwritten."""
        self._unrotated_anchors = None

    def turn_anchors(self, written: Rotary, wanted: Rotary) -> None:
        """Move context and sink keys, written at angles `written`, to the angles `wanted`.

        Always from one unrotated copy in float32, made at the first call of a shot, so no error adds up.
        Both tables hold the tokens of all anchored frames.
        """
        stop = self.tokens(self.config.anchored_frames)
        if self._unrotated_anchors is None:
            keys = self.keys[..., :stop, :].float()
            self._unrotated_anchors = _rotate_slab(keys, Rotary(written.cos, -written.sin))
        self.keys[..., :stop, :] = _rotate_slab(self._unrotated_anchors, wanted).to(self.keys.dtype)


def _rotate_slab(keys_layers_BNSD: Tensor, rotary: Rotary) -> Tensor:
    return torch.stack([rotate(k.transpose(1, 2), rotary).transpose(1, 2) for k in keys_layers_BNSD])


@dataclass(frozen=True)
class SlabAttention:
    """Serving form: write this chunk's keys and values into the slab, then read it, as a rule one prefix of it."""

    slab: KVSlab
    write_start: int
    """First token written."""
    reads: tuple[slice, ...]
    """Tokens that queries read; they include those just written."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.store(layer, k, v)
        return attend(q, self._read(self.slab.keys[layer]), self._read(self.slab.values[layer]))

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write keys and values in place."""
        written = slice(self.write_start, self.write_start + k.shape[2])
        self.slab.keys[layer, :, :, written] = k
        self.slab.values[layer, :, :, written] = v

    def _read(self, rows_BNSD: Tensor) -> Tensor:
        parts = [rows_BNSD[:, :, part] for part in self.reads]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@dataclass(frozen=True)
class ReplayAttention:
    """Training twin of `SlabAttention`: reads the history from the slab, its own keys with gradient, writes nothing."""

    slab: KVSlab
    history_stop: int
    """Tokens 0..history_stop are history."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        history = slice(0, self.history_stop)
        keys = torch.cat([self.slab.keys[layer, :, :, history].to(k.dtype), k], dim=2)
        values = torch.cat([self.slab.values[layer, :, :, history].to(v.dtype), v], dim=2)
        return attend(q, keys, values)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Nothing is written."""
