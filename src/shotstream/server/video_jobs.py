"""Films that nobody watches while they are made: a queue of jobs in the slack of what is live.

One thread makes one chunk after the other of the oldest job. It begins one only where every live story leaves it time
enough, and gives it up between two passes as soon as a live story wants the engine. Jobs and films lie in a folder of
the store; what was not finished when the server ended is begun again, with the same seed and so the same frames.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shotstream.engine.direction import Scene
from shotstream.engine.pictures import read_picture
from shotstream.engine.rollout import ChunkAbandoned
from shotstream.engine.stream import Engine, Stream
from shotstream.engine.video import VideoWriter
from shotstream.engine.writer import Writer
from shotstream.server.studio import Studio

log = logging.getLogger(__name__)

JobStatus = Literal["queued", "in_progress", "completed", "failed"]
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class JobLimits:
    """How much is taken on."""

    max_unfinished: int = 16
    max_kept: int = 256
    max_seconds: int = 60
    """Of one film."""
    kept_s: int = 24 * 3600
    """So long after it was finished a film is deleted."""
    expected_chunk_s: float = 0.5
    """Until measured."""

    def __post_init__(self) -> None:
        if min(self.max_unfinished, self.max_kept, self.max_seconds, self.kept_s) < 1:
            raise ValueError(f"limits must be positive, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A film that was ordered."""

    id: str
    prompt: str
    seconds: int
    seed: int
    picture: str = ""
    """To be remembered: PNG, JPEG or WebP in base64."""
    created_at: int
    """Seconds since 1970, like the others."""
    status: JobStatus = "queued"
    progress: int = 0
    """In percent."""
    completed_at: int | None = None
    expires_at: int | None = None
    error_code: str = ""
    error: str = ""

    @property
    def is_finished(self) -> bool:
        return self.status in ("completed", "failed")


class TooManyJobs(Exception):
    """No more are taken on at present."""


class _Unwanted(Exception):
    """The job was deleted, or the server ends."""


