"""From the bidirectional teacher to a causal student: first on real latents, then on the teacher's own trajectories.

The student must make a chunk from remembered frames and from earlier chunks that are finished, at one of its few noise
levels. Both stages train exactly that: every chunk stands in the sequence twice, clean as history for later chunks and
noisy as what is to be made, so a training pass reads what the serving caches would hold. With `history="noisy"` each
chunk stands there once and later chunks read it at whatever level it has, as published (CausVid, arXiv:2412.07772);
that is cheaper by the clean copies and further from serving.

B batch, K context frames, F target frames, C latent channels, h w latent size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.diffusion.flow import add_noise, predicted_clean
from shotstream.diffusion.schedule import TIMESTEP_SCALE
from shotstream.engine.rollout import Context
from shotstream.engine.teacher import TeacherConfig, TeacherRollout
from shotstream.models.attention import SegmentAttention
from shotstream.models.dit import CaptionKV, DiT
from shotstream.training.data import Batch, Sampler
from shotstream.training.losses import ode_regression_loss, velocity_loss
from shotstream.training.randomness import drawn_group, generator_at, normal
from shotstream.training.trainer import Loss

History = Literal["clean", "noisy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalConfig:
    """How a student works through a shot."""

    timesteps: tuple[float, ...] = (1000.0, 900.0, 750.0, 500.0)
    """The student's steps, 0..1000, descending."""
    chunk_frames: int = 3
    history: History = "clean"
    guidance: float = 1.0
    """Real shots: the scale of classifier-free guidance that the student learns to answer with in one pass; 1: none.

    Model guidance, Tang et al. 2025 (arXiv:2502.12154), with the student itself in place of its average. It is measured
    against no caption and no memory, so that both are strengthened: samples without either must be among the data.
    `GuidedStage` has a scale of its own.
    """

    own_history: float = 0.0
    """Real shots: share of the steps at which chunks read what the student itself draws for the chunks before them,
    one pass from noise, instead of the data. The target stays the data: the student learns to put right what it did
    wrong. What it drew carries no gradient. In `GuidedStage` the guide draws it, and is the target."""

    def __post_init__(self) -> None:
        if not 0 <= self.own_history <= 1:
            raise ValueError(f"own_history is a share from 0 to 1, got {self.own_history}")
        if self.own_history and self.history != "clean":
            raise ValueError('own_history needs history="clean": noisy chunks serve as history as they are')
        if self.guidance < 1:
            raise ValueError(f"guidance must be at least 1, got {self.guidance}")
        if list(self.timesteps) != sorted(self.timesteps, reverse=True) or not self.timesteps:
            raise ValueError(f"timesteps must be a descending list, got {self.timesteps}")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels a chunk is trained at. Where chunks serve as history as they are, they are sometimes clean."""
        levels = tuple(t / TIMESTEP_SCALE for t in self.timesteps)
        return levels if self.history == "clean" else (*levels, 0.0)


class CausalBatch(NamedTuple):
    """Shots with every chunk at a level of its own."""

    data: Batch
    """`target` is what the chunks should become."""
    noisy: Tensor
    """[B, F, C, h, w]."""
    noise: Tensor
    """[B, F, C, h, w]; the first state of the trajectory where there is one."""
    sigma: Tensor
    """[B, F], constant within a chunk."""


def block_causal_output(
    model: DiT,
    data: Batch,
    noisy: Tensor,
    sigma: Tensor,
    captions: CaptionKV,
    config: CausalConfig,
    *,
    history: Tensor | None = None,
    detached_history: bool = False,
) -> Tensor:
    """The raw answer for every noisy frame, [B, F, C, h, w], each chunk reading context, history and itself.

    Args: history [B, F, C, h, w] is what the chunks before are taken to have been, None: data.target;
        detached_history cuts the gradient into context and history.
    """
    history = data.target if history is None else history
    copied = history[:, : -config.chunk_frames] if config.history == "clean" else history[:, :0]
    remembered, copies, frames = data.context.shape[1], copied.shape[1], noisy.shape[1]
    timesteps = torch.cat([sigma.new_zeros(len(sigma), remembered + copies), sigma * TIMESTEP_SCALE], dim=1)
    order = torch.cat([torch.arange(remembered + copies), remembered + torch.arange(frames)]).to(noisy.device)
    output: Tensor = model(
        torch.cat([data.context, copied, noisy], dim=1),
        timesteps,
        positions_BF=order.expand(len(noisy), -1),
        shot_ids_BF=data.shot_ids[:, order],
        captions=captions,
        caption_ids_BF=data.caption_ids[:, order],
        attention=causal_attention(model, noisy, remembered, config, detached_history=detached_history),
        opening_F=(order >= remembered) & (order < remembered + config.chunk_frames),
    )
    return output[:, remembered + copies :]


def causal_attention(
    model: DiT, noisy: Tensor, remembered: int, config: CausalConfig, *, detached_history: bool = False
) -> SegmentAttention:
    """Segments [context | clean chunks but the last | noisy chunks], or [context | noisy chunks]."""
    rows, columns = model.config.grid(*noisy.shape[-2:])
    chunk, num_chunks = config.chunk_frames, noisy.shape[1] // config.chunk_frames
    if noisy.shape[1] % chunk:
        raise ValueError(f"a shot must be whole chunks of {chunk} latent frames, got {noisy.shape[1]}")
    if config.history == "noisy":
        return SegmentAttention(sizes=(remembered, *[chunk] * num_chunks), tokens_per_frame=rows * columns)
    clean = [tuple(range(i + 2)) for i in range(num_chunks - 1)]
    made = [(*range(i + 1), num_chunks + i) for i in range(num_chunks)]
    return SegmentAttention(
        sizes=(remembered, *[chunk] * (2 * num_chunks - 1)),
        tokens_per_frame=rows * columns,
        visible=((0,), *clean, *made),
        detached=frozenset(range(num_chunks)) if detached_history else frozenset(),
    )


def draw_levels(rng: np.random.Generator, frames: int, config: CausalConfig) -> NDArray[np.int64]:
    """One level per chunk, repeated for its frames: [F] indices into `config.sigmas`."""
    return np.repeat(rng.integers(len(config.sigmas), size=frames // config.chunk_frames), config.chunk_frames)


@dataclass
class CausalStage:
    """What both causal stages share: a student and block-causal passes."""

    model: DiT
    config: CausalConfig
    seed: int = 0

    def __post_init__(self) -> None:
        self.networks: Mapping[str, nn.Module] = {"model": self.model}

    def turn(self, step: int) -> str:
        return "model"

    def carried(self) -> dict[str, Tensor]:
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Nothing is carried from step to step."""

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        return {}

    def output(
        self, batch: CausalBatch, *, blank: bool = False, history: Tensor | None = None, model: DiT | None = None
    ) -> Tensor:
        """Raw answer for the noisy frames; `blank`: nothing asked, nothing remembered; history None: the data."""
        data, noisy, sigma = batch.data.blank() if blank else batch.data, batch.noisy, batch.sigma
        model = model or self.model
        captions = model.encode_captions(data.text)
        return block_causal_output(model, data, noisy, sigma, captions, self.config, history=history)

    def levels(self, step: int, samples: Sequence[int], frames: int) -> Tensor:
        """[B, F] indices into the config's sigmas."""
        rngs = [generator_at(self.seed, "levels", step, sample) for sample in samples]
        return torch.from_numpy(np.stack([draw_levels(rng, frames, self.config) for rng in rngs]))


