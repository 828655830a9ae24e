"""Prompts outside the world are named with the nearest thing that can be drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from shotstream.models.text import MINILM_PACKAGE, MiniLMEncoder
from shotstream.models.vocabulary import UnknownWords, Vocabulary

WORLD = Vocabulary(
    terms={"character": ("fox", "frog", "knight"), "place": ("beach", "city"), "clothing": ("red", "purple")},
    words=frozenset({"fox", "frog", "knight", "beach", "city", "red", "purple", "walk"}),
)


@pytest.fixture(scope="module")
def embed() -> Callable[[Sequence[str]], Tensor]:
    if not importlib.util.find_spec(MINILM_PACKAGE):
        pytest.skip("the MiniLM weights package is not installed: run `make test`, which installs it")
    return MiniLMEncoder().embed


def test_a_dragon_is_named_and_the_knight_is_not(embed: Callable[[Sequence[str]], Tensor]) -> None:
    (unknown,) = UnknownWords(WORLD, embed).of("A knight on a dragon")
    assert unknown.word == "dragon"
    assert str(unknown) == 'cannot draw "dragon"; the nearest it can is "frog"'


def test_other_names_and_forms_of_known_things_pass(embed: Callable[[Sequence[str]], Tensor]) -> None:
    assert UnknownWords(WORLD, embed).of("Two foxes walking at the ocean, then in the town") == []


def test_what_only_begins_like_a_function_word_is_named(embed: Callable[[Sequence[str]], Tensor]) -> None:
    things = ["bed", "shed", "bees", "weed", "toes", "herd", "doe"]
    world = replace(WORLD, words=WORLD.words | {"the", "to", "she", "her"})  # captions have these words too
    assert [unknown.word for unknown in UnknownWords(world, embed).of(" ".join(things))] == things


def test_forms_of_function_words_and_of_short_known_words_pass(embed: Callable[[Sequence[str]], Tensor]) -> None:
    assert UnknownWords(WORLD, embed).of("foxes wanted the others, turning slowly, walked") == []


def test_another_colour_is_not_near_enough(embed: Callable[[Sequence[str]], Tensor]) -> None:
    assert [unknown.word for unknown in UnknownWords(WORLD, embed).of("a pink frog")] == ["pink"]


def test_a_prompt_of_known_words_needs_no_encoder() -> None:
    def refuse(_: Sequence[str]) -> Tensor:
        raise AssertionError("nothing should be embedded")

    assert UnknownWords(WORLD, refuse).of("the fox walks in the city") == []


def test_the_file_comes_back_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    WORLD.write(tmp_path / "vocabulary.json")
    assert Vocabulary.read(tmp_path / "vocabulary.json") == WORLD
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a vocabulary file"):
        Vocabulary.read(tmp_path / "bad.json")
