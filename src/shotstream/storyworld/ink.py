"""Colours and cached Skia paints. All drawing goes through an `Ink`, which knows the light of the scene."""

from __future__ import annotations

from functools import lru_cache

import skia

Colour = tuple[int, int, int]
Light = tuple[float, float, float]

CLOTHING_COLOURS: dict[str, Colour] = {
    "red": (214, 52, 58),
    "blue": (46, 98, 214),
    "green": (52, 158, 82),
    "yellow": (246, 200, 58),
    "purple": (138, 74, 190),
}
MARK_COLOURS: dict[str, Colour] = {
    "crimson": (224, 36, 52),
    "amber": (255, 196, 32),
    "jade": (24, 172, 96),
    "cobalt": (36, 92, 236),
    "magenta": (240, 84, 200),
    "ivory": (250, 248, 240),
}
WHITE: Colour = (255, 255, 255)
DARK: Colour = (44, 34, 48)


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """Blend two colours: 0 gives a, 1 gives b."""
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def lighter(colour: Colour, amount: float = 0.25) -> Colour:
    return mix(colour, WHITE, amount)


@lru_cache(maxsize=1024)
def darker(colour: Colour, amount: float = 0.25) -> Colour:
    return mix(colour, (20, 12, 40), amount)


def lit(colour: Colour, light: Light) -> Colour:
    """The colour as this light shows it."""
    return tuple(min(255, round(c * l)) for c, l in zip(colour, light, strict=True))  # type: ignore[return-value]


class Ink:
    """Paints under one light. Paints are cached, so asking for the same one again costs a dictionary lookup."""

    __slots__ = ("light",)

    def __init__(self, light: Light = (1.0, 1.0, 1.0)) -> None:
        self.light = light

    def fill(self, colour: Colour, alpha: float = 1.0) -> skia.Paint:
        return _fill(colour, self.light, alpha)

    def glow(self, colour: Colour, alpha: float = 1.0) -> skia.Paint:
        """A colour that shines by itself, whatever the light."""
        return _fill(colour, (1.0, 1.0, 1.0), alpha)

    def stroke(self, colour: Colour, width: float, alpha: float = 1.0) -> skia.Paint:
        return _stroke(colour, self.light, width, alpha)

    def ball(self, colour: Colour, x: float, y: float, radius: float, shade: float = 0.22) -> skia.Paint:
        """Soft round shading: light from above, darker towards the lower rim."""
        return _ball(colour, self.light, x, y, radius, shade)

    def slope(self, top: Colour, bottom: Colour, y0: float, y1: float) -> skia.Paint:
        """A vertical gradient."""
        return _slope(top, bottom, self.light, y0, y1)


@lru_cache(maxsize=4096)
def _fill(colour: Colour, light: Light, alpha: float) -> skia.Paint:
    return skia.Paint(AntiAlias=True, Color=skia.Color(*lit(colour, light), round(255 * alpha)))


@lru_cache(maxsize=4096)
def _stroke(colour: Colour, light: Light, width: float, alpha: float) -> skia.Paint:
    return skia.Paint(
        AntiAlias=True,
        Color=skia.Color(*lit(colour, light), round(255 * alpha)),
        Style=skia.Paint.kStroke_Style,
        StrokeWidth=width,
        StrokeCap=skia.Paint.kRound_Cap,
        StrokeJoin=skia.Paint.kRound_Join,
    )


@lru_cache(maxsize=4096)
def _ball(colour: Colour, light: Light, x: float, y: float, radius: float, shade: float) -> skia.Paint:
    tones = (lighter(colour, shade * 0.8), colour, darker(colour, shade))
    colours = [skia.Color(*lit(tone, light)) for tone in tones]
    shader = skia.GradientShader.MakeRadial((x, y - radius * 0.45), radius * 1.6, colours, [0.0, 0.5, 1.0])
    return skia.Paint(AntiAlias=True, Shader=shader)


@lru_cache(maxsize=4096)
def _slope(top: Colour, bottom: Colour, light: Light, y0: float, y1: float) -> skia.Paint:
    colours = [skia.Color(*lit(top, light)), skia.Color(*lit(bottom, light))]
    return skia.Paint(AntiAlias=True, Shader=skia.GradientShader.MakeLinear([(0, y0), (0, y1)], colours))


def oval(canvas: skia.Canvas, x: float, y: float, rx: float, ry: float, paint: skia.Paint) -> None:
    canvas.drawOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), paint)


def box(
    canvas: skia.Canvas, x0: float, y0: float, x1: float, y1: float, paint: skia.Paint, radius: float = 0.0
) -> None:
    rect = skia.Rect.MakeLTRB(x0, y0, x1, y1)
    if radius:
        canvas.drawRoundRect(rect, radius, radius, paint)
    else:
        canvas.drawRect(rect, paint)


def polygon(canvas: skia.Canvas, points: list[tuple[float, float]], paint: skia.Paint) -> None:
    canvas.drawPath(_polygon(tuple(points)), paint)


@lru_cache(maxsize=1024)
def _polygon(points: tuple[tuple[float, float], ...]) -> skia.Path:
    return skia.Path.Polygon([skia.Point(*p) for p in points], True)
