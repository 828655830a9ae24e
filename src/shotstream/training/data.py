"""Training samples from latents that were encoded beforehand.

A library is a folder of shards. A shard holds whole stories: single frames (those that memory may ask for, some of
them also after a round trip through the codec, and a few others to learn from), a few full clips, the captions of every
shot, chunk by chunk, and the token states of every caption, each caption once. Arrays are memory-mapped; nothing is
read before it is sampled. All latents of a shard have one size h x w; shards may differ in it, and a step takes its
samples from shards of one.

B samples, F target frames, K context frames, C latent channels, h w latent size, S captions, L text positions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shotstream.engine.memory import allocate_context, evenly_spaced
from shotstream.training.randomness import drawn_group, generator_at, normal

Array = NDArray[np.generic]

FRAME_FIELDS = ("story", "shot", "pixel_frame", "roundtrip", "caption", "important", "latent")
CLIP_FIELDS = ("story", "shot", "caption", "important", "latent")
SHOT_FIELDS = ("story", "shot", "caption")
NO_CAPTION = -1
NO_FRAME = -1
OWN_FRAME = -2
"""In a plan: a frame that the student made itself, filled in later."""


def chunk_of_latent(latent_frame: int, chunk_frames: int = 3) -> int:
    return latent_frame // chunk_frames


def chunk_of_pixel(pixel_frame: int, *, chunk_frames: int = 3, stride: int = 4) -> int:
    """The chunk that shows this pixel frame: 9 frames in the first chunk, 12 in each later one."""
    latent_frame = 0 if pixel_frame == 0 else 1 + (pixel_frame - 1) // stride
    return latent_frame // chunk_frames


@lru_cache
def context_rule(num_earlier: int, capacity: int, shot_frames: int) -> tuple[tuple[int, int], ...]:
    """(shot, pixel frame) of every remembered frame of `num_earlier` shots of `shot_frames` frames, in memory order."""
    counts = allocate_context(num_earlier, capacity)
    return tuple((i, p) for i, count in enumerate(counts) for p in evenly_spaced(0, shot_frames - 1, count))


@lru_cache
def frames_ever_asked_for(shot: int, num_shots: int, capacity: int, shot_frames: int) -> tuple[int, ...]:
    """Pixel frames of `shot` that the rule asks for when any later shot of a story of `num_shots` is made."""
    asked = {p for n in range(shot + 1, num_shots) for i, p in context_rule(n, capacity, shot_frames) if i == shot}
    return tuple(sorted(asked))


class Captions:
    """Gives each distinct caption one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._ids: dict[str, int] = {}

    def id_of(self, caption: str) -> int:
        if caption not in self._ids:
            self._ids[caption] = len(self.texts)
            self.texts.append(caption)
        return self._ids[caption]


