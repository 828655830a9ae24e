"""Training data and loss of the probe: chunks of the drawn world with every attribute drawn on its own.

Stories would teach the probe what tends to go together (and would never show the held-out pairs), so shots are drawn
here with all attributes independent. Frames are then spoilt the ways a codec and a generator spoil them; given a codec,
part of them pass through it, with noise on the latents.

K frames looked at · N samples · A attributes · S cells that the probe's queries attend to
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shotstream.models.codec import Codec, from_uint8, to_uint8
from shotstream.storyworld import ATTRIBUTES, Change, ShotSpec, first_frame, render_frame, sample_story, visible
from shotstream.storyworld.places import PLACES
from shotstream.storyworld.probe import HEIGHT, STRIDE, WIDTH, Probe, ProbeScores, frames_looked_at
from shotstream.storyworld.puppet import Box
from shotstream.storyworld.render import Rendered
from shotstream.storyworld.spec import (
    ACTIONS,
    CHARACTERS,
    CHUNK_FRAMES,
    CLOTHING,
    EXPRESSIONS,
    FIRST_CHUNK_FRAMES,
    MARKS,
    MOVING_ACTIONS,
    NOBODY,
)
from shotstream.training.randomness import generator_at, normal
from shotstream.training.trainer import Loss

CHUNKS = 7
UNSEEN = -100
"""Class of what the frames do not show."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeDataConfig:
    """What the probe is shown."""

    still_share: float = 0.25
    """Share of samples that are one picture, four times."""
    steered_share: float = 0.25
    two_people_share: float = 0.2
    codec_share: float = 0.6
    """Share of samples that pass through the codec, where there is one."""
    latent_noise: float = 0.3
    """Largest sd of the noise on their latents."""
    largest_blur: float = 2.6
    """Largest factor by which frames are shrunk and enlarged again."""
    largest_noise: float = 0.05
    largest_shift: int = 6
    """Pixels."""
    repeats: int = 6
    """How often a rendered batch is used, each time spoilt anew: rendering costs more than learning."""
    period: int = 32
    """Steps between two uses of a batch."""
    looking_weight: float = 0.1
    """Weight of the loss that draws each query to where its attribute is drawn."""
    margin: int = 8
    """Pixels around a box that still count as where an attribute is drawn."""


def random_spec(rng: np.random.Generator, config: ProbeDataConfig) -> ShotSpec:
    """A shot with all attributes drawn independently, as far as one leaves another possible."""

    def pick(values: Sequence[str]) -> str:
        return values[int(rng.integers(len(values)))]

    two = rng.random() < config.two_people_share
    framing = pick(("wide", "medium") if two else ("wide", "medium", "close-up"))
    action = pick([a for a in ACTIONS if not (two and a in MOVING_ACTIONS)])
    following = action in MOVING_ACTIONS and framing != "wide"
    character, place = pick(CHARACTERS), pick(tuple(PLACES))
    spec = ShotSpec(
        character=character,
        clothing=pick(CLOTHING),
        mark=pick(MARKS),
        place=place,
        layout_seed=int(rng.integers(12)),
        time_of_day=pick(("day", "sunset", "night")),
        weather=pick(PLACES[place].weathers),
        action=action,
        expression=pick(EXPRESSIONS),
        framing=framing,
        camera_motion="still" if following else pick(("still", "pan", "push-in")),
        angle=pick(("left", "right")),
        second_character=pick([c for c in CHARACTERS if c != character]) if two else NOBODY,
        second_clothing=pick(CLOTHING) if two else NOBODY,
        second_mark=pick(MARKS) if two else NOBODY,
        seed=int(rng.integers(1 << 30)),
    )
    return replace(spec, steers=_random_steer(rng, spec)) if rng.random() < config.steered_share else spec