@dataclass
class RealCausalStage(CausalStage):
    """Flow matching on real shots, block-causal, at the student's noise levels."""

    sampler: Sampler | None = None

    def batch(self, step: int, samples: range) -> CausalBatch:
        assert self.sampler is not None
        data = self.sampler.batch(step, samples)
        shape = data.target.shape[1:]
        noise = torch.stack([normal(generator_at(self.seed, "noise", step, i), shape) for i in samples])
        noise = noise.to(data.target.device)
        sigma = torch.tensor(self.config.sigmas)[self.levels(step, samples, shape[0])].to(data.target.device)
        return CausalBatch(data, add_noise(data.target, noise, sigma), noise, sigma)

    def losses(self, batch: CausalBatch, step: int) -> Iterator[Loss]:
        data, _, noise, sigma = batch
        history, prediction = self._history(batch, step), self.model.config.prediction
        output = self.output(batch, history=history)
        made = (sigma > 0).float()[:, :, None, None, None]
        clean, noise_wanted = self._wanted(batch, output, history)
        loss = velocity_loss(output, clean, noise_wanted, sigma, prediction=prediction, weight=data.weight * made)
        with torch.no_grad():
            plain = velocity_loss(output, data.target, noise, sigma, prediction=prediction, weight=made)
        yield Loss(loss.mean(), {"velocity_loss": plain.mean()})

    @torch.no_grad()
    def _history(self, batch: CausalBatch, step: int) -> Tensor | None:
        """What would have been drawn for each chunk, at some steps; None is the data."""
        if generator_at(self.seed, "own history", step).random() >= self.config.own_history:
            return None
        return self._draft(batch)

    def _draft(self, batch: CausalBatch) -> Tensor:
        """What the student makes of each chunk in one pass."""
        return predicted_clean(self.output(batch), batch.noisy, batch.sigma, self.model.config.prediction)

    @torch.no_grad()
    def _wanted(self, batch: CausalBatch, output: Tensor, history: Tensor | None) -> tuple[Tensor, Tensor]:
        """Clean latents and noise that the loss compares with: the data's, moved away from what is drawn unasked."""
        clean, noise = batch.data.target, batch.noise
        if self.config.guidance == 1:
            return clean, noise
        shift = guidance_shift(output, self.output(batch, blank=True, history=history), self.config.guidance)
        return (clean + shift, noise) if self.model.config.prediction == "clean" else (clean, noise + shift)


