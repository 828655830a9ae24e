"""Write down which words the drawn world uses, for the notices of `generate` (see models/vocabulary.py)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from shotstream import storyworld
from shotstream.models.vocabulary import VOCABULARY_FILE, Vocabulary, words_of
from shotstream.presets import PACKAGE_WEIGHTS

NAMED_ATTRIBUTES = (
    "character",
    "clothing",
    "place",
    "time_of_day",
    "weather",
    "action",
    "expression",
    "framing",
    "camera_motion",
)
"""Attributes that captions name; hidden ones can only be remembered."""

log = logging.getLogger(__name__)


def world_vocabulary(num_stories: int = 2000) -> Vocabulary:
    """Collect the terms of the drawn world and every word of the captions of ``num_stories`` stories."""
    terms = {name: storyworld.ATTRIBUTES[name] for name in NAMED_ATTRIBUTES}
    words = {word for group in terms.values() for term in group for word in words_of(term)}
    for seed in range(num_stories):
        story = storyworld.sample_story(seed).to_story()
        words.update(words_of(story.global_caption))
        for shot in story.shots:
            words.update(words_of(" ".join([shot.caption, *(steer.caption for steer in shot.steers)])))
    return Vocabulary(terms=terms, words=frozenset(words))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the vocabulary file of the storyworld preset."""
    parser = argparse.ArgumentParser(prog="shotstream train vocabulary", description=__doc__)
    parser.add_argument("--stories", type=int, default=2000, help="stories whose captions are read")
    parser.add_argument("-o", "--output", type=Path, default=PACKAGE_WEIGHTS / "storyworld" / VOCABULARY_FILE)
    options = parser.parse_args(argv)
    vocabulary = world_vocabulary(options.stories)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write(options.output)
    log.info("wrote %d words to %s", len(vocabulary.words), options.output)


if __name__ == "__main__":
    main()
