"""Pixels of the drawn world: `render_frame(spec, i)` is a pure function of the spec and the frame's number.

Frame i depends on changes up to frame i only (a change begins at the first frame of its chunk), so that a shot steered
later has the same pixels until then. Painted places are cached; nothing else is kept.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import skia

from shotstream.storyworld import face as faces
from shotstream.storyworld import motion
from shotstream.storyworld.cast import CAST
from shotstream.storyworld.ink import Ink, Light, oval
from shotstream.storyworld.places import BOTTOM, CAST_LIGHT, PERIOD, PLACE_LIGHT, PLACES, TOP, Paint, Scene
from shotstream.storyworld.puppet import Box, draw_puppet
from shotstream.storyworld.spec import NOBODY, ShotSpec, first_frame

FPS = 16
EASE_FRAMES = 6
BASE_HEIGHT = 192.0
"""Cameras are measured in pixels of a frame this high."""
SCALES = {"wide": 0.86, "medium": 1.85, "close-up": 2.6}
HEAD_ROOM = {"wide": -83.0, "medium": -72.0, "close-up": -81.5}
"""Height of the camera's centre, in character units."""
ROAM = {"wide": 112.0, "medium": 22.0, "close-up": 9.0}
"""How far a character may move from the middle before the camera follows."""
PUSH = {"wide": 0.35, "medium": 0.25, "close-up": 0.15}
"""How much larger a push-in makes things over 81 frames."""
FOLLOWED = frozenset(motion.SPEEDS) | {"sitting", "jumping"}
"""Actions that make even a still camera follow."""
DEPTHS = (0.15, 0.5, 1.0)
DENSITY = (1.0, 1.3, 1.3)
"""Pixels per unit in the painted layers."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One frame, with boxes (x0, y0, x1, y1) in pixels clipped to it, one per character in view."""

    pixels: npt.NDArray[np.uint8]
    face_boxes: tuple[Box, ...]
    mark_boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class RenderedShot:
    """A shot: pixels [T, H, W, 3] and, per frame, its boxes."""

    pixels: npt.NDArray[np.uint8]
    face_boxes: tuple[tuple[Box, ...], ...]
    mark_boxes: tuple[tuple[Box, ...], ...]


def render_frame(spec: ShotSpec, frame_index: int, height: int = 192, width: int = 320) -> Rendered:
    """Draw one frame of a shot. Raises ValueError for a negative frame or an empty size."""
    pixels = np.empty((height, width, 3), np.uint8)
    boxes = _render_into(spec, frame_index, pixels)
    return Rendered(pixels, *boxes)


def render_shot(spec: ShotSpec, num_frames: int = 81, height: int = 192, width: int = 320) -> RenderedShot:
    """Draw the first frames of a shot."""
    pixels = np.empty((num_frames, height, width, 3), np.uint8)
    boxes = [_render_into(spec, index, pixels[index]) for index in range(num_frames)]
    return RenderedShot(pixels, tuple(b[0] for b in boxes), tuple(b[1] for b in boxes))


