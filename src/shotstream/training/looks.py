"""Fast training of the probe's second looks: what they see is cut out once, and learnt from many times.

A render, its spoiling and the probe's first look cost ten times what a second look costs to train. So a pool keeps, of
each sample, what every second look would see (with a margin to shift it in), the first look's own answers, which the
second adds to, and the labels.

N samples · K frames looked at · S pixels a side
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.models.codec import Codec
from shotstream.storyworld.probe import LOOKS, Probe, with_second_look
from shotstream.training.probe import UNSEEN, Example, ProbeDataConfig, random_example, spoil
from shotstream.training.randomness import generator_at
from shotstream.training.trainer import Loss

log = logging.getLogger(__name__)

MARGIN = 1.25
"""What is kept, in sides of what is seen."""
SHARD, BATCH = 500, 20
"""Samples of a file, and how many are looked at together."""
NAMES = tuple(dict.fromkeys(name for names in LOOKS.values() for name in names))
"""Everything that second looks tell."""
MIRRORED = ("face", "body")
"""Looks whose picture may be mirrored, as people are drawn the same way round both ways; places are not."""


def make_pool(
    folder: Path,
    probe: Probe,
    config: ProbeDataConfig,
    count: int,
    *,
    seed: int,
    codec: Codec | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill a folder with shards of samples until it holds `count`; those that are there are kept.

    dtype: of the first look.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(-(-count // SHARD)):
        path = folder / f"samples-{shard:04d}.safetensors"
        if path.is_file():
            continue
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            starts = range(shard * SHARD, (shard + 1) * SHARD, BATCH)
            parts = [_cut_out(probe, config, seed, range(i, i + BATCH), codec) for i in starts]
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished)
        unfinished.rename(path)
        log.info("kept %d of %d samples", (shard + 1) * SHARD, count)


@torch.no_grad()
def _cut_out(
    probe: Probe, config: ProbeDataConfig, seed: int, numbers: range, codec: Codec | None
) -> dict[str, Tensor]:
    """What the looks see of these samples, bytes [N, K * 3, S, S], with everything else that is learnt from."""
    drawn = [random_example(config, seed, ("pool", number), codec) for number in numbers]
    frames = torch.stack(
        [
            spoil(torch.from_numpy(item.frames).float() / 255, generator_at("pool", seed, "spoil", number), config)
            for number, item in zip(numbers, drawn, strict=True)
        ]
    )
    seen = probe.seen_by_looks(frames, margin=MARGIN)
    kept = {look: ((picture + 2) / 4 * 255).round().clamp(0, 255).byte() for look, picture in seen.pictures.items()}
    first = {f"first/{name}": seen.logits[name].half() for name in NAMES}
    return kept | first | {"classes": _classes(drawn), "places": seen.place_NP.half()}


def _classes(drawn: Sequence[Example]) -> Tensor:
    return torch.tensor([[item.classes[name] for name in NAMES] for item in drawn], dtype=torch.int16)


class Pool:
    """Samples in a folder, read a few at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if there are none."""
        paths = sorted(folder.glob("samples-*.safetensors"))
        if not paths:
            raise ValueError(f"no samples in {folder}: make them with `make_pool`")
        self._shards = [_Shard(path) for path in paths]

    def __len__(self) -> int:
        return SHARD * len(self._shards)

    def check(self, look: str, size: tuple[int, int]) -> None:
        """Raises ValueError if the samples do not show what this look sees at this size."""
        kept = self._shards[0].size(look)
        wanted = size if look == "place" else (round(MARGIN * size[0]), round(MARGIN * size[1]))
        if kept != wanted:
            raise ValueError(
                f"the pool keeps {kept or 'nothing'} pixels for a look at the {look}, not {wanted}: make another"
            )

    def rows(self, name: str, chosen: Sequence[int]) -> Tensor:
        """One tensor of these samples."""
        return torch.stack([self._shards[i // SHARD].row(name, i % SHARD) for i in chosen])


class _Shard:
    def __init__(self, path: Path) -> None:
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
        self._small = {name: file.get_tensor(name) for name in names if name not in LOOKS}
        self._pictures = {name: file.get_slice(name) for name in names if name in LOOKS}

    def size(self, look: str) -> tuple[int, int] | None:
        if look not in self._pictures:
            return None
        height, width = self._pictures[look].get_shape()[2:]
        return height, width

    def row(self, name: str, i: int) -> Tensor:
        found: Tensor = self._small[name][i] if name in self._small else self._pictures[name][i]
        return found


class LookBatch(NamedTuple):
    """What second looks learn from."""

    pictures: dict[str, Tensor]
    """By look, as it sees them: [N, K * 3, S, S]."""
    first: dict[str, Tensor]
    """By attribute: logits [N, classes] of the first look."""
    classes: dict[str, Tensor]
    place_NP: Tensor


@dataclass
class LookStage:
    """Cross-entropy of what second looks tell, added to what the first look told."""

    probe: Probe
    looks: tuple[str, ...]
    pool: Pool
    seed: int = 0

    def __post_init__(self) -> None:
        modules = {look: self.probe.looks[look] for look in self.looks}
        self.networks: Mapping[str, nn.Module] = {"model": nn.ModuleDict(modules)}
        self.names = tuple(name for name in NAMES if any(name in LOOKS[look] for look in self.looks))
        self.read = tuple(look for look in self.probe.looks if look in self.looks or set(LOOKS[look]) & set(self.names))
        for look in self.read:
            self.pool.check(look, self.probe.config.size(look))

    def turn(self, step: int) -> str:
        return "model"

    def carried(self) -> dict[str, Tensor]:
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        assert not carried

    def pictures(self, step: int) -> dict[str, NDArray[np.uint8]]:
        batch = self.batch(step, range(6))
        last = {look: ((x[:, -3:] + 2) / 4 * 255).clamp(0, 255).byte() for look, x in batch.pictures.items()}
        return {look: x.movedim(1, -1).flatten(0, 1).numpy() for look, x in last.items()}

    def batch(self, step: int, samples: range) -> LookBatch:
        rngs = [generator_at("look", self.seed, step, sample) for sample in samples]
        chosen = [int(rng.integers(len(self.pool))) for rng in rngs]
        mirrored = torch.tensor([bool(rng.random() < 0.5) for rng in rngs])
        if not set(self.read) <= set(MIRRORED):
            mirrored[:] = False
        labels = self.pool.rows("classes", chosen).long()
        classes = {name: labels[:, NAMES.index(name)] for name in self.names}
        first = {name: self.pool.rows(f"first/{name}", chosen).float() for name in self.names}
        if "angle" in classes:  # left and right change places
            turned = torch.where(classes["angle"] == UNSEEN, UNSEEN, 1 - classes["angle"])
            classes["angle"] = torch.where(mirrored, turned, classes["angle"])
            first["angle"] = torch.where(mirrored[:, None], first["angle"].flip(1), first["angle"])
        pictures = {
            look: _shifted(self.pool.rows(look, chosen), self.probe.config.size(look), rngs, mirrored)
            for look in self.read
        }
        return LookBatch(pictures, first, classes, self.pool.rows("places", chosen).float())

    def logits(self, batch: LookBatch) -> dict[str, Tensor]:
        """What the probe says of each attribute in training; looks that are not trained say what they say."""
        logits = dict(batch.first)
        for look in self.read:
            with torch.set_grad_enabled(torch.is_grad_enabled() and look in self.looks):
                told = self.probe.looks[look](batch.pictures[look], batch.place_NP)
            known = {name: more.float() for name, more in told.items() if name in self.names}
            logits = with_second_look(logits, known)
        return logits

    def losses(self, batch: LookBatch, step: int) -> Iterator[Loss]:
        logits = self.logits(batch)
        losses, logs = [], {}
        for name in self.names:
            seen = batch.classes[name] != UNSEEN
            if seen.any():
                wanted = batch.classes[name][seen]
                losses.append(F.cross_entropy(logits[name][seen], wanted))
                logs[f"right/{name}"] = (logits[name][seen].argmax(-1) == wanted).float().mean()
        yield Loss(torch.stack(losses).mean(), logs)


def _shifted(kept: Tensor, size: tuple[int, int], rngs: Sequence[np.random.Generator], mirrored: Tensor) -> Tensor:
    """What a look sees, shifted by up to a quarter of the margin each way, a little brighter or darker."""
    pictures = []
    for picture, rng, turn in zip(kept, rngs, mirrored.tolist(), strict=True):
        top, left = (int(rng.integers(spare // 4, spare - spare // 4 + 1)) for spare in _spare(picture, size))
        part = picture[:, top : top + size[0], left : left + size[1]]
        pictures.append((part.flip(-1) if turn else part).float() * float(rng.uniform(0.95, 1.05)))
    x = torch.stack(pictures) / 255
    return (x * 4 - 2).contiguous(memory_format=torch.channels_last)


def _spare(picture: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return picture.shape[1] - size[0], picture.shape[2] - size[1]
