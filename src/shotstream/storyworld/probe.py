"""The probe: a small classifier that reads every attribute of the drawn world back from pixels.

It looks at one chunk at a time, four of its frames stacked as channels, so that actions and camera motion can be told
from how things move; a still picture counts as four equal frames. Each attribute has a query of its own that attends
to where in the picture it can be read. Second looks, at the face, the body and the place as a whole, tell what cells of
16 pixels are too coarse for, and what lies in how things are arranged. Trained on renders (`shotstream.recipes.probe`);
only torch is needed to use it.

N chunks · T pixel frames of a chunk · K frames looked at · C channels · E width of the features · A attributes
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.models.checkpoint import load_strictly, read_ours, reading
from shotstream.storyworld.spec import ATTRIBUTES

FORMAT = "shotstream.probe.1"
HEIGHT, WIDTH = 192, 320
STRIDE = 16
"""Pixels a side of a cell that queries attend to."""
LOOKS: dict[str, tuple[str, ...]] = {
    "face": ("character", "expression", "angle"),
    "body": ("action", "angle"),
    "place": ("layout", "camera_motion", "tint"),
}
"""Second looks, and what each may tell: what it says is added to what the first look says."""
ALONE = ("action",)
"""What a second look tells without the first, whose guesses it would never get away from."""
NEEDED_ACCURACY = 0.97
"""An attribute is scored at a framing where the probe reads it this well from renders through the codec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Sizes of the probe, and what it may be asked."""

    attributes: tuple[str, ...] = tuple(ATTRIBUTES)
    num_frames: int = 4
    widths: tuple[int, int, int] = (48, 80, 128)
    """Channels at strides 4, 8 and 16. Nothing but one convolution is computed at stride 4: it would cost most."""
    blocks: tuple[int, int] = (2, 2)
    """Residual blocks at strides 8 and 16."""
    channels_per_norm_group: int = 16
    face_pixels: int = 0
    """Pixels a side of the second look at the face; 0: there is none."""
    body_pixels: int = 0
    """Pixels a side of the one at the body."""
    place_pixels: int = 0
    """Height in pixels of the one at the whole frame."""

    def __post_init__(self) -> None:
        unknown = set(self.attributes) - set(ATTRIBUTES)
        if unknown:
            raise ValueError(f"the world has no attributes {sorted(unknown)}: it has {', '.join(ATTRIBUTES)}")
        if any(width % self.channels_per_norm_group for width in self.widths[1:]):
            raise ValueError(f"widths {self.widths} must be multiples of {self.channels_per_norm_group}")
        for look in self.looks:
            if missing := {*LOOKS[look], "character", "framing", "place"} - set(self.attributes):
                raise ValueError(f"a look at the {look} needs the attributes {sorted(missing)}, or {look}_pixels=0")

    @property
    def looks(self) -> tuple[str, ...]:
        """Names of the second looks there are."""
        return tuple(look for look in LOOKS if self.pixels(look))

    def pixels(self, look: str) -> int:
        """Height of what a second look sees; 0: there is no such look."""
        return {"face": self.face_pixels, "body": self.body_pixels, "place": self.place_pixels}[look]

    def size(self, look: str) -> tuple[int, int]:
        """Height and width of what a second look sees: a square, or the whole frame."""
        height = self.pixels(look)
        return height, round(height * WIDTH / HEIGHT) if look == "place" else height


class _Block(nn.Module):
    def __init__(self, width: int, channels_per_group: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(width // channels_per_group, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = nn.GroupNorm(width // channels_per_group, width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h_NCHW = self.conv_in(F.silu(self.norm_in(x_NCHW)))
        out: Tensor = x_NCHW + self.conv_out(F.silu(self.norm_out(h_NCHW)))
        return out


_FACE_SIDES = {"wide": 64.0, "medium": 132.0, "close-up": 184.0}
"""Pixels a side of what is looked at as the face, by framing: a face and a quarter as much around it."""
_BODY_SIDES = 2.1
"""Sides of the body's square in those of the face's."""
_BODY_DROP = 0.4
"""How far below the face its centre lies, in the same."""


class _Look(nn.Module):
    """Logits from a picture of one thing, seen as a whole; zero before it is trained, but for those of `ALONE`."""

    def __init__(self, look: str, config: ProbeConfig) -> None:
        super().__init__()
        group = config.channels_per_norm_group
        widths = [3 * group, 6 * group, 6 * group] + [6 * group] * (look != "face")
        layers: list[nn.Module] = [nn.Conv2d(3 * config.num_frames, widths[0], 5, stride=2, padding=2)]
        for width, wider in pairwise(widths):
            layers += [_Block(width, group), nn.Conv2d(width, wider, 3, stride=2, padding=1)]
        layers += [_Block(widths[-1], group), nn.GroupNorm(widths[-1] // group, widths[-1]), nn.SiLU(), nn.Flatten()]
        cells = math.prod(-(-side // 2 ** len(widths)) for side in config.size(look))
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1] * cells, 6 * group), nn.SiLU())
        self.attributes = LOOKS[look]
        self.heads = nn.ModuleList(_head(6 * group, name) for name in self.attributes)

    def forward(self, x_NCHW: Tensor, place_NP: Tensor) -> dict[str, Tensor]:
        """Args: a picture of `config.size(look)`; how likely each place is. Returns logits [N, classes]."""
        seen: Tensor = self.net(x_NCHW)
        found = {name: head(seen) for name, head in zip(self.attributes, self.heads, strict=True)}
        if "layout" in found:
            by_place_NPL = found["layout"].unflatten(1, (place_NP.shape[1], -1))
            found["layout"] = torch.einsum("npl,np->nl", by_place_NPL, place_NP)
        return found


def _head(width: int, attribute: str) -> nn.Linear:
    """Logits of a second look, zero until it is trained where they are added; each place has layouts of its own."""
    places = len(ATTRIBUTES["place"]) if attribute == "layout" else 1
    layer = nn.Linear(width, places * len(ATTRIBUTES[attribute]))
    if attribute not in ALONE:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def with_second_look(logits: dict[str, Tensor], told: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is known of each attribute after one more second look."""
    return logits | {name: more if name in ALONE else logits[name] + more for name, more in told.items()}


