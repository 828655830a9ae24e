"""Storyworld: a small drawn world with exact labels, rendered without limit, to train and measure on.

>>> story = sample_story(seed=7)
>>> frame = render_frame(story.shots[0], 0)   # pixels uint8 [192, 320, 3], face and mark boxes
"""

from shotstream.storyworld.render import Rendered, RenderedShot, render_frame, render_shot
from shotstream.storyworld.sampler import WorldStory, held_out_pairs, sample_story
from shotstream.storyworld.spec import ATTRIBUTES, HIDDEN, Change, ShotSpec, first_frame, visible

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