def _random_steer(rng: np.random.Generator, spec: ShotSpec) -> tuple[Change, ...]:
    attribute = ("expression", "action")[int(rng.integers(2 if spec.framing != "close-up" else 1))]
    forbidden = MOVING_ACTIONS if spec.second_character != NOBODY else ()
    values = [v for v in ATTRIBUTES[attribute] if v != getattr(spec, attribute) and v not in forbidden]
    return (
        Change(chunk=int(rng.integers(1, CHUNKS)), attribute=attribute, value=values[int(rng.integers(len(values)))]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A chunk, or one picture, with the class of every attribute that it shows."""

    frames: Pixels
    """[K, H, W, 3]"""
    classes: dict[str, int]
    """Attribute -> class; UNSEEN where the frames do not show it."""
    boxes: dict[str, tuple[Box, ...]]
    """Attribute -> where in the frames it is drawn, for those drawn in one spot."""
    framing: str
    still: bool


def classes_of(spec: ShotSpec, chunk: int, *, still: bool) -> dict[str, int]:
    """Attribute -> class during a chunk. Pictures do not show camera motion, nor does the first chunk."""
    labels = spec.labels(chunk)
    moving = still or chunk == 0
    shown = {name: visible(spec, name, chunk) and not (moving and name == "camera_motion") for name in labels}
    return {name: ATTRIBUTES[name].index(labels[name]) if shown[name] else UNSEEN for name in labels}


def example(spec: ShotSpec, chunk: int, codec: Codec | None, *, still: bool, noise: Tensor | None = None) -> Example:
    """Render a chunk, or its last frame alone, and pass it through the codec if there is one.

    noise: added to the latents before decoding, of their shape.
    """
    length = FIRST_CHUNK_FRAMES if chunk == 0 else CHUNK_FRAMES
    start = first_frame(chunk)
    looked_at = [start + i for i in ((length - 1,) * 4 if still else frames_looked_at(length))]
    needed = looked_at if codec is None else range(looked_at[0] if still else max(0, start - 1), start + length)
    drawn = {i: render_frame(spec, i) for i in sorted(set(needed))}
    clip = np.stack([frame.pixels for frame in drawn.values()])
    if codec is not None:
        clip = _through_codec(clip, codec, noise)
    pixels = dict(zip(drawn, clip, strict=True))
    return Example(
        frames=np.stack([pixels[i] for i in looked_at]),
        classes=classes_of(spec, chunk, still=still),
        boxes=_boxes(spec, [drawn[i] for i in looked_at]),
        framing=spec.framing,
        still=still,
    )


def _boxes(spec: ShotSpec, frames: Sequence[Rendered]) -> dict[str, tuple[Box, ...]]:
    """Attribute -> where it is drawn, in frames that show everybody there is."""
    people = 1 if spec.second_character == NOBODY else 2
    boxes: dict[str, list[Box]] = {}
    for frame in frames:
        if len(frame.face_boxes) != people or len(frame.mark_boxes) != people:
            continue
        for face, mark, prefix in zip(frame.face_boxes, frame.mark_boxes, ("", "second_"), strict=False):
            for name, box in (("character", face), ("mark", mark), ("clothing", _below(face))):
                boxes.setdefault(prefix + name, []).append(box)
        boxes.setdefault("expression", []).append(frame.face_boxes[0])
    return {name: tuple(found) for name, found in boxes.items()}


def _below(face: Box) -> Box:
    """Where the coat of the owner of a face is."""
    x0, y0, x1, y1 = face
    return (x0, y1, x1, y1 + 0.6 * (y1 - y0))


@torch.no_grad()
def _through_codec(clip_THWC: Pixels, codec: Codec, noise: Tensor | None) -> Pixels:
    """The clip encoded and decoded, with noise on its latents; 1 + 4 n frames, so chunks of 12 bring the one before."""
    latents = codec.encode(from_uint8(torch.from_numpy(clip_THWC)[None]))
    if noise is not None:
        latents = latents + noise[:, : latents.shape[1]]
    decoded: Pixels = to_uint8(codec.decode(latents))[0].numpy()
    return decoded


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeBatch:
    """frames float [N, K, H, W, 3] in [0, 1]; classes [N] and cells where it is drawn, bool [N, S], per attribute."""

    frames: Tensor
    classes: dict[str, Tensor]
    cells: dict[str, Tensor]


class ProbeStage:
    """Cross-entropy of every attribute that the frames show."""

    def __init__(self, probe: Probe, config: ProbeDataConfig, seed: int, codec: Codec | None = None) -> None:
        self.networks: Mapping[str, nn.Module] = {"model": probe}
        self.probe, self.config, self.seed, self.codec = probe, config, seed, codec
        self._rendered: dict[tuple[int, int], Example] = {}

    def turn(self, step: int) -> str:
        return "model"

    def batch(self, step: int, samples: range) -> ProbeBatch:
        drawn = [self._example(step, sample) for sample in samples]
        spoilt = [
            spoil(torch.from_numpy(item.frames).float() / 255, generator_at("spoil", self.seed, step, i), self.config)
            for i, item in zip(samples, drawn, strict=True)
        ]
        names = self.probe.config.attributes
        classes = {name: torch.tensor([item.classes[name] for item in drawn]) for name in names}
        cells = {name: cells_of([item.boxes.get(name, ()) for item in drawn], self.config.margin) for name in names}
        return ProbeBatch(frames=torch.stack(spoilt), classes=classes, cells=cells)

    def losses(self, batch: ProbeBatch, step: int) -> Iterator[Loss]:
        logits, scores_NAS = self.probe.logits_and_scores(batch.frames)
        losses: list[Tensor] = []
        looking: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for (name, logit), score_NS in zip(logits.items(), scores_NAS.float().unbind(1), strict=True):
            seen = batch.classes[name] != UNSEEN
            if not seen.any():
                continue
            losses.append(F.cross_entropy(logit.float()[seen], batch.classes[name][seen]))
            logs[f"right/{name}"] = (logit[seen].argmax(-1) == batch.classes[name][seen]).float().mean()
            drawn = seen & batch.cells[name].any(-1)
            if drawn.any():
                looking.append(attention_missed(score_NS[drawn], batch.cells[name][drawn]))
        loss = torch.stack(losses).mean()
        if looking:
            logs["looking"] = torch.stack(looking).mean()
            loss = loss + self.config.looking_weight * logs["looking"]
        yield Loss(loss, logs)

    def carried(self) -> dict[str, Tensor]:
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        assert not carried

    def pictures(self, step: int) -> dict[str, Any]:
        frames = self.batch(step, range(6)).frames[:, -1]
        return {"spoilt frames": (frames.flatten(0, 1) * 255).byte().numpy()}

    def _example(self, step: int, sample: int) -> Example:
        """Steps of one group of `repeats * period` take turns with `period` batches."""
        group, place = divmod(step, self.config.repeats * self.config.period)
        key = (group * self.config.period + place % self.config.period, sample)
        if key not in self._rendered:
            kept = (key[0] - self.config.period, sample)
            self._rendered.pop(kept, None)
            self._rendered[key] = random_example(self.config, self.seed, key, self.codec)
        return self._rendered[key]


def random_example(config: ProbeDataConfig, seed: int, address: tuple[int | str, ...], codec: Codec | None) -> Example:
    """A random chunk or picture of a random shot, sometimes through the codec, with noise on the latents."""
    rng = generator_at("probe", seed, *address)
    spec, chunk = random_spec(rng, config), int(rng.integers(CHUNKS))
    still = bool(rng.random() < config.still_share)
    if codec is None or rng.random() >= config.codec_share:
        return example(spec, chunk, None, still=still)
    noise = None
    if rng.random() < 0.6:
        sd = float(rng.uniform(0, config.latent_noise))
        stride = codec.spatial_stride
        noise = sd * normal(rng, (1, 4, codec.latent_channels, HEIGHT // stride, WIDTH // stride))
    return example(spec, chunk, codec, still=still, noise=noise)


def cells_of(boxes: Sequence[Sequence[Box]], margin: int) -> Tensor:
    """Cells touched by any of a sample's boxes, grown by a margin, bool [N, S]."""
    mask_NHW = torch.zeros(len(boxes), HEIGHT // STRIDE, WIDTH // STRIDE, dtype=torch.bool)
    for mask_HW, around in zip(mask_NHW, boxes, strict=True):
        for x0, y0, x1, y1 in around:
            left, top = (max(0, int(edge - margin) // STRIDE) for edge in (x0, y0))
            mask_HW[top : int(y1 + margin) // STRIDE + 1, left : int(x1 + margin) // STRIDE + 1] = True
    return mask_NHW.flatten(1)


def attention_missed(scores_NS: Tensor, cells_NS: Tensor) -> Tensor:
    """-log of the share of attention that lies on the cells."""
    on_cells = scores_NS.masked_fill(~cells_NS, -torch.inf)
    return (scores_NS.logsumexp(-1) - on_cells.logsumexp(-1)).mean()


def spoil(frames_KHWC: Tensor, rng: np.random.Generator, config: ProbeDataConfig) -> Tensor:
    """Shift, blur, tint and add noise, fine and coarse, the same way to all frames of a sample."""
    dy, dx = (int(d) for d in rng.integers(-config.largest_shift, config.largest_shift + 1, 2))
    height, width = frames_KHWC.shape[1:3]
    x = frames_KHWC.movedim(-1, 1).contiguous().roll((dy, dx), (2, 3))
    if rng.random() < 0.5:
        factor = float(rng.uniform(1.0, config.largest_blur))
        small = F.interpolate(x, (round(height / factor), round(width / factor)), mode="bilinear", antialias=True)
        x = F.interpolate(small, (height, width), mode="bilinear")
    gain = torch.from_numpy(rng.uniform(0.93, 1.07, (1, 3, 1, 1)).astype(np.float32))
    x = x * gain + float(rng.uniform(-0.03, 0.03))
    if rng.random() < 0.5:
        x = x + float(rng.uniform(0, config.largest_noise)) * normal(rng, (1, 3, height, width))
        coarse = float(rng.uniform(0, config.largest_noise)) * normal(rng, (len(x), 3, height // 8, width // 8))
        x = x + F.interpolate(coarse, (height, width), mode="bilinear")
    return x.clamp(0, 1).movedim(1, -1)


def heldout_examples(count: int, codec: Codec | None, *, still: bool, first_seed: int = 0) -> list[Example]:
    """Chunks of held-out stories, one per story."""
    examples = []
    for seed in range(first_seed, first_seed + count):
        rng = generator_at("probe held out", seed)
        story = sample_story(seed, split="heldout")
        spec = story.shots[int(rng.integers(len(story.shots)))]
        examples.append(example(spec, int(rng.integers(CHUNKS)), codec, still=still))
    return examples


def accuracy_by_framing(probe: Probe, examples: Sequence[Example], *, batch: int = 16) -> dict[str, dict[str, float]]:
    """Attribute -> framing (and "all") -> share read correctly, of what the frames show."""
    hits: dict[str, dict[str, list[bool]]] = {name: {} for name in probe.config.attributes}
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        with torch.no_grad():
            logits = probe(torch.from_numpy(np.stack([item.frames for item in part])))
        for name, logit in logits.items():
            for item, best in zip(part, logit.argmax(-1).tolist(), strict=True):
                if item.classes[name] != UNSEEN:
                    for key in ("all", item.framing):
                        hits[name].setdefault(key, []).append(best == item.classes[name])
    return {name: {key: sum(h) / len(h) for key, h in table.items()} for name, table in hits.items() if table}


def score(probe: Probe, codec: Codec | None, *, count: int) -> ProbeScores:
    """Read `count` held-out chunks and as many pictures, through the codec if there is one."""
    chunks = accuracy_by_framing(probe, heldout_examples(count, codec, still=False))
    stills = accuracy_by_framing(probe, heldout_examples(count, codec, still=True, first_seed=count))
    return ProbeScores(accuracy=chunks, still_accuracy=stills)