def _cut_out(x_NCHW: Tensor, centre_N2: Tensor, side_N: Tensor, size: int) -> Tensor:
    """Squares [N, C, size, size] around centres (x, y), of these sides in pixels; zero outside the frame."""
    scale = centre_N2.new_tensor([WIDTH, HEIGHT])
    theta_N23 = centre_N2.new_zeros(len(x_NCHW), 2, 3)
    theta_N23[:, [0, 1], [0, 1]] = side_N[:, None] / scale
    theta_N23[:, :, 2] = 2 * centre_N2 / scale - 1
    finer = [len(x_NCHW), x_NCHW.shape[1], 2 * size, 2 * size]  # sampled twice as finely, or edges would flicker
    grid = F.affine_grid(theta_N23, finer, align_corners=False)
    square = F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(square, 2)


class Seen(NamedTuple):
    """What second looks go by."""

    pictures: dict[str, Tensor]
    """By look, [N, K * 3, S, S] from -2 to 2."""
    logits: dict[str, Tensor]
    """Of the first look, by attribute."""
    place_NP: Tensor
    """How likely each place is."""


class Probe(nn.Module):
    """Frames in, one distribution per attribute out."""

    def __init__(self, config: ProbeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ProbeConfig()
        fine, middle, channels = config.widths
        self.trunk = nn.Sequential(
            nn.Conv2d(3 * config.num_frames, fine, 5, stride=4, padding=2),
            nn.SiLU(),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            *(_Block(middle, config.channels_per_norm_group) for _ in range(config.blocks[0])),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * middle, channels, 1),
            *(_Block(channels, config.channels_per_norm_group) for _ in range(config.blocks[1])),
        )
        self.norm = nn.GroupNorm(channels // config.channels_per_norm_group, channels)
        self.queries = nn.Parameter(torch.randn(len(config.attributes), channels) / channels**0.5)
        self.value = nn.Linear(channels, channels)
        self.heads = nn.ModuleList(nn.Linear(channels, len(ATTRIBUTES[name])) for name in config.attributes)
        self.looks = nn.ModuleDict({look: _Look(look, config) for look in config.looks})
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, frames_NKHWC: Tensor) -> Tensor:
        """What each attribute's query sees, [N, A, E], of uint8 frames or floats in [0, 1] [N, K, H, W, 3]."""
        return self._look(self._picture(frames_NKHWC))[0]

    def logits_and_scores(self, frames_NKHWC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits as `forward` gives them, and how much each query is drawn to each cell, [N, A, S], before softmax.

        S = 12 x 20 cells of 16 x 16 pixels, row by row.
        """
        logits, _, scores_NAS = self._read(frames_NKHWC)
        return logits, scores_NAS

    def _read(self, frames_NKHWC: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Logits, what the queries see and how much they are drawn to each cell."""
        x_NCHW = self._picture(frames_NKHWC)
        seen_NAE, scores_NAS = self._look(x_NCHW)
        return self._logits(x_NCHW, seen_NAE, scores_NAS), seen_NAE, scores_NAS

    def _picture(self, frames_NKHWC: Tensor) -> Tensor:
        self._check(frames_NKHWC)
        x = frames_NKHWC.float() / 255 if frames_NKHWC.dtype == torch.uint8 else frames_NKHWC
        return (x * 4 - 2).movedim(-1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def _look(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_NSE = self.norm(self.trunk(x_NCHW)).flatten(2).transpose(1, 2)
        scores_NAS = torch.einsum("ae,nse->nas", self.queries, x_NSE)
        return torch.einsum("nas,nse->nae", scores_NAS.softmax(-1), F.silu(self.value(x_NSE))), scores_NAS

    def forward(self, frames_NKHWC: Tensor) -> dict[str, Tensor]:
        """Logits [N, classes] per attribute, classes in the order of `ATTRIBUTES`."""
        return self._read(frames_NKHWC)[0]

    def _first_logits(self, seen_NAE: Tensor) -> dict[str, Tensor]:
        names = self.config.attributes
        return {name: head(seen_NAE[:, i]) for i, (name, head) in enumerate(zip(names, self.heads, strict=True))}

    def _logits(self, x_NCHW: Tensor, seen_NAE: Tensor, scores_NAS: Tensor) -> dict[str, Tensor]:
        logits = self._first_logits(seen_NAE)
        if not self.looks:
            return logits
        seen = self._seen(x_NCHW, logits, scores_NAS)
        for look, module in self.looks.items():
            logits = with_second_look(logits, module(seen.pictures[look], seen.place_NP))
        return logits

    def seen_by_looks(self, frames_NKHWC: Tensor, *, margin: float = 1.0) -> Seen:
        """What the second looks see, and what the first look says, of frames as `features` takes them.

        margin: how much more than they see is given, in their sides; the whole frame has none.
        """
        x_NCHW = self._picture(frames_NKHWC)
        seen_NAE, scores_NAS = self._look(x_NCHW)
        return self._seen(x_NCHW, self._first_logits(seen_NAE), scores_NAS, margin)

    def _seen(self, x_NCHW: Tensor, logits: dict[str, Tensor], scores_NAS: Tensor, margin: float = 1.0) -> Seen:
        score_NS = scores_NAS[:, self.config.attributes.index("character")]
        centre_N2, side_N = self._face(logits["framing"].float(), score_NS.float())
        pictures = {look: self._seen_by(look, x_NCHW, centre_N2, side_N, margin) for look in self.looks}
        return Seen(pictures, logits, logits["place"].detach().float().softmax(-1))

    def _seen_by(self, look: str, x_NCHW: Tensor, centre_N2: Tensor, side_N: Tensor, margin: float = 1.0) -> Tensor:
        """The picture of a second look, from where the face is."""
        if look == "place":
            return F.interpolate(x_NCHW, self.config.size(look), mode="area")
        size = round(margin * self.config.pixels(look))
        if look == "body":
            below = torch.stack([torch.zeros_like(side_N), _BODY_DROP * side_N], 1)
            return _cut_out(x_NCHW, centre_N2 + below, margin * _BODY_SIDES * side_N, size)
        return _cut_out(x_NCHW, centre_N2, margin * side_N, size)

    @torch.no_grad()
    def _face(self, framing_logits: Tensor, scores_NS: Tensor) -> tuple[Tensor, Tensor]:
        """Centre (x, y) [N, 2] of the face and side [N] of what is around it, in pixels."""
        cells = torch.arange(scores_NS.shape[-1], device=scores_NS.device)
        places_S2 = torch.stack([cells % (WIDTH // STRIDE), cells // (WIDTH // STRIDE)], 1)
        centre_N2 = scores_NS.softmax(-1) @ ((places_S2 + 0.5) * STRIDE)
        sides = framing_logits.new_tensor([_FACE_SIDES[name] for name in ATTRIBUTES["framing"]])
        return centre_N2, framing_logits.softmax(-1) @ sides

    @torch.no_grad()
    def read(self, frames_NTHWC: Tensor) -> list[dict[str, str]]:
        """The likeliest value of every attribute in each of N chunks, uint8 [N, T, H, W, 3]; T = 1 is a picture.

        Raises: ValueError unless frames are 192 x 320 pixels in RGB.
        """
        chosen = list(frames_looked_at(frames_NTHWC.shape[1], self.config.num_frames))
        return self.read_features(frames_NTHWC[:, chosen])[0]

    @torch.no_grad()
    def read_features(self, frames_NKHWC: Tensor) -> tuple[list[dict[str, str]], Tensor]:
        """What `read` gives, and what it is read from (`features`), of frames already chosen."""
        logits, seen_NAE, _ = self._read(frames_NKHWC)
        best = {name: logit.argmax(-1).tolist() for name, logit in logits.items()}
        return [{name: ATTRIBUTES[name][best[name][i]] for name in best} for i in range(len(frames_NKHWC))], seen_NAE

    def _check(self, frames: Tensor) -> None:
        expected = (self.config.num_frames, HEIGHT, WIDTH, 3)
        if frames.ndim != 5 or tuple(frames.shape[1:]) != expected:
            raise ValueError(f"the probe looks at frames {['N', *expected]}, got {list(frames.shape)}")


def frames_looked_at(num_frames: int, count: int = 4) -> tuple[int, ...]:
    """Frames of a chunk that the probe looks at: evenly spaced up to the last, where a change has taken full effect.

    (2, 5, 8, 11) of 12, (2, 4, 6, 8) of 9, the same frame four times of 1.
    """
    if num_frames < 1:
        raise ValueError(f"a chunk has at least one frame, got {num_frames}")
    spacing = num_frames // count
    return tuple(num_frames - 1 - spacing * back for back in reversed(range(count)))


@dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """How well a probe reads held-out renders through the codec: attribute -> framing -> accuracy."""

    accuracy: Mapping[str, Mapping[str, float]]
    still_accuracy: Mapping[str, Mapping[str, float]]
    """The same for single pictures."""

    def scored(self, attribute: str, framing: str, *, still: bool = False) -> bool:
        """Whether a reading of this attribute at this framing is to be trusted."""
        table = self.still_accuracy if still else self.accuracy
        return table.get(attribute, {}).get(framing, 0.0) >= NEEDED_ACCURACY

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def save_probe(probe: Probe, path: Path, scores: ProbeScores, **metadata: str) -> None:
    """Write weights in bfloat16, config and scores in the metadata."""
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in probe.state_dict().items()}
    config = json.dumps(asdict(probe.config))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": FORMAT, "config": config, "scores": scores.to_json(), **metadata})


def load_probe(path: Path) -> tuple[Probe, ProbeScores]:
    """Read a probe and how far it can be trusted.

    Raises: ValueError if the file is missing, is no probe, or knows other attributes than this version of the world.
    """
    if not path.is_file():
        raise ValueError(f"no probe at {path}: train one with `shotstream train probe`, or pass --probe FILE")
    tensors, config, metadata = read_ours(path, FORMAT)
    with reading(path):
        probe = Probe(ProbeConfig(**{name: _tuples(value) for name, value in config.items()}))
        scores = ProbeScores.from_json(metadata["scores"])
    load_strictly(probe, tensors, str(path))
    return probe.eval().requires_grad_(False), scores


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
