"""What a shot of the drawn world contains: the words for every attribute, and one frozen record per shot.

A `ShotSpec` is everything the renderer needs and everything evaluation may score. Changes inside a shot (`Change`)
begin at the first pixel frame of a chunk, `first_frame(chunk)`, so that labels are constant within a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CHARACTERS = ("fox", "bear", "rabbit", "penguin", "frog", "robot", "girl", "knight")
CLOTHING = ("red", "blue", "green", "yellow", "purple")
MARKS = ("crimson", "amber", "jade", "cobalt", "magenta", "ivory")
PLACES = ("city", "forest", "beach", "snow field", "desert", "kitchen", "space station", "stage")
LAYOUTS = ("layout-0", "layout-1", "layout-2", "layout-3")
TINTS = ("tint-0", "tint-1", "tint-2")
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "rain", "snow")
ACTIONS = ("standing", "walking", "running", "jumping", "waving", "dancing", "sitting", "reading")
EXPRESSIONS = ("neutral", "happy", "sad", "angry", "surprised", "sleepy")
FRAMINGS = ("wide", "medium", "close-up")
CAMERA_MOTIONS = ("still", "pan", "push-in")
ANGLES = ("left", "right")
NOBODY = "none"

MOVING_ACTIONS = ("walking", "running")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "character": CHARACTERS,
    "clothing": CLOTHING,
    "mark": MARKS,
    "place": PLACES,
    "layout": LAYOUTS,
    "tint": TINTS,
    "time_of_day": TIMES,
    "weather": WEATHERS,
    "action": ACTIONS,
    "expression": EXPRESSIONS,
    "framing": FRAMINGS,
    "camera_motion": CAMERA_MOTIONS,
    "angle": ANGLES,
    "second_character": (NOBODY, *CHARACTERS),
    "second_clothing": (NOBODY, *CLOTHING),
    "second_mark": (NOBODY, *MARKS),
}
"""Attribute -> every value it can take, in a fixed order (the order of the probe's classes)."""

CHANGEABLE = ("expression", "action", "weather")
HIDDEN = ("mark", "layout", "tint", "second_mark")
"""Attributes no caption ever names: only memory can get them right."""

HIDDEN_BY_CLOSE_UPS = ("clothing", "action", "layout")

FIRST_CHUNK_FRAMES = 9
CHUNK_FRAMES = 12


def first_frame(chunk: int) -> int:
    """First pixel frame of a chunk of a shot: 0, 9, 21, 33, ..."""
    return 0 if chunk <= 0 else FIRST_CHUNK_FRAMES + CHUNK_FRAMES * (chunk - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One steer: from chunk `chunk` on, `attribute` has `value`; `caption` is how the viewer asked for it."""

    chunk: int
    attribute: str
    value: str
    caption: str = ""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"a change begins at chunk 1 or later, got chunk {self.chunk}")
        if self.attribute not in CHANGEABLE:
            raise ValueError(f"a change is about one of {CHANGEABLE}, got {self.attribute!r}")
        _check(self.attribute, self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotSpec:
    """Every label of one shot, and how it is talked about."""

    character: str
    clothing: str
    mark: str
    place: str
    layout_seed: int = 0
    """0..11: arrangement is layout_seed % 4, tint is layout_seed // 4."""
    time_of_day: str = "day"
    weather: str = "clear"
    action: str = "standing"
    expression: str = "neutral"
    framing: str = "medium"
    camera_motion: str = "still"
    angle: str = "right"
    """Where the character faces, and walks."""
    second_character: str = NOBODY
    second_clothing: str = NOBODY
    second_mark: str = NOBODY
    steers: tuple[Change, ...] = ()
    seed: int = 0
    """Varies what no label names: position in the frame, blinking, phases, flakes."""
    caption: str = ""
    stated: frozenset[str] = field(default_factory=frozenset)
    """Attributes whose value the global or shot caption says in words."""
    known: frozenset[str] = field(default_factory=frozenset)
    """Attributes determined by the captions, by the defaults for what is left out, or by earlier shots."""
    sources: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(attribute, earlier shots whose first frame shows its value), for what earlier shots can tell."""

    def __post_init__(self) -> None:
        for attribute, value in self.labels().items():
            _check(attribute, value)
        if not 0 <= self.layout_seed < len(LAYOUTS) * len(TINTS):
            raise ValueError(f"layout_seed must be in 0..{len(LAYOUTS) * len(TINTS) - 1}, got {self.layout_seed}")

    @property
    def layout(self) -> int:
        return self.layout_seed % len(LAYOUTS)

    @property
    def tint(self) -> int:
        return self.layout_seed // len(LAYOUTS)

    def labels(self, chunk: int = 0) -> dict[str, str]:
        """Value of every attribute in force during a chunk."""
        values = {name: getattr(self, name) for name in ATTRIBUTES if name not in ("layout", "tint")}
        values["layout"] = LAYOUTS[self.layout]
        values["tint"] = TINTS[self.tint]
        for change in self.steers:
            if change.chunk <= chunk:
                values[change.attribute] = change.value
        return {name: values[name] for name in ATTRIBUTES}

    def recall_sources(self, attribute: str) -> tuple[int, ...]:
        """Earlier shots of the story whose first frame shows this attribute's value; empty if none does."""
        return dict(self.sources).get(attribute, ())


def visible(spec: ShotSpec, attribute: str, chunk: int = 0) -> bool:
    """Whether the frames of a chunk show the attribute, so that it is fair to score it.

    Close-ups hide clothes, actions and the arrangement of a place; camera motion cannot be told from the camera
    following someone who moves. A second person's clothes and mark are visible only where there is one.
    """
    values = spec.labels(chunk)
    framing = values["framing"]
    if attribute in HIDDEN_BY_CLOSE_UPS:
        return framing != "close-up"
    if attribute == "camera_motion":
        return values["action"] not in MOVING_ACTIONS and all(c.attribute != "action" for c in spec.steers)
    if attribute in ("second_clothing", "second_mark"):
        return spec.second_character != NOBODY
    return attribute in ATTRIBUTES


def _check(attribute: str, value: str) -> None:
    if value not in ATTRIBUTES[attribute]:
        raise ValueError(f"{attribute} must be one of {', '.join(ATTRIBUTES[attribute])}; got {value!r}")
