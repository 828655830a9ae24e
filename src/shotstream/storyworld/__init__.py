"""Storyworld: a small drawn world with exact labels, rendered without limit, to train and measure on.

>>> story = sample_story(seed=7)
>>> frame = render_frame(story.shots[0], 0)   # pixels uint8 [192, 320, 3], face and mark boxes

What draws is imported when it is first asked for: words, labels and the probe work where Skia is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shotstream.storyworld.spec import ATTRIBUTES, HIDDEN, Change, ShotSpec, first_frame, visible

if TYPE_CHECKING:
    from shotstream.storyworld.render import Rendered, RenderedShot, render_frame, render_shot
    from shotstream.storyworld.sampler import WorldStory, held_out_pairs, sample_story

_DRAWN = {
    "Rendered": "render",
    "RenderedShot": "render",
    "render_frame": "render",
    "render_shot": "render",
    "WorldStory": "sampler",
    "held_out_pairs": "sampler",
    "sample_story": "sampler",
}

__all__ = [
    "ATTRIBUTES",
    "HIDDEN",
    "Change",
    "Rendered",
    "RenderedShot",
    "ShotSpec",
    "WorldStory",
    "first_frame",
    "held_out_pairs",
    "render_frame",
    "render_shot",
    "sample_story",
    "visible",
]


def __getattr__(name: str) -> Any:
    if name not in _DRAWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DRAWN[name]}"), name)