@dataclass(frozen=True, slots=True)
class Camera:
    """Where the camera looks (character units), in pixels per unit of a `BASE_HEIGHT` frame."""

    x: float
    y: float
    scale: float

    def screen_y(self, y: float) -> float:
        return BASE_HEIGHT / 2 + (y - self.y) * self.scale

    def at_depth(self, depth: float) -> Camera:
        """The same camera as a layer at this depth sees it: 1 moves with the characters, 0 never moves."""
        wide = SCALES["wide"]
        y = HEAD_ROOM["wide"] + (self.y - HEAD_ROOM["wide"]) * depth
        return Camera(self.x * depth, y, wide * (self.scale / wide) ** depth)


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything that moves, at one frame."""

    time: float
    pose: motion.Pose
    face: faces.Expression
    x: float
    rain: float
    snow: float
    blink: float


def moment(spec: ShotSpec, frame: int) -> Moment:
    """Pose, face, position and weather of a frame, with every change up to it eased in."""
    time = frame / FPS
    phase = (spec.seed % 97) / 97 * 4.0
    pose = motion.ACTION_POSES[spec.action](time + phase)
    face = faces.EXPRESSION_FACES[spec.expression]
    weather = {"rain": float(spec.weather == "rain"), "snow": float(spec.weather == "snow")}
    speed = motion.SPEEDS.get(spec.action, 0.0)
    x = start_x(spec) + speed * time
    for change in spec.steers:
        since = frame - first_frame(change.chunk) + 1
        if since < 1:
            continue
        amount = _ease(since)
        if change.attribute == "action":
            pose = motion.blend(pose, motion.ACTION_POSES[change.value](time + phase), amount)
            new_speed = motion.SPEEDS.get(change.value, 0.0)
            x += (new_speed - speed) * _eased_seconds(since)
            speed = new_speed
        elif change.attribute == "expression":
            face = faces.blend(face, faces.EXPRESSION_FACES[change.value], amount)
        else:
            weather = {kind: old + (float(kind == change.value) - old) * amount for kind, old in weather.items()}
    return Moment(time, pose, face, x, weather["rain"], weather["snow"], _blink(spec.seed, frame))


def start_x(spec: ShotSpec) -> float:
    """Where the character stands at first, in units towards where it faces."""
    unit = ((spec.seed // 97) % 89) / 88 - 0.5
    if spec.action in motion.SPEEDS and spec.framing == "wide":
        return -70.0 + 30 * unit
    aside = -26.0 if spec.second_character != NOBODY else 0.0
    return aside + {"wide": 60.0, "medium": 18.0, "close-up": 8.0}[spec.framing] * unit


def camera_at(spec: ShotSpec, frame: int, now: Moment) -> Camera:
    """Follow the character softly, then add the camera's own motion."""
    facing = -1.0 if spec.angle == "left" else 1.0
    roam = ROAM[spec.framing]
    centre = 0.0 if spec.second_character == NOBODY or spec.framing == "wide" else -12.0
    offset = now.x - centre
    x = facing * (now.x - roam * math.tanh(offset / roam))
    y = HEAD_ROOM[spec.framing]
    if spec.framing != "wide":
        sunk = 1.0 if spec.framing == "close-up" else 0.4
        y += sunk * now.pose.knees * motion.SIT_DROP - 0.6 * max(0.0, now.pose.lift - 4)
    scale = SCALES[spec.framing]
    progress = min(1.0, frame / 80)
    if spec.camera_motion == "push-in":
        scale *= 1 + PUSH[spec.framing] * progress
    elif spec.camera_motion == "pan":
        reach = {"wide": 58.0, "medium": 26.0, "close-up": 15.0}[spec.framing]
        x += reach * (2 * progress - 1) * (1 if spec.seed % 2 else -1)
    return Camera(x, y, scale)


def _render_into(spec: ShotSpec, frame: int, out: npt.NDArray[np.uint8]) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    if frame < 0:
        raise ValueError(f"frame_index counts from 0, got {frame}")
    height, width = out.shape[:2]
    surface, buffer = _surface(height, width)
    canvas = surface.getCanvas()
    now = moment(spec, frame)
    camera = camera_at(spec, frame, now)
    canvas.save()
    canvas.scale(height / BASE_HEIGHT, height / BASE_HEIGHT)
    view_width = BASE_HEIGHT * width / height
    _draw_place(canvas, spec, camera, view_width)
    boxes = _draw_cast(canvas, spec, now, camera, view_width)
    _draw_weather(canvas, spec, now, view_width)
    canvas.restore()
    for channel in range(3):  # one plane at a time: seven times faster than a sliced copy
        out[..., channel] = buffer[..., 2 - channel]
    faces_, marks = zip(*boxes, strict=True)
    return _clipped(faces_, height, width), _clipped(marks, height, width)


@lru_cache(maxsize=4)
def _surface(height: int, width: int) -> tuple[skia.Surface, npt.NDArray[np.uint8]]:
    """A drawing surface over a numpy buffer, BGRA (Skia's fast byte order here); every frame covers all of it."""
    buffer = np.zeros((height, width, 4), np.uint8)
    info = skia.ImageInfo.Make(width, height, skia.kBGRA_8888_ColorType, skia.kPremul_AlphaType)
    return skia.Surface.MakeRasterDirect(info, buffer), buffer


PlaceKey = tuple[str, int, int, str]
"""Place, layout, tint, time of day: what a painted layer depends on."""


def _draw_place(canvas: skia.Canvas, spec: ShotSpec, camera: Camera, view_width: float) -> None:
    place = (spec.place, spec.layout, spec.tint, spec.time_of_day)
    actions = (spec.action, *(change.value for change in spec.steers))
    if spec.camera_motion == "still" and not FOLLOWED.intersection(actions):
        scale = canvas.getTotalMatrix().getScaleX()
        canvas.drawImageRect(
            _still(place, camera, view_width, scale), skia.Rect.MakeWH(view_width, BASE_HEIGHT), skia.SamplingOptions()
        )
        return
    _draw_layers(canvas, place, camera, view_width)


