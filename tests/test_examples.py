"""Every example that ships can be read, and fits the text encoder of the shipped model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from shotstream.models.text import MINILM_PACKAGE, MiniLMEncoder
from shotstream.models.vocabulary import VOCABULARY_FILE, UnknownWords, Vocabulary
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD
from shotstream.story import Story, read_reference_csv, read_story

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STORY_FILES = sorted(EXAMPLES.glob("*.yaml"))
IN_FREE_WORDS = "one-minute"
"""Told as a director would tell it: what it asks for in words that are not the drawn world's gets a notice."""


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    if not importlib.util.find_spec(MINILM_PACKAGE):
        pytest.skip("the MiniLM weights package is not installed: run `make test`, which installs it")
    return MiniLMEncoder()


def _captions(story: Story) -> list[str]:
    return [story.caption_at(index, shot.num_chunks) for index, shot in enumerate(story.shots)]


def _longest(story: Story, encoder: MiniLMEncoder) -> int:
    return max(encoder.count_tokens(caption) for caption in _captions(story))


def test_there_are_examples() -> None:
    assert len(STORY_FILES) >= 4


@pytest.mark.parametrize("path", STORY_FILES, ids=lambda path: path.stem)
def test_an_example_fits_the_shipped_model(path: Path, encoder: MiniLMEncoder) -> None:
    assert _longest(read_story(path), encoder) <= STORYWORLD.text.length


@pytest.mark.parametrize("path", [p for p in STORY_FILES if p.stem != IN_FREE_WORDS], ids=lambda path: path.stem)
def test_an_example_asks_only_for_what_can_be_drawn(path: Path, encoder: MiniLMEncoder) -> None:
    assert _undrawable(path, encoder) == set()


def test_the_story_in_free_words_is_about_what_can_be_drawn(encoder: MiniLMEncoder) -> None:
    unknown = _undrawable(EXAMPLES / f"{IN_FREE_WORDS}.yaml", encoder)
    assert unknown & {"bored", "hops", "tiny"}
    assert not unknown & {"robot", "green", "coat", "kitchen", "desert", "city", "forest", "snow", "rain", "night"}


def _undrawable(path: Path, encoder: MiniLMEncoder) -> set[str]:
    vocabulary = Vocabulary.read(PACKAGE_WEIGHTS / STORYWORLD.name / VOCABULARY_FILE)
    captions = " ".join(_captions(read_story(path)))
    return {unknown.word for unknown in UnknownWords(vocabulary, encoder.embed).of(captions)}


def test_the_table_of_stories_fits_the_shipped_model(encoder: MiniLMEncoder) -> None:
    (story,) = read_reference_csv(EXAMPLES / "table" / "stories.csv")
    assert len(story.shots) == 2
    assert _longest(story, encoder) <= STORYWORLD.text.length
