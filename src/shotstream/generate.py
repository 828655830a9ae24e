"""The job behind `shotstream generate`: film a story, write it while it is being made, say how it went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from shotstream.engine.loading import load_unknown_words
from shotstream.engine.retelling import check_recalls, film_shot, retell
from shotstream.engine.stream import Chunk, Engine, Stream
from shotstream.engine.video import ShotSampler, VideoWriter, check_writable, write_sheet
from shotstream.models.text import TextEncoder
from shotstream.models.vocabulary import UnknownWord
from shotstream.presets import Preset
from shotstream.story import Story, num_pixel_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmReport:
    """How filming went."""

    num_frames: int
    seconds: float
    first_frame_seconds: tuple[float, ...] = field(default=())
    """Per shot that the film shows, from the last frames before it, or the first cut, to its first decoded ones."""

    @property
    def frames_per_second(self) -> float:
        """Decoded and written frames over wall clock, first cut to last frame."""
        return self.num_frames / self.seconds if self.seconds else 0.0


def film(stream: Stream, story: Story) -> Iterator[Chunk]:
    """Cut and steer as the story says and yield its chunks; the stream's global caption must be the story's."""
    for shot in story.shots:
        yield from film_shot(stream, shot)


def generate(
    engine: Engine, story: Story, output: Path, *, seed: int = 0, sheet: Path | None = None, console: Console
) -> FilmReport:
    """Film a story into an mp4 and, if asked, a contact sheet; progress goes to ``console``.

    Raises: ValueError, before anything is written, for a path that cannot be written, a caption that is too long, or
    (of a story that says how it was made) a picture or a frame that it recalls and does not have.
    """
    writer = VideoWriter(output, fps=engine.preset.fps)
    if sheet is not None:
        check_writable(sheet, suffixes=(".png",))
    check_story(engine, story)
    for unknown in unknown_words(story, engine.preset, engine.text):
        console.print(f"[yellow]notice:[/] {escape(str(unknown))}", highlight=False, soft_wrap=True)
    rows: list[ShotSampler] = []
    with writer, _FilmProgress(story, console) as progress:
        for chunk in _chunks(engine, story, seed):
            writer.write(chunk.frames)
            _sample(rows, chunk, story)
            progress.advance(chunk)
    if sheet is not None:
        write_sheet(rows, sheet)
    return progress.report()


def _chunks(engine: Engine, story: Story, seed: int) -> Iterator[Chunk]:
    if story.is_exact:
        return retell(engine, replace(story, seed=seed))
    return film(engine.stream(seed=seed, global_caption=story.global_caption), story)


def check_stories(engine: Engine, stories: Sequence[Story]) -> None:
    """Raise ValueError, naming story and shot, if `check_story` finds fault with any: before any is filmed."""
    for story in stories:
        try:
            check_story(engine, story)
        except ValueError as error:
            raise ValueError(f"{story.name}: {error}") from error


def check_story(engine: Engine, story: Story) -> None:
    """Raise ValueError, naming the shot, if any caption that will be in force is longer than the text encoder takes, or
    a shot recalls what is not there."""
    for index, shot in enumerate(story.shots):
        try:
            for chunk in shot.changes:
                engine.check_caption(story.caption_at(index, chunk, style=engine.preset.caption_style))
        except ValueError as error:
            raise ValueError(f"shot {index}: {error}") from error
    if story.is_exact:
        check_recalls(engine.preset, story)


def unknown_words(story: Story, preset: Preset, text: TextEncoder) -> list[UnknownWord]:
    """Return the words of a story that the preset's model cannot draw; none where no vocabulary ships with it."""
    unknown = load_unknown_words(preset, text)
    captions = [story.caption_at(index, chunk) for index, shot in enumerate(story.shots) for chunk in shot.changes]
    return unknown.of(" ".join(captions)) if unknown else []


def _sample(rows: list[ShotSampler], chunk: Chunk, story: Story) -> None:
    if chunk.index == 0:
        shot = story.shots[chunk.shot]
        whole = num_pixel_frames(shot.num_chunks)
        shown = shot.making.frames if shot.making is not None else None
        rows.append(ShotSampler(_sheet_caption(story, chunk.shot), num_frames=whole if shown is None else shown))
    rows[-1].add(chunk.frames)


def _sheet_caption(story: Story, index: int) -> str:
    shot = story.shots[index]
    steers = [f"[from chunk {steer.chunk}: {steer.caption}]" for steer in shot.steers]
    return " ".join([f"{index + 1}.", shot.caption, *steers])


class _FilmProgress:
    """A progress bar with the rate and the time to the first frame; silent lines where there is no terminal."""

    def __init__(self, story: Story, console: Console) -> None:
        self._story = story
        self._console = console
        self._num_frames = 0
        self._first_frame_seconds: list[float] = []
        columns = (
            TextColumn("{task.description}", markup=False),  # a caption may hold brackets
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("starting", total=sum(shot.num_chunks for shot in story.shots), rate="")

    def __enter__(self) -> _FilmProgress:
        self._bar.start()
        self._start = self._end = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, chunk: Chunk) -> None:
        now = time.perf_counter()
        if chunk.index == 0:
            self._first_frame_seconds.append(now - self._end)
        shot = self._story.shots[chunk.shot]
        self._num_frames += len(chunk.frames)
        self._end = now
        rate = f"{self.report().frames_per_second:.1f} frames/s, first frame {self._first_frame_seconds[0]:.2f} s"
        caption = f"shot {chunk.shot + 1}/{len(self._story.shots)} {shot.caption[:40]}"
        self._bar.update(self._task, advance=1, description=caption, rate=rate)

    def report(self) -> FilmReport:
        return FilmReport(
            num_frames=self._num_frames,
            seconds=self._end - self._start,
            first_frame_seconds=tuple(self._first_frame_seconds),
        )


def describe(report: FilmReport, fps: int) -> str:
    """Return one line for people: length, rate, time to the first frame."""
    first = report.first_frame_seconds
    after_cuts = f", {median(first[1:]):.2f} s after a cut (median of {len(first) - 1})" if len(first) > 1 else ""
    return (
        f"{report.num_frames} frames ({report.num_frames / fps:.1f} s of video) in {report.seconds:.1f} s: "
        f"{report.frames_per_second:.1f} frames/s, first frame {first[0]:.2f} s{after_cuts}"
    )
