"""The engine thread: asks the director what to make, makes it, and hands out events with their media.

Everybody else only ever calls `submit`, `poll` and `take`, which return at once. The thread owns the stream, never
awaits anything but its next work, and gives up a chunk between two passes or parts of its decoding when the director no
longer wants it. What it makes depends on which instructions fell before which chunk, not on when exactly they came.

Log, then announce: what happened is given to the archive first, and nobody hears of it before it is kept. Where it
cannot be, everything waits, the story pauses, and `trouble` says why.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.archive import Archive, ArchiveError, Batch, ChunkData, MemoryEdit, OpeningData, Past
from shotstream.engine.direction import (
    Abandoned,
    Broken,
    DirectorConfig,
    Dropped,
    Edited,
    EditMemory,
    Entry,
    Input,
    Located,
    Made,
    NextChunk,
    NotWritten,
    OpenShot,
    Place,
    Refused,
    Remembered,
    Result,
    Scene,
    Trouble,
    Viewers,
    Wait,
    Work,
    Written,
)
from shotstream.engine.director import Director
from shotstream.engine.memory import MemoryFrame
from shotstream.engine.messages import (
    Branch,
    ChunkReady,
    Command,
    Ended,
    Event,
    RememberedFrame,
    Retake,
    ShotOpened,
    StorySnapshot,
    Undo,
)
from shotstream.engine.pictures import read_picture, thumbnail
from shotstream.engine.rollout import ChunkAbandoned
from shotstream.engine.stream import Chunk, Engine, Stream
from shotstream.engine.turns import Turn
from shotstream.engine.underway import MAX_CHUNKS
from shotstream.engine.writer import Writer
from shotstream.story import Steer

log = logging.getLogger(__name__)

Encode = Callable[[NDArray[np.uint8]], bytes]
"""uint8 [T, H, W, 3] -> one media fragment."""

_AT_HAND = 4
RETRY_S = 1.0
"""How often keeping is tried again while it fails."""
MAX_WAITING_CHUNKS = 4
"""So many chunks may lie in the outbox; beyond that the engine waits for somebody to take them."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event, and the media that belongs to it if it is a chunk."""

    event: Event
    media: bytes = b""
    seq: int = 0
    """Counts the story's events."""


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
        turn: Turn | None = None,
        record: Callable[[Entry], None] | None = None,
        archive: Archive | None = None,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        """Args: wake is called, from any thread, when there is something to `take`; it must return at once.
        turn: stories of one engine share it, so that they take turns.
        record: is told every call of the director that counts (see `Director.replay`).
        archive: keeps the story; one that was kept before goes on, paused. None: nothing is kept.
        reached: is told named points of the work, for tests that end the process there.
        """
        self._engine, self._writer, self._encode, self._wake = engine, writer, encode, wake
        self._archive, self._reached = archive, reached
        self._director = Director(config, record=record, saved=archive.load() if archive else None)
        self._unsaved: deque[Batch] = deque()
        self._retry_at = 0.0
        self.trouble = ""
        """Why nothing can be kept at present, and what to do."""
        self._seq = 0
        self._turn = turn or Turn()
        self.idle_until = 0.0
        """When, by time.monotonic(), it wants the engine next unless something is said; inf: never."""
        self._changed = threading.Condition()
        self._unwanted = threading.Event()
        self._outbox: deque[Delivery] = deque()
        self._waiting_chunks = 0
        self._closed = False
        self._stream: Stream | None = None
        self._story = 0
        self._in_force: tuple[str, tuple[str, ...]] = ("", ())
        self._left_out: tuple[str, ...] = ()
        """Of what is in force, what the text encoder does not see."""
        self._openings: dict[int, OpeningData] = {}
        self._chunks: dict[tuple[int, int], ChunkData] = {}
        """Made, and perhaps not announced yet: the newest few."""
        self._memory_edit: MemoryEdit | None = None
        self._encode_s: deque[float] = deque(maxlen=32)
        self._side = ThreadPoolExecutor(1, thread_name_prefix="packer")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; a chunk that is being made is abandoned."""
        self.end()
        self._thread.join(timeout_s)
        self._side.shutdown(wait=False)

    def end(self) -> None:
        """Keep and announce nothing more from now on; the thread ends soon."""
        with self._changed:
            self._closed = True
            self._unwanted.set()
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------- for all other threads

    def submit(self, command: Input) -> None:
        """Hand a command to the director.

        Raises ValueError for an id that was used before, ArchiveError while nothing can be kept.
        """
        with self._changed:
            if isinstance(command, (Written, NotWritten, Dropped, Viewers, Trouble, Located, Remembered)):
                self._put(self._director.handle(command, time.monotonic()))
            else:
                self._submit(command)
            self._interrupt_if_unwanted()

    def poll(self) -> None:
        """Let the director notice that time has passed. Call it a few times a second."""
        with self._changed:
            if self._unsaved and not self._closed and time.monotonic() >= self._retry_at:
                self._save()
            self._put(self._director.poll(time.monotonic()))
            self._interrupt_if_unwanted()

    def say(self, events: Sequence[Event]) -> None:
        """Announce what somebody else did, in its turn."""
        with self._changed:
            self._put(list(events))

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
    def dormant(self) -> bool:
        """Whether its story was kept from before and nobody has resumed it yet."""
        return self._director.dormant

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
                try:
                    self._announce_memory(work)
                except Exception:
                    # It is only to be looked at: the story goes on, and a cut says in words what goes wrong in it.
                    log.exception("what a cut would remember cannot be told")

    def _next_work(self) -> Work | None:
        """Wait until there is something to make; None means that the worker was closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if not self._director.busy:
                    self._stream = None  # its story is over
                held_up = self._unsaved or self._waiting_chunks >= MAX_WAITING_CHUNKS
                work = Wait() if held_up else self._director.next_work(now)
                self._put(self._director.poll(now))  # before the work begins, which may take long
                if not isinstance(work, Wait):
                    self._unwanted.clear()
                    self.idle_until = 0.0
                    return work
                self.idle_until = math.inf if work.until is None else work.until
                self._changed.wait(None if work.until is None else max(0.001, work.until - now))
        return None

    def _try(self, work: Work) -> Result:
        try:
            with self._turn:
                return self._perform(work)
        except ChunkAbandoned:
            return Abandoned()
        except (ValueError, ArchiveError) as error:
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
                self._edit(work)
                return Edited()
        assert_never(work)

    def _open(self, work: OpenShot) -> Made:
        aired = work.aired_frames
        if self._stream is None or work.story != self._story:
            self._begin(work)
            aired = work.parent_frames
        assert self._stream is not None
        self._reached("cut")
        fitted = self._writer.fit(self._scene(work))
        steers = [Steer(chunk=0, caption=caption) for caption in fitted.steers]
        self._stream.cut(fitted.caption, num_chunks=MAX_CHUNKS, steers=steers, take=work.take, aired_frames=aired)
        packing: list[Future[tuple[OpeningData, tuple[RememberedFrame, ...]]]] = []
        self._stream.opening = lambda context: packing.append(self._side.submit(self._pack, work, context))
        with self._moving_on():
            chunk = next(self._stream)
            self._in_force, self._left_out = (work.caption, work.steers), fitted.left_out
            self._openings[work.shot], remembered = packing[0].result()
            self._keep_at_hand(work.shot, 0, chunk, work)
        return Made(
            num_frames=len(chunk.frames),
            caption=chunk.caption,
            left_out=fitted.left_out,
            context=remembered,
            thumbnail=thumbnail(chunk.frames[0]),
        )

    def _pack(
        self, work: OpenShot, context: tuple[MemoryFrame, ...]
    ) -> tuple[OpeningData, tuple[RememberedFrame, ...]]:
        """Compress what is announced with a shot, while the engine thread makes its first chunk."""
        assert self._stream is not None
        opening = OpeningData(
            seed=work.seed,
            global_caption=work.global_caption,
            context=context,
            kept=self._stream.memory.kept(work.shot - 1),
            plan=work.plan,
        )
        if self._archive is not None:
            try:
                self._archive.prepare(opening)
            except ArchiveError as error:
                log.warning("the pictures of shot %d have to be packed when they are kept: %s", work.shot, error)
        return opening, _remembered(context)

    def _next(self, work: NextChunk) -> Made:
        if self._stream is None or work.story != self._story:
            self._take_up(work.story, work.node, work.chunk)
        assert self._stream is not None
        if (work.caption, work.steers) != self._in_force:
            fitted = self._writer.fit(self._scene(work))
            self._stream.rewrite(fitted.caption, fitted.steers)
            self._in_force, self._left_out = (work.caption, work.steers), fitted.left_out
        with self._moving_on():
            chunk = next(self._stream)
            self._keep_at_hand(work.shot, work.chunk, chunk, work)
        return Made(num_frames=len(chunk.frames), caption=chunk.caption, left_out=self._left_out)

    @contextmanager
    def _moving_on(self) -> Iterator[None]:
        """Work that is refused in here moved the stream, and nothing else: what is kept gives another stream."""
        try:
            yield
        except (ValueError, ArchiveError):
            self._stream = None
            raise

    def _begin(self, work: OpenShot) -> None:
        """A stream in which this shot can be opened."""
        if work.like is not None:
            self._reached("retake")
            self._take_up(work.story, work.parent, work.parent_chunks, like=work.like)
        elif work.parent is not None:
            self._take_up(work.story, work.parent, work.parent_chunks)
        else:
            self._new_stream(work.story, work.seed, work.global_caption)

    def _new_stream(self, story: int, seed: int, global_caption: str, first_shot: int = 0) -> Stream:
        self._stream = stream = self._engine.stream(seed=seed, global_caption=global_caption, first_shot=first_shot)
        stream.keep_going = self._is_wanted
        self._story = story
        return stream

    def _is_wanted(self) -> bool:
        self._reached("denoise")
        return not self._unwanted.is_set()

    def _take_up(self, story: int, node: int | None, num_chunks: int, *, like: int | None = None) -> None:
        """A stream that goes on where a kept take was after so many chunks."""
        if self._archive is None:
            raise ArchiveError("this story is not kept: there is nothing to go on with")
        self._stream = None  # should anything be missing, the one that there was cannot be gone on with either
        past = self._archive.past(node, num_chunks, like=like)
        stream = self._new_stream(story, past.seed, past.global_caption, first_shot=len(past.shots))
        self._story, self._stream = story, None
        _remember(stream, past)
        if past.running is not None:
            running = past.running
            scene = Scene(global_caption=past.global_caption, caption=running.caption, steers=running.steers)
            fitted = self._writer.fit(scene)
            stream.reopen(replace(running, caption=fitted.caption, steers=fitted.steers))
            self._in_force, self._left_out = (running.caption, running.steers), fitted.left_out
        self._stream = stream

    def _scene(self, work: OpenShot | NextChunk) -> Scene:
        assert self._stream is not None
        return Scene(global_caption=self._stream.global_caption, caption=work.caption, steers=work.steers)

    def _keep_at_hand(self, shot: int, index: int, chunk: Chunk, work: OpenShot | NextChunk) -> None:
        start = time.monotonic()
        media = self._encode(chunk.frames)
        self._encode_s.append(time.monotonic() - start)
        latent = chunk.latent[0].float().cpu().numpy()
        data = ChunkData(caption=work.caption, steers=work.steers, latent=latent, media=media)
        self._chunks.pop((shot, index), None)
        self._chunks[shot, index] = data
        for old in list(self._chunks)[:-_AT_HAND]:
            del self._chunks[old]
        for gone in [number for number in self._openings if all(number != key[0] for key in self._chunks)]:
            del self._openings[gone]

    def _edit(self, work: EditMemory) -> None:
        if self._stream is None or work.story != self._story:
            if work.node is None:
                raise ValueError("nothing is remembered yet: wait for the first shot")
            self._take_up(work.story, work.node, work.chunk)
        assert self._stream is not None
        command, memory = work.command, self._stream.memory
        if command.action == "add":
            preset = self._engine.preset
            pixels = read_picture(command.picture, width=preset.width, height=preset.height)
            self._engine.check_caption(command.caption)
            id = memory.add_picture(pixels, command.caption)
        else:
            assert command.frame is not None
            id = (command.frame.shot, command.frame.frame)
            (self._stream.pin if command.action == "pin" else self._stream.forget)(id)
        frame = None if command.action == "remove" else memory.pinned(id)
        self._memory_edit = MemoryEdit(
            command=command.id, node=work.node, chunk=work.seen, action=command.action, id=id, frame=frame
        )

    def _announce_memory(self, work: Work) -> None:
        """After a first chunk, every third one, and an edit: what a cut now would remember."""
        if self._stream is None or (isinstance(work, NextChunk) and work.chunk % 3):
            return
        with self._changed:
            aired = self._director.aired_frames(time.monotonic())
        with self._turn:
            frames = self._stream.preview_memory(aired_frames=aired)
            if isinstance(work, NextChunk):  # not right after the first chunk, which leaves the least time for the next
                self._stream.encode_ahead()
        self.submit(Remembered(frames=_remembered(frames)))

    # --------------------------------------------------------------------------------------------- with the lock held

    def _submit(self, command: Command) -> None:
        if self._unsaved:
            self._save()
        if self.trouble:
            raise ArchiveError(self.trouble)
        wanted = self._locate(command) if isinstance(command, (Branch, Retake, Undo)) else command
        self._put(self._director.handle(wanted, time.monotonic()), command)

    def _locate(self, command: Branch | Retake | Undo) -> Located:
        place: Place | None = None
        reason = "this story is not kept: there is nothing to go back to"
        if self._archive is not None:
            try:
                place = self._archive.locate(command, self._director.head)
            except (ValueError, ArchiveError) as error:
                reason = str(error)
        return Located(command=command, place=place, reason=reason)

    def _put(self, events: list[Event], command: Command | None = None) -> None:
        """Keep events, then announce them."""
        if not events or self._closed:
            return
        ready = {(e.shot, e.chunk): self._chunks[e.shot, e.chunk] for e in events if isinstance(e, ChunkReady)}
        opened = {e.shot: self._openings[e.shot] for e in events if isinstance(e, ShotOpened)}
        self._waiting_chunks += len(ready)
        edit = self._memory_edit
        if edit is not None and not any(isinstance(e, Ended) and e.id == edit.command for e in events):
            edit = None
        self._unsaved.append(Batch(events=events, command=command, openings=opened, chunks=ready, edit=edit))
        if len(self._unsaved) == 1:
            self._save()

    def _save(self) -> None:
        """Announce what waits, in order, as far as it can be kept."""
        while self._unsaved:
            batch = self._unsaved[0]
            try:
                first = self._archive.record(batch) if self._archive else self._seq + 1
            except ArchiveError as error:
                self._stop_for(str(error))
                return
            except Exception as error:
                # Whoever called has other things to do, and must not end of it: people are told, and it is tried again.
                log.exception("the archive failed")
                self._stop_for(f"the story cannot be kept: {type(error).__name__}: {error}"[:300])
                return
            self._unsaved.popleft()
            self._announce(batch.events, first, batch.chunks)
        if self.trouble:
            self.trouble = ""
            self._put(self._director.handle(Trouble(reason=""), time.monotonic()))

    def _stop_for(self, reason: str) -> None:
        """Nothing can be kept: say so, without keeping it, and make nothing until it can."""
        self._retry_at = time.monotonic() + RETRY_S
        if reason == self.trouble:
            return
        log.error("the story is paused: %s", reason)
        self.trouble, now = reason, time.monotonic()
        self._put(self._director.poll(now))  # what came due while keeping failed has to be kept before it is announced
        events = self._director.handle(Trouble(reason=reason), now)
        assert self._archive is not None
        self._announce(events, self._archive.number(events), {})

    def _announce(self, events: Sequence[Event], first: int, chunks: Mapping[tuple[int, int], ChunkData]) -> None:
        self._reached("before-announce")
        for seq, event in enumerate(events, start=first):
            media = chunks[event.shot, event.chunk].media if isinstance(event, ChunkReady) else b""
            self._outbox.append(Delivery(event, media, seq))
        self._seq = first + len(events) - 1
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


def _remember(stream: Stream, past: Past) -> None:
    """Fill a new stream's memory."""
    for frames in past.shots:
        stream.memory.recall(frames)
    for edit in past.edits:
        if edit.action == "remove":
            stream.memory.forget_frame(edit.id)
        elif edit.frame is not None:
            stream.memory.pin_frame(edit.frame)


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
