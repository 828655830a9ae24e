"""A barcode in the pixels: which story, shot, take, chunk and frame a picture is, and under which caption it was made.

Read back from what a browser shows, it proves that no stale, repeated or missing frame got there. Three rows of 32
black and white cells along the lower edge survive H.264 and scaling. `tests/page/barcode.js` is its twin.
"""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS, ROWS = 32, 3
MAGIC = 0b10110010
_WIDTHS = (8, 12, 6, 10, 14, 22)
"""Bits of story, shot, take, chunk, frame, caption; with 8 of magic before and 16 of checksum behind they are 96."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Barcode:
    """What a picture says about itself. Numbers too large for their bits wrap around."""

    story: int
    shot: int
    take: int
    chunk: int
    frame: int
    """Pixel frame of the shot."""
    caption: int
    """See `caption_hash`."""


def caption_hash(caption: str) -> int:
    """22 bits of a caption."""
    return zlib.crc32(caption.encode()) % (1 << 22)


def barcode_height(width: int) -> int:
    """Rows of pixels that the barcode takes in a picture of this width, a multiple of 32."""
    if width % COLUMNS:
        raise ValueError(f"a barcode needs a width that is a multiple of {COLUMNS}, got {width}")
    return ROWS * (width // COLUMNS)


def draw_barcode(picture_HWC: NDArray[np.uint8], code: Barcode) -> None:
    """Write `code` into the lower edge of a uint8 [H, W, 3] picture, in place."""
    height = barcode_height(picture_HWC.shape[1])
    cell = height // ROWS
    cells = np.array(_bits(code), np.uint8).reshape(ROWS, COLUMNS) * 255
    picture_HWC[-height:] = np.kron(cells, np.ones((cell, cell), np.uint8))[:, :, None]


def read_barcode(picture_HWC: NDArray[np.uint8]) -> Barcode | None:
    """Read what `draw_barcode` wrote; None where there is no intact barcode."""
    height = barcode_height(picture_HWC.shape[1])
    cell = height // ROWS
    grey = picture_HWC[-height:].mean(axis=2).reshape(ROWS, cell, COLUMNS, cell).mean(axis=(1, 3))
    bits = (grey > 127.5).astype(int).ravel().tolist()
    fields: list[int] = []
    for width in _WIDTHS:
        start = 8 + sum(_WIDTHS[: len(fields)])
        fields.append(int("".join(map(str, bits[start : start + width])), 2))
    code = Barcode(**dict(zip(Barcode.__dataclass_fields__, fields, strict=True)))
    return code if _bits(code) == bits else None


def _bits(code: Barcode) -> list[int]:
    text = f"{MAGIC:08b}"
    for value, width in zip(astuple(code), _WIDTHS, strict=True):
        text += f"{value % (1 << width):0{width}b}"
    checksum = zlib.crc32(int(text, 2).to_bytes(10, "big")) & 0xFFFF
    return [int(bit) for bit in text + f"{checksum:016b}"]
