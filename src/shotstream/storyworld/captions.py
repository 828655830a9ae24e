"""Captions: how a story is told in words, with what is left out left to defaults or to memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from shotstream.storyworld.spec import ShotSpec


def write_story(rng: random.Random, specs: Sequence[ShotSpec], heldout: bool) -> tuple[str, list[ShotSpec]]:
    """A global caption and the specs with captions for the shots and their steers."""
    done = []
    for spec in specs:
        caption = f"a {spec.framing} shot of a {spec.character} in {spec.clothing} {spec.action} at the {spec.place}"
        steers = tuple(replace(change, caption=f"now {change.value}") for change in spec.steers)
        done.append(replace(spec, caption=caption, steers=steers))
    return "", done
