"""Frames to files: an mp4 that grows while the video is being made, and a contact sheet of the whole story."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]
"""uint8 [T, H, W, 3] RGB."""

_BT709 = 1
_LIMITED_RANGE = 1


class VideoWriter:
    """H.264 in fragmented mp4, one closed group of pictures per call: a killed run leaves a file that plays.

    The file is created at the first write, so that a run that fails before has not touched an earlier file.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: int = 16, crf: int = 18) -> None:
        """Check that ``path`` can be written (see :func:`check_writable`); crf is x264's quality, lower is better."""
        self.path = check_writable(path, suffixes=(".mp4",))
        self.fps = fps
        self.crf = crf
        self.num_frames = 0
        self._container: Any = None
        self._stream: Any = None

    def write(self, frames: Frames) -> None:
        """Append uint8 [T, H, W, 3]. Raises: ValueError if the shape is not that of the earlier frames."""
        _check_frames(frames)
        if self._container is None:
            self._open(*frames.shape[1:3])
        if frames.shape[1:3] != (self._stream.height, self._stream.width):
            raise ValueError(
                f"frames are {frames.shape[1:3]}, the file has {(self._stream.height, self._stream.width)}"
            )
        for index, pixels in enumerate(frames):
            self._container.mux(self._stream.encode(self._frame(pixels, keyframe=index == 0)))

    def close(self) -> None:
        """Write what is still buffered. The writer cannot be used any more."""
        if self._container is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"H.264 needs even sides, got {height}x{width}")
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(self.path), "w", format="mp4", options=options)
        stream = self._container.add_stream("libx264", rate=self.fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # zerolatency: no frame waits in the encoder while the model makes the next chunk.
        stream.options = {"preset": "veryfast", "crf": str(self.crf), "tune": "zerolatency", "forced-idr": "1"}
        # One thread: the other cores belong to the model.
        context = stream.codec_context
        context.thread_count, context.gop_size, context.time_base = 1, 250, Fraction(1, self.fps)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        self._stream = stream

    def _frame(self, pixels: NDArray[np.uint8], *, keyframe: bool) -> Any:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
        frame.pts, frame.time_base = self.num_frames, Fraction(1, self.fps)
        if keyframe:
            frame.pict_type = av.video.frame.PictureType.I
        self.num_frames += 1
        return frame


@dataclass
class ShotSampler:
    """Keeps ``count`` evenly spaced frames of a shot, first and last included, while it runs."""

    caption: str
    num_frames: int
    """Pixel frames that the shot will have."""
    count: int = 6
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    _seen: int = 0

    def add(self, frames: Frames) -> None:
        """Take the next frames of the shot."""
        wanted = np.linspace(0, self.num_frames - 1, min(self.count, self.num_frames)).round().astype(int)
        for index in wanted[(wanted >= self._seen) & (wanted < self._seen + len(frames))]:
            self.pictures.append(frames[index - self._seen].copy())
        self._seen += len(frames)


def write_sheet(rows: Iterable[ShotSampler], path: str | os.PathLike[str], *, cell_width: int = 240) -> None:
    """Write a PNG with one row of pictures per shot and the caption above each row.

    Raises: ValueError without any row or if ``path`` cannot be written.
    """
    target = check_writable(path, suffixes=(".png",))
    strips = [_strip(row, cell_width) for row in rows if row.pictures]
    if not strips:
        raise ValueError("a contact sheet needs at least one shot with a picture")
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(target)


def check_writable(path: str | os.PathLike[str], *, suffixes: Sequence[str]) -> Path:
    """Return ``path`` if a file of this name could be written now; nothing is created or changed.

    Raises: ValueError that says why not.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {target}: the name must end in {' or '.join(suffixes)}")
    if target.is_dir():
        raise ValueError(f"cannot write {target}: it is a folder")
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: the folder {target.parent} does not exist")
    try:
        _try_writing(target)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror}") from error
    return target


def _try_writing(target: Path) -> None:
    """Open what is there, or a file without a name where nothing is: permissions alone do not tell (/proc, root)."""
    if target.exists():
        with target.open("ab"):
            pass
    else:
        with TemporaryFile(dir=target.parent):
            pass


def _strip(row: ShotSampler, cell_width: int) -> Image.Image:
    margin = 8
    cells = [_scaled(picture, cell_width) for picture in row.pictures]
    width = margin + len(cells) * (cell_width + margin)
    font = ImageFont.load_default(size=18)
    text = "\n".join(_wrapped(row.caption, font, width - 2 * margin))
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    text_height = int(box[3]) + margin
    strip = Image.new("RGB", (width, margin + text_height + cells[0].height + margin), "white")
    ImageDraw.Draw(strip).multiline_text((margin, margin), text, fill="black", font=font)
    for index, cell in enumerate(cells):
        strip.paste(cell, (margin + index * (cell_width + margin), margin + text_height))
    return strip


def _scaled(picture: NDArray[np.uint8], width: int) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
