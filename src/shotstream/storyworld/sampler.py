"""Draws stories from a seed: who, where, what, and what earlier shots already told.

Within a story a character keeps its clothing and hidden mark, a place its hidden layout, tint, time of day and weather.
Some pairs and caption templates never occur in the "train" split (`held_out_pairs`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from shotstream.storyworld import captions
from shotstream.storyworld.places import PLACES
from shotstream.storyworld.spec import (
    ACTIONS,
    ANGLES,
    CHARACTERS,
    CLOTHING,
    EXPRESSIONS,
    LAYOUTS,
    MARKS,
    MOVING_ACTIONS,
    NOBODY,
    TIMES,
    TINTS,
    Change,
    ShotSpec,
)

if TYPE_CHECKING:
    from shotstream.story import Story

SPLITS = ("train", "heldout")
NUM_CHUNKS = 7
MOST_SHOTS = 12
"""Of a story whose length is drawn."""
MEMORY_SHOTS = 6
"""Shots further back than this may have left the memory."""
SEEN_WITH_ALL = {"place": ("girl", "knight"), "action": ("rabbit", "robot"), "mark": ("bear", "frog", "girl")}
"""Characters that training shows in every place, doing everything, with every mark; the others with all but one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldStory:
    """A story of the drawn world: captions to say it, specs to draw and score it."""

    seed: int
    global_caption: str
    shots: tuple[ShotSpec, ...]

    def captions(self, shot_index: int, chunk: int | None = None) -> str:
        """The composed caption in force at a chunk of a shot (all its steers if chunk is None)."""
        from shotstream.story import compose_caption

        spec = self.shots[shot_index]
        steers = [change.caption for change in spec.steers if chunk is None or change.chunk <= chunk]
        return compose_caption(self.global_caption, spec.caption, steers, shot_index=shot_index)

    def to_story(self) -> Story:
        """As a person would have written it."""
        from shotstream.story import Shot, Steer, Story

        shots = tuple(
            Shot(
                caption=spec.caption,
                steers=tuple(Steer(chunk=change.chunk, caption=change.caption) for change in spec.steers),
                num_chunks=NUM_CHUNKS,
            )
            for spec in self.shots
        )
        return Story(shots=shots, global_caption=self.global_caption, name=f"storyworld-{self.seed}", seed=self.seed)


