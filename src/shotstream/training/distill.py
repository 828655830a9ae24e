"""Distribution matching distillation of the student on its own rollouts (self-forcing), within a shot and across shots.

A generator step has two phases, since caches that are written in place cannot carry gradients. First the serving
rollout makes a whole shot without gradient, keeps what each chunk's last pass read, and leaves the caches full. Teacher
and critic then say, over the whole shot, in which direction the samples are too unlikely for the teacher. At last each
chunk's last pass is run again with gradient, against the read-only caches before it and its own keys, and receives its
part. Gradient is cut between chunks and memory is one chunk's. Self Forcing (arXiv:2506.08009) on DMD
(arXiv:2311.18828).

B batch, K context frames, F frames of a shot, C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shotstream.diffusion.flow import add_noise, predicted_clean
from shotstream.engine.noise import addressed_noise
from shotstream.engine.rollout import NoiseSource, Rollout, RolloutConfig
from shotstream.engine.teacher import ContextTime
from shotstream.models.codec import Codec, to_uint8
from shotstream.models.dit import CaptionKV, DiT
from shotstream.training.causal_init import OdeStage, remembered_context
from shotstream.training.data import (
    NO_FRAME,
    OWN_FRAME,
    Batch,
    LatentLibrary,
    Plan,
    Sampler,
    chunk_of_latent,
    chunk_of_pixel,
    context_rule,
    frames_ever_asked_for,
)
from shotstream.training.losses import dmd_gradient, dmd_loss, draw_sigma, guided, velocity_loss
from shotstream.training.randomness import generator_at, normal
from shotstream.training.teacher import next_shot_attention, next_shot_output
from shotstream.training.trainer import Loss

GENERATOR, CRITIC = "generator", "critic"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How student and critic take turns and what the teacher is asked."""

    rollout: RolloutConfig
    guidance_scale: float = 1.5
    """Additive, of the teacher: conditional + scale * (conditional - unconditional)."""
    critic_steps: int = 4
    """Critic updates after each generator update."""
    critic_warmup: int = 200
    """Critic updates before the first generator update."""
    shift: float = 3.0
    """Of the noise levels at which teacher and critic compare."""
    context_time: ContextTime = "zero"
    """As the teacher was trained, from which the critic starts."""
    lowest_sigma: float = 0.02
    highest_sigma: float = 0.98
    anchor_weight: float = 0.0
    """Of the trajectory regression in the generator's loss, should distillation be unstable."""

    def __post_init__(self) -> None:
        if self.critic_steps < 1 or self.critic_warmup < 0:
            raise ValueError(f"need critic_steps >= 1 and critic_warmup >= 0, got {self}")

    @property
    def frames(self) -> int:
        return self.rollout.slab.window_frames

    @property
    def rollouts_per_round(self) -> int:
        """Rollouts between two generator updates: each serves two critic steps, the first also the generator."""
        return -(-self.critic_steps // 2)

    def turn(self, step: int) -> str:
        """Generator or critic."""
        late = step - self.critic_warmup
        return GENERATOR if late >= 0 and late % (1 + self.critic_steps) == 0 else CRITIC

    def rollout_number(self, step: int) -> int:
        """Which rollout, counted over the whole run, this step learns from."""
        late = step - self.critic_warmup
        if late < 0:
            return step // 2
        rounds, place = divmod(late, 1 + self.critic_steps)
        return -(-self.critic_warmup // 2) + rounds * self.rollouts_per_round + max(0, place - 1) // 2


class ShotBatch(NamedTuple):
    """What a rollout starts from."""

    data: Batch
    """Contexts and captions; the target is not used."""
    number: int
    """Of the rollout."""
    samples: range
    """Numbers of these samples in the global batch."""


class Made(NamedTuple):
    """A rollout: the shots, and what each chunk's last pass read."""

    clean: Tensor
    """[B, F, C, h, w] float32."""
    noisy: tuple[Tensor, ...]
    """Per chunk."""
    step: int
    """The last pass."""


@dataclass(frozen=True, slots=True)
class RolloutNoise:
    """A rollout's noise, addressed like a stream's: a rollout is a shot, a sample of the batch a take of it."""

    seed: int
    number: int
    samples: Sequence[int]

    def of_chunk(self, chunk: int, shape: tuple[int, ...]) -> NoiseSource:
        """Noise of each denoise step of a chunk, [B, *shape]."""

        def noise(step: int) -> Tensor:
            address = {"seed": self.seed, "shot": self.number, "chunk": chunk, "step": step}
            return torch.stack([addressed_noise(**address, take=sample, shape=shape) for sample in self.samples])

        return noise


@torch.no_grad()
def roll_out(
    student: DiT, config: RolloutConfig, data: Batch, noise: RolloutNoise, last_pass: int
) -> tuple[Rollout, Made]:
    """Make a shot of as many frames as the data's as serving does. Returns the rollout with its caches full, and what
    it made. Raises ValueError if that is no number of whole chunks inside the window."""
    num_chunks = _whole_chunks(data, config)
    captions = student.encode_captions(data.text)
    height, width = data.context.shape[-2:]
    rollout = Rollout(student, config, latent_height=height, latent_width=width, batch=len(data.context))
    rollout.open_shot(remembered_context(data, captions))
    shape = (config.slab.chunk_frames, *data.context.shape[2:])
    chunks = []
    for index in range(num_chunks):
        own = chunk_captions(data, captions, index, config)
        chunks.append(rollout.next_chunk(own, noise.of_chunk(index, shape), exit_step=last_pass))
    return rollout, Made(torch.cat([c.clean for c in chunks], dim=1), tuple(c.noisy for c in chunks), last_pass)


def _whole_chunks(data: Batch, config: RolloutConfig) -> int:
    frames, slab = data.shot_ids.shape[1] - data.context.shape[1], config.slab
    if frames % slab.chunk_frames or not 0 < frames <= slab.window_frames:
        raise ValueError(f"a shot must be chunks of {slab.chunk_frames} frames, at most {slab.window_frames}: {frames}")
    return frames // slab.chunk_frames


def chunk_captions(data: Batch, captions: CaptionKV, chunk: int, config: RolloutConfig) -> CaptionKV:
    """The caption in force in a chunk, one per row."""
    return captions.select(data.caption_ids[:, data.context.shape[1] + chunk * config.slab.chunk_frames])


@dataclass
class DistillStage:
    """Intra-shot distillation: contexts are true frames of earlier shots."""

    generator: DiT
    critic: DiT
    teacher: DiT
    config: DistillConfig
    sampler: Sampler
    seed: int = 0
    anchor: OdeStage | None = None
    """Regression of the same generator, for `anchor_weight`."""
    negative: Tensor | None = None
    """States [1, L, D] of what the teacher's guidance steers away from; None: of no caption, zeros."""
    _kept: dict[int, Tensor] = field(default_factory=dict)
    """Shots of the last rollout, by the number of their first sample."""
    _kept_number: int = -1

    def __post_init__(self) -> None:
        self.networks: Mapping[str, nn.Module] = {GENERATOR: self.generator, CRITIC: self.critic}
        self.teacher.eval().requires_grad_(False)

    def turn(self, step: int) -> str:
        return self.config.turn(step)

    def batch(self, step: int, samples: range) -> ShotBatch:
        number = self.config.rollout_number(step)
        return ShotBatch(self.sampler.batch(number, samples), number, samples)

    def losses(self, batch: ShotBatch, step: int) -> Iterator[Loss]:
        if self.turn(step) == CRITIC:
            yield self._critic_loss(batch, self._reused(batch), step)
            return
        rollout, made = self.make(batch)
        self._keep(batch, made.clean)
        yield from self._generator_losses(batch, rollout, made, step)
        if self.anchor is not None and self.config.anchor_weight:
            regression = self.anchor.regression(self.anchor.batch(step, batch.samples)).mean()
            yield Loss(self.config.anchor_weight * regression, {"generator/regression": regression})

    def carried(self) -> dict[str, Tensor]:
        return {"number": torch.tensor(self._kept_number)} | {f"shots/{k}": v for k, v in self._kept.items()}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        self._kept_number = int(carried["number"])
        self._kept = {int(k.split("/")[1]): v for k, v in carried.items() if k.startswith("shots/")}

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        return {}

    def last_pass(self, number: int) -> int:
        """Which pass a rollout stops after: any of them, the same for all samples and chunks."""
        return int(generator_at(self.seed, "exit", number).integers(self.config.rollout.num_steps))

    @torch.no_grad()
    def make(self, batch: ShotBatch, *, last_pass: int | None = None) -> tuple[Rollout, Made]:
        """Phase one: the serving rollout of a whole shot. Returns it with its caches full."""
        exit_step = self.last_pass(batch.number) if last_pass is None else last_pass
        noise = RolloutNoise(self.seed, batch.number, batch.samples)
        return roll_out(self.generator, self.config.rollout, batch.data, noise, exit_step)

    def replay(self, batch: ShotBatch, rollout: Rollout, made: Made, chunk: int) -> Tensor:
        """Phase two: a chunk's last pass once more, with gradient. Clean latents [B, chunk frames, C, h, w]."""
        first = batch.data.context.shape[1] + chunk * self.config.rollout.slab.chunk_frames
        own = self.generator.encode_captions(batch.data.text[batch.data.caption_ids[:, first]])
        timestep = self.config.rollout.timesteps[made.step]
        time = self.generator.embed_time(torch.full((1, 1), timestep, device=made.clean.device))
        return rollout.replay(chunk, made.noisy[chunk], made.step, own, time)

    @torch.no_grad()
    def gradient(self, data: Batch, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The direction in which these shots are too unlikely for the teacher, [B, F, C, h, w]."""
        noisy = add_noise(clean, noise, sigma)
        empty = data.without_text(self.negative)
        fake = self._judge(self.critic, data, noisy, sigma)
        real = self._judge(self.teacher, data, noisy, sigma)
        unconditional = self._judge(self.teacher, empty, noisy, sigma)
        return dmd_gradient(clean, fake, guided(real, unconditional, self.config.guidance_scale))

    def _generator_losses(self, batch: ShotBatch, rollout: Rollout, made: Made, step: int) -> Iterator[Loss]:
        noise, sigma = self._comparison(step, batch.samples, made.clean)
        gradient = self.gradient(batch.data, made.clean, noise, sigma)
        frames, num_chunks = self.config.rollout.slab.chunk_frames, len(made.noisy)
        for chunk in range(num_chunks):
            part = gradient[:, chunk * frames : (chunk + 1) * frames]
            own = self.replay(batch, rollout, made, chunk)
            # A mean over the shot is the mean over a chunk times the chunk's share.
            value = dmd_loss(own, part).mean() / num_chunks
            yield Loss(value, {"generator/gradient": part.abs().mean() / num_chunks})

    def _critic_loss(self, batch: ShotBatch, clean: Tensor, step: int) -> Loss:
        noise, sigma = self._comparison(step, batch.samples, clean)
        output = self._score(self.critic, batch.data, add_noise(clean, noise, sigma), sigma)
        loss = velocity_loss(output, clean, noise, sigma, prediction=self.critic.config.prediction).mean()
        return Loss(loss, {"critic/velocity_loss": loss})

    def _reused(self, batch: ShotBatch) -> Tensor:
        """The shots of this step's rollout, made now if they are not at hand."""
        if self._kept_number != batch.number or batch.samples.start not in self._kept:
            self._keep(batch, self.make(batch)[1].clean)
        return self._kept[batch.samples.start]

    def _keep(self, batch: ShotBatch, clean: Tensor) -> None:
        if self._kept_number != batch.number:
            self._kept, self._kept_number = {}, batch.number
        self._kept[batch.samples.start] = clean

    def _comparison(self, step: int, samples: Sequence[int], clean: Tensor) -> tuple[Tensor, Tensor]:
        """Noise [B, F, C, h, w] and one sigma per sample [B, F]."""
        config, frames = self.config, clean.shape[1]
        noise, sigma = [], []
        for sample in samples:
            rng = generator_at(self.seed, "compare", step, sample)
            noise.append(normal(rng, clean.shape[1:]))
            drawn = draw_sigma(rng, 1, shift=config.shift, low=config.lowest_sigma, high=config.highest_sigma)
            sigma.append(drawn.expand(frames))
        return torch.stack(noise).to(clean.device), torch.stack(sigma).to(clean.device)

    def _judge(self, network: DiT, data: Batch, noisy: Tensor, sigma: Tensor) -> Tensor:
        return predicted_clean(self._score(network, data, noisy, sigma), noisy, sigma, network.config.prediction)

    def _score(self, network: DiT, data: Batch, noisy: Tensor, sigma: Tensor) -> Tensor:
        """A bidirectional network's raw answer for the shot."""
        remembered, context_time = data.context.shape[1], self.config.context_time
        attention = next_shot_attention(network, remembered, noisy, context_time=context_time)
        positions = torch.arange(remembered + noisy.shape[1], device=noisy.device)[None]
        captions = network.encode_captions(data.text)
        return next_shot_output(network, data, noisy, sigma, captions, attention, positions, context_time=context_time)


@dataclass
class InterShotStage(DistillStage):
    """Inter-shot distillation: walks through stories whose history is what the student itself made.

    A round (a generator update and its critic updates) is one shot of the walk. Its last rollout runs all passes, as
    serving does, is decoded to pixels, and the memory rule picks from them the next shot's context.
    """

    codec: Codec | None = None
    walk_shots: int = 4
    _history: dict[int, Tensor] = field(default_factory=dict)
    """By first sample: uint8 [B, shots so far, kept frames, H, W, 3]."""
    _history_shots: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.critic_warmup or self.config.rollouts_per_round < 2:
            raise ValueError(
                "inter-shot distillation goes on with a trained critic: critic_warmup 0, critic_steps >= 3"
            )
        if self.sampler.config.lengths:
            raise ValueError(
                "walks are made of whole shots, of which memory asks for the last frame: leave out lengths"
            )
        self._stories = {
            one.library.sizes[0]: stories_with(one.library, self.walk_shots) for one in self.sampler.by_size
        }
        shot_frames = self.sampler.config.shot_frames
        capacity = self.sampler.config.context_frames
        asked = [frames_ever_asked_for(i, self.walk_shots, capacity, shot_frames) for i in range(self.walk_shots)]
        self._kept_frames = sorted({p for frames in asked for p in frames})

    def batch(self, step: int, samples: range) -> ShotBatch:
        number = self.config.rollout_number(step)
        walk, shot = divmod(number // self.config.rollouts_per_round, self.walk_shots)
        plans = [self._plan(walk, shot, sample) for sample in samples]
        data = self.sampler.of_step(walk).assemble(plans)
        if shot:
            data = data._replace(context=self._remembered(samples, shot, plans).to(data.context))
        return ShotBatch(data, number, samples)

    def last_pass(self, number: int) -> int:
        if self._closes_round(number):
            return self.config.rollout.num_steps - 1
        return super().last_pass(number)

    def carried(self) -> dict[str, Tensor]:
        return super().carried() | {f"history/{k}": v for k, v in self._history.items()}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        super().restore(carried)
        self._history = {int(k.split("/")[1]): v.cpu() for k, v in carried.items() if k.startswith("history/")}

    def _keep(self, batch: ShotBatch, clean: Tensor) -> None:
        super()._keep(batch, clean)
        if self._closes_round(batch.number):
            self._remember(batch, clean)

    def _closes_round(self, number: int) -> bool:
        return number % self.config.rollouts_per_round == self.config.rollouts_per_round - 1

    @torch.no_grad()
    def _remember(self, batch: ShotBatch, clean: Tensor) -> None:
        """Decode finished shots and keep the frames that memory may ask for."""
        assert self.codec is not None
        shot = (batch.number // self.config.rollouts_per_round) % self.walk_shots
        start = batch.samples.start
        pixels = to_uint8(self.codec.decode(clean)[:, self._kept_frames]).cpu()[:, None]
        before = self._history.get(start)
        self._history[start] = pixels if shot == 0 or before is None else torch.cat([before[:, :shot], pixels], dim=1)

    @torch.no_grad()
    def _remembered(self, samples: range, shot: int, plans: Sequence[Plan]) -> Tensor:
        """Context latents [B, K, C, h, w] from the walk so far; zeros where the plan dropped the context."""
        assert self.codec is not None
        rule = context_rule(shot, self.sampler.config.context_frames, self.sampler.config.shot_frames)
        history = self._history[samples.start]
        frames = torch.stack([history[:, i, self._kept_frames.index(p)] for i, p in rule], dim=1)
        latents = self.codec.encode_frames(frames.to(self.sampler.device)).float()
        kept = torch.tensor([plan.context[0] == OWN_FRAME for plan in plans], device=latents.device)
        return latents * kept[:, None, None, None, None]

    def _plan(self, walk: int, shot: int, sample: int) -> Plan:
        """Captions and shot numbers of one sample's shot; the walk's first shot is the story's."""
        story = self._story(walk, sample)
        own = self._captions_of(walk, story, shot)
        frames = tuple(int(own[chunk_of_latent(f)]) for f in range(self.config.frames))
        slots = self.sampler.config.context_frames
        dropped = generator_at(self.seed, "drop", walk, shot, sample).random() < self.sampler.config.drop_context
        if shot == 0 or dropped:
            return Plan((NO_FRAME,) * slots, (0,) * slots, (frames[0],) * slots, (), frames, 1)
        rule = context_rule(shot, slots, self.sampler.config.shot_frames)
        captions = tuple(int(self._captions_of(walk, story, i)[chunk_of_pixel(p)]) for i, p in rule)
        return Plan((OWN_FRAME,) * slots, tuple(i for i, _ in rule), captions, (), frames, shot)

    def _story(self, walk: int, sample: int) -> int:
        stories = self._stories[self.sampler.of_step(walk).library.sizes[0]]
        return int(generator_at(self.seed, "walk", walk, sample).choice(stories))

    def _captions_of(self, walk: int, story: int, shot: int) -> NDArray[np.int64]:
        captions: NDArray[np.int64] = self.sampler.of_step(walk).library.shot_caption[story + shot]
        return captions


def stories_with(library: LatentLibrary, shots: int) -> NDArray[np.int64]:
    """Row, in the library's table of shots, of the first shot of every story of at least this many shots."""
    table = library.shot_table
    first = np.flatnonzero(table["shot"] == 0)
    lengths = np.diff(np.append(first, len(table["shot"])))
    enough = first[lengths >= shots]
    if not len(enough):
        raise ValueError(f"no story of the library has {shots} shots: lower walk_shots or encode longer stories")
    return enough
