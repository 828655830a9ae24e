"""A kept story in formats that others read: mp4, contact sheet, story YAML, OpenTimelineIO, WebVTT, or all in a zip.

Everything is made from a *cut list*: pieces of takes in the order in which they are shown. Nothing is encoded anew.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shotstream.engine.memory import PICTURE_SHOT
from shotstream.engine.video import ShotSampler, write_sheet
from shotstream.presets import PRESETS
from shotstream.server.archive import PathShot, StoredChunk, StoredTake, StoryArchive, StoryInfo
from shotstream.server.media import ChunkEncoder
from shotstream.story import (
    PICTURE,
    CaptionStyle,
    Making,
    Picture,
    Recall,
    Shot,
    Steer,
    Story,
    compose_caption,
    story_yaml,
)

Format = Literal["mp4", "png", "yaml", "otio", "vtt", "zip"]
FORMATS: tuple[Format, ...] = get_args(Format)
MIME_TYPES: dict[Format, str] = {
    "mp4": "video/mp4",
    "png": "image/png",
    "yaml": "application/yaml",
    "otio": "application/json",
    "vtt": "text/vtt",
    "zip": "application/zip",
}
_PROMISE = """\
# `shotstream generate --preset {preset} -o film.mp4 THIS-FILE` makes the very same frames again: to the bit
# where machine, weights and --threads are those that it was made with (serve may take fewer than generate).
"""
MAX_CLIPS = 1000
MAX_SHEET_ROWS = 200
"""A picture of more rows is larger than most programs open."""


class NothingMade(ValueError):
    """There is nothing to export yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A piece of a film: the first frames of a take."""

    take: StoredTake
    num_frames: int
    """At least 1, and no more than the take has."""
    chunks: tuple[StoredChunk, ...]
    """All of the take."""

    @property
    def node(self) -> int:
        return self.take.take.node

    @property
    def pieces(self) -> Iterator[tuple[StoredChunk, int]]:
        """The chunks that are shown, and how many frames of each."""
        left = self.num_frames
        for chunk in self.chunks:
            if left <= 0:
                return
            yield chunk, min(left, chunk.num_frames)
            left -= chunk.num_frames


def cut_list(archive: StoryArchive, nodes: Sequence[int] | None = None, *, whole: bool = False) -> tuple[Clip, ...]:
    """The pieces of a film.

    Args: nodes are takes in the order in which they are shown, each as often as it is named; one of the live path is as
        long as it was on air there, others are shown whole. None: the live path, from the story's beginning. whole: of
        the nodes, those of the live path are shown whole, too.
    Raises: NothingMade if nothing is shown; ValueError for a take that there is none of, or too many.
    """
    live = {} if whole else {shot.take.take.node: shot for shot in archive.path(archive.info().head)}
    if nodes is not None and len(nodes) > MAX_CLIPS:
        raise ValueError(f"a film has at most {MAX_CLIPS} clips, got {len(nodes)}: export it in parts")
    clips = []
    for node in live if nodes is None else nodes:
        shot = live.get(node) or _whole(archive.take(node))
        chunks = archive.chunks(node)
        num_frames = min(shot.num_frames, sum(chunk.num_frames for chunk in chunks))
        if num_frames > 0:
            clips.append(Clip(take=shot.take, num_frames=num_frames, chunks=chunks))
    if not clips:
        raise NothingMade("nothing was made yet: direct a first shot")
    return tuple(clips)


def _whole(take: StoredTake) -> PathShot:
    return PathShot(take=take, num_frames=take.num_frames)


def export(archive: StoryArchive, clips: Sequence[Clip], format: Format, path: Path) -> None:
    """Write a film in one of the formats. Raises ValueError if it is too long for the format, ArchiveError, OSError."""
    writers: dict[Format, Callable[[StoryArchive, Sequence[Clip], Path], None]] = {
        "mp4": write_mp4,
        "png": write_contact_sheet,
        "zip": write_bundle,
    }
    texts: dict[Format, Callable[[StoryArchive, Sequence[Clip]], str]] = {
        "yaml": story_file,
        "otio": timeline,
        "vtt": captions,
    }
    if format in texts:
        path.write_text(texts[format](archive, clips), encoding="utf-8")
    else:
        writers[format](archive, clips, path)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def write_mp4(archive: StoryArchive, clips: Sequence[Clip], path: Path) -> None:
    """The stored pictures in one mp4, not encoded anew: each chunk is a closed group without B-frames."""
    info = archive.info()
    options = {"movflags": "+faststart", "video_track_timescale": str(info.fps * 1024)}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata["title"] = info.title
        stream: Any = None
        count = 0
        for clip in clips:
            for chunk, num_frames in clip.pieces:
                with _opened(archive, info, chunk) as source:
                    video = source.streams.video[0]
                    stream = stream or container.add_stream_from_template(video)
                    for packet in _packets(source, num_frames):
                        packet.stream, packet.time_base = stream, video.time_base
                        packet.pts = packet.dts = round(count / info.fps / video.time_base)
                        packet.duration = round(1 / info.fps / video.time_base)
                        container.mux(packet)
                        count += 1


def write_contact_sheet(archive: StoryArchive, clips: Sequence[Clip], path: Path) -> None:
    """A PNG with a row of pictures per clip. Raises ValueError for too many."""
    if len(clips) > MAX_SHEET_ROWS:
        raise ValueError(f"a contact sheet has at most {MAX_SHEET_ROWS} rows, this film has {len(clips)}: choose takes")
    info = archive.info()
    rows = []
    for number, clip in enumerate(clips, start=1):
        changes = [f"[from chunk {chunk.chunk}: {_change(chunk)}]" for chunk, _ in _changes(clip)]
        row = ShotSampler(" ".join([f"{number}.", _label(clip), *changes]), num_frames=clip.num_frames)
        for chunk, num_frames in clip.pieces:
            row.add(decode(archive, info, chunk)[:num_frames])
        rows.append(row)
    write_sheet(rows, path)


def decode(archive: StoryArchive, info: StoryInfo, chunk: StoredChunk) -> NDArray[np.uint8]:
    """The pictures of a chunk as they were sent, uint8 [T, H, W, 3]."""
    with _opened(archive, info, chunk) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def _opened(archive: StoryArchive, info: StoryInfo, chunk: StoredChunk) -> Any:
    init = init_segment(info.width, info.height, info.fps)
    return av.open(io.BytesIO(init + archive.media(chunk.node, chunk.chunk)), format="mp4")


def _packets(source: Any, count: int) -> Iterator[Any]:
    packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
    return iter(packets[:count])


@lru_cache(maxsize=8)
def init_segment(width: int, height: int, fps: int) -> bytes:
    """What every chunk of this size needs before it."""
    return ChunkEncoder(width, height, fps).init_segment


# ---------------------------------------------------------------------------------------------------------------------
# The story itself


def story(archive: StoryArchive, clips: Sequence[Clip]) -> Story:
    """What `shotstream generate` makes the very same frames from.

    Shots that are not shown but remembered by one that is are in it, too.
    """
    return _Retold(archive, clips).story()


def story_file(archive: StoryArchive, clips: Sequence[Clip]) -> str:
    """The same as the text of a YAML file."""
    return _PROMISE.format(preset=archive.info().preset) + story_yaml(story(archive, clips))


class _Retold:
    """Collects the takes that a film needs, each after those that it remembers."""

    def __init__(self, archive: StoryArchive, clips: Sequence[Clip]) -> None:
        self._archive, self._clips = archive, clips
        self._shown = {clip.node: clip.num_frames for clip in clips}
        self._recalled: dict[int, int] = {}
        """Frames of a take that others recall: the last one, and one."""
        self._takes: dict[int, tuple[StoredTake, tuple[Recall, ...]]] = {}
        self._pictures: list[Picture] = []
        self._tree = {stored.take.node: stored for stored in archive.takes()}
        self._names = archive.context_names(list(self._tree))
        info = archive.info()
        self._title = info.title
        self._style: CaptionStyle = PRESETS[info.preset].caption_style if info.preset in PRESETS else "natural"

    def story(self) -> Story:
        for clip in self._clips:
            self._add(clip.take)
        first = self._clips[0].take
        shots = tuple(self._shot(take, recalls, first) for take, recalls in self._takes.values())
        order = tuple(clip.node for clip in self._clips)
        plain = tuple(node for node in self._takes if node in self._shown)
        return Story(
            name=self._title,
            seed=first.seed,
            global_caption=first.global_caption,
            shots=shots,
            pictures=tuple(self._pictures),
            order=() if order == plain else order,
        )

    def _add(self, stored: StoredTake) -> None:
        """Add a take, after those that it remembers."""
        waiting = [stored]
        while waiting:
            take = waiting[-1]
            node = take.take.node
            needed = [] if node in self._takes else self._remembers(take)
            missing = [source for source, _ in needed if source is not None and source.take.node not in self._takes]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node not in self._takes:
                self._takes[node] = (take, tuple(recall for _, recall in needed))

    def _remembers(self, stored: StoredTake) -> list[tuple[StoredTake | None, Recall]]:
        names = self._names.get(stored.take.node, ())
        path = self._path_to(stored)
        found: list[tuple[StoredTake | None, Recall]] = []
        for place, frame in enumerate(names):
            source = path.get(frame.shot)
            if frame.shot == PICTURE_SHOT or source is None:
                kept = self._archive.remembered(stored.take.node)[place]
                found.append((None, self._picture(kept.pixels, kept.caption)))
            else:
                node = source.take.node
                self._recalled[node] = max(self._recalled.get(node, 0), frame.frame + 1)
                found.append((source, Recall(id=node, frame=frame.frame)))
        return found

    def _path_to(self, stored: StoredTake) -> dict[int, StoredTake]:
        """The takes before this one, by the number of their shot."""
        path, parent = {}, stored.take.parent
        while parent is not None:
            before = self._tree[parent]
            path[before.take.shot], parent = before, before.take.parent
        return path

    def _picture(self, pixels: NDArray[np.uint8], caption: str) -> Recall:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        picture = Picture(caption=caption, png=base64.b64encode(file.getvalue()).decode())
        if picture not in self._pictures:
            self._pictures.append(picture)
        return Recall(id=PICTURE, frame=self._pictures.index(picture))

    def _shot(self, stored: StoredTake, recalls: tuple[Recall, ...], first: StoredTake) -> Shot:
        take = stored.take
        shown = self._shown.get(take.node, 0)
        chunks, count = self._needed(take.node, max(shown, self._recalled.get(take.node, 0)))
        making = Making(
            id=take.node,
            number=take.shot,
            take=take.take,
            recalls=recalls,
            frames=None if shown == count else shown,
            seed=None if stored.seed == first.seed else stored.seed,
            global_caption=None if stored.global_caption == first.global_caption else stored.global_caption,
        )
        caption, steers = plan(chunks, stored.global_caption, self._style, take.shot)
        return Shot(caption=caption, steers=steers, num_chunks=len(chunks), making=making)

    def _needed(self, node: int, num_frames: int) -> tuple[tuple[StoredChunk, ...], int]:
        """The chunks that so many frames of a take come from, and how many they have."""
        needed, count = list[StoredChunk](), 0
        for chunk in self._archive.chunks(node):
            if count >= num_frames:
                break
            needed.append(chunk)
            count += chunk.num_frames
        return tuple(needed), count


def plan(
    chunks: Sequence[StoredChunk], global_caption: str, style: CaptionStyle, number: int
) -> tuple[str, tuple[Steer, ...]]:
    """A shot's caption and steers that compose to exactly what the text encoder saw at each chunk."""
    said = [_said(chunk, global_caption, style, number) for chunk in chunks]
    caption, before = said[0]
    steers = [Steer(chunk=0, caption=steer) for steer in before]
    running = caption
    for index, (now, in_force) in enumerate(said):
        if (now, in_force) == (running, before):
            continue
        if now != running or in_force[: len(before)] != before:
            steers.append(Steer(chunk=index, caption=now, replaces=True))
            before = ()
        steers += [Steer(chunk=index, caption=steer) for steer in in_force[len(before) :]]
        running, before = now, in_force
    return caption, tuple(steers)


