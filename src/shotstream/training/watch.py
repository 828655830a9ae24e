"""Looking at a run while it trains: a few held samples, made with the averaged weights, decoded and read back.

B samples, F latent frames, T pixel frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotstream.models.codec import Codec, to_uint8

Readings = Sequence[Mapping[str, str]]
"""Per picture, what a probe sees of each attribute."""


class Watched(NamedTuple):
    """What was seen at one step."""

    pictures: dict[str, NDArray[np.uint8]]
    """[H, W, 3] each."""
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Makes the same samples again and again, puts them under their truth, and asks a probe what they show."""

    sample: Callable[[], Tensor]
    """Clean latents of the held samples, [B, F, C, h, w], from the weights as they are now."""
    truth: Tensor
    """Of the same shape; zeros where there is none."""
    codec: Codec
    video: bool
    """Whether the frames of a sample are one clip, or pictures of their own."""
    read: Callable[[Tensor], Readings] | None = None
    """A probe: uint8 [N, 1, H, W, 3] to what it sees."""
    labels: Readings = ()
    """Per sample, what should be seen."""
    shown_frames: int = 4

    @torch.no_grad()
    def __call__(self) -> Watched:
        made = self._frames(self.sample())
        shown = made if not self.truth.any() else torch.cat([self._frames(self.truth), made], dim=1)
        return Watched({"samples": tile(shown)}, self._scores(made))

    def _frames(self, latents: Tensor) -> Tensor:
        """Evenly spaced frames [B, n, H, W, 3]."""
        if self.video:
            pixels = to_uint8(self.codec.decode(latents))
        else:
            alone = to_uint8(self.codec.decode(latents.flatten(0, 1)[:, None]))[:, 0]
            pixels = alone.view(*latents.shape[:2], *alone.shape[1:])
        wanted = torch.linspace(0, pixels.shape[1] - 1, min(self.shown_frames, pixels.shape[1])).round().long()
        return pixels[:, wanted].cpu()

    def _scores(self, frames: Tensor) -> dict[str, float]:
        """Share of samples whose first frame shows what it should, per attribute."""
        if self.read is None:
            return {}
        readings = self.read(frames[:, :1])
        names = self.labels[0].keys() if self.labels else ()
        return {
            f"probe/{name}": float(
                np.mean([seen[name] == told[name] for seen, told in zip(readings, self.labels, strict=True)])
            )
            for name in names
        }


def tile(frames: Tensor) -> NDArray[np.uint8]:
    """Put frames [B, n, H, W, 3] into one picture, a sample per row."""
    rows = [np.concatenate(list(row), axis=1) for row in frames.numpy()]
    return np.concatenate(rows, axis=0)