@dataclass(kw_only=True)
class GuidedStage(RealCausalStage):
    """One pass learns what two passes of a frozen network say: guidance by captions, with the memory as it is.

    Guidance distillation, Meng et al. 2023 (arXiv:2210.03142), on real shots at the student's noise levels.
    """

    guide: DiT
    scale: float
    """Of classifier-free guidance: untold + scale * (told - untold)."""

    def losses(self, batch: CausalBatch, step: int) -> Iterator[Loss]:
        history, prediction = self._history(batch, step), self.model.config.prediction
        wanted = self.guided(batch, history)
        made = (batch.sigma > 0).float()[:, :, None, None, None]
        sigma = batch.sigma.clamp(min=1e-3)[:, :, None, None, None]
        noise = (batch.noisy - (1 - sigma) * wanted) / sigma
        output, weight = self.output(batch, history=history), batch.data.weight * made
        loss = velocity_loss(output, wanted, noise, batch.sigma, prediction=prediction, weight=weight)
        yield Loss(loss.mean(), {})

    @torch.no_grad()
    def guided(self, batch: CausalBatch, history: Tensor | None) -> Tensor:
        """Clean latents as the guide wants them, [B, F, C, h, w]."""
        told, untold = (
            self._by_guide(batch._replace(data=data), history) for data in (batch.data, batch.data.without_text())
        )
        return untold + self.scale * (told - untold)

    def _draft(self, batch: CausalBatch) -> Tensor:
        return self.guided(batch, None)

    def _by_guide(self, batch: CausalBatch, history: Tensor | None) -> Tensor:
        output = self.output(batch, history=history, model=self.guide)
        return predicted_clean(output, batch.noisy, batch.sigma, self.guide.config.prediction)


def guidance_shift(asked: Tensor, blank: Tensor, guidance: float) -> Tensor:
    """What to add to a target so that the network which answers `asked` ends at blank + guidance (target - blank).

    At that point asked = target + shift, which holds for shift = (1 - 1 / guidance) (asked - blank).
    """
    return (1 - 1 / guidance) * (asked - blank)


@dataclass
class OdeStage(CausalStage):
    """Regression from the teacher's trajectories to where they end."""

    pairs: PairStore | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def batch(self, step: int, samples: range) -> CausalBatch:
        assert self.pairs is not None
        among = self.pairs.by_size[drawn_group([len(one) for one in self.pairs.by_size], self.seed, "size", step)]
        chosen = [among[generator_at(self.seed, "pair", step, i).integers(len(among))] for i in samples]
        return self.levelled(chosen, self.levels(step, samples, self.pairs.num_frames))

    def levelled(self, chosen: Sequence[int], levels: Tensor) -> CausalBatch:
        """These pairs with frame f in the state of level `levels[b, f]` (the last state is clean)."""
        assert self.pairs is not None
        data, states = self.pairs.read(chosen)
        rows, frames = torch.arange(len(chosen))[:, None], torch.arange(states.shape[2])[None]
        noisy = states[rows, levels, frames]
        sigma = torch.tensor(self.config.sigmas)[levels]
        batch = CausalBatch(data, noisy, states[:, 0], sigma)
        moved = Batch(*(t.to(self.device) for t in data))
        return CausalBatch(moved, *(t.to(self.device) for t in batch[1:]))

    def losses(self, batch: CausalBatch, step: int) -> Iterator[Loss]:
        yield Loss(self.regression(batch).mean(), {})

    def regression(self, batch: CausalBatch) -> Tensor:
        """[B] loss."""
        clean = predicted_clean(self.output(batch), batch.noisy, batch.sigma, self.model.config.prediction)
        return ode_regression_loss(clean, batch.data.target, batch.sigma > 0)


def remembered_context(data: Batch, captions: CaptionKV) -> Context:
    """A batch's context in the engine's form."""
    frames = data.context.shape[1]
    ids = data.caption_ids[:, :frames].flatten()
    return Context(data.context, data.shot_ids[:, :frames], data.shot_ids[:, frames], captions.select(ids))


