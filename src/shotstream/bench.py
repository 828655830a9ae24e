"""Measures what a viewer gets: frames a second, the wait after a cut, memory over time.

One session, as a person would direct it: every prompt is new, the memory of earlier shots is full, shots run until the
window of their own frames is full, and cuts come from another thread at random moments of a running chunk.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, product
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from shotstream.engine.loading import hardware_name, reserve_heap
from shotstream.engine.stream import Chunk, Engine, Stream
from shotstream.models.vocabulary import VOCABULARY_FILE, Vocabulary
from shotstream.presets import PACKAGE_WEIGHTS

STAGES = ("text", "context", "commit", "denoise", "decode")
WANTED_CUTS = 30
STEADY_SHARE = 0.4
"""Share of the time spent on the rate at full window; the rest goes to cuts."""
BUSY_LOAD_PER_CORE = 0.3


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One measurement. Times are wall clock; latencies end when the frames lie decoded in memory as uint8."""

    preset: str
    device: str
    end_to_end_fps: float
    """uint8 frames over wall clock at full window: full memory, and a shot that has filled its own window."""
    session_fps: float
    """The same over the whole session, cuts included."""
    first_frame_after_cut_ms_p50: float
    first_frame_after_cut_ms_p95: float
    num_cuts: int
    num_chunks: int
    num_frames: int
    seconds: float
    ms_per_stage: dict[str, float]
    """Mean per chunk; `other` is what no stage accounts for. `context` falls on the first chunk of a shot."""
    context_ms_per_cut: float
    rss_mb: float
    rss_growth_mb: float
    """From the end of the warm-up, which fills memory and caches, to the end."""
    gpu_memory_mb: float | None
    load_average: float
    """One-minute load before the measurement."""
    commit: str
    hardware: str
    threads: int
    dtype: str
    height: int
    width: int
    steps: int
    torch: str
    seed: int

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


@dataclass
class _Log:
    """What was seen while running."""

    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    wall_ms: list[float] = field(default_factory=list)
    full_frames: int = 0
    full_seconds: float = 0.0
    num_frames: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    context_ms: list[float] = field(default_factory=list)

    def add(self, chunk: Chunk, seconds: float, *, full: bool) -> None:
        for stage in STAGES:
            self.stages[stage].append(getattr(chunk.timings, stage))
        self.wall_ms.append(seconds * 1000)
        self.num_frames += len(chunk.frames)
        if chunk.index == 0:
            self.context_ms.append(chunk.timings.context)
        if full:
            self.full_frames += len(chunk.frames)
            self.full_seconds += seconds


def measure(engine: Engine, *, seconds: float, load_average: float, seed: int = 0) -> BenchResult:
    """Run one session of about ``seconds`` after a warm-up and return what was measured.

    Args: load_average is the load before anything of this was started.
    """
    prompts = new_prompts(engine.preset.name, seed)
    stream = engine.stream(seed=seed)
    chunk_seconds = _warm_up(stream, prompts)
    reserve_heap()  # as the server does
    log, rss = _Log(), rss_mb()
    start = time.perf_counter()
    _run_steady(stream, prompts, log, until=start + STEADY_SHARE * seconds)
    _run_cuts(stream, prompts, log, until=start + seconds, chunk_seconds=chunk_seconds, rng=random.Random(seed))
    elapsed = time.perf_counter() - start
    return _result(engine, log, elapsed, load_average, rss_growth=rss_mb() - rss, seed=seed)


def new_prompts(preset: str, seed: int) -> Iterator[str]:
    """Yield captions without end, no two alike, from the preset's vocabulary where it has one."""
    path = PACKAGE_WEIGHTS / preset / VOCABULARY_FILE
    terms = Vocabulary.read(path).terms if path.is_file() else _PLAIN_TERMS
    groups = [terms[name] for name in ("framing", "character", "action", "place", "time_of_day")]
    combinations = list(product(*groups))
    random.Random(seed).shuffle(combinations)
    for lap in count():
        for framing, character, action, place, when in combinations:
            again = f", take {lap + 1}" if lap else ""
            yield f"a {framing} shot of a {character} {action} in the {place}, {when}{again}"


_PLAIN_TERMS = {
    "framing": ("wide", "medium", "close"),
    "character": ("woman", "man", "dog", "child", "dancer", "cyclist"),
    "action": ("walking", "running", "waiting", "laughing", "reading"),
    "place": ("city", "forest", "kitchen", "harbour", "desert"),
    "time_of_day": ("morning", "sunset", "night"),
}


def busy_warning(load_average: float) -> str | None:
    """Return a warning if other work keeps the machine busy, so that numbers would come out too low."""
    cores = os.cpu_count() or 1
    if load_average <= BUSY_LOAD_PER_CORE * cores:
        return None
    return f"the machine is busy (load {load_average:.1f} on {cores} cores): numbers will be worse than on an idle one"


