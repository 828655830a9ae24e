"""Numbers with intervals: shares of right readings over stories, chance, differences, and distances of features.

Readings of one story resemble one another, so intervals come from drawing whole stories again (bootstrap, Efron 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A share of 1 with its interval."""

    value: float
    low: float
    high: float
    count: int
    """Readings."""
    stories: int
    chance: float | None = None
    """What answers dealt out at random among the same questions would get."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One reading beside what it should be."""

    story: int
    wanted: str
    read: str

    @property
    def right(self) -> bool:
        return self.wanted == self.read


@dataclass
class Tally:
    """Answers under names, from many stories."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def add(self, name: str, story: int, wanted: str, read: str) -> None:
        self.answers.setdefault(name, []).append(Answer(story=story, wanted=wanted, read=read))

    def update(self, other: Tally) -> None:
        for name, answers in other.answers.items():
            self.answers.setdefault(name, []).extend(answers)

    def measures(self, *, seed: int = 0) -> dict[str, Measure]:
        """One measure per name, in the order of the names."""
        return {name: share_right(self.answers[name], seed=seed) for name in sorted(self.answers)}


def share_right(answers: Sequence[Answer], *, seed: int = 0) -> Measure:
    """Share of right answers with a 95% interval over stories. Raises ValueError for no answers."""
    if not answers:
        raise ValueError("there are no answers to measure")
    low, high = bootstrap([(a.story, float(a.right)) for a in answers], seed=seed)
    return Measure(
        value=float(np.mean([a.right for a in answers])),
        low=low,
        high=high,
        count=len(answers),
        stories=len({a.story for a in answers}),
        chance=chance_agreement(answers),
    )


def chance_agreement(answers: Sequence[Answer]) -> float:
    """How often answers and questions would agree if the answers were dealt out at random.

    A model that always gives the same answer gets no more than this, however common that answer is.
    """
    wanted, read = Counter(a.wanted for a in answers), Counter(a.read for a in answers)
    return sum(wanted[value] * read[value] for value in wanted) / len(answers) ** 2


def bootstrap(values: Iterable[tuple[int, float]], *, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of (story, value) when stories are drawn again with replacement."""
    sums, counts = _per_story(values)
    picked = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[picked].sum(1) / counts[picked].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _per_story(values: Iterable[tuple[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    groups: dict[int, list[float]] = {}
    for story, value in values:
        groups.setdefault(story, []).append(value)
    sums = np.array([sum(group) for group in groups.values()])
    return sums, np.array([float(len(group)) for group in groups.values()])


def mean_value(values: Sequence[tuple[int, float]], *, seed: int = 0) -> Measure:
    """Mean of (story, value) with its interval."""
    low, high = bootstrap(values, seed=seed)
    mean = float(np.mean([value for _, value in values]))
    return Measure(value=mean, low=low, high=high, count=len(values), stories=len({story for story, _ in values}))


def paired_difference(ours: Sequence[Answer], theirs: Sequence[Answer], *, seed: int = 0) -> Measure:
    """Mean over stories, told by both, of our share of right answers minus theirs."""

    def shares(answers: Sequence[Answer]) -> dict[int, float]:
        groups: dict[int, list[bool]] = {}
        for answer in answers:
            groups.setdefault(answer.story, []).append(answer.right)
        return {story: sum(group) / len(group) for story, group in groups.items()}

    mine, yours = shares(ours), shares(theirs)
    return mean_value([(story, mine[story] - yours[story]) for story in sorted(mine.keys() & yours.keys())], seed=seed)


def normalised_entropy(values: Sequence[str], num_classes: int) -> float:
    """Entropy of the values' distribution in units of that of num_classes equally likely ones."""
    shares = np.array(list(Counter(values).values())) / len(values)
    return float(-(shares * np.log(shares)).sum() / np.log(num_classes))


def frechet_distance(a_ND: NDArray[np.floating], b_ND: NDArray[np.floating]) -> float:
    """Distance of two Gaussians fitted to features: |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)).

    Frechet inception distance, Heusel et al. 2017 (arXiv:1706.08500), with whatever features are given.
    """
    mean_a, mean_b = a_ND.mean(0), b_ND.mean(0)
    cov_a, cov_b = (np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]) for x in (a_ND, b_ND))
    # The eigenvalues of A B are those of A^(1/2) B A^(1/2): real and not negative, up to rounding.
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum()
    return float(max(0.0, distance))


def sharpness(frames_THWC: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring pixels in grey levels: low for a blurred picture."""
    grey = frames_THWC.astype(np.float32).mean(-1)
    across, down = np.abs(np.diff(grey, axis=-1)).mean(), np.abs(np.diff(grey, axis=-2)).mean()
    return float((across + down) / 2)


def of_ceiling(ours: Mapping[str, Measure], ceiling: Mapping[str, Measure]) -> dict[str, float]:
    """Each measure as a share of what renders through the codec get."""
    return {name: ours[name].value / ceiling[name].value for name in ours if name in ceiling and ceiling[name].value}
