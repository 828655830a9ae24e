"""How bodies move: one function per action gives a pose at a time, poses blend linearly.

Units are character units (a body is about 100 high, feet at y = 0, y grows downwards), drawn facing right. A new action
is one function and one entry in `ACTION_POSES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

SIT_DROP = 15.0
"""How much lower the hips are when sitting."""


class Pose(NamedTuple):
    """Where the parts of a body are. Hands are relative to the middle of the shoulders, feet to the ground."""

    lift: float = 0.0
    hip_drop: float = 0.0
    lean: float = 0.0
    head_tilt: float = 0.0
    head_dy: float = 0.0
    back_foot_x: float = -8.0
    back_foot_y: float = 0.0
    front_foot_x: float = 8.0
    front_foot_y: float = 0.0
    back_hand_x: float = -20.0
    back_hand_y: float = 22.0
    front_hand_x: float = 20.0
    front_hand_y: float = 22.0
    knees: float = 0.0
    """1 lifts the knees in front of the belly (sitting on the ground)."""
    book: float = 0.0
    gaze_y: float = 0.0


def _wave(time: float, period: float, phase: float = 0.0) -> float:
    return math.sin(2 * math.pi * (time / period + phase))


def standing(time: float) -> Pose:
    breath = _wave(time, 2.6)
    return Pose(
        head_dy=0.9 * breath, back_hand_y=22 + breath, front_hand_y=22 + breath, head_tilt=1.5 * _wave(time, 5.2)
    )


def walking(time: float) -> Pose:
    step = _wave(time, 1.1)
    lift = _wave(time, 1.1, 0.25)
    return Pose(
        lift=1.8 * abs(lift),
        lean=3,
        head_tilt=2 * step,
        back_foot_x=15 * step,
        back_foot_y=7 * max(0.0, lift),
        front_foot_x=-15 * step,
        front_foot_y=7 * max(0.0, -lift),
        back_hand_x=-10 - 14 * step,
        back_hand_y=19,
        front_hand_x=12 + 14 * step,
        front_hand_y=19,
    )


def running(time: float) -> Pose:
    step = _wave(time, 0.72)
    lift = _wave(time, 0.72, 0.25)
    return Pose(
        lift=4 + 5 * abs(lift),
        lean=15,
        head_tilt=-7,
        back_foot_x=-3 + 25 * step,
        back_foot_y=13 * max(0.0, lift) + 3,
        front_foot_x=-3 - 25 * step,
        front_foot_y=13 * max(0.0, -lift) + 3,
        back_hand_x=-10 - 18 * step,
        back_hand_y=7 + 5 * step,
        front_hand_x=12 + 18 * step,
        front_hand_y=7 - 5 * step,
    )


def jumping(time: float) -> Pose:
    beat = (time / 1.15) % 1.0
    air = max(0.0, (beat - 0.3) / 0.7)
    height = 4 * air * (1 - air)
    crouch = math.sin(math.pi * beat / 0.3) if beat < 0.3 else 0.0
    return Pose(
        lift=27 * height,
        hip_drop=8 * crouch,
        head_dy=1.5 * crouch,
        back_foot_x=-9 - 4 * height,
        front_foot_x=9 + 4 * height,
        back_foot_y=5 * height,
        front_foot_y=5 * height,
        back_hand_x=-20 - 10 * height,
        back_hand_y=18 - 44 * height,
        front_hand_x=20 + 10 * height,
        front_hand_y=18 - 44 * height,
    )


def waving(time: float) -> Pose:
    sway = _wave(time, 0.85)
    return Pose(
        head_tilt=-3 + 2 * sway, lean=-1, front_hand_x=34 + 7 * sway, front_hand_y=-24 + 2 * abs(sway), back_hand_y=22
    )


def dancing(time: float) -> Pose:
    sway = _wave(time, 1.2)
    beat = abs(_wave(time, 1.2))
    return Pose(
        lift=3 * beat,
        hip_drop=3 * (1 - beat),
        lean=10 * sway,
        head_tilt=-9 * sway,
        back_foot_x=-12,
        front_foot_x=12,
        back_foot_y=9 * max(0.0, sway),
        front_foot_y=9 * max(0.0, -sway),
        back_hand_x=-31,
        back_hand_y=-4 + 24 * sway,
        front_hand_x=31,
        front_hand_y=-4 - 24 * sway,
    )


def sitting(time: float) -> Pose:
    breath = _wave(time, 2.8)
    return Pose(
        hip_drop=SIT_DROP,
        lean=-4,
        head_dy=0.9 * breath,
        head_tilt=2 * _wave(time, 5.6),
        back_foot_x=16,
        front_foot_x=24,
        knees=1,
        back_hand_x=-19,
        back_hand_y=27,
        front_hand_x=20,
        front_hand_y=17,
    )


def reading(time: float) -> Pose:
    nod = _wave(time, 3.2)
    return Pose(
        head_tilt=5 + 2 * nod,
        head_dy=1.5,
        back_hand_x=-10,
        back_hand_y=13,
        front_hand_x=17,
        front_hand_y=13,
        book=1,
        gaze_y=1,
    )


ACTION_POSES: dict[str, Callable[[float], Pose]] = {
    "standing": standing,
    "walking": walking,
    "running": running,
    "jumping": jumping,
    "waving": waving,
    "dancing": dancing,
    "sitting": sitting,
    "reading": reading,
}
SPEEDS: dict[str, float] = {"walking": 30.0, "running": 62.0}
"""Character units per second, towards where they face."""


def blend(a: Pose, b: Pose, amount: float) -> Pose:
    """Between two poses; amount 0 is a, 1 is b."""
    if amount >= 1:
        return b
    return Pose(*(x + (y - x) * amount for x, y in zip(a, b, strict=True)))