def write_shard(
    path: Path,
    *,
    frames: Mapping[str, Array],
    clips: Mapping[str, Array],
    shots: Mapping[str, Array],
    captions: Sequence[str],
    text_states: Tensor,
    stories: Iterable[Mapping[str, object]],
) -> None:
    """Write one shard; it appears under its name only when complete.

    Args: frames, clips and shots by field (FRAME_FIELDS and so on), a row for each; text_states [S, L, D] with zeros
        beyond each caption's end, stored without them; stories anything JSON worth keeping (labels).
    """
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in FRAME_FIELDS:
        np.save(partial / f"frame_{name}.npy", frames[name])
    for name in CLIP_FIELDS:
        np.save(partial / f"clip_{name}.npy", clips[name])
    for name in SHOT_FIELDS:
        np.save(partial / f"shot_{name}.npy", shots[name])
    lengths = [int(states.abs().sum(-1).gt(0).nonzero().max()) + 1 for states in text_states]
    ragged = torch.cat([states[:n] for states, n in zip(text_states, lengths, strict=True)])
    np.save(partial / "text_states.npy", ragged.half().numpy())
    np.save(partial / "text_ends.npy", np.cumsum(lengths))
    (partial / "captions.json").write_text(json.dumps(list(captions)))
    (partial / "stories.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


class _Column:
    """Rows of one field over all shards, read where they lie."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> Array:
        wanted = np.asarray(indices, dtype=np.int64)
        which = np.searchsorted(self.ends, wanted, side="right")
        starts = np.concatenate([[0], self.ends[:-1]])
        return np.stack([self.parts[s][i - starts[s]] for s, i in zip(which, wanted, strict=True)])

    def whole(self) -> Array:
        return np.concatenate(list(self.parts))


class LatentLibrary:
    """All shards of a folder as three tables, `frame`, `clip` and `shot`, and one list of captions."""

    def __init__(
        self,
        folder: Path | str,
        *,
        text_length: int = 64,
        max_shards: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """`size` keeps only shards with latents of these h, w. Raises ValueError if the folder holds no complete shard,
        or shards of several codecs."""
        shards = sorted(Path(folder).glob("shard-*"))[:max_shards]
        if not shards:
            raise ValueError(
                f"no shards in {folder}: make them with `python -m shotstream.recipes.latents --out {folder}`"
            )
        shapes = [np.load(shard / "frame_latent.npy", mmap_mode="r").shape[1:] for shard in shards]
        if len(channels := {c for c, _, _ in shapes}) > 1:
            raise ValueError(
                f"{folder} has latents of {' and '.join(map(str, sorted(channels)))} channels: keep those of one codec"
            )
        self.sizes = sorted({(h, w) for _, h, w in shapes if size in (None, (h, w))})
        """Every h, w that latents have."""
        shards = [shard for shard, (_, h, w) in zip(shards, shapes, strict=True) if (h, w) in self.sizes]
        self.text_length = text_length
        self._folder, self._max_shards = folder, max_shards
        self._shards = shards
        self.frame = {name: _column(shards, f"frame_{name}") for name in FRAME_FIELDS}
        self.clip = {name: _column(shards, f"clip_{name}") for name in CLIP_FIELDS}
        self._states = _column(shards, "text_states")
        ends, caption_counts, state_offset = [], [], 0
        for shard in shards:
            shard_ends = np.load(shard / "text_ends.npy")
            ends.append(shard_ends + state_offset)
            state_offset += int(shard_ends[-1])
            caption_counts.append(len(shard_ends))
        self._ends = np.concatenate(ends)
        # Caption numbers are per shard in the files and global here.
        offsets = np.concatenate([[0], np.cumsum(caption_counts)[:-1]])
        self.frame_caption = _shifted(self.frame["caption"], offsets)
        self.clip_caption = _shifted(self.clip["caption"], offsets)
        self.shot_caption = _shifted(_column(shards, "shot_caption"), offsets)
        self.frame_table = {name: self.frame[name].whole() for name in ("story", "shot", "pixel_frame", "roundtrip")}
        self.clip_table = {name: self.clip[name].whole() for name in ("story", "shot")}
        self.shot_table = {name: _column(shards, f"shot_{name}").whole() for name in ("story", "shot")}

    @cached_property
    def labels(self) -> dict[int, list[dict[str, str]]]:
        """Per story, for each shot, what it shows when it opens."""
        lines = [json.loads(line) for shard in self._shards for line in (shard / "stories.jsonl").open()]
        return {int(line["story"]): line["shots"] for line in lines}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w; only of a library with one size."""
        assert len(self.sizes) == 1, f"take one of by_size: there are latents of {self.sizes}"
        return (self.channels, *self.sizes[0])

    @property
    def channels(self) -> int:
        return int(self.frame["latent"].parts[0].shape[1])

    def by_size(self) -> list[LatentLibrary]:
        """One library for each size of latents; of one size, itself."""
        if len(self.sizes) == 1:
            return [self]
        same: dict[str, Any] = {"text_length": self.text_length, "max_shards": self._max_shards}
        return [LatentLibrary(self._folder, **same, size=size) for size in self.sizes]

    @property
    def text_width(self) -> int:
        return int(self._states.parts[0].shape[1])

    def text(self, captions: Sequence[int]) -> Tensor:
        """Token states [S, L, D] float32; NO_CAPTION gives zeros."""
        out = torch.zeros(len(captions), self.text_length, self.text_width)
        for row, caption in enumerate(captions):
            if caption != NO_CAPTION:
                start = int(self._ends[caption - 1]) if caption else 0
                out[row, : self._ends[caption] - start] = self._state_rows(start, int(self._ends[caption]))
        return out

    def states_of(self, caption: str) -> Tensor:
        """Token states [1, L, D] float32 of a caption, zeros for "". Raises ValueError if no shard has this one."""
        first = 0
        for shard in self._shards if caption else []:
            captions = json.loads((shard / "captions.json").read_text())
            if caption in captions:
                return self.text([first + captions.index(caption)])
            first += len(captions)
        if caption:
            raise ValueError(
                f"no caption of the library reads {caption!r}: encode a shard with it (latents --negative-prompt)"
            )
        return self.text([NO_CAPTION])

    def _state_rows(self, start: int, stop: int) -> Tensor:
        shard = int(np.searchsorted(self._states.ends, start, side="right"))
        offset = int(self._states.ends[shard - 1]) if shard else 0
        rows = np.array(self._states.parts[shard][start - offset : stop - offset], dtype=np.float32)
        return torch.from_numpy(rows)


def people_around(important_BFhw: Tensor) -> Tensor:
    """Cells that the people are likely to cover, from those of their faces and marks, bool [B, F, h, w].

    A body reaches one and a half times as far below face and hat as these are high, and half as far to each side.
    """
    rows_BF = important_BFhw.any(-1).sum(-1)
    people = important_BFhw.clone()
    for rows in set(rows_BF.flatten().tolist()):
        if rows:
            chosen = rows_BF == rows
            down, aside = -(-3 * rows // 2), -(-rows // 2)
            cells = F.pad(important_BFhw[chosen].float(), (aside, aside, down, 0))
            people[chosen] = F.max_pool2d(cells, (down + 1, 2 * aside + 1), stride=1) > 0
    return people


def _two_people(labels: Mapping[str, str]) -> bool:
    return labels.get("second_character", "none") != "none"


def _column(shards: Sequence[Path], name: str) -> _Column:
    return _Column([np.load(shard / f"{name}.npy", mmap_mode="r") for shard in shards])


def _shifted(column: _Column, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([part.astype(np.int64) + o for part, o in zip(column.parts, offsets, strict=True)])


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """What a training sample looks like and what is left out of it how often."""

    context_frames: int = 6
    """0 trains on targets alone."""
    target_frames: int = 21
    """Leading latent frames of a clip; ignored for singles."""
    lengths: tuple[int, ...] = ()
    """If given, the clips of a step all have one of these numbers of leading frames, drawn for each step: in serving a
    shot ends when its director cuts."""
    singles: int = 0
    """If positive, this many independent single frames of the target shot instead of a clip."""
    captions_only: bool = False
    """Targets are zeros: only context and captions of a shot are wanted (distillation), so any shot will do."""
    shot_frames: int = 81
    """Pixel frames of a shot, which the memory rule spaces over."""
    first_shot: float = 0.2
    """Share of samples whose target opens the story."""
    two_people: float = 0.0
    """Share of samples drawn from the shots of two people alone, which are one in thirteen and are learnt last."""
    steered: float = 0.0
    """Share of samples drawn from shots whose caption changes within the frames trained on. Clips alone; where a step's
    clips are too short for any change it draws as ever."""
    drop_context: float = 0.1
    drop_text: float = 0.1
    drop_all: float = 0.0
    """Share without captions and without memory: what guidance by both is measured against."""
    random_context: float = 0.3
    """Share whose remembered frames are a random choice: pins, removals and edits look like that."""
    empty_context_captions: float = 0.1
    """Share of remembered frames without a caption, like a user's own picture."""
    context_noise: float = 0.1
    """Remembered frames get noise of up to this sd, drawn per sample."""
    roundtrip: bool = True
    """Take the round-tripped version of a remembered frame where there is one."""
    important_weight: float = 2.0
    """Least loss weight of latent cells under a face or a hidden mark."""
    important_share: float = 0.15
    """Their share of a frame's weight where they are few: a face in a wide shot is four cells of 240."""
    largest_weight: float = 8.0
    person_share: float = 0.0
    """Share of a frame's weight for whole people, faces and marks among them, where they are few: arms and legs tell
    what somebody does, and are a small part of what a picture's loss is made of."""

    def __post_init__(self) -> None:
        if self.lengths and not 1 <= min(self.lengths) <= max(self.lengths) <= self.target_frames:
            raise ValueError(f"lengths must lie in 1..{self.target_frames}, the frames of a clip, got {self.lengths}")
        if self.steered and self.singles:
            raise ValueError("steered chooses among clips, and singles are lone frames: leave one of them out")


class Plan(NamedTuple):
    """Which rows of the library make one sample."""

    context: tuple[int, ...]
    """Frame rows; NO_FRAME for an empty slot (zeros)."""
    context_shots: tuple[int, ...]
    context_captions: tuple[int, ...]
    target: tuple[int, ...]
    """Frame rows of singles, one clip row, or nothing."""
    target_captions: tuple[int, ...]
    shot: int
    """Shot indicator of the target frames."""


class Batch(NamedTuple):
    """A batch of samples on one device."""

    context: Tensor
    """[B, K, C, h, w] clean."""
    target: Tensor
    """[B, F, C, h, w] clean."""
    shot_ids: Tensor
    """[B, K + F]."""
    text: Tensor
    """[S, L, D]; row 0 is the empty caption."""
    caption_ids: Tensor
    """[B, K + F], rows of `text`."""
    weight: Tensor
    """[B, F, C, h, w] loss weight."""

    def without_text(self, negative: Tensor | None = None) -> Batch:
        """The same with every caption empty, or with these states [1, L, D]: what guidance is measured against."""
        text = self.text[:1] if negative is None else negative.to(self.text)
        return self._replace(text=text, caption_ids=torch.zeros_like(self.caption_ids))

    def blank(self) -> Batch:
        """The same with nothing asked and nothing remembered: guidance against it strengthens captions and memory."""
        shot_ids = torch.ones_like(self.shot_ids)
        shot_ids[:, : self.context.shape[1]] = 0
        return self.without_text()._replace(context=torch.zeros_like(self.context), shot_ids=shot_ids)


@dataclass
class Sampler:
    """Draws batches from a library; sample `i` of step `s` is the same whenever and wherever it is drawn."""

    library: LatentLibrary
    config: SamplerConfig
    address: tuple[int | str, ...] = (0, "samples")
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        libraries = self.library.by_size()
        self.by_size = [self] if len(libraries) == 1 else [replace(self, library=one) for one in libraries]
        """A sampler for each size of latents."""
        if len(libraries) == 1:
            self._list_targets()

    def _list_targets(self) -> None:
        table = self.library.frame_table
        self._rows: dict[tuple[int, int], dict[tuple[int, bool], int]] = {}
        for row, key in enumerate(
            zip(*(table[n].tolist() for n in ("story", "shot", "pixel_frame", "roundtrip")), strict=True)
        ):
            self._rows.setdefault(key[:2], {})[key[2:]] = row
        self._direct = np.flatnonzero(~table["roundtrip"].astype(bool))
        any_shot = self.config.singles or self.config.captions_only
        source = self.library.shot_table if any_shot else self.library.clip_table
        self._targets = np.stack([source["story"], source["shot"]], axis=1).astype(np.int64)
        self._captions = self.library.shot_caption if any_shot else self.library.clip_caption
        if not len(self._targets):
            raise ValueError("the library has no clips: encode with --clips 1 or more")
        longest = 3 * self._captions.shape[1]
        if not self.config.singles and self.config.target_frames > longest:
            raise ValueError(f"target_frames is {self.config.target_frames}, the library's shots have {longest} frames")
        self._opening = np.flatnonzero(self._targets[:, 1] == 0)
        self._later = np.flatnonzero(self._targets[:, 1] > 0)
        self._shared = self._of_two_people() if self.config.two_people else None
        self._first_change = self._where_captions_change() if self.config.steered else None

    def _where_captions_change(self) -> NDArray[np.intp]:
        """Per target, the first chunk whose caption is another; past the last where none is. Raises if all are so."""
        changes = self._captions[:, 1:] != self._captions[:, :-1]
        if not changes.any():
            raise ValueError("steered asks for shots whose caption changes, and the library has none")
        first: NDArray[np.intp] = np.where(changes.any(1), 1 + changes.argmax(1), self._captions.shape[1])
        return first

    def _of_two_people(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Target rows and lone frames of shots that open with two people. Raises ValueError where there are none."""
        labels = self.library.labels
        shared = {(story, i) for story, shots in labels.items() for i, shot in enumerate(shots) if _two_people(shot)}
        table = self.library.frame_table
        frames = [row for row in self._direct if (int(table["story"][row]), int(table["shot"][row])) in shared]
        targets = [row for row, key in enumerate(self._targets.tolist()) if tuple(key) in shared]
        if not frames or not targets:
            raise ValueError("two_people asks for shots of two people, and the library has none: encode more stories")
        return np.array(targets), np.array(frames)

    def of_step(self, step: int) -> Sampler:
        """The sampler of the latents, all of one size, that a step is made of; sizes come up as their targets do."""
        if len(self.by_size) == 1:
            return self.by_size[0]
        return self.by_size[drawn_group([len(one._targets) for one in self.by_size], *self.address, "size", step)]

    def labels(self, step: int, samples: Sequence[int]) -> list[dict[str, str]]:
        """What each of these samples' target shots shows when it opens, by attribute."""
        found, own = [], self.of_step(step)
        for sample in samples:
            plan = own.plan(generator_at(*self.address, step, sample), self.num_frames(step))
            table = own.library.frame_table if self.config.singles else own.library.clip_table
            row = plan.target[0]
            found.append(own.library.labels[int(table["story"][row])][int(table["shot"][row])])
        return found

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """The samples with these numbers of a step."""
        plans, noises = [], []
        frames, own = self.num_frames(step), self.of_step(step)
        for sample in samples:
            rng = generator_at(*self.address, step, sample)
            plans.append(own.plan(rng, frames))
            noises.append(own._context_noise(rng))
        return own.assemble(plans, noises)

    def num_frames(self, step: int) -> int:
        """Latent frames of a step's clips: one number for all its samples, whichever process draws them."""
        if not self.config.lengths:
            return self.config.target_frames
        return int(generator_at(*self.address, "length", step).choice(self.config.lengths))

    def plan(self, rng: np.random.Generator, frames: int | None = None) -> Plan:
        """Choose one sample. A clip has `frames` latent frames, None: as many as the config says at most."""
        if self.config.singles and not self.config.context_frames:
            return self._lone_frames(rng)
        frames = frames or self.config.target_frames
        which = self._pick_target(rng, frames)
        story, shot = (int(v) for v in self._targets[which])
        target, captions = self._target(rng, which, story, shot, frames)
        context = self._context(rng, story, shot)
        forgotten = rng.random() < self.config.drop_all
        if forgotten:
            context = [(NO_FRAME, 0, NO_CAPTION)] * len(context)
        if rng.random() < self.config.drop_text or forgotten:
            captions = (NO_CAPTION,) * len(captions)
            context = [(row, i, NO_CAPTION) for row, i, _ in context]
        rows, shots, context_captions = zip(*context, strict=True)
        opening = all(row == NO_FRAME for row in rows)
        return Plan(rows, shots, context_captions, target, captions, 1 if opening else shot)

    def _lone_frames(self, rng: np.random.Generator) -> Plan:
        among = self._direct
        if self._shared is not None and rng.random() < self.config.two_people:
            among = self._shared[1]
        rows = tuple(int(r) for r in rng.choice(among, self.config.singles))
        dropped = rng.random() < self.config.drop_text
        captions = tuple(NO_CAPTION if dropped else int(self.library.frame_caption[r]) for r in rows)
        return Plan((), (), (), rows, captions, 1)

    def _pick_target(self, rng: np.random.Generator, frames: int) -> int:
        if self._first_change is not None and rng.random() < self.config.steered:
            changing = np.flatnonzero(self._first_change <= chunk_of_latent(frames - 1))
            if len(changing):
                return int(rng.choice(changing))
        if self._shared is not None and rng.random() < self.config.two_people:
            return int(rng.choice(self._shared[0]))
        opening = rng.random() < self.config.first_shot
        group = self._opening if (opening and len(self._opening)) or not len(self._later) else self._later
        return int(rng.choice(group))

    def _target(
        self, rng: np.random.Generator, which: int, story: int, shot: int, frames: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not self.config.singles:
            captions = tuple(int(self._captions[which][chunk_of_latent(f)]) for f in range(frames))
            return () if self.config.captions_only else (which,), captions
        rows = [row for (_, roundtrip), row in self._rows[story, shot].items() if not roundtrip]
        chosen = rng.choice(rows, self.config.singles, replace=len(rows) < self.config.singles)
        return tuple(int(r) for r in chosen), tuple(int(self.library.frame_caption[r]) for r in chosen)

    def _context(self, rng: np.random.Generator, story: int, shot: int) -> list[tuple[int, int, int]]:
        """(row, shot, caption) per slot."""
        slots = self.config.context_frames
        if shot == 0 or rng.random() < self.config.drop_context:
            # As in serving, an empty slot is a zero latent of shot 0 that reads the new shot's own caption.
            return [(NO_FRAME, 0, int(self.library.frame_caption[self._stored(story, shot, 0)]))] * slots
        if rng.random() < self.config.random_context:
            wanted = self._random_choice(rng, story, shot)
        else:
            wanted = list(context_rule(shot, slots, self.config.shot_frames))
        found = [(self._stored(story, i, p), i) for i, p in wanted]
        captions = [int(self.library.frame_caption[row]) for row, _ in found]
        captions = [NO_CAPTION if rng.random() < self.config.empty_context_captions else c for c in captions]
        chosen = [(row, i, caption) for (row, i), caption in zip(found, captions, strict=True)]
        return [chosen[k * len(chosen) // slots] for k in range(slots)]

    def _random_choice(self, rng: np.random.Generator, story: int, shot: int) -> list[tuple[int, int]]:
        """Any frames of earlier shots in story order; too few are repeated to fill the slots, as in serving."""
        known = sorted({(i, p) for i in range(shot) for p, _ in self._rows.get((story, i), {})})
        most = min(self.config.context_frames, len(known))
        count = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
        return [known[k] for k in sorted(rng.choice(len(known), count, replace=False))]

    def _stored(self, story: int, shot: int, pixel_frame: int) -> int:
        rows = self._rows.get((story, shot), {})
        row = rows.get((pixel_frame, True)) if self.config.roundtrip else None
        row = rows.get((pixel_frame, False)) if row is None else row
        if row is None:
            raise ValueError(f"the library lacks frame {pixel_frame} of shot {shot} of story {story}: encode it again")
        return row

    def _context_noise(self, rng: np.random.Generator) -> Tensor | None:
        if not self.config.context_frames or not self.config.context_noise:
            return None
        sd = float(rng.random()) * self.config.context_noise
        return sd * normal(rng, (self.config.context_frames, *self.library.latent_shape))

    def assemble(self, plans: Sequence[Plan], noises: Sequence[Tensor | None] = (None,)) -> Batch:
        """Read what the plans name; `noises` are added to the context frames."""
        ids = sorted({c for plan in plans for c in (*plan.context_captions, *plan.target_captions)} - {NO_CAPTION})
        number = {caption: i + 1 for i, caption in enumerate(ids)} | {NO_CAPTION: 0}
        captions = [[number[c] for c in (*p.context_captions, *p.target_captions)] for p in plans]
        shots = [[*p.context_shots, *[p.shot] * len(p.target_captions)] for p in plans]
        target, important = self._target_latents(plans)
        batch = Batch(
            context=self._context_latents(plans, noises),
            target=target,
            shot_ids=torch.tensor(shots),
            text=self.library.text([NO_CAPTION, *ids]),
            caption_ids=torch.tensor(captions),
            weight=self.cell_weight(important)[:, :, None],
        )
        return Batch(*(t.to(self.device, non_blocking=True) for t in batch))

    def cell_weight(self, important_BFhw: Tensor) -> Tensor:
        """Loss weight of every cell, from which ones are important, bool [B, F, h, w]."""
        config = self.config
        heavy = self._heaviness(important_BFhw, config.important_share).clamp(min=config.important_weight)
        weight = torch.where(important_BFhw, heavy, torch.ones(()))
        if not config.person_share:
            return weight
        people = people_around(important_BFhw)
        return torch.where(people, torch.maximum(weight, self._heaviness(people, config.person_share)), weight)

    def _heaviness(self, few_BFhw: Tensor, share: float) -> Tensor:
        """The weight [B, F, 1, 1] that gives these cells this share of a frame's weight, within bounds."""
        cells, few = few_BFhw[0, 0].numel(), few_BFhw.sum((-2, -1), keepdim=True)
        wanted = share / (1 - share) * (cells - few) / few.clamp(min=1)
        return wanted.clamp(1.0, self.config.largest_weight)

    def _target_latents(self, plans: Sequence[Plan]) -> tuple[Tensor, Tensor]:
        """[B, F, C, h, w] latents and [B, F, h, w] marks of what matters most."""
        frames = len(plans[0].target_captions)
        if self.config.captions_only:
            zeros = torch.zeros(len(plans), frames, *self.library.latent_shape)
            return zeros, zeros[:, :, 0].bool()
        table = self.library.frame if self.config.singles else self.library.clip
        rows = [row for plan in plans for row in plan.target]
        latents, important = (torch.from_numpy(table[name].rows(rows)) for name in ("latent", "important"))
        if self.config.singles:
            shape = (len(plans), self.config.singles)
            return latents.float().view(*shape, *latents.shape[1:]), important.view(*shape, *important.shape[1:])
        return latents[:, :frames].float(), important[:, :frames]

    def _context_latents(self, plans: Sequence[Plan], noises: Sequence[Tensor | None]) -> Tensor:
        out = torch.zeros(len(plans), self.config.context_frames, *self.library.latent_shape)
        places = [(b, k) for b, plan in enumerate(plans) for k, row in enumerate(plan.context) if row >= 0]
        if places:
            b, k = (torch.tensor(index) for index in zip(*places, strict=True))
            rows = [plans[i].context[j] for i, j in places]
            out[b, k] = torch.from_numpy(self.library.frame["latent"].rows(rows)).float()
            if noises[0] is not None:
                noise = torch.stack([n for n in noises if n is not None])
                out[b, k] += noise[b, k]
        return out
