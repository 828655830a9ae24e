"""The files beside the database: bytes are only ever added behind the last ones that were committed.

What a crash left behind the committed end is overwritten. Every part carries a checksum in the database.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.archive import ArchiveError

_COPIED = 2**20
"""Bytes at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Where some bytes lie in a take's file."""

    at: int
    bytes: int
    crc: int


class TakeFile:
    """One take's file while something is added to it. Not thread-safe."""

    def __init__(self, path: Path, end: int, *, reached: Callable[[str], None] = lambda point: None) -> None:
        """Args: end is where the committed bytes end. Raises: OSError; ArchiveError if the file is shorter."""
        self.path, self.end, self._reached = path, end, reached
        path.parent.mkdir(parents=True, exist_ok=True)
        self._is_new = not path.exists()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self._handle).st_size < end:
            os.close(self._handle)
            raise ArchiveError(_missing(path))

    def append(self, data: bytes) -> Part:
        """Write behind everything else. Raises OSError; what was written then is overwritten by the next."""
        middle = len(data) // 2
        os.lseek(self._handle, self.end, os.SEEK_SET)
        for part in (data[:middle], data[middle:]):
            _write(self._handle, part)
            self._reached("mid-write")
        part_written = Part(at=self.end, bytes=len(data), crc=zlib.crc32(data))
        self.end += len(data)
        return part_written

    def cut_to(self, end: int) -> None:
        """Forget what was added after `end`: its transaction failed."""
        self.end = end
        os.ftruncate(self._handle, end)

    def sync(self) -> None:
        """Wait until everything is on the disk, and the file can be found there."""
        os.fsync(self._handle)
        if self._is_new:
            sync_folders(self.path.parent)
            self._is_new = False

    def close(self) -> None:
        os.close(self._handle)


def sync_folders(folder: Path) -> None:
    """Wait until it is on the disk what lies in a folder, and in the two above it."""
    if os.name == "nt":  # folders are kept with their files there
        return
    for path in (folder, *folder.parents[:2]):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_part(path: Path, part: Part) -> bytes:
    """Read and check some bytes of a take. Raises ArchiveError if they are gone or were changed."""
    try:
        with path.open("rb") as file:
            file.seek(part.at)
            data = file.read(part.bytes)
    except FileNotFoundError as error:
        raise ArchiveError(_missing(path)) from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read ({error.strerror}): check the disk and its permissions") from error
    if len(data) < part.bytes:
        raise ArchiveError(_missing(path))
    if zlib.crc32(data) != part.crc:
        raise ArchiveError(f"{path} was changed or damaged at byte {part.at}: put a copy in its place")
    return data


def append_up_to(source: Path, target: Path, stop: int, *, is_lasting: bool = False) -> None:
    """Add to a copy of a file what it lacks of the first `stop` bytes, as far as they are there. Raises OSError.

    is_lasting: whether to wait until they are on the disk.
    """
    if not source.exists():
        return
    with source.open("rb") as read, target.open("ab") as write:
        read.seek(write.tell())
        while data := read.read(max(0, min(stop - write.tell(), _COPIED))):
            write.write(data)
        if is_lasting:
            write.flush()
            os.fsync(write.fileno())


def pack_picture(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Lossless: differences between neighbours, then zlib at its fastest (a third of the size in 3 ms)."""
    differences = pixels_HWC.copy()
    differences[:, 1:] -= pixels_HWC[:, :-1]
    return zlib.compress(differences.tobytes(), 1)


def unpack_picture(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Undo `pack_picture`."""
    differences = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width, 3)
    return np.add.accumulate(differences, axis=1, dtype=np.uint8)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _missing(path: Path) -> str:
    return f"{path} is missing or too short: put a copy in its place, or branch from another take"
