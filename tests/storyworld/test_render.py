"""Pixels: deterministic, causal, people and marks where the boxes say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install shotstream[world]")

import skia

from shotstream.storyworld import Change, ShotSpec, first_frame, render_frame, render_shot, sample_story
from shotstream.storyworld.cast import CAST
from shotstream.storyworld.face import EXPRESSION_FACES
from shotstream.storyworld.ink import MARK_COLOURS, Ink
from shotstream.storyworld.motion import standing
from shotstream.storyworld.puppet import draw_puppet
from shotstream.storyworld.spec import ACTIONS, CHARACTERS, EXPRESSIONS, FRAMINGS, MARKS, PLACES

FOX = ShotSpec(character="fox", clothing="red", mark="cobalt", place="city", seed=12345)


def test_same_spec_gives_the_same_bits():
    spec = sample_story(3).shots[0]
    np.testing.assert_array_equal(render_frame(spec, 17).pixels, render_frame(spec, 17).pixels)
    np.testing.assert_array_equal(render_shot(spec, 4).pixels[3], render_frame(spec, 3).pixels)


def test_frames_do_not_depend_on_what_was_drawn_before():
    first = render_frame(FOX, 5).pixels
    for place in PLACES:
        render_frame(replace(FOX, place=place, camera_motion="pan"), 30)
    np.testing.assert_array_equal(render_frame(FOX, 5).pixels, first)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("expression", "surprised"), ("action", "dancing"), ("action", "running"), ("weather", "rain")],
)
@pytest.mark.parametrize("framing", ["wide", "medium"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_change_begins_at_its_chunk_and_never_before(attribute, value, framing, chunk):
    twin = replace(FOX, framing=framing)
    steered = replace(twin, steers=(Change(chunk=chunk, attribute=attribute, value=value),))
    start = first_frame(chunk)
    before, after = render_shot(twin, start + 8).pixels, render_shot(steered, start + 8).pixels
    np.testing.assert_array_equal(before[:start], after[:start])
    assert all((a != b).any() for a, b in zip(before[start:], after[start:], strict=True))


def test_change_starts_at_the_first_frame_of_a_chunk():
    assert [first_frame(chunk) for chunk in range(4)] == [0, 9, 21, 33]


def test_people_are_in_the_first_frame_of_nearly_every_shot():
    shots = [spec for seed in range(40) for spec in sample_story(seed).shots]
    pictures = [render_frame(spec, 0) for spec in shots]
    assert np.mean([bool(p.face_boxes) and bool(p.mark_boxes) for p in pictures]) >= 0.95


def test_faces_are_large_enough():
    def face_height(framing: str) -> float:
        box = render_frame(replace(FOX, framing=framing), 0).face_boxes[0]
        return box[3] - box[1]

    assert face_height("wide") >= 26
    assert face_height("medium") >= 48
    assert face_height("close-up") > 1.3 * face_height("medium")


@pytest.mark.parametrize("character", CHARACTERS)
def test_heads_are_at_least_a_third_of_the_body(character: str):
    surface = skia.Surface(200, 200)
    with surface as canvas:
        canvas.translate(100, 150)
        drawing = (CAST[character], "red", "jade", standing(0.0), EXPRESSION_FACES["neutral"], 0.0)
        (_, top, _, chin), _ = draw_puppet(canvas, Ink(), *drawing)
    rows = np.flatnonzero(surface.toarray()[..., 3].any(axis=1))
    assert chin - top >= (rows[-1] + 1 - rows[0]) / 3
    assert rows[0] <= top + 2  # the box is no taller than the head


@pytest.mark.parametrize("framing", FRAMINGS)
def test_boxes_lie_inside_the_frame_and_contain_the_mark(framing):
    for index, character in enumerate(CHARACTERS):
        mark = MARKS[index % len(MARKS)]
        spec = replace(FOX, character=character, mark=mark, framing=framing, action=ACTIONS[index], seed=index * 999)
        for frame in (0, 40, 80):
            picture = render_frame(spec, frame)
            for x0, y0, x1, y1 in (*picture.face_boxes, *picture.mark_boxes):
                assert 0 <= x0 < x1 <= 320
                assert 0 <= y0 < y1 <= 192
            x0, y0, x1, y1 = (round(v) for v in picture.mark_boxes[0])
            inside = picture.pixels[y0:y1, x0:x1].astype(int)
            near = np.abs(inside - np.array(MARK_COLOURS[mark])).max(axis=-1) < 70
            assert near.mean() > 0.3


def test_every_value_of_what_can_be_seen_changes_the_picture():
    for attribute, values in (("expression", EXPRESSIONS), ("mark", MARKS), ("place", PLACES), ("action", ACTIONS)):
        pictures = {render_frame(replace(FOX, **{attribute: value}), 12).pixels.tobytes() for value in values}
        assert len(pictures) == len(values)


def test_any_size_shows_the_same_picture():
    small, large = render_frame(FOX, 3).pixels, render_frame(FOX, 3, 384, 640).pixels
    halved = large.reshape(192, 2, 320, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 4


def test_negative_frames_are_refused():
    with pytest.raises(ValueError, match="counts from 0"):
        render_frame(FOX, -1)
