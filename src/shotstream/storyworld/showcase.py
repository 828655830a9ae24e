"""A story to look at: a contact sheet and a clip, with the captions that a model would be given."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from shotstream.engine.video import naming
from shotstream.storyworld.render import FPS, render_frame
from shotstream.storyworld.sampler import MOST_SHOTS, NUM_CHUNKS, SPLITS, WorldStory, sample_story
from shotstream.storyworld.spec import CHUNK_FRAMES, first_frame

SHEET_CHUNKS = (0, 1, 3, 5, 6)
"""Chunks of each shot shown on the sheet, by a frame near their middle."""
FRAME_SIZE = (192, 320)
CLIP_SIZE = (384, 640)
BAR_HEIGHT = 80
INK, PAPER = (240, 240, 236), (30, 30, 38)

Picture = npt.NDArray[np.uint8]


def write_showcase(
    seed: int, out_dir: str | Path, num_shots: int | None = None, split: str = "train"
) -> tuple[Path, Path]:
    """Write `story-{seed}.png` (one row per shot, its caption below) and `story-{seed}.mp4` into a folder.

    Returns: the two paths.  Raises: ValueError for a bad split or length, OSError if the folder cannot be written.
    """
    story = sample_story(seed, num_shots=num_shots, split=split)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sheet, clip = folder / f"story-{seed}.png", folder / f"story-{seed}.mp4"
    with naming(sheet):
        Image.fromarray(contact_sheet(story)).save(sheet)
    _write_mp4(clip, _clip_frames(story))
    return sheet, clip


def contact_sheet(story: WorldStory) -> Picture:
    """One row per shot: frames from first to last, and the captions below."""
    rows = []
    for index, spec in enumerate(story.shots):
        frames = [render_frame(spec, _sheet_frame(chunk), *FRAME_SIZE).pixels for chunk in SHEET_CHUNKS]
        row = np.concatenate(frames, axis=1)
        rows += [row, _text_bar(_shot_text(story, index), row.shape[1], 46, 17)]
    return np.concatenate(rows)


def _sheet_frame(chunk: int) -> int:
    """The shot's very first frame (what memory keeps), else the middle of a chunk."""
    return first_frame(chunk) + CHUNK_FRAMES // 2 if chunk else 0


def _shot_text(story: WorldStory, index: int) -> str:
    parts = [f"{index}: {story.captions(index, 0)}"]
    parts += [f"[chunk {change.chunk}: {change.caption}]" for change in story.shots[index].steers]
    return "  ".join(parts)


def _clip_frames(story: WorldStory) -> Iterator[Picture]:
    for index, spec in enumerate(story.shots):
        for chunk in range(NUM_CHUNKS):
            bar = _text_bar(story.captions(index, chunk), CLIP_SIZE[1], BAR_HEIGHT, 18)
            for frame in range(first_frame(chunk), first_frame(chunk + 1)):
                yield np.concatenate([render_frame(spec, frame, *CLIP_SIZE).pixels, bar])


def _text_bar(text: str, width: int, height: int, size: int) -> Picture:
    """White on dark, wrapped to the width."""
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width - 16:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text((8, 3), "\n".join(lines), fill=INK, font=font, spacing=2)
    return np.asarray(picture)


def _write_mp4(path: Path, frames: Iterator[Picture]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = CLIP_SIZE[1], CLIP_SIZE[0] + BAR_HEIGHT, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a story of the drawn world."""
    parser = argparse.ArgumentParser(prog="shotstream world", description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--shots", type=int, help=f"1 to {MOST_SHOTS}; drawn from the seed by default")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-o", "--output", type=Path, default=Path("world"), help="folder (default: world)")
    options = parser.parse_args(argv)
    if options.shots is not None and not 1 <= options.shots <= MOST_SHOTS:
        raise ValueError(f"--shots takes 1 to {MOST_SHOTS}, got {options.shots}")
    for path in write_showcase(options.seed, options.output, options.shots, options.split):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