def _said(chunk: StoredChunk, global_caption: str, style: CaptionStyle, number: int) -> tuple[str, tuple[str, ...]]:
    """A chunk's shot caption and steers, without what did not fit into the text encoder."""

    def composed(caption: str, steers: Sequence[str]) -> str:
        return compose_caption(global_caption, caption, steers, style=style, shot_index=number)

    for left_out in range(len(chunk.steers) + 1):  # the oldest go first
        if composed(chunk.shot_caption, chunk.steers[left_out:]) == chunk.caption:
            return chunk.shot_caption, chunk.steers[left_out:]
    # The shot's caption itself was shortened: everything behind the global one is one caption.
    before = len(composed("x", ())) - 1
    return chunk.caption[before:], ()


# ---------------------------------------------------------------------------------------------------------------------
# Text


def captions(archive: StoryArchive, clips: Sequence[Clip]) -> str:
    """WebVTT: a cue for every caption in force, exactly as the text encoder saw it."""
    fps = archive.info().fps
    cues, start = ["WEBVTT"], 0
    for number, clip in enumerate(clips, start=1):
        for part, (text, pieces) in enumerate(groupby(clip.pieces, key=lambda piece: piece[0].caption), start=1):
            end = start + sum(num_frames for _, num_frames in pieces)
            name = f"shot {number}" + (f", caption {part}" if part > 1 else "")  # no two cues may have the same
            cues.append(f"{name}\n{_time(start / fps)} --> {_time(end / fps)}\n{_cue(text)}")
            start = end
    return "\n\n".join(cues) + "\n"


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())


