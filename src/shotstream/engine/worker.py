"""The engine thread: asks the director what to make, makes it, and hands out events with their media.

Everybody else only ever calls `submit`, `poll` and `take`, which return at once. The thread owns the stream, never
awaits anything but its next work, and gives up a chunk between two denoise passes when the director no longer wants it.
What it makes depends on which instructions fell before which chunk, not on when exactly they came.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.director import (
    MAX_CHUNKS,
    Abandoned,
    Broken,
    Director,
    DirectorConfig,
    Edited,
    EditMemory,
    Entry,
    Input,
    Made,
    NextChunk,
    OpenShot,
    Refused,
    Result,
    Scene,
    Wait,
    Work,
)
from shotstream.engine.memory import MemoryFrame
from shotstream.engine.messages import ChunkReady, Event, Memory, RememberedFrame, StorySnapshot
from shotstream.engine.pictures import read_picture, thumbnail
from shotstream.engine.rollout import ChunkAbandoned
from shotstream.engine.stream import Chunk, Engine, Stream
from shotstream.engine.writer import Writer
from shotstream.story import Steer

log = logging.getLogger(__name__)

Encode = Callable[[NDArray[np.uint8]], bytes]
"""uint8 [T, H, W, 3] -> one media fragment."""

MAX_WAITING_CHUNKS = 4
"""So many chunks may lie in the outbox; beyond that the engine waits for somebody to take them."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event, and the media that belongs to it if it is a chunk."""

    event: Event
    media: bytes = b""


@dataclass(frozen=True, slots=True)
class Pace:
    """What the engine needs for its work, measured before anybody watches."""

    open_s: float
    chunk_s: float
    frames_per_second: float


