"""Faces: an expression is a handful of numbers, so one expression can ease into another."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import skia

from shotstream.storyworld.ink import DARK, WHITE, Colour, Ink, oval


class Expression(NamedTuple):
    """Shape of a face. Lengths are in character units, angles in degrees, the rest in 0..1."""

    brow_y: float = 0.0
    brow_tilt: float = 0.0
    """Positive lifts the inner ends (sad), negative pulls them down (angry)."""
    lid: float = 0.06
    lid_tilt: float = 0.0
    eye: float = 1.0
    pupil: float = 1.0
    mouth_width: float = 6.0
    corner: float = 0.0
    """Height of the mouth's corners: negative is up."""
    upper: float = 1.0
    lower: float = 3.0
    teeth: float = 0.0
    tongue: float = 0.0
    tear: float = 0.0
    flush: float = 0.0


EXPRESSION_FACES: dict[str, Expression] = {
    "neutral": Expression(),
    "happy": Expression(
        brow_y=-2.5, brow_tilt=4, lid=0.0, eye=1.04, mouth_width=11, corner=-3.5, upper=0, lower=15, tongue=1, flush=0.8
    ),
    "sad": Expression(
        brow_y=-1,
        brow_tilt=26,
        lid=0.24,
        lid_tilt=20,
        pupil=1.08,
        mouth_width=8.5,
        corner=6,
        upper=-4,
        lower=0.5,
        tear=1,
    ),
    "angry": Expression(
        brow_y=4.5,
        brow_tilt=-28,
        lid=0.3,
        lid_tilt=-22,
        pupil=0.8,
        mouth_width=10,
        corner=5.5,
        upper=-3,
        lower=7,
        teeth=1,
    ),
    "surprised": Expression(brow_y=-6.5, lid=0.0, eye=1.3, pupil=0.62, mouth_width=6, corner=4.5, upper=-5, lower=15),
    "sleepy": Expression(brow_y=1.5, brow_tilt=12, lid=0.66, mouth_width=4.0, corner=2.5, upper=0.5, lower=6.5),
}


def blend(a: Expression, b: Expression, amount: float) -> Expression:
    """Between two expressions; amount 0 is a, 1 is b."""
    if amount >= 1:
        return b
    return Expression(*(x + (y - x) * amount for x, y in zip(a, b, strict=True)))


class FacePlan(NamedTuple):
    """Where a character's features sit on its head (head centre is the origin)."""

    skin: Colour
    """Colour of the eyelids."""
    eye_x: float = 9.5
    eye_y: float = 0.5
    eye_rx: float = 6.4
    eye_ry: float = 7.8
    mouth_y: float = 11.5
    turn: float = 3.5
    """How far the features shift towards where the character faces."""
    brow: Colour = DARK
    mouth: Colour = (96, 30, 42)
    pupil: Colour = DARK


def draw_face(canvas: skia.Canvas, ink: Ink, plan: FacePlan, face: Expression, blink: float, gaze_y: float) -> None:
    """Eyes, brows, mouth, tear and blush; the character has drawn everything under them."""
    if face.flush > 0.05:
        for side in (-1, 1):
            oval(canvas, plan.turn + side * 16.5, 7.5, 4.6, 3.4, ink.fill((240, 110, 110), round(0.5 * face.flush, 2)))
    for side in (-1, 1):
        _eye(canvas, ink, plan, face, side, blink, gaze_y)
    _mouth(canvas, ink, plan, face)


def _eye(
    canvas: skia.Canvas, ink: Ink, plan: FacePlan, face: Expression, side: int, blink: float, gaze_y: float
) -> None:
    x, y = plan.turn + side * plan.eye_x, plan.eye_y
    rx, ry = plan.eye_rx * (0.5 + 0.5 * face.eye), plan.eye_ry * face.eye
    oval(canvas, x, y, rx, ry, ink.fill(WHITE))
    pupil_x, pupil_y = x + 1.6, y + 0.8 + 2.6 * gaze_y
    oval(canvas, pupil_x, pupil_y, 3.9 * face.pupil, 4.9 * face.pupil, ink.fill(plan.pupil))
    oval(canvas, pupil_x + 1.3, pupil_y - 1.7, 1.4, 1.4, ink.glow(WHITE))
    lid = max(face.lid, blink)
    canvas.save()
    canvas.translate(x, y)
    if lid > 0.1:
        canvas.save()
        canvas.rotate(side * face.lid_tilt)
        _lid(canvas, ink, plan.skin, rx, ry, lid)
        canvas.restore()
    canvas.translate(0, -plan.eye_ry - 3.2 + face.brow_y)
    canvas.rotate(side * face.brow_tilt)
    canvas.drawLine(-5.6, 0, 5.6, 0, ink.stroke(plan.brow, 2.9))
    canvas.restore()
    if face.tear > 0.05:
        oval(canvas, x + side * 3.5, y + ry + 3.5, 2.1 * face.tear, 3.6 * face.tear, ink.fill((96, 190, 255), 0.95))


def _lid(canvas: skia.Canvas, ink: Ink, skin: Colour, rx: float, ry: float, lid: float) -> None:
    """Cover the upper part of an eye with skin, down to a flat dark edge."""
    edge = max(-0.98, min(0.92, 2 * lid - 1))
    reach = math.sqrt(1 - edge * edge)
    if lid >= 0.92:
        oval(canvas, 0, 0, rx * 1.1, ry * 1.08, ink.fill(skin))
        canvas.drawLine(-rx * 0.85, ry * 0.25, rx * 0.85, ry * 0.25, ink.stroke(DARK, 2.2))
        return
    canvas.drawPath(_lid_path(round(rx * 1.1, 2), round(ry * 1.1, 2), round(edge, 3)), ink.fill(skin))
    canvas.drawLine(-rx * reach, ry * edge, rx * reach, ry * edge, ink.stroke(DARK, 1.9))


@lru_cache(maxsize=2048)
def _lid_path(rx: float, ry: float, edge: float) -> skia.Path:
    angle = math.degrees(math.asin(edge))
    path = skia.Path()
    path.addArc(skia.Rect.MakeLTRB(-rx, -ry, rx, ry), 180 - angle, 180 + 2 * angle)
    path.close()
    return path


def _mouth(canvas: skia.Canvas, ink: Ink, plan: FacePlan, face: Expression) -> None:
    canvas.save()
    canvas.translate(plan.turn * 1.35, plan.mouth_y)
    w, corner = face.mouth_width, face.corner
    path = skia.Path()
    path.moveTo(-w, corner)
    path.cubicTo(-w * 0.75, face.upper, w * 0.75, face.upper, w, corner)
    path.cubicTo(w * 0.85, face.lower, -w * 0.85, face.lower, -w, corner)
    path.close()
    canvas.drawPath(path, ink.fill(plan.mouth))
    canvas.drawPath(path, ink.stroke(plan.mouth, 2.0))
    gap = (face.lower - face.upper) * 0.75
    if face.teeth > 0.3:
        top = face.corner * 0.25 + face.upper * 0.75
        teeth = skia.Rect.MakeLTRB(-w * 0.72, top + 1.0, w * 0.72, top + 1.0 + gap * 0.55)
        canvas.drawRoundRect(teeth, 1.5, 1.5, ink.fill(WHITE, min(1.0, round(face.teeth, 2))))
    if face.tongue > 0.3:
        oval(canvas, 0, face.lower * 0.55, w * 0.5 * face.tongue, 2.6 * face.tongue, ink.fill((238, 110, 120)))
    canvas.restore()
