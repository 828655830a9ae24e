"""Numbers with intervals: shares of right readings over stories, chance, differences, and distances of features.

Readings of one story resemble one another, so intervals come from drawing whole stories again (bootstrap, Efron 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95
FRECHET_DRAWS = 50
"""Fewer: each solves an eigenvalue problem."""
ENOUGH_STORIES = 6
"""Fewer stories drawn again say nothing of how others would have come out: a single one has no spread at all."""
POOLED = ("said",)
"""Names whose answers are of several attributes: "place beach"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A share of 1, or a mean, with its interval."""

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
    shot: int = 0
    """Number of the shot, from 1; 0 where it does not matter."""

    @property
    def right(self) -> bool:
        return self.wanted == self.read

    @property
    def value(self) -> float:
        return float(self.right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One measurement that is not right or wrong."""

    story: int
    value: float
    shot: int = 0


@dataclass
class Tally:
    """Answers and numbers under names, from many stories."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    numbers: dict[str, list[Number]] = field(default_factory=dict)

    def add(self, name: str, story: int, wanted: str, read: str, *, shot: int = 0) -> None:
        self.answers.setdefault(name, []).append(Answer(story=story, wanted=wanted, read=read, shot=shot))

    def note(self, name: str, story: int, value: float, *, shot: int = 0) -> None:
        self.numbers.setdefault(name, []).append(Number(story=story, value=value, shot=shot))

    def update(self, other: Tally) -> None:
        for name, answers in other.answers.items():
            self.answers.setdefault(name, []).extend(answers)
        for name, numbers in other.numbers.items():
            self.numbers.setdefault(name, []).extend(numbers)

    def of_shots(self, shots: Container[int]) -> Tally:
        """What was told about these shots only."""
        answers = {name: [a for a in group if a.shot in shots] for name, group in self.answers.items()}
        numbers = {name: [n for n in group if n.shot in shots] for name, group in self.numbers.items()}
        return Tally(
            answers={name: group for name, group in answers.items() if group},
            numbers={name: group for name, group in numbers.items() if group},
        )

    def measures(self, *, seed: int = 0, pooled: Container[str] = POOLED) -> dict[str, Measure]:
        """One measure per name, in the order of the names."""
        shares = {
            name: share_right(group, seed=seed, pooled=name in pooled) for name, group in self.answers.items() if group
        }
        means = {
            name: mean_value([(n.story, n.value) for n in group], seed=seed)
            for name, group in self.numbers.items()
            if group
        }
        return dict(sorted((shares | means).items()))

    def per_story(self) -> dict[str, dict[int, float]]:
        """Name -> story -> mean."""
        groups: dict[str, dict[int, list[float]]] = {}
        for name, group in (self.answers | self.numbers).items():
            for item in group:
                groups.setdefault(name, {}).setdefault(item.story, []).append(item.value)
        return {name: {story: float(np.mean(v)) for story, v in stories.items()} for name, stories in groups.items()}


def share_right(answers: Sequence[Answer], *, seed: int = 0, pooled: bool = False) -> Measure:
    """Share of right answers with a 95% interval over stories. Raises ValueError for no answers.

    pooled: see `chance_agreement`.
    """
    if not answers:
        raise ValueError("there are no answers to measure")
    low, high = bootstrap([(a.story, float(a.right)) for a in answers], seed=seed)
    return Measure(
        value=float(np.mean([a.right for a in answers])),
        low=low,
        high=high,
        count=len(answers),
        stories=len({a.story for a in answers}),
        chance=chance_agreement(answers, pooled=pooled),
    )


def chance_agreement(answers: Sequence[Answer], *, pooled: bool = False) -> float | None:
    """How often answers and questions would agree if the answers were dealt out at random.

    A model that always gives the same answer gets no more than this, however common that answer is. None where one
    value is wanted throughout: dealing out would change nothing. pooled: answers begin with the attribute they are of,
    and are dealt out among those of the same one.
    """
    if len({a.wanted for a in answers}) == 1:
        return None
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.wanted.partition(" ")[0] if pooled else "", []).append(answer)
    return sum(_matches(group) for group in groups.values()) / len(answers)


def _matches(answers: Sequence[Answer]) -> float:
    """How many would match on average."""
    wanted, read = Counter(a.wanted for a in answers), Counter(a.read for a in answers)
    return sum(wanted[value] * read[value] for value in wanted) / len(answers)


def bootstrap(values: Iterable[tuple[int, float]], *, seed: int = 0, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of (story, value) when stories are drawn again with replacement."""
    sums, counts = _per_story(values)
    picked = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[picked].sum(1) / counts[picked].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _per_story(values: Iterable[tuple[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    groups: dict[int, list[float]] = {}
    for story, value in values:
        groups.setdefault(story, []).append(value)
    sums = np.array([sum(group) for group in groups.values()])
    return sums, np.array([float(len(group)) for group in groups.values()])


def mean_value(values: Sequence[tuple[int, float]], *, seed: int = 0, level: float = LEVEL) -> Measure:
    """Mean of (story, value) with its interval."""
    low, high = bootstrap(values, seed=seed, level=level)
    mean = float(np.mean([value for _, value in values]))
    return Measure(value=mean, low=low, high=high, count=len(values), stories=len({story for story, _ in values}))


def normalised_entropy(values: Sequence[str], num_classes: int) -> float:
    """Entropy of the distribution that values were drawn from, in units of that of num_classes equally likely ones.

    A few draws look less even than what they were drawn from; the mean of that is added back (Miller 1955): 24 draws of
    one of six marks would give 0.94 on average without, for 1.
    """
    counts = np.array(list(Counter(values).values()))
    shares = counts / len(values)
    entropy = -(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * len(values))
    return float(min(1.0, entropy / np.log(num_classes)))


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


def of_ceiling(
    ours: Tally, ceiling: Tally, names: Sequence[str], *, floor: float = 0.05, seed: int = 0
) -> Measure | None:
    """Mean over names of our share of right answers as a share of the ceiling's, with its interval over stories.

    Both are drawn again together. Names that either lacks are left out, and so are those of `rare_names`; None if none
    is left.
    """
    rare = rare_names(ours, names)
    names = [n for n in names if ours.answers.get(n) and ceiling.answers.get(n) and n not in rare]
    stories = sorted({a.story for tally in (ours, ceiling) for name in names for a in tally.answers[name]})
    if not stories:
        return None
    right, asked = (
        np.stack([_by_story(tally, names, stories, right=which) for tally in (ours, ceiling)])
        for which in (True, False)
    )

    def mean_ratio(weights_DS: NDArray[np.float64]) -> NDArray[np.float64]:
        counted = np.einsum("ds,tsn->tdn", weights_DS, asked)
        shares = np.einsum("ds,tsn->tdn", weights_DS, right) / np.where(counted, counted, np.nan)
        # A draw that leaves out all stories which a name is asked in would be the mean of something else: not counted.
        ratios: NDArray[np.float64] = np.mean(shares[0] / np.maximum(shares[1], floor), axis=-1)
        return ratios

    count = len(stories)
    picked = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)
    low, high = np.nanquantile(mean_ratio(picked), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(mean_ratio(np.ones((1, count)))[0])
    return Measure(value=value, low=float(low), high=float(high), count=int(asked[0].sum()), stories=count)


def rare_names(tally: Tally, names: Sequence[str]) -> list[str]:
    """Those asked in fewer than `ENOUGH_STORIES` stories where others are asked in as many: in a mean over names, one
    shot of one story would weigh as much as all answers to another."""
    stories = {name: len({a.story for a in tally.answers.get(name, [])}) for name in names}
    least = min(ENOUGH_STORIES, max(stories.values(), default=0))
    return [name for name, count in stories.items() if 0 < count < least]


def _by_story(tally: Tally, names: Sequence[str], stories: Sequence[int], *, right: bool) -> NDArray[np.float64]:
    """[stories, names]: right answers, or all."""
    rows = {story: row for row, story in enumerate(stories)}
    counts = np.zeros((len(stories), len(names)))
    for column, name in enumerate(names):
        for answer in tally.answers[name]:
            counts[rows[answer.story], column] += answer.right if right else 1
    return counts


def paired_mean(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, seed: int = 0, level: float = LEVEL
) -> Measure | None:
    """Mean over the stories both tell of our value minus theirs; None if they share none."""
    shared = sorted(ours.keys() & theirs.keys())
    pairs = [(story, ours[story] - theirs[story]) for story in shared]
    return mean_value(pairs, seed=seed, level=level) if shared else None


def entropy_measure(values: Mapping[int, str], num_classes: int, *, seed: int = 0) -> Measure:
    """Normalised entropy of one value per story, with its interval. Draws with replacement lose some values, so the
    interval is that of the draws moved to lie around the value."""
    stories = list(values.values())
    value = normalised_entropy(stories, num_classes)

    def drawn(rng: np.random.Generator) -> float:
        picked = rng.integers(len(stories), size=len(stories))
        return normalised_entropy([stories[i] for i in picked], num_classes)

    low, high = centred_interval(value, drawn, draws=DRAWS, seed=seed)
    return Measure(value=value, low=low, high=min(1.0, high), count=len(stories), stories=len(stories))


def centred_interval(
    value: float, draw: Callable[[np.random.Generator], float], *, draws: int, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a statistic that drawing again shifts: the spread of the draws, put around the value."""
    rng = np.random.default_rng(seed)
    values = np.array([draw(rng) for _ in range(draws)])
    low, high = np.quantile(values - values.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return max(0.0, value + float(low)), max(0.0, value + float(high))


def frechet_measure(
    ours: Mapping[int, NDArray[np.floating]], theirs: Mapping[int, NDArray[np.floating]], *, seed: int = 0
) -> Measure:
    """Frechet distance of two sets of features, story -> [N, E], with its interval over stories.

    Sets of the same stories are drawn again together.
    """
    value = frechet_distance(np.concatenate(list(ours.values())), np.concatenate(list(theirs.values())))

    def drawn(rng: np.random.Generator) -> float:
        mine = rng.choice(list(ours), size=len(ours))
        yours = mine if ours.keys() == theirs.keys() else rng.choice(list(theirs), size=len(theirs))
        return frechet_distance(
            *(np.concatenate([g[i] for i in picked]) for g, picked in ((ours, mine), (theirs, yours)))
        )

    low, high = centred_interval(value, drawn, draws=FRECHET_DRAWS, seed=seed)
    count = sum(len(part) for part in ours.values())
    return Measure(value=value, low=low, high=high, count=count, stories=len(ours))


def mean_of_attributes(per_story: Mapping[str, Mapping[Any, float]]) -> dict[int, float]:
    """Story -> mean share over the attributes that its captions say. Stories may be named as JSON does, by text."""
    values: dict[int, list[float]] = {}
    for name, stories in per_story.items():
        if name.startswith("said/"):
            for story, value in stories.items():
                values.setdefault(int(story), []).append(value)
    return {story: float(np.mean(group)) for story, group in values.items()}
