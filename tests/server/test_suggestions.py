"""What the page suggests can be drawn by the model that is served."""

from __future__ import annotations

from shotstream.engine.fake import FAKE
from shotstream.models.vocabulary import VOCABULARY_FILE, Vocabulary, words_of
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD, get_preset
from shotstream.server.suggestions import from_terms, suggestions

TERMS = {
    "character": ("cat", "owl"),
    "clothing": ("grey",),
    "place": ("harbour", "attic", "garden"),
    "time_of_day": ("day", "dawn"),
    "weather": ("clear", "fog"),
    "action": ("standing", "rowing"),
    "expression": ("neutral", "proud", "bored"),
    "framing": ("medium", "wide", "close-up"),
}


def test_every_word_is_one_that_the_model_was_taught() -> None:
    vocabulary = Vocabulary.read(PACKAGE_WEIGHTS / STORYWORLD.name / VOCABULARY_FILE)
    prompts = suggestions(STORYWORLD)
    assert len(prompts) == len(set(prompts)) >= 12
    assert {word for prompt in prompts for word in words_of(prompt)} <= vocabulary.words


def test_another_vocabulary_makes_other_suggestions() -> None:
    words = {word for prompt in from_terms(TERMS) for word in words_of(prompt)}
    assert {"cat", "owl", "grey", "harbour", "attic", "garden", "rowing", "proud", "bored", "fog"} <= words
    assert not words & {"neutral", "fox", "beach"}


def test_every_preset_has_some() -> None:
    assert suggestions(FAKE) == suggestions(STORYWORLD)
    assert not set(suggestions(get_preset("wan-1.3b"))) & set(suggestions(STORYWORLD))
