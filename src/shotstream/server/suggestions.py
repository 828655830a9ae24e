"""Prompts that suit a preset, made from the words its weights ship with: what is suggested can be drawn.

They are arranged as the page shows them: first shots, then instructions for running shots and cuts in turns. None of
them needs another to make sense, apart from "him".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shotstream.models.vocabulary import VOCABULARY_FILE, Vocabulary
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD, Preset

NUM_FIRST_SHOTS = 4
NUM_TURNS = 6

_REALISTIC = (
    "A man in a grey coat walks through a rainy city street at night, medium shot",
    "Close-up of his face, neon light on wet skin",
    "He looks surprised",
    "Wide shot of the same street from above",
)
"""For models without a vocabulary."""

_STANDING_ON = frozenset({"beach", "stage"})
_TIMES = {"day": "during the day"}
_STEERS = {
    "expression": ("Now make him look {}", frozenset({"neutral"})),
    "action": ("Now he starts {}", frozenset({"standing", "sitting"})),
    "weather": ("Now it is {}", frozenset({"clear"})),
}
"""How a term becomes an instruction, and which terms make none worth giving."""


def suggestions(preset: Preset) -> tuple[str, ...]:
    """Prompts for the page, first shots first; for a preset without a vocabulary of its own kind a fixed few."""
    path = PACKAGE_WEIGHTS / (preset.name if preset.files else STORYWORLD.name) / VOCABULARY_FILE
    return from_terms(Vocabulary.read(path).terms) if path.is_file() else _REALISTIC


def from_terms(terms: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Prompts in which every character, place, action, expression and so on is one of `terms`."""
    turns = zip(_steers(terms), _cuts(terms), strict=False)
    rest = [prompt for turn in turns for prompt in turn][: 2 * NUM_TURNS]
    return (*(_first_shot(terms, index) for index in range(NUM_FIRST_SHOTS)), *rest)


def _first_shot(terms: Mapping[str, Sequence[str]], index: int) -> str:
    """Strides without a common factor with the number of terms, so that the prompts differ in everything."""
    character = _pick(terms["character"], index)
    clothing, action = _pick(terms["clothing"], 1 + index), _pick(terms["action"], 1 + 3 * index)
    place, time = _pick(terms["place"], 2 + 5 * index), _pick(terms["time_of_day"], 1 + index)
    return f"A {character} in a {clothing} coat {action} {_somewhere(place)} {_when(time)}"


def _steers(terms: Mapping[str, Sequence[str]]) -> list[str]:
    """The most different instructions first: an expression, an action, the weather, and again."""
    kinds = []
    for attribute, (words, dull) in _STEERS.items():
        values = [term for term in terms[attribute] if term not in dull][::-1]
        kinds.append([words.format(_weather(term) if attribute == "weather" else term) for term in values])
    longest = max(len(kind) for kind in kinds)
    return [kind[turn] for turn in range(longest) for kind in kinds if turn < len(kind)]


def _cuts(terms: Mapping[str, Sequence[str]]) -> list[str]:
    """To other places, and closer to the person in turns."""
    framings = [term for term in terms["framing"] if term != "medium"]
    faces = [term for term in terms["expression"] if term not in _STEERS["expression"][1]]
    prompts = []
    for index in range(NUM_TURNS):
        place, framing = _pick(terms["place"], 3 * index), _pick(framings, index)
        if framing == "close-up":
            prompts.append(f"Cut to a close-up of him {_somewhere(place)}, looking {_pick(faces, index)}")
        else:
            time = _pick(terms["time_of_day"], 2 + index // 2)
            prompts.append(f"Transition to a {framing} shot of the {place} {_when(time)}")
    return prompts


def _somewhere(place: str) -> str:
    return f"{'on' if place in _STANDING_ON else 'in'} the {place}"


def _when(time: str) -> str:
    return _TIMES.get(time, f"at {time}")


def _weather(term: str) -> str:
    return {"rain": "raining", "snow": "snowing"}.get(term, term)


def _pick(terms: Sequence[str], index: int) -> str:
    return terms[index % len(terms)]
