"""Makes the next chunk. Serving, distillation and evaluation all call this and nothing else does it.

One chunk: (commit of the chunk before) -> noise -> a few denoise passes over [context | shot so far | this chunk] ->
clean latents. Commits are lazy: a chunk's clean keys are written when the next chunk is begun, so the commit never
stands between a chunk and the screen, and a shot's last chunk is never committed for nothing.

B batch, F latent frames, C latent channels, h w latent size.
A batch shares the chunk index; everything else is per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from shotstream.diffusion.flow import add_noise, predicted_clean
from shotstream.diffusion.schedule import TIMESTEP_SCALE
from shotstream.engine.cache import KVSlab, ReplayAttention, SlabAttention, SlabConfig
from shotstream.models.dit import CaptionKV, DiT, TimeEmbedding
from shotstream.models.rope import Rotary

NoiseSource = Callable[[int], Tensor]
"""Noise of a denoise step, [B, chunk_frames, C, h, w]: step 0 starts the chunk, step j re-noises before pass j."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How a chunk is denoised."""

    timesteps: tuple[float, ...]
    """Descending, on the 0..1000 scale; sigma = timestep / 1000."""
    slab: SlabConfig = field(default_factory=SlabConfig)

    def __post_init__(self) -> None:
        if not self.timesteps or list(self.timesteps) != sorted(self.timesteps, reverse=True):
            raise ValueError(f"timesteps must be a non-empty descending list, got {self.timesteps}")
        if not 0 < self.timesteps[-1] <= self.timesteps[0] <= TIMESTEP_SCALE:
            raise ValueError(f"timesteps must lie in (0, {TIMESTEP_SCALE:.0f}], got {self.timesteps}")

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


class Context(NamedTuple):
    """The remembered frames a shot starts from, exactly `context_frames` of them per row."""

    latents: Tensor
    """[B, context_frames, C, h, w], each encoded alone."""
    shot_ids: Tensor
    """[B, context_frames], the shot each frame comes from."""
    own_shot_id: Tensor
    """[B], the shot being made: the number of earlier shots, but 1 for a story's first."""
    captions: CaptionKV
    """Rows B * context_frames: the caption of each frame's shot. Rows B: one caption for all frames of a row."""


class DenoisedChunk(NamedTuple):
    """What a chunk's last pass read and made."""

    clean: Tensor
    """[B, F, C, h, w] float32."""
    noisy: Tensor
    """The input of the last pass."""
    step: int
    """Index of the last pass."""


class ChunkAbandoned(Exception):
    """Raised while a chunk is made that nobody wants any more. Whatever makes it is as before the chunk."""