def timeline(archive: StoryArchive, clips: Sequence[Clip]) -> str:
    """OpenTimelineIO JSON: a clip per shot on one track; its media is the whole take, as `write_bundle` names it."""
    info = archive.info()
    children = [_otio_clip(clip, info.fps) for clip in clips]
    track: dict[str, Any] = {
        "OTIO_SCHEMA": "Track.1",
        "name": "video",
        "kind": "Video",
        "source_range": None,
        "effects": [],
        "markers": [],
        "metadata": {},
        "children": children,
    }
    stack: dict[str, Any] = {
        "OTIO_SCHEMA": "Stack.1",
        "name": "tracks",
        "source_range": None,
        "effects": [],
        "markers": [],
        "metadata": {},
        "children": [track],
    }
    whole = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": info.title,
        "global_start_time": None,
        "metadata": {"shotstream": {"story": info.name, "preset": info.preset}},
        "tracks": stack,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _otio_clip(clip: Clip, fps: int) -> dict[str, Any]:
    take = clip.take.take
    media = {
        "OTIO_SCHEMA": "ExternalReference.1",
        "name": "",
        "available_range": _otio_range(0, sum(chunk.num_frames for chunk in clip.chunks), fps),
        "available_image_bounds": None,
        "metadata": {},
        "target_url": media_name(clip.node),
    }
    markers = [_otio_marker(chunk, start, fps) for chunk, start in _changes(clip)]
    return {
        "OTIO_SCHEMA": "Clip.1",
        "name": _label(clip),
        "source_range": _otio_range(0, clip.num_frames, fps),
        "effects": [],
        "markers": markers,
        "metadata": {"shotstream": {"node": take.node, "shot": take.shot, "take": take.take, "caption": take.caption}},
        "media_reference": media,
    }


