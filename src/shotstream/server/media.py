"""Frames to what a browser plays while the story is still being made: fragmented mp4, one fragment per chunk.

A player needs one *init segment* (what the track is) and then *fragments* (pictures). Every fragment here is one
closed group of pictures from a fresh encoder with decode time 0: it needs no other fragment, and the player decides
where on its clock it belongs. All encoders of one size write the same init segment.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""uint8 [T, H, W, 3] RGB."""

MIME_TYPE = 'video/mp4; codecs="{}"'

_BT709 = 1
_LIMITED_RANGE = 1
_SLATE_FRAMES = 8
"""Enough that a browser starts its decoder: Chromium waits for four."""
_SLATE_COLOUR = (17, 18, 22)

# x264 writes its settings into every first picture: 700 bytes a chunk that no player reads.
_DROP_SETTINGS = "filter_units=remove_types=6"


class ChunkEncoder:
    """Encodes chunks of one size, each on its own. Holds no state between chunks; not thread-safe.

    H.264 high profile, 4:2:0, BT.709 limited range, no B-frames, one thread: the same frames give the same bytes.
    """

    def __init__(self, width: int, height: int, fps: int = 16, *, crf: int = 20) -> None:
        """Args: width and height in pixels; crf is x264's quality, lower is better.

        Raises: ValueError for odd sides, or if this build of PyAV has no x264.
        """
        if width % 2 or height % 2 or min(width, height) < 2:
            raise ValueError(f"H.264 needs even sides, got {width}x{height}")
        if "libx264" not in av.codecs_available:
            raise ValueError("this PyAV has no libx264 encoder: install the wheel from PyPI (pip install --force av)")
        self.width, self.height, self.fps, self._crf = width, height, fps, crf
        self._reformatter = VideoReformatter()  # a new one per picture costs three times the conversion
        slate = np.empty((_SLATE_FRAMES, height, width, 3), np.uint8)
        slate[:] = _SLATE_COLOUR
        self.init_segment, self.slate = _split(self._encode_file(slate))
        """`slate` is a fragment without content, for warming the player's decoder before the first chunk."""
        self.slate_frames = _SLATE_FRAMES
        self.codec_string = _codec_string(self.init_segment)

    @property
    def mime_type(self) -> str:
        """What `MediaSource.isTypeSupported` and `addSourceBuffer` are given."""
        return MIME_TYPE.format(self.codec_string)

    def encode(self, frames: Frames) -> bytes:
        """One chunk as one fragment.

        Args: frames uint8 [T, H, W, 3] of this encoder's size, T at least 1.
        Returns: a `moof` and an `mdat` box; the first picture's decode time is 0, each lasts 1/fps seconds.
        Raises: ValueError for other shapes.
        """
        expected = (self.height, self.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected or not len(frames):
            raise ValueError(f"expected uint8 frames [T, {expected}], got {frames.dtype} {list(frames.shape)}")
        init, fragment = _split(self._encode_file(frames))
        assert init == self.init_segment, "x264 wrote other parameter sets than before"
        return fragment

    def _encode_file(self, frames: Frames) -> bytes:
        file = io.BytesIO()
        options = {"movflags": "empty_moov+default_base_moof+frag_custom", "use_editlist": "0"}
        with av.open(file, "w", format="mp4", options=options) as container:
            stream = self._add_stream(container)
            strip = BitStreamFilterContext(_DROP_SETTINGS, stream)
            for index, pixels in enumerate(frames):
                for packet in stream.encode(self._picture(pixels, index)):
                    container.mux(self._filtered(strip, packet))
            for packet in stream.encode(None):
                container.mux(self._filtered(strip, packet))
        return file.getvalue()

    def _add_stream(self, container: Any) -> Any:
        stream = container.add_stream("libx264", rate=self.fps)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        # superfast: a quarter less time than veryfast for a quarter more bytes; ultrafast doubles the bytes.
        stream.options = {"preset": "superfast", "tune": "zerolatency", "crf": str(self._crf), "bf": "0"}
        context = stream.codec_context
        # One thread: the other cores belong to the model, and the bytes do not depend on timing.
        context.thread_count, context.gop_size, context.time_base = 1, 250, Fraction(1, self.fps)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _picture(self, pixels: NDArray[np.uint8], index: int) -> Any:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
        )
        picture.pts, picture.time_base, picture.duration = index, Fraction(1, self.fps), 1
        return picture

    @staticmethod
    def _filtered(strip: BitStreamFilterContext, packet: Any) -> Sequence[Any]:
        packets: list[Any] = strip.filter(packet)
        return packets


def _split(file: bytes) -> tuple[bytes, bytes]:
    """An mp4 with one fragment -> init segment (ftyp, moov) and fragment (moof, mdat)."""
    parts = {kind: file[start:end] for kind, start, end in boxes(file)}
    assert {"ftyp", "moov", "moof", "mdat"} <= parts.keys(), f"not one fragment: {list(parts)}"
    return parts["ftyp"] + parts["moov"], parts["moof"] + parts["mdat"]


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """The boxes of an mp4 (ISO/IEC 14496-12) between two offsets: kind, start, end."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        assert size >= 8, f"box {kind!r} of {size} bytes"
        yield kind.decode("latin-1"), start, start + size
        start += size


def _codec_string(init_segment: bytes) -> str:
    """Profile, constraints and level from the avcC box (ISO/IEC 14496-15), as RFC 6381 writes them."""
    record = init_segment.index(b"avcC") + 4
    return "avc1." + init_segment[record + 1 : record + 4].hex()