class Rollout:
    """The caches of one stream and the loop that fills them."""

    def __init__(
        self, model: DiT, config: RolloutConfig, *, latent_height: int, latent_width: int, batch: int = 1
    ) -> None:
        self.model, self.config = model, config
        self.latent_size = (latent_height, latent_width)
        rows, columns = model.config.grid(latent_height, latent_width)
        self.device = model.device
        self.slab = KVSlab(
            config.slab,
            num_layers=model.config.num_layers,
            batch=batch,
            num_heads=model.config.num_heads,
            head_dim=model.config.head_dim,
            tokens_per_frame=rows * columns,
            dtype=model.dtype,
            device=model.device,
        )
        self.chunk_index = 0
        """Index, within the shot, of the chunk that `next_chunk` will make."""
        self._pending: tuple[Tensor, CaptionKV] | None = None
        self._since = self._since_before = 0
        """First frame of the shot that the last chunk made read, and the one before it; later ones read on from it."""
        self._shot_ids = torch.zeros(batch, device=self.device)
        self._context_ids = torch.zeros(batch, config.slab.context_frames, device=self.device)
        self.refresh_time()

    def refresh_time(self) -> None:
        """Recompute the cached time vectors; call after the model's weights change."""
        with torch.no_grad():
            steps = torch.tensor([*self.config.timesteps, 0.0], device=self.device)
            self._time = [self.model.embed_time(t.view(1, 1)) for t in steps]

    @property
    def batch(self) -> int:
        return int(self.slab.keys.shape[1])

    def first_shot_context(self, captions: CaptionKV) -> Context:
        """What a story's first shot starts from: zero latents of shot 0 (the shot itself then counts as shot 1)."""
        frames, channels = self.config.slab.context_frames, self.model.config.in_channels
        latents = torch.zeros(self.batch, frames, channels, *self.latent_size, device=self.device)
        shot_ids = torch.zeros(self.batch, frames, device=self.device)
        return Context(latents, shot_ids, shot_ids[:, 0] + 1, captions)

    @torch.no_grad()
    def open_shot(self, context: Context) -> None:
        """Fill the global cache and start an empty shot. One pass; context frames read only one another.

        Raises: ValueError on another frame count or size.
        """
        frames = self.config.slab.context_frames
        expected = (self.batch, frames, self.model.config.in_channels, *self.latent_size)
        if context.latents.shape != expected:
            raise ValueError(f"context latents must be {list(expected)}, got {list(context.latents.shape)}")
        self._context_ids = context.shot_ids.to(self.device)
        self._shot_ids = context.own_shot_id.to(self.device)
        self._pending, self.chunk_index = None, 0
        self._since = self._since_before = 0
        self.slab.forget_shot()
        self._window_rotary = self._shot_rotary()
        attention = SlabAttention(self.slab, 0, (slice(0, self.slab.tokens(frames)),))
        rotary = self._window_rotary.tokens(0, self.slab.tokens(frames))
        self.model.forward_tokens(
            context.latents.to(self.device), self._time[-1], rotary, context.captions, attention, keys_only=True
        )

    @torch.no_grad()
    def next_chunk(
        self,
        captions: CaptionKV,
        noise: NoiseSource,
        *,
        keep_frames: int | None = None,
        exit_step: int | None = None,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> DenoisedChunk:
        """Denoise the shot's next chunk.

        Args: captions one row per batch row, in force for this chunk; noise addressed by step;
            keep_frames: from this chunk on, read only so many of the newest frames of the shot so far, until another is
            opened (what a shot already shows holds it back from showing something else), None is as before;
            exit_step stops after that pass (distillation), None runs all;
            keep_going is asked before every pass; ChunkAbandoned is raised where it says no.
        """
        self._commit_pending()
        chunk, since = self.chunk_index, self._from(keep_frames)
        rotary = self._enter(chunk)
        attention = self._attention(chunk, since)
        last = self.config.num_steps - 1 if exit_step is None else exit_step
        x_t = clean = noise(0).to(self.device, torch.float32)
        for step in range(last + 1):
            if not keep_going():
                raise ChunkAbandoned(f"chunk {chunk} was abandoned before pass {step}")
            if step:
                x_t = self._renoise(clean, noise(step), step)
            output = self.model.forward_tokens(x_t, self._time[step], rotary, captions, attention, opening=chunk == 0)
            clean = self._clean(output, x_t, step)
        self._made(clean, captions, since)
        return DenoisedChunk(clean, x_t, last)

    def restore_chunk(self, clean: Tensor, captions: CaptionKV, *, keep_frames: int | None = None) -> None:
        """Take a finished chunk's latents [B, F, C, h, w] as if just denoised (resume, branch, true history)."""
        with torch.no_grad():
            self._commit_pending()
            self._enter(self.chunk_index)
        self._made(clean.to(self.device, torch.float32), captions, self._from(keep_frames))

    def take_back(self) -> None:
        """Undo the last `next_chunk`, which nothing has followed yet: the chunk will be made again."""
        assert self._pending is not None, "a chunk that is committed stays"
        self._pending, self.chunk_index, self._since = None, self.chunk_index - 1, self._since_before

    def _made(self, clean: Tensor, captions: CaptionKV, since: int) -> None:
        self._pending, self.chunk_index = (clean, captions), self.chunk_index + 1
        self._since_before, self._since = self._since, since

    def _from(self, keep_frames: int | None) -> int:
        """First frame of the shot that the next chunk reads."""
        made = self.chunk_index * self.config.slab.chunk_frames
        return self._since if keep_frames is None else max(0, made - keep_frames)

    @torch.no_grad()
    def commit(self) -> None:
        """Write the last chunk's clean keys now instead of at the next chunk."""
        self._commit_pending()

    def replay(self, chunk: int, noisy: Tensor, step: int, captions: CaptionKV, time: TimeEmbedding) -> Tensor:
        """One pass of an already made chunk, with gradient to the model, against the read-only slab before it.

        `time` is the model's own embedding of the step, so that its gradient is kept. Returns clean latents. Valid
        while the shot still fits the window. Gradient is cut between chunks.
        """
        assert chunk < self.config.slab.window_chunks, "replay needs the whole history in the slab"
        assert not self._since, "replay reads the whole history"
        start = self.slab.tokens(self.config.slab.chunk_slot(chunk))
        attention = ReplayAttention(self.slab, start)
        rotary = self._chunk_rotary(chunk)
        output = self.model.forward_tokens(noisy, time, rotary, captions, attention, opening=chunk == 0)
        return self._clean(output, noisy, step)

    def _enter(self, chunk: int) -> Rotary:
        """Make room for a chunk and return its rotary table."""
        config = self.config.slab
        shift = config.anchor_shift(chunk)
        if shift:
            written = self._window_rotary.tokens(0, self.slab.tokens(config.anchored_frames))
            self.slab.turn_anchors(written, self._anchor_rotary(shift))
        return self._chunk_rotary(chunk)

    def _attention(self, chunk: int, since: int) -> SlabAttention:
        config, tokens = self.config.slab, self.slab.tokens
        reads = tuple(slice(tokens(r.start), tokens(r.stop)) for r in config.readable(chunk, since))
        return SlabAttention(self.slab, tokens(config.chunk_slot(chunk)), reads)

    def _commit_pending(self) -> None:
        if self._pending is None:
            return
        clean, captions = self._pending
        chunk = self.chunk_index - 1
        attention, rotary = self._attention(chunk, self._since), self._chunk_rotary(chunk)
        self.model.forward_tokens(
            clean, self._time[-1], rotary, captions, attention, keys_only=True, opening=chunk == 0
        )
        self._pending = None

    def _renoise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        return add_noise(clean, noise.to(self.device, torch.float32), self._sigmas(step, clean))

    def _clean(self, output: Tensor | None, x_t: Tensor, step: int) -> Tensor:
        assert output is not None
        return predicted_clean(output, x_t, self._sigmas(step, x_t), self.model.config.prediction)

    def _sigmas(self, step: int, like: Tensor) -> Tensor:
        return torch.full(like.shape[:2], self.config.timesteps[step] / TIMESTEP_SCALE, device=like.device)

    def _shot_rotary(self) -> Rotary:
        """Angles of context and of every frame of the window: positions 0.., shot ids of context, then of the shot."""
        config = self.config.slab
        positions = torch.arange(config.total_frames, device=self.device).expand(self.batch, -1)
        ids = torch.cat([self._context_ids, self._shot_ids[:, None].expand(-1, config.window_frames)], dim=1)
        return self.model.rotary(positions, ids, *self.latent_size)

    def _chunk_rotary(self, chunk: int) -> Rotary:
        config = self.config.slab
        first = config.context_frames + chunk * config.chunk_frames
        if chunk < config.window_chunks:
            return self._window_rotary.tokens(self.slab.tokens(first), self.slab.tokens(first + config.chunk_frames))
        positions = torch.arange(first, first + config.chunk_frames, device=self.device).expand(self.batch, -1)
        return self.model.rotary(positions, self._shot_ids[:, None].expand_as(positions), *self.latent_size)

    def _anchor_rotary(self, shift: int) -> Rotary:
        config = self.config.slab
        positions = shift + torch.arange(config.anchored_frames, device=self.device).expand(self.batch, -1)
        ids = torch.cat([self._context_ids, self._shot_ids[:, None].expand(-1, config.sink_frames)], dim=1)
        return self.model.rotary(positions, ids, *self.latent_size)
