"""The places. A place is one entry: its words, the weathers it knows, and three painted layers (far, middle, near).

A layer is painted once per (place, layout, tint, time) into a picture that repeats every `PERIOD` units, and is
scrolled and scaled by the camera. The layout moves the landmarks of the middle layer; the tint shifts the colours. In
every layer y = 0 is the ground line under the feet, y grows downwards, and the horizon lies near `HORIZON`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import skia

from shotstream.storyworld.ink import WHITE, Colour, Ink, Light, box, darker, lighter, mix, oval, polygon

PERIOD = 640.0
TOP, BOTTOM = -230.0, 60.0
HORIZON = -44.0

PLACE_LIGHT: dict[str, Light] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.78, 0.66), "night": (0.5, 0.56, 0.86)}
CAST_LIGHT: dict[str, Light] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.88, 0.8), "night": (0.74, 0.79, 1.0)}
SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((92, 172, 240), (206, 236, 252)),
    "sunset": ((116, 84, 164), (255, 176, 108)),
    "night": ((16, 20, 58), (56, 66, 128)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a painter is told: ink under the right light, and the hidden choices of the story."""

    ink: Ink
    time: str
    layout: int
    tint: int
    seed: str

    def pick(self, *colours: Colour) -> Colour:
        """The colour of this tint."""
        return colours[self.tint]

    @property
    def mirrored(self) -> int:
        """-1 or 1: on which side the first landmark stands."""
        return 1 if self.layout % 2 else -1

    @property
    def second(self) -> bool:
        """Which of the two arrangements of landmarks."""
        return self.layout >= 2

    def random(self) -> random.Random:
        return random.Random(f"{self.seed}-{self.layout}")


