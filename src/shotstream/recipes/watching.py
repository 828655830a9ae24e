"""Building what looks at a run while it trains: `--codec` for pictures, `--probe` to have them read, `--heldout` to
watch stories that are not trained on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shotstream.engine.rollout import RolloutConfig
from shotstream.models.dit import DiT
from shotstream.presets import STORYWORLD
from shotstream.recipes.runs import read_codec
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import RolloutNoise, roll_out
from shotstream.training.randomness import generator_at, normal
from shotstream.training.teacher import TeacherStage
from shotstream.training.watch import Readings, Watcher


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """What is looked at."""

    codec: str
    probe: str | None = None
    heldout: str | None = None
    """Latents of held-out stories; None watches the training data."""
    samples: int = 8
    teacher_steps: int = 12
    guidance_scale: float = STORYWORLD.guidance_scale


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Flags for watching, for `from_flags`."""
    flags.add_argument("--watch-codec", help="the codec of the latents: show samples in TensorBoard")
    flags.add_argument("--watch-probe", help="a probe that reads the samples")
    flags.add_argument("--watch-data", help="latents of held-out stories to watch")


def from_flags(given: argparse.Namespace) -> WatchConfig | None:
    """What the flags ask to look at. Raises: ValueError if nothing would be seen."""
    if given.watch_codec is None:
        if given.watch_probe or given.watch_data:
            raise ValueError("--watch-probe and --watch-data need the codec of the latents: pass --watch-codec")
        return None
    if not given.image_every:
        raise ValueError("--watch-codec shows samples at every so many steps: pass --image-every")
    return WatchConfig(codec=given.watch_codec, probe=given.watch_probe, heldout=given.watch_data)


def watch_teacher(stage: TeacherStage, config: WatchConfig) -> Watcher:
    """Guided samples of a bidirectional teacher."""
    sampler = _held(stage.sampler, config, stage.sampler.config)
    numbers = range(config.samples)
    data = sampler.batch(0, numbers)
    noise = torch.stack([normal(generator_at("watch", i), data.target.shape[1:]) for i in numbers])
    held = replace(stage, sampler=sampler)
    noise = noise.to(data.target.device)
    return Watcher(
        sample=lambda: held.sample(data, noise, num_steps=config.teacher_steps, guidance_scale=config.guidance_scale),
        truth=data.target,
        codec=read_codec(config.codec, sampler.device),
        video=not sampler.config.singles,
        read=_reader(config),
        labels=_fixed_labels(sampler, numbers),
    )


def watch_student(student: DiT, sampler: Sampler, rollout: RolloutConfig, config: WatchConfig) -> Watcher:
    """Rollouts of a causal student, with true frames of earlier shots."""
    clips = replace(sampler.config, captions_only=False, target_frames=rollout.slab.window_frames)
    sampler = _held(sampler, config, clips)
    numbers = range(config.samples)
    data = sampler.batch(0, numbers)
    last = rollout.num_steps - 1
    return Watcher(
        sample=lambda: roll_out(student, rollout, data, RolloutNoise(0, 0, numbers), last)[1].clean,
        truth=data.target,
        codec=read_codec(config.codec, sampler.device),
        video=True,
        read=_reader(config),
        labels=_fixed_labels(sampler, numbers),
    )


def _held(sampler: Sampler, config: WatchConfig, samples: SamplerConfig) -> Sampler:
    """Samples to look at: nothing dropped, nothing noised."""
    library = sampler.library
    if config.heldout is not None:
        library = LatentLibrary(config.heldout, text_length=library.text_length)
    quiet = replace(samples, drop_text=0.0, drop_context=0.0, random_context=0.0, context_noise=0.0, lengths=())
    return Sampler(library, replace(quiet, empty_context_captions=0.0), ("watch",), sampler.device)


def _reader(config: WatchConfig) -> ReadPictures | None:
    return None if config.probe is None else ReadPictures(config.probe)


class ReadPictures:
    """A probe from a file, loaded when it is first asked: it needs the drawn world installed."""

    def __init__(self, path: str) -> None:
        from pathlib import Path

        from shotstream.storyworld.probe import load_probe

        self.probe, _ = load_probe(Path(path))

    def __call__(self, frames: torch.Tensor) -> Readings:
        return self.probe.read(frames)


def _fixed_labels(sampler: Sampler, numbers: Sequence[int]) -> list[dict[str, str]]:
    """Labels that hold for a whole shot; what may change inside it is left out."""
    from shotstream.storyworld.spec import CHANGEABLE

    found = sampler.labels(0, numbers)
    return [{name: value for name, value in labels.items() if name not in CHANGEABLE} for labels in found]