@torch.no_grad()
def teacher_states(
    teacher: DiT, data: Batch, noise: Tensor, config: TeacherConfig, *, negative: Tensor | None = None
) -> Iterator[Tensor]:
    """Every state of the teacher's guided sampler on these contexts and captions: noise first, clean latents last.

    Args: negative, states [1, L, D], is what guidance steers away from; None: no caption.
    """
    captions = teacher.encode_captions(data.text)
    empty = data.without_text(negative)
    unconditional = teacher.encode_captions(empty.text).select(empty.caption_ids[:, 0])
    rollout = TeacherRollout(teacher, config, unconditional)
    rollout.open_shot(remembered_context(data, captions))
    yield from rollout.states(noise, captions.select(data.caption_ids.flatten()))


class PairStore:
    """Trajectories of the teacher in a folder, a few per file, each with its context and captions."""

    def __init__(self, folder: Path | str, *, max_files: int | None = None) -> None:
        """Raises ValueError if the folder holds none."""
        paths = sorted(Path(folder).glob("pairs-*.safetensors"))[:max_files]
        if not paths:
            raise ValueError(f"no teacher trajectories in {folder}: make them with the `pairs` part of this recipe")
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        shapes = [file.get_slice("states").get_shape() for file in self._files]
        self._places = [(i, row) for i, shape in enumerate(shapes) for row in range(shape[0])]
        self.num_frames = int(shapes[0][2])
        sizes = [tuple(shapes[i][-2:]) for i, _ in self._places]
        self.by_size = [[n for n, own in enumerate(sizes) if own == size] for size in sorted(set(sizes))]
        """Numbers of the trajectories, for each size of latents."""

    def __len__(self) -> int:
        return len(self._places)

    def read(self, chosen: Sequence[int]) -> tuple[Batch, Tensor]:
        """The batch (its target is where the trajectories end) and the states [B, S, F, C, h, w]."""
        texts: list[Tensor] = []
        ids, columns, num_captions = [], [], 0
        for index in chosen:
            place, row = self._places[index]
            file = self._files[place]
            ids.append(file.get_slice("caption_ids")[row] + num_captions)
            texts.append(file.get_tensor("text").float())
            num_captions += len(texts[-1])
            columns.append([file.get_slice(name)[row].float() for name in ("context", "shot_ids", "states")])
        context, shot_ids, states = (torch.stack(column) for column in zip(*columns, strict=True))
        weight = torch.ones(len(chosen), states.shape[2], 1, *states.shape[-2:])
        return Batch(context, states[:, -1], shot_ids, torch.cat(texts), torch.stack(ids), weight), states


@dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """Which trajectories are kept."""

    sampler: TeacherConfig
    kept_steps: tuple[int, ...] = (0, 6, 12, 18)
    """Solver steps whose input is kept: those at the student's noise levels. The end is always kept."""
    batch_size: int = 4

    def __post_init__(self) -> None:
        if max(self.kept_steps) >= len(self.sampler.sigmas):
            raise ValueError(f"kept_steps {self.kept_steps} exceed the {len(self.sampler.sigmas)} solver steps")

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The student's timesteps these trajectories serve."""
        return tuple(self.sampler.sigmas[step] * TIMESTEP_SCALE for step in self.kept_steps)


@torch.no_grad()
def make_pairs(
    teacher: DiT,
    sampler: Sampler,
    config: PairConfig,
    folder: Path,
    files: Sequence[int],
    *,
    negative: Tensor | None = None,
    until: float | None = None,
) -> Iterator[int]:
    """Write the missing files among `files`, none begun after `until` (time.monotonic); yields each when written.

    Args: negative as for `teacher_states`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in files:
        path = folder / f"pairs-{number:05d}.safetensors"
        if path.exists():
            continue
        if until is not None and time.monotonic() > until:
            return
        samples = range(config.batch_size)
        data = sampler.batch(number, samples)
        shape = data.target.shape[1:]
        noise = torch.stack([normal(generator_at("pairs", number, i), shape) for i in samples]).to(data.target.device)
        states = list(teacher_states(teacher, data, noise, config.sampler, negative=negative))
        kept = torch.stack([states[step] for step in (*config.kept_steps, len(config.sampler.sigmas))], dim=1)
        _write_pairs(path, data, kept)
        yield number


def _write_pairs(path: Path, data: Batch, states: Tensor) -> None:
    tensors = {"context": data.context.half(), "states": states.half(), "text": data.text.half()}
    tensors |= {"shot_ids": data.shot_ids, "caption_ids": data.caption_ids}
    partial = path.with_suffix(".partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)
