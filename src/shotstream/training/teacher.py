"""Teacher: flow matching on the next shot, given a few remembered frames of the shots before it.

Remembered frames stand clean (t = 0) in front of the noisy target and read only one another, so their keys do not
depend on the noise: they are computed once per shot when sampling, and shared by independent targets when training.
With `context_time="shared"`, as published, they are clean as well but told the target's t, and read it too.

B batch, K context frames, F target frames, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.diffusion.flow import add_noise, euler_step, predicted_velocity
from shotstream.diffusion.schedule import TIMESTEP_SCALE, FlowSchedule
from shotstream.engine.teacher import ContextTime
from shotstream.models.attention import SegmentAttention
from shotstream.models.dit import CaptionKV, DiT
from shotstream.training.data import Batch, Sampler
from shotstream.training.losses import draw_sigma, velocity_loss
from shotstream.training.randomness import generator_at, normal
from shotstream.training.trainer import Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """Which noise levels are trained how often."""

    shift: float = 3.0
    uniform_share: float = 0.15
    """The rest is logit-normal."""
    min_sigma: float = 0.25
    """A clean prediction's error counts 1 / max(sigma, min_sigma)^2. Below, little is left to learn, and weighing it
    up would crowd out the noise levels of a few-step student."""
    context_time: ContextTime = "zero"
    """"shared": as the preset of Wan's published teacher has it."""


class NoisyBatch(NamedTuple):
    """A batch with the noise it is trained at."""

    data: Batch
    noise: Tensor
    """[B, F, C, h, w]."""
    sigma: Tensor
    """[B, F]."""