@lru_cache(maxsize=4)
def _still(place: PlaceKey, camera: Camera, view_width: float, scale: float) -> skia.Image:
    """The place through a camera that does not move, at the frame's own size."""
    surface = skia.Surface.MakeRasterN32Premul(round(view_width * scale), round(BASE_HEIGHT * scale))
    canvas = surface.getCanvas()
    canvas.scale(scale, scale)
    _draw_layers(canvas, place, camera, view_width)
    return surface.makeImageSnapshot()


def _draw_layers(canvas: skia.Canvas, place: PlaceKey, camera: Camera, view_width: float) -> None:
    """Draw the layers back to front, each only where no nearer one covers it for sure."""
    layers = [(_painted(*place, layer), camera.at_depth(depth)) for layer, depth in enumerate(DEPTHS)]
    bottom = BASE_HEIGHT
    spans = []
    for painted, view in reversed(layers):
        top = max(0.0, math.floor(view.screen_y(painted.top)) - 1)
        spans.append((top, bottom))
        bottom = min(bottom, max(0.0, math.ceil(view.screen_y(painted.solid)) + 1))
    for layer, (painted, view) in enumerate(layers):
        top, bottom = spans[-1 - layer]
        if bottom > top:
            _draw_layer(canvas, painted, DENSITY[layer], view, skia.Rect.MakeLTRB(0, top, view_width, bottom))


def _draw_layer(canvas: skia.Canvas, painted: Painted, density: float, camera: Camera, span: skia.Rect) -> None:
    """Fill the span with copies of the layer side by side.

    One clamped rectangle per copy in view (nearly always one): repeating in the shader is several times slower.
    """
    period = PERIOD * camera.scale
    left = (span.width() / 2 - camera.x * camera.scale - period / 2) % period - period
    scale = camera.scale / density
    sampling = skia.SamplingOptions(skia.FilterMode.kLinear)
    while left < span.right():
        seam, right = max(0.0, math.floor(left)), min(span.right(), math.floor(left + period))
        if right > seam:
            matrix = skia.Matrix()
            matrix.setScale(scale, scale)
            matrix.postTranslate(left, camera.screen_y(TOP))
            shader = painted.image.makeShader(skia.TileMode.kClamp, skia.TileMode.kClamp, sampling, matrix)
            canvas.drawRect(skia.Rect.MakeLTRB(seam, span.top(), right, span.bottom()), skia.Paint(Shader=shader))
        left += period


@dataclass(frozen=True, slots=True)
class Painted:
    """A painted layer; it is empty above `top` and opaque below `solid` (layer units)."""

    image: skia.Image
    top: float
    solid: float


@lru_cache(maxsize=48)
def _painted(place: str, layout: int, tint: int, time: str, layer: int) -> Painted:
    """One layer of a place as a picture that repeats sideways."""
    density = DENSITY[layer]
    surface = skia.Surface.MakeRasterN32Premul(round(PERIOD * density), round((BOTTOM - TOP) * density))
    canvas = surface.getCanvas()
    canvas.scale(density, density)
    entry = PLACES[place]
    paint: Paint = (entry.far, entry.middle, entry.near)[layer]
    scene = Scene(ink=Ink(PLACE_LIGHT[time]), time=time, layout=layout, tint=tint, seed=place)
    canvas.translate(PERIOD / 2, -TOP)
    paint(canvas, scene)
    image = surface.makeImageSnapshot()
    alpha = image.toarray()[..., 3]
    used = alpha.any(axis=1)
    holes = np.flatnonzero((alpha < 255).any(axis=1))
    top = int(np.argmax(used)) if used.any() else len(used)
    solid = int(holes[-1]) + 1 if holes.size else 0
    return Painted(image, TOP + top / density, TOP + solid / density)


