"""A live story as an mp4 without end, for players that know nothing of the page: ffplay, VLC, OBS.

The story's chunks are taken apart into single pictures and sent one by one in even time, a fragment each. So a cut
shows at once: pictures that were not sent yet and are void are left out. Where there is nothing to show, because the
story is paused or waits for direction, the last picture is shown on; players never run dry.
"""

from __future__ import annotations

import asyncio
import io
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shotstream.engine.worker import Encode
from shotstream.server.audience import Viewer
from shotstream.server.media import boxes
from shotstream.server.protocol import MediaFlag, MediaHeader, unpack_media
from shotstream.server.session import Show
from shotstream.server.studio import Broadcast

Attended = Callable[[asyncio.Task[None]], AbstractContextManager[None]]

BUFFER_FRAMES = 6
"""Pictures that wait once there were none: chunks come at the last moment."""
MAX_WAITING_FRAMES = 60
"""A player that takes them too slowly misses whole chunks."""
STILL_FRAMES = 16
_TFHD_DEFAULTS = 0x020038
_KEY_SAMPLE, _OTHER_SAMPLE = 0x02000000, 0x01010000


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded picture."""

    data: bytes
    is_key: bool


def samples(fragment: bytes) -> tuple[list[Sample], int]:
    """Take a fragment of `ChunkEncoder` apart: its pictures, and how many ticks each lasts."""
    parts = {kind: (start, end) for kind, start, end in _leaves(fragment)}
    (tfhd, _), (trun, _), (mdat, _) = parts["tfhd"], parts["trun"], parts["mdat"]
    flags = struct.unpack_from(">I", fragment, tfhd + 8)[0] & 0xFFFFFF
    defaults = _fields(fragment, tfhd + 16, flags, ((0x01, 8), (0x02, 4), (0x08, 4), (0x10, 4), (0x20, 4)))
    flags, count = struct.unpack_from(">II", fragment, trun + 8)
    entries, per_sample = trun + 16 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4), (0x100, 0x200, 0x400, 0x800)
    width = 4 * sum(bool(flags & bit) for bit in per_sample)
    found, at = [], mdat + 8
    for index in range(count):
        own = _fields(fragment, entries + index * width, flags, tuple((bit, 4) for bit in per_sample))
        size = own.get(0x200, defaults.get(0x10, 0))
        found.append(Sample(fragment[at : at + size], index == 0))
        at += size
    return found, defaults[0x08]


def _leaves(data: bytes) -> list[tuple[str, int, int]]:
    found, waiting = [], [(0, len(data))]
    while waiting:
        for kind, start, end in boxes(data, *waiting.pop()):
            if kind in ("moof", "traf"):
                waiting.append((start + 8, end))
            else:
                found.append((kind, start, end))
    return found


def _fields(data: bytes, at: int, flags: int, known: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The optional numbers that flags say are there."""
    values = {}
    for bit, size in known:
        if flags & bit:
            values[bit] = int.from_bytes(data[at : at + size], "big")
            at += size
    return values


def one_picture(number: int, sample: Sample, ticks: int) -> bytes:
    """A fragment with one picture. Args: number counts them from 0; ticks is how long each lasts."""
    flags = _KEY_SAMPLE if sample.is_key else _OTHER_SAMPLE
    tfhd = _box(b"tfhd", struct.pack(">IIIII", _TFHD_DEFAULTS, 1, ticks, len(sample.data), flags))
    tfdt = _box(b"tfdt", struct.pack(">IQ", 1 << 24, number * ticks))
    mfhd = _box(b"mfhd", struct.pack(">II", 0, number % 2**32 + 1))
    size = 8 + len(mfhd) + 8 + len(tfhd) + len(tfdt) + 20
    trun = _box(b"trun", struct.pack(">III", 0x1, 1, size + 8))
    moof = _box(b"moof", mfhd + _box(b"traf", tfhd + tfdt + trun))
    assert len(moof) == size, "the data offset counts from the moof to behind the mdat's header"
    return moof + _box(b"mdat", sample.data)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