def _changes(clip: Clip) -> Iterator[tuple[StoredChunk, int]]:
    """The chunks in which another caption came into force, and where they start in the clip."""
    start, before = 0, clip.chunks[0].caption
    for chunk, num_frames in clip.pieces:
        if chunk.caption != before:
            yield chunk, start
        start, before = start + num_frames, chunk.caption


def _change(chunk: StoredChunk) -> str:
    return chunk.steers[-1] if chunk.steers else chunk.shot_caption


def _otio_marker(chunk: StoredChunk, start: int, fps: int) -> dict[str, Any]:
    return {
        "OTIO_SCHEMA": "Marker.2",
        "name": _change(chunk),
        "color": "GREEN",
        "marked_range": _otio_range(start, 0, fps),
        "comment": "",
        "metadata": {"shotstream": {"chunk": chunk.chunk, "caption": chunk.caption}},
    }


def _otio_range(start: int, duration: int, fps: int) -> dict[str, Any]:
    def time(value: int) -> dict[str, Any]:
        return {"OTIO_SCHEMA": "RationalTime.1", "rate": float(fps), "value": float(value)}

    return {"OTIO_SCHEMA": "TimeRange.1", "start_time": time(start), "duration": time(duration)}


def media_name(node: int) -> str:
    """The file of a whole take, beside a timeline."""
    return f"take-{node}.mp4"


def _label(clip: Clip) -> str:
    take = clip.take.take
    return (take.text or take.caption) + (f" (take {take.take + 1})" if take.take else "")


def write_bundle(archive: StoryArchive, clips: Sequence[Clip], path: Path) -> None:
    """A zip with the film, the timeline and the whole takes that it refers to, captions, and the story."""
    name = archive.name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle, tempfile.TemporaryDirectory(dir=path.parent) as to:
        for format in FORMATS:
            if format == "zip" or (format == "png" and len(clips) > MAX_SHEET_ROWS):
                continue
            file = Path(to) / f"{name}.{format}"
            export(archive, clips, format, file)
            _move(bundle, file)
        for clip in {clip.node: clip for clip in clips}.values():
            file = Path(to) / media_name(clip.node)
            write_mp4(archive, [replace(clip, num_frames=sum(chunk.num_frames for chunk in clip.chunks))], file)
            _move(bundle, file)


def _move(bundle: zipfile.ZipFile, file: Path) -> None:
    bundle.write(file, file.name)
    file.unlink()
