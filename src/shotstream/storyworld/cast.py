"""The cast. A character is one entry: its colours, how its head and tail are drawn, and where its features sit.

Heads are drawn around the origin in character units, facing right. The mark sits on the head of everyone; it is drawn
in the colour of the story and no caption ever names it. To add a character, write a head function and a `Character`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import skia

from shotstream.storyworld.face import FacePlan
from shotstream.storyworld.ink import DARK, WHITE, Colour, Ink, box, darker, lighter, oval, polygon

Draw = Callable[[skia.Canvas, Ink], None]
DrawMark = Callable[[skia.Canvas, Ink, Colour], None]

HEAD_RX, HEAD_RY = 25.0, 22.0


def bobble(canvas: skia.Canvas, ink: Ink, colour: Colour) -> None:
    """A knitted cap with a bobble: the mark most characters wear."""
    oval(canvas, -2, -41, 7.5, 7.0, ink.ball(lighter(colour, 0.25), -2, -41, 7.5))
    canvas.drawPath(_cap(), ink.ball(colour, -2, -24, 20, 0.18))
    box(canvas, -21, -22.5, 19, -13.5, ink.ball(lighter(colour, 0.3), -1, -18, 22, 0.1), 4.5)


@lru_cache(maxsize=1)
def _cap() -> skia.Path:
    path = skia.Path()
    path.moveTo(-19, -16)
    path.cubicTo(-20, -46, 17, -46, 17, -16)
    path.close()
    return path


BOBBLE_BOX = (-21.0, -48.0, 19.0, -13.5)


def dome(canvas: skia.Canvas, ink: Ink, colour: Colour) -> None:
    """The robot's lamp."""
    oval(canvas, 0, -29, 16.5, 14.5, ink.ball(colour, 0, -29, 16, 0.2))
    oval(canvas, -5, -36, 4.0, 4.0, ink.glow(WHITE, 0.6))
    box(canvas, -18, -21.5, 18, -15, ink.fill((84, 94, 110)), 3)


def plume(canvas: skia.Canvas, ink: Ink, colour: Colour) -> None:
    """The knight's feather."""
    canvas.drawPath(_plume(), ink.ball(colour, -10, -32, 26, 0.2))


@lru_cache(maxsize=1)
def _plume() -> skia.Path:
    path = skia.Path()
    path.moveTo(6, -20)
    path.cubicTo(14, -48, -16, -50, -24, -36)
    path.cubicTo(-40, -34, -42, -10, -31, 1)
    path.cubicTo(-28, -12, -16, -18, 6, -20)
    path.close()
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Character:
    """One member of the cast."""

    name: str
    pronoun: str
    """"he", "she" or "it"."""
    limb: Colour
    """Hands and tail."""
    feet: Colour
    draw_behind: Draw
    """What shows behind the body: a tail. The origin is the hip."""
    draw_head: Draw
    face: FacePlan
    legs: Colour = (70, 66, 96)
    draw_mark: DrawMark = bobble
    mark_box: tuple[float, float, float, float] = BOBBLE_BOX
    draw_over: Draw | None = None
    """What lies over the face: nose, beak."""


def _nothing(canvas: skia.Canvas, ink: Ink) -> None:
    return


def _head(canvas: skia.Canvas, ink: Ink, colour: Colour, rx: float = HEAD_RX, ry: float = HEAD_RY) -> None:
    oval(canvas, 0, 0, rx, ry, ink.ball(colour, 0, 0, 25))


FOX = (236, 122, 44)


def fox_tail(canvas: skia.Canvas, ink: Ink) -> None:
    canvas.save()
    canvas.translate(-18, -6)
    canvas.rotate(38)
    oval(canvas, -8, 0, 19, 9, ink.ball(FOX, -8, 0, 16))
    oval(canvas, -21, 0, 7, 6.5, ink.fill((255, 244, 230)))
    canvas.restore()


def fox_head(canvas: skia.Canvas, ink: Ink) -> None:
    for side in (-1, 1):
        polygon(canvas, [(side * 24, 2), (side * 31, -33), (side * 5, -19)], ink.fill(darker(FOX, 0.12)))
        polygon(canvas, [(side * 23.5, -8), (side * 28, -25), (side * 13, -17)], ink.fill((88, 44, 34)))
    polygon(canvas, [(-22, 4), (-33, 14), (-16, 19)], ink.fill((255, 240, 222)))
    polygon(canvas, [(22, 4), (33, 14), (16, 19)], ink.fill((255, 240, 222)))
    _head(canvas, ink, FOX)
    oval(canvas, 4, 13, 16.5, 9.8, ink.ball((255, 242, 226), 4, 12, 14, 0.08))


