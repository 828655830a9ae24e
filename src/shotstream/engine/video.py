"""Frames to files: an mp4 that grows while the video is being made, and a contact sheet of the whole story."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]
"""uint8 [T, H, W, 3] RGB."""

_BT709 = 1
_LIMITED_RANGE = 1


class VideoWriter:
    """H.264 in fragmented mp4, one fragment per call: whatever was written plays, also after the run was killed.

    A muxer that stays open holds the newest fragment back until the next begins. So each is made by a muxer of its own,
    a closed group of pictures that begins where the one before ended, and appended to the file.
    The file is created at the first write, so that a run that fails before has not touched an earlier file.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: int = 16, crf: int = 18) -> None:
        """Check that ``path`` can be written (see :func:`check_writable`); crf is x264's quality, lower is better."""
        self.path = check_writable(path, suffixes=(".mp4",))
        self.fps = fps
        self.crf = crf
        self.num_frames = 0
        self._num_fragments = 0
        self._file: BinaryIO | None = None
        self._size = (0, 0)

    def write(self, frames: Frames) -> None:
        """Append uint8 [T, H, W, 3]. Raises: ValueError if the shape is not that of the earlier frames."""
        _check_frames(frames)
        if self._file is None:
            self._open(*frames.shape[1:3])
        if frames.shape[1:3] != self._size:
            raise ValueError(f"frames are {frames.shape[1:3]}, the file has {self._size}")
        assert self._file is not None
        init, fragment = self._encode(frames)
        with naming(self.path):
            self._file.write(fragment if self._num_fragments else init + fragment)
            self._file.flush()
        self.num_frames += len(frames)
        self._num_fragments += 1

    def close(self) -> None:
        """Close the file; nothing is left to be written. The writer cannot be used any more."""
        if self._file is not None:
            with naming(self.path):  # what a full disk did not take is tried again
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"H.264 needs even sides, got {height}x{width}")
        self._size = (height, width)
        self._file = self.path.open("wb")

    def _encode(self, frames: Frames) -> tuple[bytes, bytes]:
        """What every fragment of this file needs before it, and the fragment."""
        buffer = io.BytesIO()
        options = {**_ONE_FRAGMENT, "fragment_index": str(self._num_fragments + 1)}
        with av.open(buffer, "w", format="mp4", options=options) as container:
            stream = self._add_stream(container)
            for index, pixels in enumerate(frames):
                container.mux(stream.encode(self._picture(pixels, self.num_frames + index)))
            container.mux(stream.encode(None))
        return _parted(buffer.getvalue())

    def _add_stream(self, container: Any) -> Any:
        stream = container.add_stream("libx264", rate=self.fps)
        (stream.height, stream.width), stream.pix_fmt = self._size, "yuv420p"
        # Two fifths more bytes than `veryfast` at the same quality, in three fifths of its time.
        stream.options = {"preset": "ultrafast", "crf": str(self.crf), "tune": "zerolatency"}
        # One thread: the other cores belong to the model.
        context = stream.codec_context
        context.thread_count, context.gop_size, context.time_base = 1, 250, Fraction(1, self.fps)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _picture(self, pixels: NDArray[np.uint8], number: int) -> Any:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture = rgb.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
        picture.pts, picture.time_base, picture.duration = number, Fraction(1, self.fps), 1
        return picture


_ONE_FRAGMENT = {
    "movflags": "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",  # else every fragment would begin at 0
}


def _parted(mp4: bytes) -> tuple[bytes, bytes]:
    """An mp4 up to its first fragment, and the rest (boxes of ISO/IEC 14496-12: size, kind, content)."""
    start = 0
    while mp4[start + 4 : start + 8] != b"moof":
        start += int.from_bytes(mp4[start : start + 4], "big")
    return mp4[:start], mp4[start:]


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
    with naming(target):
        sheet.save(target)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: those that come while it is written, as of a full disk, do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


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
