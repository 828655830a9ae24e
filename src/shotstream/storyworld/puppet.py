"""Draws one character in a pose: legs, coat, arms, head, face, mark, book."""

from __future__ import annotations

import math
from functools import lru_cache

import skia

from shotstream.storyworld.cast import Character
from shotstream.storyworld.face import Expression, draw_face
from shotstream.storyworld.ink import CLOTHING_COLOURS, MARK_COLOURS, WHITE, Colour, Ink, box, darker, lighter, oval
from shotstream.storyworld.motion import Pose

HIP_Y = -20.0
SHOULDER_Y = -29.0
"""Relative to the hip."""
HEAD_Y = -54.0
"""Centre of the head, relative to the hip."""

Box = tuple[float, float, float, float]


def draw_puppet(
    canvas: skia.Canvas,
    ink: Ink,
    character: Character,
    clothing: str,
    mark: str,
    pose: Pose,
    face: Expression,
    blink: float,
) -> tuple[Box, Box]:
    """Draw at the origin (feet on y = 0), facing right. Returns face and mark boxes on the device, in pixels."""
    coat = CLOTHING_COLOURS[clothing]
    hip_y = HIP_Y + pose.hip_drop - pose.lift
    front_knee = pose.knees > 0.5
    canvas.save()
    canvas.translate(0, hip_y)
    canvas.rotate(pose.lean)
    character.draw_behind(canvas, ink)
    _arm(canvas, ink, character, darker(coat, 0.18), -12.0, pose.back_hand_x, pose.back_hand_y)
    canvas.restore()
    _leg(canvas, ink, character, -6.5, hip_y, pose.back_foot_x, pose.back_foot_y + pose.lift, pose.knees, 0.14)
    if not front_knee:
        _leg(canvas, ink, character, 6.5, hip_y, pose.front_foot_x, pose.front_foot_y + pose.lift, pose.knees, 0.0)
    canvas.save()
    canvas.translate(0, hip_y)
    canvas.rotate(pose.lean)
    canvas.drawPath(_coat_path(), ink.ball(coat, 0, -16, 26, 0.2))
    box(canvas, -13, -36.5, 13, -30, ink.fill(lighter(coat, 0.3)), 3)
    boxes = _head(canvas, ink, character, mark, pose, face, blink)
    if front_knee:
        canvas.restore()
        _leg(canvas, ink, character, 6.5, hip_y, pose.front_foot_x, pose.front_foot_y + pose.lift, pose.knees, 0.0)
        canvas.save()
        canvas.translate(0, hip_y)
        canvas.rotate(pose.lean)
    if pose.book > 0.05:
        _book(canvas, ink, pose.book)
    _arm(canvas, ink, character, lighter(coat, 0.07), 12.0, pose.front_hand_x, pose.front_hand_y)
    canvas.restore()
    return boxes


def _head(
    canvas: skia.Canvas, ink: Ink, character: Character, mark: str, pose: Pose, face: Expression, blink: float
) -> tuple[Box, Box]:
    canvas.save()
    canvas.translate(0, HEAD_Y + 18 + pose.head_dy)
    canvas.rotate(pose.head_tilt)
    canvas.translate(0, -18)
    character.draw_head(canvas, ink)
    character.draw_mark(canvas, ink, MARK_COLOURS[mark])
    draw_face(canvas, ink, character.face, face, blink, pose.gaze_y)
    if character.draw_over is not None:
        character.draw_over(canvas, ink)
    matrix = canvas.getTotalMatrix()
    canvas.restore()
    return _device_box(matrix, (-26.0, -22.0, 26.0, 23.0)), _device_box(matrix, character.mark_box)


def _device_box(matrix: skia.Matrix, local: Box) -> Box:
    rect = matrix.mapRect(skia.Rect.MakeLTRB(*local))
    return (rect.left(), rect.top(), rect.right(), rect.bottom())


@lru_cache(maxsize=1)
def _coat_path() -> skia.Path:
    path = skia.Path()
    path.moveTo(-12, -35)
    path.cubicTo(-15, -34, -17, -20, -18, 1)
    path.cubicTo(-10, 6, 10, 6, 18, 1)
    path.cubicTo(17, -20, 15, -34, 12, -35)
    path.close()
    return path


def _arm(
    canvas: skia.Canvas, ink: Ink, character: Character, sleeve: Colour, shoulder_x: float, hand_x: float, hand_y: float
) -> None:
    """A bent sleeve from the shoulder to a round hand; the elbow falls outwards and down."""
    x1, y1 = hand_x, SHOULDER_Y + hand_y
    side = 1.0 if shoulder_x > 0 else -1.0
    length = math.hypot(x1 - shoulder_x, y1 - SHOULDER_Y)
    slack = max(0.0, 27 - length) * 0.6
    path = skia.Path()
    path.moveTo(shoulder_x, SHOULDER_Y)
    path.quadTo((shoulder_x + x1) / 2 + side * (3 + slack * 0.6), (SHOULDER_Y + y1) / 2 + slack, x1, y1)
    canvas.drawPath(path, ink.stroke(sleeve, 9.0))
    oval(canvas, x1, y1, 5.4, 5.4, ink.fill(character.limb))


def _leg(
    canvas: skia.Canvas,
    ink: Ink,
    character: Character,
    hip_x: float,
    hip_y: float,
    foot_x: float,
    foot_up: float,
    knees: float,
    shade: float,
) -> None:
    foot_y = -4 - foot_up
    knee_x = (hip_x + foot_x) / 2 + 4 + 6 * knees
    knee_y = (hip_y + foot_y) / 2 - 1 - 62 * knees
    path = skia.Path()
    path.moveTo(hip_x, hip_y)
    path.quadTo(knee_x, knee_y, foot_x, foot_y)
    canvas.drawPath(path, ink.stroke(darker(character.legs, shade), 9.5))
    oval(canvas, foot_x + 3.5, foot_y + 0.6, 8.6, 4.8, ink.fill(darker(character.feet, shade)))


def _book(canvas: skia.Canvas, ink: Ink, shown: float) -> None:
    canvas.save()
    canvas.translate(4, SHOULDER_Y + 14 + 22 * (1 - shown))
    canvas.scale(shown, shown)
    box(canvas, -20, -13, 20, 10, ink.fill((120, 72, 44)), 2.5)
    box(canvas, -17.5, -14, -0.8, 7, ink.fill(WHITE), 2)
    box(canvas, 0.8, -14, 17.5, 7, ink.fill((240, 238, 228)), 2)
    canvas.restore()