@dataclass
class TeacherStage:
    """Flow matching for lone frames, frames with memory, and clips: the sampler's config says which."""

    model: DiT
    sampler: Sampler
    flow: FlowConfig
    seed: int = 0
    context_capacity: int = 6
    """Temporal position of a shot's first frame."""

    def __post_init__(self) -> None:
        self.networks: Mapping[str, nn.Module] = {"model": self.model}
        samples = self.sampler.config
        if self.flow.context_time == "shared" and samples.context_frames and samples.singles:
            raise ValueError(
                "single frames have a noise each, which one context cannot share: train on clips, or with "
                'context_time="zero"'
            )

    def turn(self, step: int) -> str:
        return "model"

    def batch(self, step: int, samples: range) -> NoisyBatch:
        data = self.sampler.batch(step, samples)
        noise, sigma = zip(*(self._noise(step, sample, data.target.shape[1:]) for sample in samples), strict=True)
        device = self.sampler.device
        return NoisyBatch(data, torch.stack(noise).to(device), torch.stack(sigma).to(device))

    def losses(self, batch: NoisyBatch, step: int) -> Iterator[Loss]:
        data, noise, sigma = batch
        captions = self.model.encode_captions(data.text)
        noisy = add_noise(data.target, noise, sigma)
        output = self.predict(data, noisy, sigma, captions)
        how: dict[str, Any] = {"prediction": self.model.config.prediction, "min_sigma": self.flow.min_sigma}
        weighted = velocity_loss(output, data.target, noise, sigma, weight=data.weight, **how)
        with torch.no_grad():
            plain = velocity_loss(output, data.target, noise, sigma, **how)
        yield Loss(weighted.mean(), {"velocity_loss": plain.mean()})

    @torch.no_grad()
    def sample(self, data: Batch, noise: Tensor, *, num_steps: int, guidance_scale: float) -> Tensor:
        """Clean target latents [B, F, C, h, w] by guided Euler steps; guidance 1 is none."""
        captions, empty = self.model.encode_captions(data.text), data.without_text()
        nothing = self.model.encode_captions(empty.text)
        schedule = FlowSchedule(shift=self.flow.shift)
        x_t, sigmas = noise, [*schedule.sampling_sigmas(num_steps).tolist(), 0.0]
        for sigma, next_sigma in pairwise(sigmas):
            levels = torch.full(noise.shape[:2], sigma, device=noise.device)
            told, untold = (
                predicted_velocity(self.predict(d, x_t, levels, c), x_t, levels, self.model.config.prediction)
                for d, c in ((data, captions), (empty, nothing))
            )
            x_t = euler_step(x_t, untold + guidance_scale * (told - untold), sigma, next_sigma)
        return x_t

    def predict(self, data: Batch, noisy: Tensor, sigma: Tensor, captions: CaptionKV) -> Tensor:
        """The network's raw answer for the target frames, [B, F, C, h, w]."""
        attention = self.attention(data)
        positions, context_time = self.positions(data), self.flow.context_time
        return next_shot_output(
            self.model, data, noisy, sigma, captions, attention, positions, context_time=context_time
        )

    def attention(self, data: Batch) -> SegmentAttention:
        """Clips read context and themselves; independent singles read context and their own frame."""
        context, frames = data.context.shape[1], data.target.shape[1]
        if not self.sampler.config.singles:
            return next_shot_attention(self.model, context, data.target, context_time=self.flow.context_time)
        rows, columns = self.model.config.grid(*data.target.shape[-2:])
        tokens = rows * columns
        if not context:
            return SegmentAttention(
                sizes=(1,) * frames, tokens_per_frame=tokens, visible=tuple((i,) for i in range(frames))
            )
        visible = ((0,), *((0, 1 + i) for i in range(frames)))
        return SegmentAttention(sizes=(context, *(1,) * frames), tokens_per_frame=tokens, visible=visible)

    def positions(self, data: Batch) -> Tensor:
        """Temporal positions [1, K + F]: context from 0, a clip from the capacity on, singles all at that place."""
        frames = data.target.shape[1]
        own = torch.zeros(frames) if self.sampler.config.singles else torch.arange(frames)
        positions = torch.cat([torch.arange(data.context.shape[1]), self.context_capacity + own])
        return positions[None].to(data.target.device)

    def carried(self) -> dict[str, Tensor]:
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Nothing is carried from step to step."""

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        return {}

    def _noise(self, step: int, sample: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        rng = generator_at(self.seed, "flow", step, sample)
        frames = shape[0]
        count = frames if self.sampler.config.singles else 1
        sigma = draw_sigma(rng, count, shift=self.flow.shift, uniform_share=self.flow.uniform_share)
        return normal(rng, shape), sigma.expand(frames)


def freeze_all_but_self_attention(model: DiT) -> None:
    """Let only q, k, v, o and the norms of the blocks' self-attention learn, in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name.split("."))


def next_shot_output(
    model: DiT,
    data: Batch,
    noisy: Tensor,
    sigma: Tensor,
    captions: CaptionKV,
    attention: SegmentAttention,
    positions: Tensor,
    *,
    context_time: ContextTime,
) -> Tensor:
    """Run [clean context | noisy target] and return the raw answer for the target, [B, F, C, h, w].

    Args: noisy [B, F, C, h, w]; sigma [B, F], the same for all frames if the context shares it; positions [1, K + F].
    """
    context = data.context.shape[1]
    told = sigma[:, :1] if context_time == "shared" else sigma.new_zeros(len(sigma), 1)
    timesteps = torch.cat([told.expand(-1, context), sigma], dim=1) * TIMESTEP_SCALE
    output: Tensor = model(
        torch.cat([data.context, noisy], dim=1),
        timesteps,
        positions_BF=positions.expand(len(noisy), -1),
        shot_ids_BF=data.shot_ids,
        captions=captions,
        caption_ids_BF=data.caption_ids,
        attention=attention,
    )
    return output[:, context:]


def next_shot_attention(model: DiT, context: int, target: Tensor, *, context_time: ContextTime) -> SegmentAttention:
    """The target [B, F, C, h, w] reads context and itself; the context only itself, unless it shares the target's t."""
    frames = target.shape[1]
    rows, columns = model.config.grid(*target.shape[-2:])
    apart = context and context_time == "zero"
    return SegmentAttention(sizes=(context, frames) if apart else (context + frames,), tokens_per_frame=rows * columns)