class VideoJobs:
    """All jobs of one server. Every method may be called from any thread."""

    def __init__(self, limits: JobLimits | None = None) -> None:
        self.limits = limits or JobLimits()
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._closed = False
        self._chunk_s = deque([self.limits.expected_chunk_s], maxlen=8)

    def start(self, studio: Studio) -> None:
        """Go on with what was left, and begin to work."""
        self._studio = studio
        self._folder = studio.store.folder / "videos"
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:  # stories can be watched all the same; `create` says it again
            log.error("no videos can be kept: %s", error)
        for file in sorted(self._folder.glob("*.json")):
            job = _read(file)
            if job is not None:
                self._jobs[job.id] = job if job.is_finished else replace(job, status="queued", progress=0)
        self._jobs = dict(sorted(self._jobs.items(), key=lambda item: item[1].created_at))
        self._thread = threading.Thread(target=self._run, name="videos", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread; the chunk that is being made is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def create(self, *, prompt: str, seconds: int, seed: int | None = None, picture: str = "") -> Job:
        """Take on a job. Raises TooManyJobs; ValueError for a picture that cannot be read; OSError."""
        if picture:
            self._read_picture(picture)
        with self._changed:
            self._expire()
            unfinished = sum(not job.is_finished for job in self._jobs.values())
            if unfinished >= self.limits.max_unfinished:
                raise TooManyJobs(f"{unfinished} videos are waiting already: try again later")
            if len(self._jobs) >= self.limits.max_kept:
                raise TooManyJobs(f"{len(self._jobs)} videos are kept already: delete some")
            job = Job(
                id=f"video_{secrets.token_hex(12)}",
                prompt=prompt,
                seconds=seconds,
                seed=secrets.randbits(31) if seed is None else seed,
                picture=picture,
                created_at=int(time.time()),
            )
            self._keep(job)
            self._changed.notify_all()
        return job

    def get(self, id: str) -> Job | None:
        with self._changed:
            return self._jobs.get(id)

    def all(self) -> list[Job]:
        """Oldest first."""
        with self._changed:
            self._expire()
            return list(self._jobs.values())

    def film(self, job: Job) -> Path:
        """The mp4 of a job that is completed."""
        return self._folder / f"{job.id}.mp4"

    def delete(self, id: str) -> bool:
        """Forget a job and its film; one that is being made is given up. Returns whether there was one."""
        with self._changed:
            return self._delete(id)

    # --------------------------------------------------------------------------------------------- with the lock held

    def _delete(self, id: str) -> bool:
        job = self._jobs.pop(id, None)
        if job is None:
            return False
        for path in (self._note(job), self.film(job), self._partial(job)):
            path.unlink(missing_ok=True)
        return True

    def _expire(self) -> None:
        now = time.time()
        for id in [job.id for job in self._jobs.values() if job.expires_at is not None and job.expires_at < now]:
            self._delete(id)

    def _keep(self, job: Job) -> None:
        note = self._note(job)
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(job)), encoding="utf-8")
        partial.replace(note)
        self._jobs[job.id] = job

    def _note(self, job: Job) -> Path:
        return self._folder / f"{job.id}.json"

    def _partial(self, job: Job) -> Path:
        return self._folder / f"{job.id}.partial.mp4"

    # ------------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._make(job)
            except _Unwanted:
                self._partial(job).unlink(missing_ok=True)
            except ValueError as error:
                self._end(job, code="invalid_prompt", error=str(error))
            except Exception as error:
                # The last frame of the thread: whatever goes wrong in a model must reach who ordered the film.
                log.exception("video %s failed", job.id)
                self._end(job, code="server_error", error=f"{type(error).__name__}: {error}"[:300])

    def _next_job(self) -> Job | None:
        with self._changed:
            while not self._closed:
                job = next((job for job in self._jobs.values() if not job.is_finished), None)
                if job is not None:
                    return job
                self._changed.wait()
        return None

    def _make(self, job: Job) -> None:
        engine, writer = self._wait_for_engine(job)
        preset = engine.preset
        wanted, made = job.seconds * preset.fps, 0
        self._update(job, status="in_progress")
        stream = self._new_stream(engine, writer, job, wanted)
        with VideoWriter(self._partial(job), fps=preset.fps) as film:
            for frames in self._chunks(stream, job):
                film.write(frames[: wanted - made])
                made = min(wanted, made + len(frames))
                self._update(job, progress=min(99, 100 * made // wanted))
                if made == wanted:
                    break
        self._check(job)
        self._partial(job).replace(self.film(job))
        self._end(job)

    def _new_stream(self, engine: Engine, writer: Writer, job: Job, num_frames: int) -> Stream:
        draft = writer.write(Scene(), job.prompt, opens=True)
        fitted = writer.fit(Scene(caption=draft.caption))
        stream = engine.stream(seed=job.seed)
        stream.keep_going = lambda: not self._studio.turn.wanted and self._wants(job)
        if job.picture:
            stream.memory.add_picture(self._read_picture(job.picture), fitted.caption)
        # Nine frames at the least in every chunk: more than enough, the rest is never made.
        stream.cut(fitted.caption, num_chunks=num_frames // 9 + 1)
        return stream

    def _chunks(self, stream: Stream, job: Job) -> Iterator[NDArray[np.uint8]]:
        while True:
            frames = self._try(stream) if self._has_slack() else None
            if frames is not None:
                yield frames
            else:
                self._pause()
            self._check(job)

    def _try(self, stream: Stream) -> NDArray[np.uint8] | None:
        """A chunk, if no live story wants the engine meanwhile."""
        with self._studio.turn.spare() as is_free:
            if not is_free:
                return None
            start = time.monotonic()
            try:
                frames = next(stream).frames
            except ChunkAbandoned:
                return None
            self._chunk_s.append(time.monotonic() - start)
            return frames

    def _has_slack(self) -> bool:
        """Whether a chunk can be made before any live story needs the engine."""
        workers = [show.worker for show in list(self._studio.shows.values()) if show.is_live]
        wanted = min((worker.idle_until for worker in workers if worker is not None), default=float("inf"))
        return time.monotonic() + 1.1 * max(self._chunk_s) < wanted

    def _wait_for_engine(self, job: Job) -> tuple[Engine, Writer]:
        while True:
            self._check(job)
            if self._studio.status.state == "error":
                raise RuntimeError(self._studio.status.detail)
            engine, writer = self._studio.engine, self._studio.writer
            if engine is not None and writer is not None:
                return engine, writer
            self._pause()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait(_POLL_S)

    def _wants(self, job: Job) -> bool:
        return not self._closed and job.id in self._jobs

    def _check(self, job: Job) -> None:
        if not self._wants(job):
            raise _Unwanted

    def _update(self, job: Job, *, status: JobStatus | None = None, progress: int | None = None) -> None:
        with self._changed:
            self._check(job)
            now = self._jobs[job.id]
            status, progress = status or now.status, now.progress if progress is None else progress
            self._jobs[job.id] = replace(now, status=status, progress=progress)

    def _end(self, job: Job, *, code: str = "", error: str = "") -> None:
        now = int(time.time())
        if error:
            self._partial(job).unlink(missing_ok=True)
        with self._changed:
            if job.id not in self._jobs:
                return
            ended = replace(
                self._jobs[job.id],
                status="failed" if error else "completed",
                progress=self._jobs[job.id].progress if error else 100,
                completed_at=now,
                expires_at=now + self.limits.kept_s,
                error_code=code,
                error=error,
            )
            try:
                self._keep(ended)
            except OSError as problem:
                log.error("video %s cannot be kept: %s", job.id, problem)
                self._jobs[job.id] = ended

    def _read_picture(self, picture: str) -> NDArray[np.uint8]:
        preset = self._studio.broadcast.preset
        return read_picture(picture, width=preset.width, height=preset.height)


def _read(file: Path) -> Job | None:
    try:
        return Job(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        log.warning("%s is not a video job: it is left alone", file)
        return None
