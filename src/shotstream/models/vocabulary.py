"""What a small model can draw, and how to tell a viewer what it cannot.

The vocabulary is a data file beside the weights, so that nothing here needs the renderer that the model learnt from.
It is only ever used to word a notice: the prompt reaches the model through the text encoder alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

VOCABULARY_FILE = "vocabulary.json"

NEAR_ENOUGH = 0.57
"""Similarity from which on a word counts as another name for a term: ocean and beach 0.72, dragon and frog 0.51."""

EXACT_ATTRIBUTES = {"clothing": 0.9}
"""Attributes whose words are alike though they mean different things: pink and purple 0.74."""

_FUNCTION_WORDS = frozenset(
    """
    a about above across after again all almost along also always an and any are around as at away back be because
    been before behind being below beneath beside between both but by camera can character come comes could cut cuts
    did do does doing done down during each either else ever every few fill fills film finally find finds first
    follow follows for frame from full get gets give gives go goes going has have having he her here hers herself
    him himself his how i if image in inside into is it its itself just keep keeps last let lets like little long
    look looking looks lot lots made make makes many me more most move moves movie moving much my near new next no
    not now of off on once one ones only onto open opens or other our ours out outside over own past per picture
    place put puts quite really same scene second see seeing seen sees several shall she shot shots should show
    shown shows side since slowly so some someone something soon start starts stay stays still stop stops story such
    suddenly take takes than that the their them then there these they thing things this those three through to
    together too toward towards transition try trying turn turns two under until up upon us used uses using very
    video view want was way ways we were what when where which while who whole whose why will with within without
    would yet you your
    """.split()  # noqa: SIM905 - a list of two hundred quoted words would be harder to read and to edit
)
_INFLECTED = frozenset(word for word in _FUNCTION_WORDS if len(word) > 3)
"""Those whose other forms pass as well. With shorter ones a shed would be "she", and toes would be "to"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The things a model was taught, and every word that its captions used for them."""

    terms: Mapping[str, tuple[str, ...]]
    """Attribute -> what can be drawn, for example place -> (city, forest, ...)."""
    words: frozenset[str]
    """Lower-case words of the training captions."""

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read the JSON file that ships with the weights. Raises: ValueError if it is not one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            terms = {attribute: tuple(values) for attribute, values in content["terms"].items()}
            return cls(terms=terms, words=frozenset(content["words"]))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not a vocabulary file: expected `terms` and `words`") from error

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        content = {"terms": {name: list(values) for name, values in self.terms.items()}, "words": sorted(self.words)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class UnknownWord:
    """A word of a prompt that the model has never seen drawn."""

    word: str
    nearest: str
    similarity: float

    def __str__(self) -> str:
        return f'cannot draw "{self.word}"; the nearest it can is "{self.nearest}"'


class UnknownWords:
    """Finds the words of prompts that are far from everything in a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, embed: Callable[[Sequence[str]], Tensor]) -> None:
        """Args: embed gives one unit vector per text, such as MiniLMEncoder.embed. Only called for words that the
        vocabulary does not have."""
        self._vocabulary, self._embed = vocabulary, embed
        self._terms = [(t, EXACT_ATTRIBUTES.get(name, NEAR_ENOUGH)) for name, g in vocabulary.terms.items() for t in g]
        self._vectors: Tensor | None = None

    def of(self, prompt: str) -> list[UnknownWord]:
        """Return them in order, each once."""
        candidates = [word for word in dict.fromkeys(words_of(prompt)) if not _is_known(word, self._vocabulary)]
        if not candidates:
            return []
        if self._vectors is None:
            self._vectors = self._embed([term for term, _ in self._terms])
        unknown = []
        for word, row in zip(candidates, (self._embed(candidates) @ self._vectors.T).tolist(), strict=True):
            if all(similarity < needed for similarity, (_, needed) in zip(row, self._terms, strict=True)):
                best = max(range(len(row)), key=row.__getitem__)
                unknown.append(UnknownWord(word, self._terms[best][0], row[best]))
        return unknown


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text, hyphens and apostrophes splitting them."""
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) > 1]


def _is_known(word: str, vocabulary: Vocabulary) -> bool:
    longer = {word + ending for ending in ("s", "ing", "ed", "d")}
    stems = {word.removesuffix(ending) for ending in ("s", "es", "ing", "ed", "ly", "d")}
    taught = vocabulary.words - _FUNCTION_WORDS
    return word in _FUNCTION_WORDS or not longer.isdisjoint(taught) or not stems.isdisjoint(taught | _INFLECTED)
