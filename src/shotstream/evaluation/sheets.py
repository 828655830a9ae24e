"""Contact sheets of held-out stories: the truth, the codec's copy of it, the teacher and the student, row by row.

    python -m shotstream.evaluation.sheets -o docs/media
    python -m shotstream.evaluation.sheets -o out --models student --best-and-worst storyworld.stories.json
    python -m shotstream.evaluation.sheets -o docs/media --models student --overview storyworld.stories.json

The same six stories every time, so that sheets of different models can be laid side by side; or the best and the worst
of 24 fixed stories, by the shares that the suite gave them; or all of these 24 in one picture, from best to worst.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shotstream.engine.stream import Engine
from shotstream.evaluation.film import FilmedShot, Take, film, rendered, through_codec
from shotstream.evaluation.metrics import mean_of_attributes
from shotstream.storyworld import WorldStory, render_frame, sample_story

log = logging.getLogger(__name__)

STORIES = (2, 5, 11, 17, 23, 31)
"""Numbers of the six held-out stories."""
FIXED = range(24)
"""Numbers of the stories among which best and worst are looked for."""
SHOTS = 4
PICTURES = 3
"""Per shot: the first frame, one of the middle, the last."""
INK, PAPER = (236, 236, 232), (28, 28, 36)
CAPTION_HEIGHT = 40

Pixels = NDArray[np.uint8]


def story_rows(story: WorldStory, engines: Mapping[str, Engine]) -> dict[str, list[FilmedShot]]:
    """Row title -> shots. The rows are `truth`, `codec` and one per engine."""
    any_engine = next(iter(engines.values()))
    size = {"height": any_engine.preset.height, "width": any_engine.preset.width}
    truth = [rendered(story, index, **size) for index in range(len(story.shots))]
    rows = {"truth": truth, "codec": [through_codec(shot, any_engine.codec) for shot in truth]}
    return rows | {name: film(engine, story, Take(seed=story.seed)) for name, engine in engines.items()}


def sheet(story: WorldStory, rows: Mapping[str, Sequence[FilmedShot]]) -> Pixels:
    """One band per shot: its caption, then a row of pictures for each way of making it."""
    bands = []
    for index in range(len(story.shots)):
        strips = [strip(title, shots[index]) for title, shots in rows.items()]
        spec = story.shots[index]
        changes = "".join(f"  [chunk {change.chunk}: {change.caption}]" for change in spec.steers)
        heading = f"{index + 1}. {story.global_caption + ' | ' if story.global_caption else ''}{spec.caption}{changes}"
        bands += [_bar(heading, strips[0].shape[1]), *strips]
    return np.concatenate(bands)


def strip(title: str, shot: FilmedShot) -> Pixels:
    """First, middle and last frame side by side, with a title."""
    frames = shot.frames
    picked = [frames[round(i * (len(frames) - 1) / (PICTURES - 1))] for i in range(PICTURES)]
    image = Image.fromarray(np.concatenate(picked, axis=1))
    draw = ImageDraw.Draw(image)
    draw.text((5, 3), title, fill=INK, stroke_width=2, stroke_fill=PAPER, font=ImageFont.load_default(14))
    return np.asarray(image)


def _bar(text: str, width: int) -> Pixels:
    """Text in two lines at most."""
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (width, CAPTION_HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    words, lines = text.split(), [""]
    for word in words:
        if draw.textlength(f"{lines[-1]} {word}", font=font) > width - 12:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    draw.multiline_text((6, 4), "\n".join(lines[:2]), fill=INK, font=font, spacing=3)
    return np.asarray(image)


def write_sheets(engines: Mapping[str, Engine], folder: Path, stories: Sequence[int] = STORIES) -> list[Path]:
    """Write `story-N.jpg` for each story. Returns the paths. Raises ValueError if there is no engine."""
    if not engines:
        raise ValueError("contact sheets need at least one model: name student, teacher or both")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in stories:
        story = sample_story(number, num_shots=SHOTS, split="heldout")
        paths.append(folder / f"story-{number:02d}.jpg")
        Image.fromarray(sheet(story, story_rows(story, engines))).save(paths[-1], quality=88)
        log.info("wrote %s", paths[-1])
    return paths


def overview(engine: Engine, shares: Mapping[int, float]) -> Pixels:
    """A row per story, best first: on the left its shots in truth, on the right as filmed, the middle frame of each.

    Args: shares by story, which decide the order and are written beside it.
    """
    rows = []
    for number in sorted(shares, key=lambda n: (-shares[n], n)):
        story = sample_story(number, num_shots=SHOTS, split="heldout")
        filmed = [shot.frames for shot in film(engine, story, Take(seed=story.seed))]
        size = {"height": engine.preset.height, "width": engine.preset.width}
        truth = [
            render_frame(spec, len(frames) // 2, **size).pixels
            for spec, frames in zip(story.shots, filmed, strict=True)
        ]
        pictures = [_halved(frame) for frame in [*truth, *(frames[len(frames) // 2] for frames in filmed)]]
        heading = f"story {number}, {shares[number]:.0%} of what is said | {story.global_caption}"
        row = np.concatenate(pictures, axis=1)
        rows += [_bar(heading, row.shape[1])[: CAPTION_HEIGHT // 2], row]
    return np.concatenate(rows)


def _halved(frame_HWC: Pixels) -> Pixels:
    height, width, _ = frame_HWC.shape
    return np.asarray(Image.fromarray(frame_HWC).resize((width // 2, height // 2), Image.Resampling.LANCZOS))


def best_and_worst(per_story: Mapping[str, Mapping[str, float]], count: int = 3) -> tuple[list[int], list[int]]:
    """Numbers of the stories that follow their captions best and worst, of those fixed; best first, worst first.

    Raises: ValueError if fewer of them were measured than are asked for.
    """
    shares = shares_said(per_story)
    if len(shares) < 2 * count:
        raise ValueError(
            f"{len(shares)} of the {len(FIXED)} fixed stories were measured, need {2 * count}: evaluate them"
        )
    ranked = sorted(shares, key=lambda number: (-shares[number], number))
    return ranked[:count], ranked[::-1][:count]


def shares_said(per_story: Mapping[str, Mapping[str, float]]) -> dict[int, float]:
    """How far each of the fixed stories follows its captions: the mean over what they say, attributes alike."""
    return {number: share for number, share in mean_of_attributes(per_story).items() if number in FIXED}


def main(argv: Sequence[str] | None = None) -> None:
    """Film the six stories with the shipped models, or others, and write their sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/media"))
    parser.add_argument("--models", nargs="+", choices=("teacher", "student"), default=["teacher", "student"])
    parser.add_argument("--weights", type=Path, help="folder with the models' files")
    parser.add_argument("--steps", type=int, help="of the teacher")
    parser.add_argument("--stories", type=int, nargs="+", default=STORIES)
    parser.add_argument("--best-and-worst", type=Path, help="shares of single stories, as `evaluate` writes them")
    parser.add_argument("--overview", type=Path, help="the same shares, for one picture of all fixed stories")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from shotstream.engine.loading import load

    engines = {
        name: load(
            "storyworld",
            model=name,
            weights=options.weights,
            num_steps=options.steps if name == "teacher" else None,
        )
        for name in options.models
    }
    if options.overview is not None:
        measured = json.loads(options.overview.read_text())[options.models[-1]]
        picture = overview(engines[options.models[-1]], shares_said(measured))
        options.output.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(options.output / "overview.jpg", quality=88)
        return
    if options.best_and_worst is None:
        write_sheets(engines, options.output, options.stories)
        return
    shares = json.loads(options.best_and_worst.read_text())[options.models[-1]]
    for title, numbers in zip(("best", "worst"), best_and_worst(shares), strict=True):
        write_sheets(engines, options.output / title, numbers)


if __name__ == "__main__":
    main()
