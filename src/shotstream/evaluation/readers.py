"""What looks at filmed shots and says what it sees."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream.evaluation.film import FilmedShot, Pixels
from shotstream.storyworld.probe import Probe, ProbeScores, frames_looked_at

Reading = dict[str, str]
"""Attribute -> value read from one chunk."""


class Seen(NamedTuple):
    """What was seen in a shot, chunk by chunk."""

    readings: list[Reading]
    features: NDArray[np.float32]
    """[chunks, E], for distances between sets of shots."""


class Reader(Protocol):
    """What the suite needs of a probe."""

    def look(self, shot: FilmedShot) -> Seen: ...

    def scored(self, attribute: str, framing: str) -> bool:
        """Whether its readings of the attribute at this framing are to be trusted."""
        ...


class ProbeReader:
    """The trained probe. Its features are what its attributes' queries see, averaged over the attributes."""

    def __init__(self, probe: Probe, scores: ProbeScores) -> None:
        self.probe, self.scores = probe, scores

    @torch.no_grad()
    def look(self, shot: FilmedShot) -> Seen:
        frames = torch.from_numpy(np.stack([self._looked_at(chunk) for chunk in shot.chunks]))
        readings, features = self.probe.read_features(frames)
        return Seen(readings, features.mean(1).numpy())

    def scored(self, attribute: str, framing: str) -> bool:
        return self.scores.scored(attribute, framing)

    def _looked_at(self, chunk_THWC: Pixels) -> Pixels:
        return chunk_THWC[list(frames_looked_at(len(chunk_THWC), self.probe.config.num_frames))]