def _nose(x: float, y: float, rx: float, ry: float, colour: Colour = DARK) -> Draw:
    def draw(canvas: skia.Canvas, ink: Ink) -> None:
        oval(canvas, x, y, rx, ry, ink.fill(colour))
        oval(canvas, x - rx * 0.3, y - ry * 0.4, rx * 0.35, ry * 0.3, ink.glow(WHITE, 0.55))

    return draw


BEAR = (134, 86, 52)


def bear_head(canvas: skia.Canvas, ink: Ink) -> None:
    for side in (-1, 1):
        oval(canvas, side * 22, -15, 10.5, 10.5, ink.ball(BEAR, side * 22, -15, 10))
        oval(canvas, side * 22.5, -14.5, 5.6, 5.6, ink.fill((214, 164, 118)))
    _head(canvas, ink, BEAR, 27, 23)
    oval(canvas, 4.5, 11.5, 14.5, 10.5, ink.ball((226, 186, 140), 4.5, 10, 13, 0.1))


RABBIT = (216, 204, 218)


def rabbit_head(canvas: skia.Canvas, ink: Ink) -> None:
    for side in (-1, 1):
        canvas.save()
        canvas.translate(side * 18, -12)
        canvas.rotate(side * 27)
        oval(canvas, 0, -20, 8.5, 25, ink.ball(RABBIT, 0, -20, 18))
        oval(canvas, 0, -20, 4.6, 18, ink.fill((246, 168, 184)))
        canvas.restore()
    _head(canvas, ink, RABBIT)
    oval(canvas, 4, 12.5, 13, 8.8, ink.fill(WHITE))


def rabbit_tail(canvas: skia.Canvas, ink: Ink) -> None:
    oval(canvas, -18, -2, 8, 8, ink.ball(WHITE, -18, -2, 8))


PENGUIN = (40, 48, 78)


def penguin_head(canvas: skia.Canvas, ink: Ink) -> None:
    _head(canvas, ink, PENGUIN, 25.5, 23.5)
    for side in (-1, 1):
        oval(canvas, 3 + side * 9, 0, 12.5, 14, ink.fill((218, 226, 242)))
    oval(canvas, 3.5, 11, 16, 11, ink.fill((218, 226, 242)))


def penguin_beak(canvas: skia.Canvas, ink: Ink) -> None:
    polygon(canvas, [(-1, 4.5), (10.5, 4.5), (5.5, 11.5)], ink.fill((246, 146, 30)))


FROG = (112, 190, 66)


def frog_head(canvas: skia.Canvas, ink: Ink) -> None:
    for side in (-1, 1):
        oval(canvas, 3 + side * 17, -13, 12.5, 13, ink.ball(FROG, 3 + side * 17, -13, 12))
    oval(canvas, 0, 4, 29, 18.5, ink.ball(FROG, 0, 2, 26))
    oval(canvas, 3, 14, 20, 8, ink.fill((206, 232, 142)))


ROBOT = (150, 172, 190)


def robot_head(canvas: skia.Canvas, ink: Ink) -> None:
    for side in (-1, 1):
        box(canvas, side * 25 - 5, -7, side * 25 + 5, 8, ink.fill((92, 104, 122)), 3)
    box(canvas, -25, -20, 25, 21, ink.slope(lighter(ROBOT, 0.35), darker(ROBOT, 0.15), -20, 21), 8)
    box(canvas, -18, -13, 22, 17.5, ink.fill((34, 46, 66)), 7)


SKIN = (246, 200, 164)
HAIR = (92, 50, 34)


def girl_head(canvas: skia.Canvas, ink: Ink) -> None:
    oval(canvas, -2, 2, 28, 25, ink.ball(HAIR, -2, -4, 24))
    for side in (-1, 1):
        oval(canvas, side * 28, 14, 8.5, 12, ink.ball(HAIR, side * 28, 10, 11))
    oval(canvas, 2.5, 3, 22, 19.5, ink.ball(SKIN, 2.5, 0, 22, 0.12))
    canvas.drawPath(_fringe(), ink.fill(HAIR))


