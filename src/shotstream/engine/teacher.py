"""Makes shots with the bidirectional teacher: a whole shot by Euler steps with guidance, handed out chunk by chunk.

Stands where `Rollout` stands in a stream, so that teacher and student are seen through the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shotstream.diffusion.flow import euler_step, predicted_velocity
from shotstream.diffusion.schedule import TIMESTEP_SCALE
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import Context, DenoisedChunk
from shotstream.models.attention import SegmentAttention
from shotstream.models.dit import CaptionKV, DiT

ContextTime = Literal["zero", "shared"]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher samples a shot."""

    sigmas: tuple[float, ...]
    """Of the Euler steps, descending from 1; the last step goes to 0."""
    guidance_scale: float = 1.0
    """1 is no guidance and half the work."""
    context_time: ContextTime = "zero"
    """"zero": context frames are at t = 0 and read only one another. "shared": they carry the target's t and read
    everything, as Wan's published teacher."""
    slab: SlabConfig = field(default_factory=SlabConfig)


def predict_shot_velocity(
    model: DiT, x_t: Tensor, sigma: float, context: Context, captions: CaptionKV, *, context_time: ContextTime
) -> Tensor:
    """The teacher's velocity for all frames of a shot [B, F, C, h, w], one sigma for all of them.

    captions: rows B * (context frames + F), or rows B for one caption everywhere.
    """
    batch, remembered = context.latents.shape[:2]
    frames = x_t.shape[1]
    timesteps = torch.full((batch, remembered + frames), sigma * TIMESTEP_SCALE, device=x_t.device)
    sizes: tuple[int, ...] = (remembered + frames,)
    if context_time == "zero":
        timesteps[:, :remembered] = 0
        sizes = (remembered, frames)
    rows, columns = model.config.grid(*x_t.shape[-2:])
    ids = torch.cat([context.shot_ids, context.own_shot_id[:, None].expand(-1, frames)], dim=1)
    positions = torch.arange(remembered + frames, device=x_t.device).expand(batch, -1)
    output = model.forward_tokens(
        torch.cat([context.latents.to(x_t.dtype), x_t], dim=1),
        model.embed_time(timesteps),
        model.rotary(positions, ids, *x_t.shape[-2:]),
        captions,
        SegmentAttention(sizes=sizes, tokens_per_frame=rows * columns),
    )
    assert output is not None
    sigmas = torch.full(x_t.shape[:2], sigma, device=x_t.device)
    return predicted_velocity(output[:, remembered:], x_t, sigmas, model.config.prediction)


def euler_states(
    velocity: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: tuple[float, ...]
) -> Iterator[Tensor]:
    """The states of the flow ODE: the input of every step, then the final clean latent (len(sigmas) + 1 in all)."""
    x_t = noise
    for sigma, next_sigma in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        yield x_t
        x_t = euler_step(x_t, velocity(x_t, sigma), sigma, next_sigma)
    yield x_t


class TeacherRollout:
    """The teacher behind the interface of `Rollout`. A shot is sampled whole when its first chunk is asked for."""

    def __init__(self, model: DiT, config: TeacherConfig, unconditional: CaptionKV) -> None:
        self.model, self.config = model, config
        self._unconditional = unconditional
        self._context: Context | None = None
        self._shot: Tensor | None = None
        self.chunk_index = 0

    def open_shot(self, context: Context) -> None:
        """Start an empty shot."""
        self._context, self._shot, self.chunk_index = context, None, 0

    @torch.no_grad()
    def sample_shot(self, noise: Tensor, captions: CaptionKV) -> Tensor:
        """Clean latents of a whole shot. noise [B, F, C, h, w]; captions one row per context frame and frame."""
        for state in self.states(noise, captions):
            clean = state
        return clean

    def states(self, noise: Tensor, captions: CaptionKV) -> Iterator[Tensor]:
        """Every state of the sampler, noise first, the clean latents last."""
        return euler_states(lambda x, sigma: self._guided(x, sigma, captions), noise, self.config.sigmas)

    def begin(self, noise: Tensor, captions: CaptionKV) -> None:
        """Sample the open shot, so that `next_chunk` can hand it out."""
        self._shot = self.sample_shot(noise.to(self.model.device), captions)  # noise is drawn on the CPU

    def next_chunk(self) -> DenoisedChunk:
        """The next chunk of the sampled shot."""
        assert self._shot is not None, "begin the shot first"
        frames = self.config.slab.chunk_frames
        part = self._shot[:, self.chunk_index * frames : (self.chunk_index + 1) * frames]
        self.chunk_index += 1
        return DenoisedChunk(part, part, len(self.config.sigmas) - 1)

    def take_back(self) -> None:
        """Undo the last `next_chunk`."""
        self.chunk_index -= 1

    def _guided(self, x_t: Tensor, sigma: float, captions: CaptionKV) -> Tensor:
        assert self._context is not None, "open a shot first"
        conditional = self._velocity(x_t, sigma, captions)
        if self.config.guidance_scale == 1:
            return conditional
        free = self._velocity(x_t, sigma, self._unconditional)
        return free + self.config.guidance_scale * (conditional - free)

    def _velocity(self, x_t: Tensor, sigma: float, captions: CaptionKV) -> Tensor:
        assert self._context is not None
        return predict_shot_velocity(
            self.model, x_t, sigma, self._context, captions, context_time=self.config.context_time
        )