def table(result: BenchResult) -> Table:
    """Return the result as a table for people."""
    rows = Table(title=f"shotstream bench: {result.preset}", show_header=False)
    rows.add_row("end to end, full window", f"{result.end_to_end_fps:.1f} frames/s")
    rows.add_row("whole session with cuts", f"{result.session_fps:.1f} frames/s")
    p50, p95 = result.first_frame_after_cut_ms_p50, result.first_frame_after_cut_ms_p95
    rows.add_row("first frame after a cut", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms ({result.num_cuts} cuts)")
    for stage, milliseconds in result.ms_per_stage.items():
        rows.add_row(f"  {stage}, mean per chunk", f"{milliseconds:.1f} ms")
    rows.add_row("  context, mean per cut", f"{result.context_ms_per_cut:.1f} ms")
    rows.add_row(
        "memory", f"{result.rss_mb:.0f} MB, grew {result.rss_growth_mb:+.1f} MB over {result.num_chunks} chunks"
    )
    if result.gpu_memory_mb is not None:
        rows.add_row("GPU memory, peak", f"{result.gpu_memory_mb:.0f} MB")
    rows.add_row("video", f"{result.height}x{result.width}, {result.steps} steps, {result.dtype}")
    rows.add_row("machine", f"{result.hardware}, {result.threads} threads, load {result.load_average:.2f} before")
    rows.add_row("software", f"commit {result.commit}, torch {result.torch}")
    return rows


def rss_mb() -> float:
    """Return the resident memory of this process in MB (its peak where /proc is missing)."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def commit_name() -> str:
    """Return the commit of the checkout this runs from, marked if changed, or the package's version."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return f"version {importlib.metadata.version('shotstream')}"
    return done.stdout.strip()


def _warm_up(stream: Stream, prompts: Iterator[str]) -> float:
    """Fill memory with two shots, past their window; return the seconds of a chunk at full window."""
    window = stream.engine.preset.slab.window_chunks
    log = _Log()
    for _ in range(2):
        stream.cut(next(prompts), num_chunks=window + 1)
        for _ in _logged(stream, log, window):
            pass
    return log.wall_ms[-1] / 1000


def _run_steady(stream: Stream, prompts: Iterator[str], log: _Log, *, until: float) -> None:
    """Uncut shots twice as long as the window, so that half of the chunks see it full."""
    window = stream.engine.preset.slab.window_chunks
    while not log.full_frames or time.perf_counter() < until:
        stream.cut(next(prompts), num_chunks=2 * window)
        for _ in _logged(stream, log, window):
            if log.full_frames and time.perf_counter() >= until:
                break


def _run_cuts(
    stream: Stream, prompts: Iterator[str], log: _Log, *, until: float, chunk_seconds: float, rng: random.Random
) -> None:
    """Shots that are cut at a random moment of a running chunk, as long as leaves time for enough cuts."""
    window = stream.engine.preset.slab.window_chunks

    def wanted_length() -> int:
        cuts_left = max(1, WANTED_CUTS - len(log.latencies_ms))
        return max(2, min(window, int((until - time.perf_counter()) / cuts_left / chunk_seconds)))

    cutter, length = _Cutter(stream), wanted_length()
    stream.cut(next(prompts), num_chunks=_UNTIL_CUT)
    for chunk in _logged(stream, log, window):
        if (waited := cutter.waited_for(chunk)) is not None:
            log.latencies_ms.append(waited * 1000)
            length = wanted_length()
            if time.perf_counter() >= until:
                break
        if chunk.index == length - 2:
            cutter.cut_after(rng.random() * chunk_seconds, next(prompts))


_UNTIL_CUT = 10_000
"""Chunks of a shot that is only ended by the next cut."""


class _Cutter:
    """Cuts from a thread of its own while the stream works, as a server does for a viewer."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._prompt = ""
        self._cut_at = 0.0

    def cut_after(self, seconds: float, prompt: str) -> None:
        self._prompt = prompt
        threading.Timer(seconds, self._cut).start()

    def _cut(self) -> None:
        self._cut_at = time.perf_counter()
        self._stream.cut(self._prompt, num_chunks=_UNTIL_CUT)

    def waited_for(self, chunk: Chunk) -> float | None:
        """Seconds since the cut, if this chunk is the first that it brought."""
        if not any(applied.caption == self._prompt for applied in chunk.applied):
            return None
        return time.perf_counter() - self._cut_at


def _logged(stream: Stream, log: _Log, window: int) -> Iterator[Chunk]:
    start = time.perf_counter()
    for chunk in stream:
        now = time.perf_counter()
        log.add(chunk, now - start, full=chunk.index >= window - 1)
        yield chunk
        start = time.perf_counter()


def _result(engine: Engine, log: _Log, seconds: float, load: float, *, rss_growth: float, seed: int) -> BenchResult:
    preset, device = engine.preset, engine.model.device
    stages = {stage: float(np.mean(log.stages[stage])) for stage in STAGES}
    stages["other"] = float(np.mean(log.wall_ms)) - sum(stages.values())
    p50, p95 = np.percentile(log.latencies_ms, [50, 95])
    cuda = device.type == "cuda"
    return BenchResult(
        preset=preset.name,
        device=str(device),
        end_to_end_fps=log.full_frames / log.full_seconds,
        session_fps=log.num_frames / seconds,
        first_frame_after_cut_ms_p50=float(p50),
        first_frame_after_cut_ms_p95=float(p95),
        num_cuts=len(log.latencies_ms),
        num_chunks=len(log.wall_ms),
        num_frames=log.num_frames,
        seconds=seconds,
        ms_per_stage=stages,
        context_ms_per_cut=float(np.mean(log.context_ms)),
        rss_mb=rss_mb(),
        rss_growth_mb=rss_growth,
        gpu_memory_mb=torch.cuda.max_memory_allocated(device) / 2**20 if cuda else None,
        load_average=load,
        commit=commit_name(),
        hardware=hardware_name(device),
        threads=torch.get_num_threads(),
        dtype=str(engine.model.dtype).removeprefix("torch."),
        height=preset.height,
        width=preset.width,
        steps=len(preset.student_levels),
        torch=torch.__version__,
        seed=seed,
    )