class Worker:
    """One live story: a director, a stream and the thread between them."""

    def __init__(
        self,
        engine: Engine,
        writer: Writer,
        encode: Encode,
        *,
        config: DirectorConfig,
        wake: Callable[[], None],
        turn: threading.Lock | None = None,
        record: Callable[[Entry], None] | None = None,
    ) -> None:
        """Args: wake is called, from any thread, when there is something to `take`; it must return at once.
        turn: stories of one engine share it, so that they take turns.
        record: is told every call of the director that counts (see `Director.replay`).
        """
        self._engine, self._writer, self._encode, self._wake = engine, writer, encode, wake
        self._director = Director(config, record=record)
        self._turn = turn or threading.Lock()
        self._changed = threading.Condition()
        self._unwanted = threading.Event()
        self._outbox: deque[Delivery] = deque()
        self._waiting_chunks = 0
        self._closed = False
        self._stream: Stream | None = None
        self._story = 0
        self._in_force: tuple[str, tuple[str, ...]] = ("", ())
        self._first_media = self._media = b""
        self._encode_s: deque[float] = deque(maxlen=32)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; a chunk that is being made is abandoned."""
        with self._changed:
            self._closed = True
            self._unwanted.set()
            self._changed.notify_all()
        self._thread.join(timeout_s)

    # ------------------------------------------------------------------------------------------- for all other threads

    def submit(self, command: Input) -> None:
        """Hand a command to the director. Raises ValueError for an id that was used before."""
        with self._changed:
            self._put(self._director.handle(command, time.monotonic()))
            self._interrupt_if_unwanted()

    def poll(self) -> None:
        """Let the director notice that time has passed. Call it a few times a second."""
        with self._changed:
            self._put(self._director.poll(time.monotonic()))
            self._interrupt_if_unwanted()

    def take(self) -> list[Delivery]:
        """Everything that happened since the last time, in order."""
        with self._changed:
            taken = list(self._outbox)
            self._outbox.clear()
            self._waiting_chunks = 0
            self._changed.notify_all()
        return taken

    def look(self) -> tuple[list[Delivery], StorySnapshot]:
        """`take`, and the state right after it."""
        with self._changed:
            return self.take(), self._director.snapshot(time.monotonic())

    def scene(self) -> Scene:
        """What a writer should know."""
        with self._changed:
            return self._director.scene()

    @property
    def busy(self) -> bool:
        """Whether a story is running."""
        return self._director.busy

    @property
    def late_chunks(self) -> int:
        return self._director.late_chunks

    def chunk_s(self, quantile: float) -> float:
        """Seconds of work per chunk, encoding included, over the newest ones."""
        with self._changed:
            return self._director.compute_s(quantile)

    @property
    def encode_s(self) -> float:
        """Median seconds of encoding a chunk."""
        times = sorted(self._encode_s)
        return times[len(times) // 2] if times else 0.0

    # ----------------------------------------------------------------------------------------------- the engine thread

    def _run(self) -> None:
        while (work := self._next_work()) is not None:
            result = self._try(work)
            with self._changed:
                self._put(self._director.done(result, time.monotonic()))
            if isinstance(result, (Made, Edited)):
                self._announce_memory(work)

    def _next_work(self) -> Work | None:
        """Wait until there is something to make; None means that the worker was closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                work = self._director.next_work(now) if self._waiting_chunks < MAX_WAITING_CHUNKS else Wait()
                if not isinstance(work, Wait):
                    self._unwanted.clear()
                    return work
                self._put(self._director.poll(now))
                self._changed.wait(None if work.until is None else max(0.001, work.until - now))
        return None

    def _try(self, work: Work) -> Result:
        try:
            with self._turn:
                return self._perform(work)
        except ChunkAbandoned:
            return Abandoned()
        except ValueError as error:
            return Refused(reason=str(error))
        except Exception as error:
            # The last frame of the thread: whatever goes wrong in a model must reach the people who watch.
            log.exception("the engine failed")
            return Broken(reason=f"the engine failed: {type(error).__name__}: {error}"[:300])

    def _perform(self, work: Work) -> Result:
        match work:
            case OpenShot():
                return self._open(work)
            case NextChunk():
                return self._next(work)
            case EditMemory():
                self._edit(work.command)
                return Edited()
        assert_never(work)

    def _open(self, work: OpenShot) -> Made:
        if self._stream is None or work.story != self._story:
            self._stream = self._engine.stream(seed=work.seed, global_caption=work.global_caption)
            self._stream.keep_going = lambda: not self._unwanted.is_set()
            self._story = work.story
        fitted = self._writer.fit(self._scene(work))
        steers = [Steer(chunk=0, caption=caption) for caption in fitted.steers]
        self._stream.cut(
            fitted.caption, num_chunks=MAX_CHUNKS, steers=steers, take=work.take, aired_frames=work.aired_frames
        )
        chunk = next(self._stream)
        self._in_force = (work.caption, work.steers)
        self._first_media = self._encoded(chunk)
        return Made(
            num_frames=len(chunk.frames),
            caption=chunk.caption,
            left_out=fitted.left_out,
            context=_remembered(chunk.context),
            thumbnail=thumbnail(chunk.frames[0]),
        )

    def _next(self, work: NextChunk) -> Made:
        assert self._stream is not None
        left_out: tuple[str, ...] = ()
        if (work.caption, work.steers) != self._in_force:
            fitted = self._writer.fit(self._scene(work))
            self._stream.rewrite(fitted.caption, fitted.steers)
            self._in_force, left_out = (work.caption, work.steers), fitted.left_out
        chunk = next(self._stream)
        self._media = self._encoded(chunk)
        return Made(num_frames=len(chunk.frames), caption=chunk.caption, left_out=left_out)

    def _scene(self, work: OpenShot | NextChunk) -> Scene:
        assert self._stream is not None
        return Scene(global_caption=self._stream.global_caption, caption=work.caption, steers=work.steers)

    def _encoded(self, chunk: Chunk) -> bytes:
        start = time.monotonic()
        media = self._encode(chunk.frames)
        self._encode_s.append(time.monotonic() - start)
        return media

    def _edit(self, command: Memory) -> None:
        if self._stream is None:
            raise ValueError("nothing is remembered yet: wait for the first shot")
        if command.action == "add":
            preset = self._engine.preset
            pixels = read_picture(command.picture, width=preset.width, height=preset.height)
            self._engine.check_caption(command.caption)
            self._stream.memory.add_picture(pixels, command.caption)
            return
        assert command.frame is not None
        id = (command.frame.shot, command.frame.frame)
        if command.action == "pin":
            self._stream.pin(id)
        else:
            self._stream.forget(id)

    def _announce_memory(self, work: Work) -> None:
        """After a first chunk, every third one, and an edit: what a cut now would remember."""
        if self._stream is None or (isinstance(work, NextChunk) and work.chunk % 3):
            return
        with self._changed:
            aired = self._director.aired_frames(time.monotonic())
        frames = _remembered(self._stream.preview_memory(aired_frames=aired))
        with self._changed:
            self._put(self._director.remembers(frames))

    # --------------------------------------------------------------------------------------------- with the lock held

    def _put(self, events: list[Event]) -> None:
        for event in events:
            media = b""
            if isinstance(event, ChunkReady):
                media = self._first_media if event.chunk == 0 else self._media
                self._waiting_chunks += 1
            self._outbox.append(Delivery(event, media))
        if events:
            self._changed.notify_all()
            self._wake()

    def _interrupt_if_unwanted(self) -> None:
        if self._director.unwanted:
            self._unwanted.set()
        self._changed.notify_all()


def warm_up(engine: Engine, encode: Encode, *, num_chunks: int = 5) -> Pace:
    """Make a shot that nobody sees, and measure. Compiled and cached things are ready afterwards."""
    stream = engine.stream()
    for caption in ("a fox", "a bear"):  # the second shot remembers the first: nothing is new after it
        stream.cut(caption, num_chunks=num_chunks)
        times = [_timed(stream, encode) for _ in range(num_chunks)]
    chunk_s = sorted(times[1:])[(len(times) - 1) // 2]
    return Pace(open_s=times[0], chunk_s=chunk_s, frames_per_second=12 / chunk_s)


def _timed(stream: Stream, encode: Encode) -> float:
    start = time.monotonic()
    encode(next(stream).frames)
    return time.monotonic() - start


def _remembered(frames: tuple[MemoryFrame, ...]) -> tuple[RememberedFrame, ...]:
    return tuple(
        RememberedFrame(
            shot=frame.id[0],
            frame=frame.id[1],
            reason=frame.reason,
            caption=frame.caption,
            thumbnail=thumbnail(frame.pixels),
        )
        for frame in frames
    )