Paint = Callable[[skia.Canvas, Scene], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place of the world."""

    name: str
    phrases: tuple[str, ...]
    """Where somebody is: "in the city"."""
    nouns: tuple[str, ...]
    """What a picture without people is of: "the city"."""
    weathers: tuple[str, ...]
    far: Paint
    middle: Paint
    near: Paint


def sky(canvas: skia.Canvas, scene: Scene) -> None:
    """Gradient, sun or moon, a few clouds or stars."""
    top, bottom = SKY[scene.time]
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, BOTTOM + 40, Ink().slope(top, bottom, TOP + 30, HORIZON))
    plain = Ink()
    x = -95.0 * scene.mirrored
    if scene.time == "day":
        oval(canvas, x, -165, 30, 30, plain.fill((255, 240, 180), 0.45))
        oval(canvas, x, -165, 20, 20, plain.fill((255, 234, 140)))
    elif scene.time == "sunset":
        oval(canvas, x, -84, 42, 42, plain.fill((255, 206, 120), 0.4))
        oval(canvas, x, -84, 29, 29, plain.fill((255, 222, 140)))
    else:
        oval(canvas, x, -165, 19, 19, plain.fill((250, 246, 220)))
        oval(canvas, x + 8, -169, 16, 16, plain.fill(mix(top, bottom, 0.35)))
        for i in range(9):
            oval(canvas, -290 + i * 71 + 13 * (i % 3), -186 + 29 * ((i * 5) % 4), 2.2, 2.2, plain.fill((255, 250, 220)))
    if scene.time != "night":
        tone = WHITE if scene.time == "day" else (255, 200, 176)
        for cx, cy in ((-210, -150), (40, -178), (190, -140)):
            for dx, r in ((-20, 12), (0, 18), (20, 13)):
                oval(canvas, cx + dx, cy - r * 0.3, r * 1.35, r, plain.fill(tone, 0.8))


def ground(canvas: skia.Canvas, scene: Scene, back: Colour, front: Colour, top: float = HORIZON) -> None:
    box(canvas, -PERIOD, top, 2 * PERIOD, BOTTOM + 40, scene.ink.slope(back, front, top, BOTTOM))


def strip(canvas: skia.Canvas, scene: Scene, colour: Colour, top: float = HORIZON - 4) -> None:
    """The ground the middle layer stands on."""
    box(canvas, -PERIOD, top, 2 * PERIOD, BOTTOM + 40, scene.ink.fill(colour))


def _house(canvas: skia.Canvas, scene: Scene, x: float, width: float, height: float, wall: Colour, roof: str) -> None:
    base = HORIZON + 2
    top = base - height
    box(
        canvas,
        x - width / 2,
        top,
        x + width / 2,
        base,
        scene.ink.slope(lighter(wall, 0.12), darker(wall, 0.1), top, base),
    )
    if roof == "point":
        tip = [(x - width / 2 - 5, top), (x, top - width * 0.55), (x + width / 2 + 5, top)]
        polygon(canvas, tip, scene.ink.fill(darker(wall, 0.4)))
    elif roof == "dome":
        oval(canvas, x, top, width / 2, width * 0.4, scene.ink.fill(darker(wall, 0.35)))
        box(canvas, x - width / 2, top, x + width / 2, top + 12, scene.ink.fill(wall))
    shine = scene.ink.fill((176, 216, 240)) if scene.time == "day" else scene.ink.glow((255, 220, 120))
    columns = max(1, int(width // 24))
    for column in range(columns):
        for row in range(int((height - 12) // 27)):
            wx = x - width / 2 + width * (column + 0.5) / columns
            box(canvas, wx - 6, top + 12 + 27 * row, wx + 6, top + 26 + 27 * row, shine, 1.5)


def city_far(canvas: skia.Canvas, scene: Scene) -> None:
    sky(canvas, scene)
    tone = mix(scene.pick((190, 140, 130), (120, 140, 190), (140, 176, 150)), SKY[scene.time][1], 0.45)
    rng = scene.random()
    for x in range(-320, 320, 40):
        height = rng.choice((50, 70, 90, 62))
        box(canvas, x, HORIZON - height, x + 34, BOTTOM, scene.ink.fill(tone))


def city_middle(canvas: skia.Canvas, scene: Scene) -> None:
    walls = scene.pick((214, 118, 88), (96, 130, 190), (118, 176, 128))
    other = scene.pick((238, 188, 120), (150, 176, 220), (206, 208, 140))
    strip(canvas, scene, (150, 148, 156))
    side = scene.mirrored
    for x, width, height, wall in (
        (-285, 70, 80, other),
        (-205, 60, 100, walls),
        (215, 64, 86, walls),
        (290, 60, 110, other),
    ):
        _house(canvas, scene, x, width, height, wall, "flat")
    _house(canvas, scene, 92 * side, 58, 142, walls, "point" if scene.second else "dome")
    _house(canvas, scene, -96 * side, 96, 74 if scene.second else 60, other, "flat" if scene.second else "point")


def city_near(canvas: skia.Canvas, scene: Scene) -> None:
    ground(canvas, scene, (178, 174, 178), (120, 118, 128))
    box(canvas, -PERIOD, 14, 2 * PERIOD, BOTTOM + 40, scene.ink.fill((84, 84, 98)))
    for x in range(-320, 320, 80):
        box(canvas, x + 12, 30, x + 52, 35, scene.ink.fill((236, 226, 190)), 2)
    for x in (-230, 90):
        lamp = x if scene.second else x + 70
        box(canvas, lamp - 2.5, -140, lamp + 2.5, -24, scene.ink.fill((66, 70, 84)))
        oval(canvas, lamp, -144, 10, 10, scene.ink.glow((255, 238, 160) if scene.time != "day" else (240, 240, 232)))


def _tree(canvas: skia.Canvas, scene: Scene, x: float, size: float, leaf: Colour, pine: bool) -> None:
    base = HORIZON + 6
    trunk = scene.ink.fill((112, 76, 52))
    box(canvas, x - 6 * size, base - 46 * size, x + 6 * size, base, trunk, 3)
    if pine:
        for i in range(3):
            y, w = base - (26 + 32 * i) * size, (42 - 9 * i) * size
            polygon(canvas, [(x - w, y), (x, y - 56 * size), (x + w, y)], scene.ink.fill(darker(leaf, 0.26 - 0.1 * i)))
    else:
        for dx, dy, r in ((-22, -64, 27), (22, -66, 27), (0, -90, 33)):
            oval(
                canvas,
                x + dx * size,
                base + dy * size,
                r * size,
                r * size,
                scene.ink.ball(leaf, x + dx * size, base + dy * size, r * size),
            )


def _leaf(scene: Scene) -> Colour:
    return scene.pick((74, 156, 72), (222, 134, 50), (46, 140, 138))


def forest_far(canvas: skia.Canvas, scene: Scene) -> None:
    sky(canvas, scene)
    tone = mix(_leaf(scene), SKY[scene.time][1], 0.5)
    for i, x in enumerate(range(-270, 280, 60)):
        oval(canvas, x, HORIZON - 10, 46, 74 + 16 * (i % 3), scene.ink.fill(tone))


def forest_middle(canvas: skia.Canvas, scene: Scene) -> None:
    leaf = _leaf(scene)
    strip(canvas, scene, darker(leaf, 0.3))
    for x, size in ((-255, 1.15), (-175, 0.9), (190, 1.0), (255, 1.15)):
        _tree(canvas, scene, x, size, leaf, (x > 0) != scene.second)
    _tree(canvas, scene, 88 * scene.mirrored, 1.5, leaf, scene.second)
    _tree(canvas, scene, -62 * scene.mirrored, 0.85, lighter(leaf, 0.12), scene.second)
    _tree(canvas, scene, -112 * scene.mirrored, 1.0, leaf, not scene.second)


def forest_near(canvas: skia.Canvas, scene: Scene) -> None:
    leaf = _leaf(scene)
    ground(canvas, scene, mix(leaf, (196, 190, 110), 0.35), darker(leaf, 0.25))
    for x in (-250, -130, 140, 262):
        oval(canvas, x, -18, 30, 16, scene.ink.ball(darker(leaf, 0.1), x, -18, 24))
        oval(canvas, x + 24, -14, 20, 11, scene.ink.ball(leaf, x + 24, -14, 18))


def beach_far(canvas: skia.Canvas, scene: Scene) -> None:
    sky(canvas, scene)
    sea = scene.pick((40, 140, 206), (34, 168, 172), (70, 110, 196))
    box(
        canvas, -PERIOD, HORIZON - 26, 2 * PERIOD, BOTTOM + 40, scene.ink.slope(sea, lighter(sea, 0.3), HORIZON - 26, 0)
    )
    if scene.second:
        x = 70 * scene.mirrored
        polygon(canvas, [(x - 26, -76), (x + 26, -76), (x + 17, -64), (x - 17, -64)], scene.ink.fill((150, 84, 60)))
        polygon(canvas, [(x - 2, -126), (x + 26, -81), (x - 2, -81)], scene.ink.fill((250, 246, 236)))
    else:
        oval(canvas, 78 * scene.mirrored, -68, 46, 22, scene.ink.fill((96, 150, 110)))
        box(canvas, -PERIOD, -68, 2 * PERIOD, -40, scene.ink.slope(sea, lighter(sea, 0.15), -70, -40))


def beach_middle(canvas: skia.Canvas, scene: Scene) -> None:
    sand = scene.pick((246, 220, 160), (246, 200, 176), (226, 222, 200))
    box(canvas, -PERIOD, HORIZON - 8, 2 * PERIOD, HORIZON, scene.ink.fill((240, 248, 250)))
    strip(canvas, scene, darker(sand, 0.06), HORIZON - 2)
    for x in (96 * scene.mirrored, -250 * scene.mirrored):
        if scene.second:
            _umbrella(canvas, scene, x)
        else:
            _palm(canvas, scene, x)


def _palm(canvas: skia.Canvas, scene: Scene, x: float) -> None:
    trunk = skia.Path()
    trunk.moveTo(x, -38)
    trunk.quadTo(x + 14, -90, x - 6, -136)
    canvas.drawPath(trunk, scene.ink.stroke((150, 104, 66), 10))
    for angle in (-165, -130, -50, -15, 170, 10):
        canvas.save()
        canvas.translate(x - 6, -137)
        canvas.rotate(angle)
        oval(canvas, 24, 4, 27, 8, scene.ink.fill((58, 150, 84)))
        canvas.restore()


def _umbrella(canvas: skia.Canvas, scene: Scene, x: float) -> None:
    canvas.drawLine(x, -38, x + 8, -116, scene.ink.stroke((240, 236, 226), 5))
    path = skia.Path()
    path.moveTo(x - 46, -98)
    path.cubicTo(x - 34, -152, x + 52, -152, x + 60, -90)
    path.quadTo(x + 8, -108, x - 46, -98)
    canvas.drawPath(path, scene.ink.ball((240, 120, 96), x, -118, 40))


def beach_near(canvas: skia.Canvas, scene: Scene) -> None:
    sand = scene.pick((246, 220, 160), (246, 200, 176), (226, 222, 200))
    ground(canvas, scene, sand, darker(sand, 0.14))
    for x in (-200, 60, 220):
        oval(canvas, x, 22, 9, 5, scene.ink.fill((250, 244, 236)))


def snow_far(canvas: skia.Canvas, scene: Scene) -> None:
    sky(canvas, scene)
    rock = scene.pick((140, 160, 200), (186, 160, 196), (140, 186, 186))
    for x, h in (
        (-240, 90),
        (-110 * scene.mirrored, 130),
        (60 * scene.mirrored, 100 if scene.second else 70),
        (205, 105),
    ):
        polygon(canvas, [(x - h, HORIZON), (x, HORIZON - h), (x + h, HORIZON)], scene.ink.fill(rock))
        polygon(
            canvas,
            [(x - h * 0.4, HORIZON - h * 0.6), (x, HORIZON - h), (x + h * 0.4, HORIZON - h * 0.6)],
            scene.ink.fill((246, 250, 255)),
        )


def snow_middle(canvas: skia.Canvas, scene: Scene) -> None:
    white = scene.pick((226, 236, 250), (246, 228, 240), (222, 244, 240))
    oval(canvas, -155, HORIZON + 6, 160, 22, scene.ink.fill(white))
    oval(canvas, 165, HORIZON + 6, 150, 28, scene.ink.fill(white))
    strip(canvas, scene, white, HORIZON)
    x = 92 * scene.mirrored
    if scene.second:
        _house(canvas, scene, x, 84, 52, (150, 100, 70), "point")
        polygon(
            canvas,
            [(x - 52, -94), (x, -146), (x + 52, -94), (x + 38, -94), (x, -132), (x - 38, -94)],
            scene.ink.fill(WHITE),
        )
    else:
        for y, r in ((-56, 26), (-92, 19), (-121, 14)):
            oval(canvas, x, y, r, r, scene.ink.ball((244, 248, 255), x, y, r, 0.12))
        polygon(canvas, [(x, -123), (x - 22 * scene.mirrored, -118), (x, -116)], scene.ink.fill((240, 140, 40)))
        for dx in (-5, 5):
            oval(canvas, x + dx, -127, 2.4, 2.4, scene.ink.fill((40, 40, 56)))
    for px in (-230, 240):
        _tree(canvas, scene, px, 1.0, (86, 150, 140), True)


def snow_near(canvas: skia.Canvas, scene: Scene) -> None:
    white = scene.pick((236, 243, 253), (250, 236, 246), (232, 250, 246))
    ground(canvas, scene, white, mix(white, (150, 176, 220), 0.4))
    for x in (-210, 30, 230):
        oval(canvas, x, 34, 70, 13, scene.ink.fill(lighter(white, 0.5)))


def _sand(scene: Scene) -> Colour:
    return scene.pick((232, 172, 98), (222, 126, 92), (236, 214, 150))


def desert_far(canvas: skia.Canvas, scene: Scene) -> None:
    sky(canvas, scene)
    sand = mix(_sand(scene), SKY[scene.time][1], 0.25)
    if scene.second:
        for x, h in ((-60 * scene.mirrored, 96), (60 * scene.mirrored, 62), (245, 66)):
            polygon(canvas, [(x - h, HORIZON), (x, HORIZON - h), (x + h, HORIZON)], scene.ink.fill(darker(sand, 0.12)))
            polygon(
                canvas,
                [(x + h * 0.25, HORIZON), (x, HORIZON - h), (x + h, HORIZON)],
                scene.ink.fill(darker(sand, 0.28)),
            )
    else:
        for x, h in ((-90 * scene.mirrored, 100), (110 * scene.mirrored, 60), (262, 80)):
            box(
                canvas,
                x - 52,
                HORIZON - h,
                x + 52,
                BOTTOM,
                scene.ink.slope(darker(sand, 0.12), darker(sand, 0.28), HORIZON - h, HORIZON),
                12,
            )


def desert_middle(canvas: skia.Canvas, scene: Scene) -> None:
    sand = _sand(scene)
    for x, rx in ((-160, 155), (155, 160)):
        oval(canvas, x, HORIZON + 8, rx, 32, scene.ink.fill(lighter(sand, 0.12)))
    strip(canvas, scene, sand, HORIZON)
    for x, size in ((94 * scene.mirrored, 1.3), (-150 * scene.mirrored, 0.8), (260 * scene.mirrored, 1.0)):
        _cactus(canvas, scene, x, size)


def _cactus(canvas: skia.Canvas, scene: Scene, x: float, size: float) -> None:
    green, base = scene.ink.stroke((70, 146, 88), 17 * size), HORIZON + 6
    canvas.drawLine(x, base - 8, x, base - 78 * size, green)
    for side, y in ((-1, 32), (1, 46)):
        arm = skia.Path()
        arm.moveTo(x, base - y * size)
        arm.quadTo(x + side * 27 * size, base - y * size, x + side * 27 * size, base - (y + 24) * size)
        canvas.drawPath(arm, scene.ink.stroke((70, 146, 88), 12 * size))


def desert_near(canvas: skia.Canvas, scene: Scene) -> None:
    sand = _sand(scene)
    ground(canvas, scene, lighter(sand, 0.15), darker(sand, 0.12))
    for x in (-220, 50, 210):
        oval(canvas, x, 30, 84, 9, scene.ink.fill(lighter(sand, 0.25)))
        oval(canvas, x - 40, -16, 15, 10, scene.ink.ball((150, 110, 92), x - 40, -16, 13))


def _wall(canvas: skia.Canvas, scene: Scene, top: Colour, bottom: Colour) -> None:
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, BOTTOM + 40, scene.ink.slope(top, bottom, -190, HORIZON))


def kitchen_far(canvas: skia.Canvas, scene: Scene) -> None:
    wall = scene.pick((168, 218, 190), (250, 214, 132), (206, 178, 226))
    _wall(canvas, scene, lighter(wall, 0.1), wall)


def kitchen_middle(canvas: skia.Canvas, scene: Scene) -> None:
    wood = scene.pick((236, 240, 238), (188, 116, 70), (122, 146, 196))
    side = scene.mirrored
    for x in (-62 * side, 250 * side):
        _window(canvas, scene, x)
    if not scene.second:
        x0, x1 = sorted((48 * side, 136 * side))
        box(canvas, x0, -170, x1, -124, scene.ink.fill(wood), 4)
        box(canvas, (x0 + x1) / 2 - 1.5, -170, (x0 + x1) / 2 + 1.5, -124, scene.ink.fill(darker(wood, 0.25)))
    box(canvas, -PERIOD, -72, 2 * PERIOD, BOTTOM + 40, scene.ink.fill(wood))
    box(canvas, -PERIOD, -80, 2 * PERIOD, -70, scene.ink.fill((120, 96, 88)))
    for x in range(-320, 320, 64):
        box(canvas, x + 6, -63, x + 58, -46, scene.ink.fill(darker(wood, 0.1)), 3)
    if scene.second:
        x0, x1 = sorted((52 * side, 128 * side))
        box(canvas, x0, -158, x1, BOTTOM, scene.ink.slope((240, 244, 248), (200, 208, 218), -158, HORIZON), 6)
        box(canvas, x0, -108, x1, -103, scene.ink.fill((150, 160, 174)))
    else:
        oval(canvas, 90 * side, -90, 15, 12, scene.ink.ball((220, 90, 70), 90 * side, -90, 14))
        box(canvas, 90 * side - 22, -94, 90 * side + 4, -89, scene.ink.fill((60, 54, 64)), 2)


def _window(canvas: skia.Canvas, scene: Scene, x: float) -> None:
    top, bottom = SKY[scene.time]
    box(canvas, x - 38, -168, x + 38, -94, scene.ink.fill((250, 250, 246)), 4)
    box(canvas, x - 32, -162, x + 32, -100, Ink().slope(top, bottom, -162, -100), 2)
    disc: Colour = {"day": (255, 240, 160), "sunset": (255, 214, 110), "night": (250, 246, 220)}[scene.time]
    oval(canvas, x + 12, -122 if scene.time == "sunset" else -142, 10, 10, Ink().fill(disc))
    box(canvas, x - 2, -162, x + 2, -100, scene.ink.fill((250, 250, 246)))


def kitchen_near(canvas: skia.Canvas, scene: Scene) -> None:
    light, dark = (
        scene.pick((240, 232, 216), (236, 206, 176), (226, 220, 236)),
        scene.pick((176, 206, 190), (214, 150, 104), (180, 168, 208)),
    )
    ground(canvas, scene, light, light, HORIZON + 22)
    for column in range(-8, 8):
        x = column * 40.0
        for y0, y1 in ((-22, 0), (0, 28), (28, 110)):
            if (column + int(y0 >= 0) + int(y0 >= 28)) % 2:
                box(canvas, x, y0, x + 40, y1, scene.ink.fill(dark))


def station_far(canvas: skia.Canvas, scene: Scene) -> None:
    plain = Ink()
    top = {"day": (28, 40, 92), "sunset": (74, 32, 72), "night": (8, 10, 30)}[scene.time]
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, BOTTOM + 40, plain.slope(top, lighter(top, 0.12), TOP, HORIZON))
    for i in range(12):
        oval(canvas, -300 + i * 53, -186 + 31 * ((i * 7) % 4), 2.3, 2.3, plain.fill((255, 255, 240)))
    x = 62 * scene.mirrored
    planet = (230, 160, 90) if scene.second else (60, 140, 220)
    oval(canvas, x, -118, 40, 40, plain.ball(planet, x, -118, 40, 0.3))
    if scene.second:
        canvas.save()
        canvas.translate(x, -118)
        canvas.rotate(-16)
        canvas.drawOval(skia.Rect.MakeLTRB(-62, -11, 62, 11), plain.stroke((250, 222, 170), 6))
        canvas.restore()
    else:
        oval(canvas, x - 12, -128, 15, 10, plain.fill((90, 190, 110)))
        oval(canvas, x + 14, -106, 12, 9, plain.fill((90, 190, 110)))


def station_middle(canvas: skia.Canvas, scene: Scene) -> None:
    hull = scene.pick((206, 214, 224), (120, 186, 190), (182, 160, 206))
    shade = scene.ink.slope(lighter(hull, 0.2), darker(hull, 0.12), -200, HORIZON)
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, -170, shade)
    box(canvas, -PERIOD, -70, 2 * PERIOD, BOTTOM + 40, shade)
    for x in (-215, 215, -118 * scene.mirrored):
        box(canvas, x - 15, -190, x + 15, -60, shade)
    glow: Colour = {"day": (90, 220, 250), "sunset": (255, 150, 70), "night": (90, 120, 255)}[scene.time]
    box(canvas, -PERIOD, -172, 2 * PERIOD, -164, Ink().fill(glow))
    for i, x in enumerate(range(-300, 320, 75)):
        lamp = (
            (240, 90, 90)
            if (i + scene.layout) % 3 == 0
            else (250, 210, 90)
            if (i + scene.layout) % 3 == 1
            else (110, 220, 130)
        )
        box(canvas, x, -62, x + 40, -48, scene.ink.fill(darker(hull, 0.35)), 3)
        oval(canvas, x + 10, -55, 4, 4, Ink().fill(lamp))


def station_near(canvas: skia.Canvas, scene: Scene) -> None:
    hull = scene.pick((170, 178, 192), (96, 150, 160), (146, 128, 176))
    ground(canvas, scene, lighter(hull, 0.15), darker(hull, 0.25), HORIZON + 10)
    for x in range(-320, 320, 80):
        box(canvas, x + 4, 12, x + 76, 17, scene.ink.fill(darker(hull, 0.3)), 2)


def _curtain(scene: Scene) -> Colour:
    return scene.pick((190, 40, 56), (38, 92, 172), (46, 130, 84))


def stage_far(canvas: skia.Canvas, scene: Scene) -> None:
    backdrop: Colour = {"day": (240, 214, 164), "sunset": (240, 136, 92), "night": (44, 48, 110)}[scene.time]
    back = mix(backdrop, _curtain(scene), 0.22)
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, BOTTOM + 40, Ink().slope(darker(back, 0.2), back, TOP, HORIZON))
    plain, x = Ink(), 66.0 * scene.mirrored
    if scene.second:
        oval(canvas, x, -120, 30, 30, plain.fill((255, 244, 190)))
    else:
        points = [
            (
                x + (38 if i % 2 == 0 else 16) * math.sin(i * math.pi / 5),
                -120 - (38 if i % 2 == 0 else 16) * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
        polygon(canvas, points, plain.fill((255, 214, 80)))


def stage_middle(canvas: skia.Canvas, scene: Scene) -> None:
    cloth = _curtain(scene)
    box(canvas, -PERIOD, TOP - 40, 2 * PERIOD, -178, scene.ink.fill(darker(cloth, 0.15)))
    for x in range(-320, 320, 40):
        oval(canvas, x + 20, -178, 22, 17, scene.ink.ball(cloth, x + 20, -178, 20))
    side = scene.mirrored
    spans = [(-320, -196), (196, 320), tuple(sorted((104 * side, 200 * side)))]
    for x0, x1 in spans:
        for fold in range(int(x0), int(x1), 24):
            box(
                canvas,
                fold,
                -200,
                fold + 24,
                HORIZON + 6,
                scene.ink.fill(cloth if (fold // 24) % 2 else darker(cloth, 0.22)),
            )
    strip(canvas, scene, (150, 96, 60), HORIZON)


def stage_near(canvas: skia.Canvas, scene: Scene) -> None:
    ground(canvas, scene, (206, 148, 92), (140, 88, 54))
    for y in (-26, -2, 30):
        box(canvas, -PERIOD, y, 2 * PERIOD, y + 2.5, scene.ink.fill((128, 80, 50)))
    oval(canvas, 0, 0, 120, 22, scene.ink.glow((255, 240, 190), 0.28))


PLACES: dict[str, Place] = {
    place.name: place
    for place in (
        Place(
            name="city",
            phrases=("in the city", "on a city street", "downtown", "in town"),
            nouns=("the city", "a city street", "the town"),
            weathers=("clear", "rain", "snow"),
            far=city_far,
            middle=city_middle,
            near=city_near,
        ),
        Place(
            name="forest",
            phrases=("in the forest", "in the woods", "among the trees"),
            nouns=("the forest", "the woods"),
            weathers=("clear", "rain", "snow"),
            far=forest_far,
            middle=forest_middle,
            near=forest_near,
        ),
        Place(
            name="beach",
            phrases=("on the beach", "at the beach", "by the sea"),
            nouns=("the beach", "the seaside"),
            weathers=("clear", "rain"),
            far=beach_far,
            middle=beach_middle,
            near=beach_near,
        ),
        Place(
            name="snow field",
            phrases=("in a snowy field", "on a snow field", "in the snowy mountains"),
            nouns=("the snow field", "the snowy mountains"),
            weathers=("clear", "snow"),
            far=snow_far,
            middle=snow_middle,
            near=snow_near,
        ),
        Place(
            name="desert",
            phrases=("in the desert", "in a sandy desert", "among the dunes"),
            nouns=("the desert", "the sandy desert"),
            weathers=("clear", "rain"),
            far=desert_far,
            middle=desert_middle,
            near=desert_near,
        ),
        Place(
            name="kitchen",
            phrases=("in the kitchen", "in a kitchen", "at home in the kitchen"),
            nouns=("the kitchen",),
            weathers=("clear",),
            far=kitchen_far,
            middle=kitchen_middle,
            near=kitchen_near,
        ),
        Place(
            name="space station",
            phrases=("on a space station", "aboard the space station", "in a space station"),
            nouns=("the space station", "a space station"),
            weathers=("clear",),
            far=station_far,
            middle=station_middle,
            near=station_near,
        ),
        Place(
            name="stage",
            phrases=("on a stage", "on the theatre stage", "on stage"),
            nouns=("the stage", "the theatre stage"),
            weathers=("clear",),
            far=stage_far,
            middle=stage_middle,
            near=stage_near,
        ),
    )
}
"""Every place by its name, in the order of `spec.PLACES` (labels and the probe do without what draws)."""