def _draw_cast(
    canvas: skia.Canvas, spec: ShotSpec, now: Moment, camera: Camera, view_width: float
) -> list[tuple[Box, Box]]:
    canvas.save()
    canvas.translate(view_width / 2, BASE_HEIGHT / 2)
    canvas.scale(camera.scale, camera.scale)
    canvas.translate(-camera.x, -camera.y)
    facing = -1.0 if spec.angle == "left" else 1.0
    ink = Ink(_cast_light(spec.time_of_day))
    boxes = []
    if spec.second_character != NOBODY:
        boxes.append(_draw_second(canvas, spec, now, ink, facing))
    canvas.save()
    canvas.translate(facing * now.x, 0)
    canvas.scale(facing, 1)
    _shadow(canvas, now.pose.lift)
    character = CAST[spec.character]
    boxes.insert(0, draw_puppet(canvas, ink, character, spec.clothing, spec.mark, now.pose, now.face, now.blink))
    canvas.restore()
    canvas.restore()
    return boxes


def _draw_second(canvas: skia.Canvas, spec: ShotSpec, now: Moment, ink: Ink, facing: float) -> tuple[Box, Box]:
    """The listener: a little smaller, turned towards the first character."""
    canvas.save()
    canvas.translate(facing * (start_x(spec) + 66), -7)
    canvas.scale(-facing * 0.84, 0.84)
    _shadow(canvas, 0.0)
    pose = motion.standing(now.time + 1.3)
    boxes = draw_puppet(
        canvas,
        ink,
        CAST[spec.second_character],
        spec.second_clothing,
        spec.second_mark,
        pose,
        faces.EXPRESSION_FACES["neutral"],
        _blink(spec.seed + 7, round(now.time * FPS)),
    )
    canvas.restore()
    return boxes


def _cast_light(time: str) -> Light:
    return CAST_LIGHT[time]


def _shadow(canvas: skia.Canvas, lift: float) -> None:
    spread = 1 - 0.012 * lift
    oval(canvas, 0, -1, 27 * spread, 6.0 * spread, _shadow_paint())


@lru_cache(maxsize=1)
def _shadow_paint() -> skia.Paint:
    return Ink().fill((20, 16, 44), 0.3)


def _draw_weather(canvas: skia.Canvas, spec: ShotSpec, now: Moment, view_width: float) -> None:
    if now.rain > 0.01:
        canvas.drawPaint(Ink().fill((70, 86, 120), round(0.18 * now.rain, 2)))
        paint = Ink().stroke((206, 226, 250), 3.4, round(0.8 * now.rain, 2))
        for x, y, size in _drops(spec.seed, 17):
            px = (x * (view_width + 60) - 34 * now.time) % (view_width + 60) - 30
            py = (y * 240 + (150 + 40 * size) * now.time) % 240 - 24
            canvas.drawLine(px, py, px - 4, py + 17, paint)
    if now.snow > 0.01:
        canvas.drawPaint(Ink().fill((200, 212, 232), round(0.16 * now.snow, 2)))
        paint = Ink().fill((255, 255, 255), round(0.95 * now.snow, 2))
        for x, y, size in _drops(spec.seed, 22):
            sway = 7 * math.sin(now.time * 1.6 + 40 * x)
            px = (x * (view_width + 30)) + sway - 15
            py = (y * 220 + (34 + 20 * size) * now.time) % 220 - 14
            radius = 3.0 + 1.8 * size
            oval(canvas, px, py, radius, radius, paint)


@lru_cache(maxsize=64)
def _drops(seed: int, count: int) -> tuple[tuple[float, float, float], ...]:
    rng = random.Random(seed * 2 + 1)
    return tuple(((i + rng.random()) / count, rng.random(), rng.random()) for i in range(count))


def _blink(seed: int, frame: int) -> float:
    """Eyes close for four frames, every two to four seconds, never in the first half second."""
    period = 34 + seed % 23
    beat = (frame + seed % 19) % period
    if frame < 8 or beat > 3:
        return 0.0
    return (0.55, 1.0, 1.0, 0.55)[beat]


def _ease(frames: int) -> float:
    t = min(1.0, frames / EASE_FRAMES)
    return t * t * (3 - 2 * t)


def _eased_seconds(frames: int) -> float:
    """Seconds at full effect that `frames` frames of an eased change amount to."""
    return sum(_ease(i) for i in range(1, min(frames, EASE_FRAMES) + 1)) / FPS + max(0, frames - EASE_FRAMES) / FPS


def _clipped(boxes: tuple[Box, ...], height: int, width: int) -> tuple[Box, ...]:
    """Boxes cut to the frame; those outside it are dropped."""
    cut = [(max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)) for x0, y0, x1, y1 in boxes]
    return tuple(box for box in cut if box[2] - box[0] >= 2 and box[3] - box[1] >= 2)