@lru_cache(maxsize=1)
def _fringe() -> skia.Path:
    path = skia.Path()
    path.moveTo(-21, 2)
    path.cubicTo(-20, -26, 24, -26, 25, 0)
    path.cubicTo(20, -10, 8, -12, 4, -10)
    path.cubicTo(-6, -12, -16, -8, -21, 2)
    path.close()
    return path


STEEL = (176, 184, 198)


def knight_head(canvas: skia.Canvas, ink: Ink) -> None:
    oval(canvas, 0, 0, 27, 24.5, ink.ball(STEEL, 0, -6, 25, 0.3))
    oval(canvas, 3.5, 3.5, 20, 17, ink.ball((232, 178, 138), 3.5, 0, 20, 0.12))
    box(canvas, -19, -17.5, 25, -11, ink.slope((216, 222, 232), (124, 132, 150), -17, -11), 3)


CAST: dict[str, Character] = {
    character.name: character
    for character in (
        Character(
            name="fox",
            pronoun="he",
            limb=FOX,
            feet=(84, 46, 36),
            draw_behind=fox_tail,
            draw_head=fox_head,
            face=FacePlan(skin=FOX, mouth_y=14.0),
            draw_over=_nose(7, 7.5, 4.2, 3.0),
        ),
        Character(
            name="bear",
            pronoun="he",
            limb=BEAR,
            feet=darker(BEAR, 0.2),
            draw_behind=_nothing,
            draw_head=bear_head,
            face=FacePlan(skin=BEAR, mouth_y=14.0, brow=(60, 34, 24)),
            draw_over=_nose(7, 6.0, 5.0, 3.4),
        ),
        Character(
            name="rabbit",
            pronoun="she",
            limb=RABBIT,
            feet=(246, 240, 242),
            draw_behind=rabbit_tail,
            draw_head=rabbit_head,
            face=FacePlan(skin=RABBIT, mouth_y=13.0, brow=(120, 96, 110)),
            draw_over=_nose(6.5, 6.8, 3.2, 2.3, (236, 110, 140)),
        ),
        Character(
            name="penguin",
            pronoun="he",
            limb=PENGUIN,
            feet=(246, 146, 30),
            legs=(60, 66, 96),
            draw_behind=_nothing,
            draw_head=penguin_head,
            face=FacePlan(skin=(190, 200, 224), mouth_y=15.0, mouth=(176, 84, 24)),
            draw_over=penguin_beak,
        ),
        Character(
            name="frog",
            pronoun="she",
            limb=FROG,
            feet=(84, 158, 52),
            legs=(88, 160, 56),
            draw_behind=_nothing,
            draw_head=frog_head,
            face=FacePlan(
                skin=FROG, eye_x=17, eye_y=-12, eye_rx=7.6, eye_ry=8.6, mouth_y=10.0, turn=3.5, brow=(44, 96, 36)
            ),
        ),
        Character(
            name="robot",
            pronoun="it",
            limb=(196, 206, 218),
            feet=(84, 94, 110),
            legs=(112, 124, 142),
            draw_behind=_nothing,
            draw_head=robot_head,
            face=FacePlan(
                skin=(70, 90, 118),
                turn=2.2,
                mouth_y=9.5,
                eye_y=-2.5,
                brow=(90, 220, 240),
                mouth=(90, 220, 240),
                pupil=(20, 60, 110),
            ),
            draw_mark=dome,
            mark_box=(-18.0, -43.5, 18.0, -15.0),
        ),
        Character(
            name="girl",
            pronoun="she",
            limb=SKIN,
            feet=(96, 62, 52),
            legs=(84, 92, 150),
            draw_behind=_nothing,
            draw_head=girl_head,
            face=FacePlan(skin=SKIN, mouth_y=12.5, brow=(74, 40, 28)),
            draw_over=_nose(7, 6.5, 2.0, 1.6, (226, 156, 124)),
        ),
        Character(
            name="knight",
            pronoun="he",
            limb=(196, 202, 214),
            feet=(120, 128, 146),
            legs=(150, 158, 174),
            draw_behind=_nothing,
            draw_head=knight_head,
            face=FacePlan(skin=(232, 178, 138), turn=3.8, eye_y=0.5, mouth_y=13.0, brow=(110, 66, 36)),
            draw_mark=plume,
            mark_box=(-38.0, -46.0, 10.0, 1.0),
            draw_over=_nose(7.5, 7.5, 2.4, 2.0, (208, 142, 106)),
        ),
    )
}
"""Every character, by the name captions use."""