class Projector:
    """Says which picture comes next."""

    def __init__(self, slate: bytes) -> None:
        self._still, self.ticks = samples(slate)
        self._still_at = 0
        self._waiting: deque[tuple[int, Sample]] = deque()
        """Story-clock frame and picture."""
        self._reel: list[Sample] = []
        """Of the chunk that is shown, as far as it was."""
        self._epoch = -1
        self._buffering = 0

    @property
    def is_low(self) -> bool:
        """Whether the last pictures are being shown, so that a still of the very last one may be wanted."""
        return len(self._waiting) <= 2 and bool(self._reel)

    def push(self, header: MediaHeader, fragment: bytes) -> None:
        """A chunk is there. What it makes void is left out."""
        if header.epoch != self._epoch:
            self._waiting = deque(one for one in self._waiting if one[0] < header.start)
            self._epoch = header.epoch
        if not self._waiting:
            self._buffering = BUFFER_FRAMES
        found, _ = samples(fragment)
        self._waiting.extend((header.start + index, sample) for index, sample in enumerate(found))
        while len(self._waiting) > MAX_WAITING_FRAMES:
            self._drop_a_chunk()

    def _drop_a_chunk(self) -> None:
        self._waiting.popleft()
        while self._waiting and not self._waiting[0][1].is_key:
            self._waiting.popleft()

    def next(self) -> Sample:
        """The picture to be shown now."""
        if self._waiting and self._buffering <= 0:
            sample = self._waiting.popleft()[1]
            self._reel = [sample] if sample.is_key else [*self._reel, sample]
            self._still_at = 0
            return sample
        self._buffering -= 1
        sample = self._still[self._still_at % len(self._still)]
        self._still_at += 1
        return sample

    @property
    def reel(self) -> tuple[Sample, ...]:
        """What a decoder needs for the last picture that was shown, and those of its chunk that are still to come."""
        rest: list[Sample] = []
        for _, sample in self._waiting:
            if sample.is_key:
                break
            rest.append(sample)
        return (*self._reel, *rest)

    def keep_still(self, fragment: bytes) -> None:
        """Show this where there is nothing else."""
        self._still, _ = samples(fragment)


def still(init_segment: bytes, reel: Sequence[Sample], ticks: int, encode: Encode) -> bytes:
    """The last picture of a chunk, standing still: a fragment."""
    parts = [one_picture(number, sample, ticks) for number, sample in enumerate(reel)]
    with av.open(io.BytesIO(b"".join([init_segment, *parts])), format="mp4") as container:
        last = list(container.decode(video=0))[-1].to_ndarray(format="rgb24")
    return encode(np.repeat(last[None], STILL_FRAMES, axis=0))


class LiveFilm(Response):
    """Answers a request with the story for as long as somebody listens."""

    media_type = "video/mp4"

    def __init__(self, show: Show, broadcast: Broadcast, name: str, attended: Attended) -> None:
        """Args: name is the viewer's; attended is told of the task that plays, and may cancel it."""
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._show, self._broadcast, self._attended = show, broadcast, attended
        self._projector = Projector(broadcast.slate)
        self._viewer = Viewer(name, "watcher", self._receive)
        self._encode = broadcast.new_encoder()

    async def _receive(self, message: str | bytes) -> None:
        if isinstance(message, str):
            return
        header, payload = unpack_media(message)
        if not header.flags & (MediaFlag.INIT | MediaFlag.SLATE):
            self._viewer.acknowledge(header.sequence)
            self._projector.push(header, payload)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self._show.join(self._viewer, None)
        playing = asyncio.ensure_future(self._first_of(self._viewer.run(), _until_gone(receive), self._play(send)))
        try:
            with self._attended(playing):
                await asyncio.wait([playing])
        finally:
            self._show.leave(self._viewer)
            playing.cancel()
        with suppress(OSError):  # who listened is gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _first_of(*jobs: Coroutine[Any, Any, None]) -> None:
        """Until one of them ends; the others end with it."""
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _play(self, send: Send) -> None:
        fps, projector, loop = self._broadcast.preset.fps, self._projector, asyncio.get_running_loop()
        await _send(send, self._broadcast.init_segment)
        number, due = 0, loop.time()
        kept: tuple[Sample, ...] = ()
        while True:
            if projector.is_low and (reel := projector.reel) != kept:
                kept = reel
                arguments = (self._broadcast.init_segment, reel, projector.ticks, self._encode)
                projector.keep_still(await asyncio.to_thread(still, *arguments))
            await _send(send, one_picture(number, projector.next(), projector.ticks))
            number, due = number + 1, max(due + 1 / fps, loop.time() - 1)
            await asyncio.sleep(due - loop.time())


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