@lru_cache(maxsize=1)
def held_out_pairs() -> frozenset[tuple[str, str, str]]:
    """(character, attribute, value) that never occur in training: a tenth of the pairs with place, action and mark."""
    values = {"place": (tuple(PLACES), 3, 5), "action": (ACTIONS[1:], 3, 2), "mark": (MARKS, 5, 1)}
    return frozenset(
        (character, attribute, known[(step * index + first) % len(known)])
        for attribute, (known, step, first) in values.items()
        for index, character in enumerate(CHARACTERS)
        if character not in SEEN_WITH_ALL[attribute]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Person:
    name: str
    clothing: str
    mark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    place: str
    layout_seed: int
    time_of_day: str
    weather: str


def sample_story(seed: int, num_shots: int | None = None, split: str = "train") -> WorldStory:
    """Draw a story. The same arguments give the same story, to the bit.

    Args: num_shots is 1..12, drawn if None; split "heldout" uses only held-out caption templates, and pairs that
    training never sees among others.  Raises: ValueError for an unknown split or a length below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if num_shots is not None and num_shots < 1:
        raise ValueError(f"a story has at least 1 shot, got num_shots={num_shots}")
    rng = random.Random(f"storyworld {split} {seed}")
    length = num_shots or rng.choices(range(1, MOST_SHOTS + 1), (6, 8, 14, 16, 16, 14, 8, 6, 4, 3, 3, 2))[0]
    draw = _Draw(rng, split)
    people = draw.people(length)
    settings = draw.settings(people, length)
    specs = _shots(draw, people, settings, length)
    global_caption, told = captions.write_story(rng, _with_sources(specs), heldout=split == "heldout")
    return WorldStory(seed=seed, global_caption=global_caption, shots=tuple(_remembering(spec) for spec in told))


class _Draw:
    """Random choices that respect the split."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split

    def value(self, character: str, attribute: str, values: Sequence[str], weights: Sequence[float]) -> str:
        """A value for a character: never a held-out pair in training, often one in the held-out split."""
        held = [value for value in values if (character, attribute, value) in held_out_pairs()]
        if self.split == "heldout" and held and self.rng.random() < 0.4:
            return self.rng.choice(held)
        pairs = [(v, w) for v, w in zip(values, weights, strict=True) if self.split == "heldout" or v not in held]
        return self.rng.choices([v for v, _ in pairs], [w for _, w in pairs])[0]

    def people(self, length: int) -> list[_Person]:
        count = self.rng.choices((1, 2, 3), (52, 40, 8) if length > 1 else (85, 15, 0))[0]
        names = self.rng.sample(CHARACTERS, count)
        return [
            _Person(
                name=name,
                clothing=self.rng.choice(CLOTHING),
                mark=self.value(name, "mark", MARKS, [1.0] * len(MARKS)),
            )
            for name in names
        ]

    def settings(self, people: Sequence[_Person], length: int) -> list[_Setting]:
        count = min(length, self.rng.choices((1, 2, 3), (30, 48, 22))[0])
        lead = people[0].name
        names = [self.value(lead, "place", tuple(PLACES), [1.0] * len(PLACES))]
        others = [p for p in PLACES if p not in names and self.allowed(people[:1], p)]
        names += self.rng.sample(others, count - 1)
        return [self._setting(name) for name in names]

    def _setting(self, name: str) -> _Setting:
        weathers = PLACES[name].weathers
        clear = self.rng.random() < 0.55
        return _Setting(
            place=name,
            layout_seed=self.rng.randrange(len(LAYOUTS) * len(TINTS)),
            time_of_day=self.rng.choices(TIMES, (46, 27, 27))[0],
            weather="clear" if clear else self.rng.choice(weathers),
        )

    def allowed(self, people: Sequence[_Person], place: str) -> bool:
        return self.split == "heldout" or all((p.name, "place", place) not in held_out_pairs() for p in people)


def _shots(draw: _Draw, people: list[_Person], settings: list[_Setting], length: int) -> list[ShotSpec]:
    rng = draw.rng
    specs: list[ShotSpec] = []
    person, setting, reverse = people[0], settings[0], False
    for index in range(length):
        if index and not reverse:
            if rng.random() < 0.4:
                person = rng.choice(people)
            if rng.random() < 0.45:
                setting = rng.choice(settings)
        if not draw.allowed([person], setting.place):
            person = people[0]
        second: _Person | None = None
        if reverse:
            previous = specs[-1]
            second = next(p for p in people if p.name == previous.character)
            person = next(p for p in people if p.name == previous.second_character)
            reverse = False
        elif len(people) > 1 and rng.random() < 0.12:
            listener = rng.choice([p for p in people if p is not person])
            if draw.allowed([listener], setting.place):
                second, reverse = listener, rng.random() < 0.6
        specs.append(_shot(draw, person, setting, second))
    return specs


def _shot(draw: _Draw, person: _Person, setting: _Setting, second: _Person | None) -> ShotSpec:
    rng = draw.rng
    framing = rng.choices(("wide", "medium", "close-up"), (38, 44, 18) if second is None else (45, 55, 0))[0]
    action = _action(draw, person.name, framing, alone=second is None)
    following = action in MOVING_ACTIONS and framing != "wide"
    motion = "still" if following else rng.choices(("still", "pan", "push-in"), (56, 20, 24))[0]
    spec = ShotSpec(
        character=person.name,
        clothing=person.clothing,
        mark=person.mark,
        place=setting.place,
        layout_seed=setting.layout_seed,
        time_of_day=setting.time_of_day,
        weather=setting.weather,
        action=action,
        expression=rng.choices(EXPRESSIONS, (30, 16, 14, 14, 14, 12))[0],
        framing=framing,
        camera_motion=motion,
        angle=rng.choice(ANGLES),
        second_character=second.name if second else NOBODY,
        second_clothing=second.clothing if second else NOBODY,
        second_mark=second.mark if second else NOBODY,
        seed=rng.randrange(1 << 30),
    )
    held = held_out_pairs() if draw.split == "train" else frozenset()
    forbidden = frozenset(value for name, kind, value in held if kind == "action" and name == person.name)
    return replace(spec, steers=_changes(rng, spec, forbidden))


def _action(draw: _Draw, character: str, framing: str, alone: bool) -> str:
    if framing == "close-up":
        weights = {"standing": 6.0, "waving": 1.0, "walking": 0.7, "sitting": 0.7, "reading": 0.7, "dancing": 0.7}
    else:
        weights = {**dict.fromkeys(ACTIONS, 1.0), "standing": 1.6}
    if not alone:
        weights = {name: weight for name, weight in weights.items() if name not in MOVING_ACTIONS}
    return draw.value(character, "action", tuple(weights), tuple(weights.values()))


def _with_sources(specs: Sequence[ShotSpec]) -> list[ShotSpec]:
    """Note which earlier shots show what, for everything that memory can tell."""
    done = []
    for index, spec in enumerate(specs):
        recent = range(max(0, index - MEMORY_SHOTS), index)
        visited = tuple(i for i in recent if specs[i].place == spec.place)
        sources = {
            **dict.fromkeys(("character", "mark"), _meetings(specs, recent, spec.character)),
            "clothing": _meetings(specs, recent, spec.character, whole=True),
            "second_mark": _meetings(specs, recent, spec.second_character),
            "second_clothing": _meetings(specs, recent, spec.second_character, whole=True),
            **dict.fromkeys(("place", "tint", "time_of_day", "weather"), visited),
            "layout": tuple(i for i in visited if specs[i].framing != "close-up"),
        }
        done.append(replace(spec, sources=tuple(sources.items())))
    return done


def _meetings(specs: Sequence[ShotSpec], recent: Iterable[int], name: str, whole: bool = False) -> tuple[int, ...]:
    """Shots that show this person; `whole` leaves out close-ups."""
    met = (i for i in recent if name != NOBODY and name in (specs[i].character, specs[i].second_character))
    return tuple(i for i in met if not (whole and specs[i].framing == "close-up"))


def _remembering(spec: ShotSpec) -> ShotSpec:
    """Add what earlier shots tell to what the captions determine."""
    return replace(spec, known=spec.known | {name for name, shots in spec.sources if shots})


def _changes(rng: random.Random, spec: ShotSpec, forbidden_actions: frozenset[str]) -> tuple[Change, ...]:
    """No steer for two shots in three, else one or two, at chunks 1..5."""
    count = rng.choices((0, 1, 2), (66, 25, 9))[0]
    chunks = sorted(rng.sample((1, 2, 3, 4, 5), count))
    if len(chunks) == 2 and chunks[1] - chunks[0] < 2:
        chunks = [chunks[0]]
    changes: list[Change] = []
    for chunk in chunks:
        taken = {change.attribute for change in changes}
        change = _one_change(rng, spec, chunk, taken, forbidden_actions)
        if change is not None:
            changes.append(change)
    return tuple(changes)


def _one_change(
    rng: random.Random, spec: ShotSpec, chunk: int, taken: set[str], forbidden_actions: frozenset[str]
) -> Change | None:
    kinds = {"expression": 5.0, "action": 4.0 if spec.framing != "close-up" else 0.0, "weather": 1.0}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    if kind in taken:
        return None
    if kind == "expression":
        values = [value for value in EXPRESSIONS if value != spec.expression]
    elif kind == "action":
        moving = () if spec.second_character == NOBODY else MOVING_ACTIONS
        values = [v for v in ACTIONS if v not in (spec.action, *moving) and v not in forbidden_actions]
    else:
        values = [value for value in PLACES[spec.place].weathers if value != spec.weather]
    return Change(chunk=chunk, attribute=kind, value=rng.choice(values)) if values else None
