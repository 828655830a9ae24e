"""Single pictures as text: thumbnails on the way out, a person's own pictures on the way in."""

from __future__ import annotations

import base64
import binascii
import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shotstream.engine.messages import MAX_PICTURE

THUMBNAIL_HEIGHT = 72
MAX_PIXELS = 32_000_000
"""Of a person's own picture."""


def thumbnail(picture_HWC: NDArray[np.uint8]) -> str:
    """A small JPEG in base64 of a picture uint8 [H, W, 3]."""
    height, width = picture_HWC.shape[:2]
    image = Image.fromarray(picture_HWC).resize(
        (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT), Image.Resampling.BOX
    )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode("ascii")


def read_picture(data: str, *, width: int, height: int) -> NDArray[np.uint8]:
    """A PNG, JPEG or WebP file in base64 -> uint8 [height, width, 3], upright, cropped around its middle and scaled.

    Only pixels survive: EXIF says which side is up and is dropped like all other metadata, animation and transparency.
    Raises ValueError for anything else, and for what is too large: more than MAX_PICTURE characters, or MAX_PIXELS in
    the file, which are counted before they are unpacked. Nothing larger is made of them, whatever the picture's shape.
    """
    if len(data) > MAX_PICTURE:
        raise ValueError(f"the picture has {len(data)} characters of base64, at most {MAX_PICTURE}: make it smaller")
    try:
        file = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the picture is not base64") from error
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the picture has {image.width}x{image.height} pixels: make it smaller")
            pixels = ImageOps.exif_transpose(image).convert("RGB")
    # SyntaxError and struct.error: a broken PNG, and EXIF that is none.
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError("the picture cannot be read: give a PNG, JPEG or WebP file") from error
    return np.asarray(ImageOps.fit(pixels, (width, height), Image.Resampling.LANCZOS))
