"""What is to be filmed: a story of shots, each with a caption and instructions that arrive while it runs.

Everything that turns words into the caption a model sees goes through :func:`compose_caption`: serving, training data
and the command line use the same function, so a model is never asked something in a form that it was not trained on.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

CaptionStyle = Literal["natural", "reference"]

CHUNKS_PER_SHOT = 7
"""Chunks of a full-length shot: 21 latent frames, 81 pixel frames."""
FIRST_CHUNK_FRAMES = 9
CHUNK_FRAMES = 12
"""Pixel frames of a shot's first chunk, and of every later one."""
PICTURE = -1
"""Stands in a `Recall` where a shot's id would."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 4, 4, 80, 80
_SENTENCE_END = (".", "!", "?", "…", '"', "。", "！", "？")


@dataclass(frozen=True, kw_only=True, slots=True)
class Steer:
    """An instruction inside a running shot."""

    chunk: int
    """Chunk of the shot from which on the instruction holds, from 0."""
    caption: str
    replaces: bool = False
    """It takes the place of the shot's caption and of every steer before it, instead of being added to them."""

    def __post_init__(self) -> None:
        _check_caption(self.caption, "a steer")
        _check_count(self.chunk, "a steer's chunk", minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """A frame that a shot remembers."""

    id: int
    """Of the shot that showed it, see `Making.id`; PICTURE for one of the story's own pictures."""
    frame: int
    """Pixel frame of that shot, or number of the picture, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How a shot was made, for making the very same frames again; exported stories have one for every shot."""

    id: int
    """Other shots of the file name it by this."""
    number: int
    """Place in its own story, from 0; takes of one shot share it."""
    take: int = 0
    recalls: tuple[Recall, ...] = ()
    """What it remembers, in order."""
    frames: int | None = None
    """How many of its frames are part of the film; none: all."""
    seed: int | None = None
    """None: the story's."""
    global_caption: str | None = None
    """None: the story's."""

    def __post_init__(self) -> None:
        _check_count(self.id, "a shot's id", minimum=1)
        _check_count(self.number, "a shot's number", minimum=0)
        _check_count(self.take, "a shot's take", minimum=0)
        for count in (self.frames, self.seed):
            if count is not None:
                _check_count(count, "a shot's frames or seed", minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of a person's own that shots remember."""

    caption: str
    png: str
    """Base64 of a PNG file, in the size of the video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One camera take."""

    caption: str
    steers: tuple[Steer, ...] = ()
    """In the order in which they take effect."""
    num_chunks: int = CHUNKS_PER_SHOT
    making: Making | None = None
    """None: it follows the shot before it, and remembers what the memory chooses."""

    def __post_init__(self) -> None:
        _check_caption(self.caption, "a shot")
        _check_count(self.num_chunks, "a shot's num_chunks", minimum=1)
        object.__setattr__(self, "steers", tuple(sorted(self.steers, key=lambda steer: steer.chunk)))
        if self.steers and self.steers[-1].chunk >= self.num_chunks:
            raise ValueError(
                f"steer {self.steers[-1].caption!r} is at chunk {self.steers[-1].chunk}, but the shot has chunks "
                f"0..{self.num_chunks - 1}: give an earlier chunk or a longer shot"
            )

    @property
    def changes(self) -> tuple[int, ...]:
        """The chunks at which what is in force changes: the first, and those of steers."""
        return tuple(sorted({0, *(steer.chunk for steer in self.steers)}))

    def in_force(self, chunk: int) -> tuple[str, tuple[str, ...]]:
        """Return the shot's caption, and its steers, while ``chunk`` is made."""
        caption, steers = self.caption, list[str]()
        for steer in self.steers:
            if steer.chunk > chunk:
                break
            if steer.replaces:
                caption, steers = steer.caption, []
            else:
                steers.append(steer.caption)
        return caption, tuple(steers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """An ordered list of shots and what holds for all of them."""

    shots: tuple[Shot, ...]
    global_caption: str = ""
    """People, places and look of the whole story; may be empty."""
    name: str = ""
    seed: int | None = None
    pictures: tuple[Picture, ...] = ()
    """That shots recall."""
    order: tuple[int, ...] = ()
    """Ids of shots as the film shows them, if that is not once each in the order of `shots`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        if not self.shots:
            raise ValueError("a story needs at least one shot, got none: add a caption under `shots`")
        if not isinstance(self.global_caption, str):
            raise ValueError(f"global_caption must be text, got {_shown(self.global_caption)}")
        _check_encodable(self.global_caption, "the caption of the whole story")
        _check_encodable(self.name, "a story's name")
        if self.seed is not None:
            _check_count(self.seed, "a story's seed", minimum=0)
        self._check_makings()

    @property
    def is_exact(self) -> bool:
        """Whether every shot says how it was made: filming it again gives the very same frames."""
        return self.shots[0].making is not None

    def _check_makings(self) -> None:
        """Shots recall frames of shots before them in the file."""
        makings = [shot.making for shot in self.shots if shot.making is not None]
        if len(makings) not in (0, len(self.shots)):
            raise ValueError("either every shot says how it was `made`, or none does")
        earlier = set[int]()
        for making in makings:
            if making.id in earlier:
                raise ValueError(f"two shots have the id {making.id}: give each its own")
            for recall in making.recalls:
                if recall.id != PICTURE and recall.id not in earlier:
                    raise ValueError(f"shot {making.id} recalls shot {recall.id}, which is not before it in the file")
                if recall.id == PICTURE and not 0 <= recall.frame < len(self.pictures):
                    raise ValueError(f"shot {making.id} recalls picture {recall.frame} of {len(self.pictures)}")
            earlier.add(making.id)
        if unknown := [id for id in self.order if id not in earlier]:
            raise ValueError(f"`order` names shot {unknown[0]}, which is not in the file")
        if makings and not any(making.frames != 0 for making in makings if making.id in (self.order or earlier)):
            raise ValueError("the story shows none of its shots: give one of them more than 0 `frames`")

    def with_chunks(self, num_chunks: int) -> Story:
        """Return the story with every shot ``num_chunks`` long; steers that would come too late raise ValueError."""
        return replace(self, shots=tuple(replace(shot, num_chunks=num_chunks) for shot in self.shots))

    def caption_at(self, shot_index: int, chunk: int, *, style: CaptionStyle = "natural") -> str:
        """Return the composed caption in force at ``chunk`` of shot ``shot_index`` (both from 0)."""
        shot, global_caption = self.shots[shot_index], self.global_caption
        if shot.making is not None:
            shot_index = shot.making.number
            global_caption = global_caption if shot.making.global_caption is None else shot.making.global_caption
        caption, steers = shot.in_force(chunk)
        return compose_caption(global_caption, caption, steers, style=style, shot_index=shot_index)


def num_pixel_frames(num_chunks: int) -> int:
    """Return how many pixel frames a shot of ``num_chunks`` chunks has."""
    return FIRST_CHUNK_FRAMES + CHUNK_FRAMES * (num_chunks - 1)


def compose_caption(
    global_caption: str,
    shot_caption: str,
    steers: Sequence[str] = (),
    *,
    style: CaptionStyle = "natural",
    shot_index: int = 0,
) -> str:
    """Write the one string that the text encoder sees.

    natural: global caption, shot caption and steers in this order, each a sentence, one space between.
    reference: ``{global}shot{i}:{shot}`` with i from 0 and no separators, the form that the released Wan weights
    were trained on; steers follow as sentences.

    Args: global_caption may be empty; shot_caption may not; shot_index is only used by the reference style.
    Raises: ValueError for an empty shot caption or an unknown style.
    """
    _check_caption(shot_caption, "a shot")
    if style == "natural":
        return _join_sentences([global_caption, shot_caption, *steers])
    if style == "reference":
        return _join_sentences([f"{global_caption}shot{shot_index}:{shot_caption}", *steers], strip=False)
    raise ValueError(f"caption style must be one of {', '.join(get_args(CaptionStyle))}, got {style!r}")


def read_story(path: str | os.PathLike[str]) -> Story:
    """Read one story from a YAML (.yaml, .yml) or JSON (.json) file; a shot may be written as just its caption.

    Raises: ValueError that names the file and the key at fault; OSError if the file cannot be opened.
    """
    path = Path(path)
    try:
        return _story_from_dict(_parse(path), default_name=_name_of(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_story(text: str, *, default_name: str = "") -> Story:
    """Read a story from the text of a YAML file, of which JSON is a part. Raises ValueError, in words for people."""
    return _story_from_dict(_mapping(_yaml(text)), default_name)


def story_yaml(story: Story) -> str:
    """A story as the text of a YAML file."""
    return yaml.dump(_story_to_dict(story), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Escapes a next-line character (U+0085), which PyYAML writes as it is and reads as a line that goes on."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def write_story(story: Story, path: str | os.PathLike[str]) -> None:
    """Write a story as YAML or JSON, chosen by the suffix; an existing file is replaced only once all is written."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        text = json.dumps(_story_to_dict(story), indent=2, ensure_ascii=False) + "\n"
    elif path.suffix.lower() in (".yaml", ".yml"):
        text = story_yaml(story)
    else:
        raise ValueError(f"{path}: a story is written as .yaml, .yml or .json, got suffix {path.suffix!r}")
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_reference_csv(path: str | os.PathLike[str]) -> list[Story]:
    """Read stories in the form of the published data: one CSV row per story, its captions in a JSON file.

    Columns: ``json_path`` (relative to the CSV) and ``frame_number`` (a list of [start, end) per shot, of which only
    the number counts when generating); others are ignored. JSON keys: ``global_caption``, ``shot1``, ``shot2``, ...

    Raises: ValueError that names the row, file and key at fault; OSError if a file cannot be opened.
    """
    path = Path(path)
    rows = _csv_rows(path)
    if not rows:
        raise ValueError(f"{path}: no rows; expected columns json_path and frame_number and one row per story")
    stories = []
    for number, row in enumerate(rows, start=1):
        try:
            stories.append(_story_from_reference_row(row, path.parent))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return stories


def _csv_rows(path: Path) -> list[dict[str, str | None]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return list(csv.DictReader(file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {_NOT_TEXT}") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not readable as CSV: {error}") from error


def _story_from_reference_row(row: Mapping[str, str | None], folder: Path) -> Story:
    for column in ("json_path", "frame_number"):
        if not row.get(column):
            raise ValueError(f"column {column} is missing or empty")
    captions_path = folder / str(row["json_path"])
    try:
        captions = _parse(captions_path)
    except ValueError as error:
        raise ValueError(f"{captions_path}: {error}") from error
    num_shots = _count_intervals(str(row["frame_number"]))
    keys = [f"shot{number}" for number in range(1, num_shots + 1)]
    if missing := [key for key in keys if key not in captions]:
        raise ValueError(f"{captions_path} lacks {', '.join(missing)}: frame_number lists {num_shots} shots")
    return Story(
        name=_name_of(captions_path),
        global_caption=_text(captions, "global_caption"),
        shots=tuple(Shot(caption=_text(captions, key)) for key in keys),
    )


def _count_intervals(text: str) -> int:
    """Return how many [start, end) pairs a Python-literal list holds."""
    wanted = f"frame_number must be a list of [start, end) pairs such as [[0, 81], [81, 162]], got {text!r}"
    try:
        intervals = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(wanted) from error
    if not isinstance(intervals, (list, tuple)) or not intervals:
        raise ValueError(wanted)
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in intervals):
        raise ValueError(wanted)
    return len(intervals)


_NOT_TEXT = "it is not text in UTF-8: pass a story's file, or save it again as UTF-8"


def _parse(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"expected a .yaml, .yml or .json file, got suffix {suffix!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(_NOT_TEXT) from error
    return _mapping(_json(text) if suffix == ".json" else _yaml(text))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not readable as JSON: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not readable as JSON: {error}") from error


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("not readable as YAML: it is nested too deeply") from error
    # Tags on what they do not fit (`!!bool fox`) end in whatever the conversion raises.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from error


def _mapping(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected keys such as `shots` at the top level, got {type(content).__name__}")
    return content


def _story_from_dict(content: Mapping[str, Any], default_name: str) -> Story:
    _check_keys(content, {"shots", "global_caption", "name", "seed", "pictures", "order"}, "a story")
    shots = _list(content, "shots")
    return Story(
        shots=tuple(_shot_from_entry(entry, index) for index, entry in enumerate(shots)),
        global_caption=_text(content, "global_caption"),
        name=_text(content, "name") or default_name,
        seed=content.get("seed"),
        pictures=tuple(_picture_from_entry(entry) for entry in _list(content, "pictures")),
        order=tuple(_number(id) for id in _list(content, "order")),
    )


def _shot_from_entry(entry: Any, index: int) -> Shot:
    try:
        if isinstance(entry, str):
            return Shot(caption=entry)
        if not isinstance(entry, Mapping):
            raise ValueError(f"expected a caption or a mapping with `caption`, got {_shown(entry)}")
        _check_keys(entry, {"caption", "steers", "num_chunks", "made"}, "a shot")
        return Shot(
            caption=_text(entry, "caption"),
            steers=tuple(_steer_from_entry(steer) for steer in _list(entry, "steers")),
            num_chunks=entry.get("num_chunks", CHUNKS_PER_SHOT),
            making=_making_from_entry(entry["made"]) if "made" in entry else None,
        )
    except ValueError as error:
        raise ValueError(f"shot {index}: {error}") from error


def _steer_from_entry(entry: Any) -> Steer:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a steer must have `chunk` and `caption`, got {_shown(entry)}")
    _check_keys(entry, {"chunk", "caption", "replaces"}, "a steer")
    if "chunk" not in entry:
        raise ValueError(f"steer {_shown(entry.get('caption'))} lacks `chunk`, the chunk at which it takes effect")
    return Steer(chunk=entry["chunk"], caption=_text(entry, "caption"), replaces=entry.get("replaces", False) is True)


def _making_from_entry(entry: Any) -> Making:
    if not isinstance(entry, Mapping):
        raise ValueError(f"`made` must be a mapping with `id` and `shot`, got {_shown(entry)}")
    _check_keys(entry, {"id", "shot", "take", "recalls", "frames", "seed", "global_caption"}, "`made`")
    return Making(
        id=entry.get("id", 0),
        number=entry.get("shot", -1),
        take=entry.get("take", 0),
        recalls=tuple(_recall_from_entry(recall) for recall in _list(entry, "recalls")),
        frames=entry.get("frames"),
        seed=entry.get("seed"),
        global_caption=_text(entry, "global_caption") if "global_caption" in entry else None,
    )


def _recall_from_entry(entry: Any) -> Recall:
    what, _, frame = str(entry).partition(" frame ")
    kind, _, id = what.partition(" ")
    if kind == "picture" and id.isdecimal():
        return Recall(id=PICTURE, frame=int(id))
    if kind == "shot" and id.isdecimal() and frame.isdecimal():
        return Recall(id=int(id), frame=int(frame))
    raise ValueError(f"a shot recalls 'shot ID frame NUMBER' or 'picture NUMBER', got {_shown(entry)}")


def _picture_from_entry(entry: Any) -> Picture:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a picture must have `png` and `caption`, got {_shown(entry)}")
    _check_keys(entry, {"png", "caption"}, "a picture")
    return Picture(caption=_text(entry, "caption"), png=_text(entry, "png"))


def _story_to_dict(story: Story) -> dict[str, Any]:
    header = {"name": story.name, "global_caption": story.global_caption, "seed": story.seed}
    content: dict[str, Any] = {key: value for key, value in header.items() if value not in ("", None)}
    content["shots"] = [_shot_to_dict(shot) for shot in story.shots]
    if story.order:
        content["order"] = list(story.order)
    if story.pictures:
        content["pictures"] = [{"caption": picture.caption, "png": picture.png} for picture in story.pictures]
    return content


def _shot_to_dict(shot: Shot) -> dict[str, Any]:
    content: dict[str, Any] = {"caption": shot.caption}
    if shot.num_chunks != CHUNKS_PER_SHOT:
        content["num_chunks"] = shot.num_chunks
    if shot.steers:
        content["steers"] = [_steer_to_dict(steer) for steer in shot.steers]
    if shot.making is not None:
        content["made"] = _making_to_dict(shot.making)
    return content


def _steer_to_dict(steer: Steer) -> dict[str, Any]:
    content: dict[str, Any] = {"chunk": steer.chunk, "caption": steer.caption}
    return {**content, "replaces": True} if steer.replaces else content


def _making_to_dict(making: Making) -> dict[str, Any]:
    content: dict[str, Any] = {"id": making.id, "shot": making.number, "take": making.take}
    optional = {"frames": making.frames, "seed": making.seed, "global_caption": making.global_caption}
    content |= {key: value for key, value in optional.items() if value is not None}
    if making.recalls:
        content["recalls"] = [
            f"picture {recall.frame}" if recall.id == PICTURE else f"shot {recall.id} frame {recall.frame}"
            for recall in making.recalls
        ]
    return content


def _join_sentences(parts: Sequence[str], *, strip: bool = True) -> str:
    """Join parts with one space, closing each but the last with a full stop where it has no end mark."""
    kept = [part.strip() if strip else part for part in parts if part.strip()]
    closed = [part if part.rstrip().endswith(_SENTENCE_END) else part.rstrip() + "." for part in kept[:-1]]
    return " ".join([*closed, *kept[-1:]])


def _number(value: Any) -> int:
    _check_count(value, "an id in `order`", minimum=1)
    return int(value)


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"`{key}` must be a list, got {_shown(value)}")
    return value


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"`{key}` must be text, got {_shown(value)}")
    _check_encodable(value, f"`{key}`")
    return value


def _check_keys(content: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(str(key) for key in content if key not in known):
        raise ValueError(f"{what} has no key {', '.join(unknown)}: known keys are {', '.join(sorted(known))}")


def _shown(value: object) -> str:
    """What came, in short: a few aliases of YAML can stand for gigabytes."""
    return _SHORT.repr(value)


def _check_caption(caption: str, what: str) -> None:
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"{what} needs a caption that is not empty, got {_shown(caption)}")
    _check_encodable(caption, f"the caption of {what}")


def _check_encodable(text: str, what: str) -> None:
    """A terminal hands on bytes that are no UTF-8 as lone surrogates, which no tokenizer, file or database takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not valid text: {text!r}: write it in UTF-8") from error


def _name_of(path: Path) -> str:
    """A story's name by its file; file names need not be text."""
    return path.stem.encode(errors="replace").decode()


def _check_count(value: int, what: str, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{what} must be a whole number of at least {minimum}, got {_shown(value)}")
