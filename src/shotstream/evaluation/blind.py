"""Clips without captions for fresh eyes, the key in another place, and a scorer.

    python -m shotstream.evaluation.blind make -o out/blind --key out/blind-key.json
    python -m shotstream.evaluation.blind score out/blind/answers.csv out/blind-key.json -o out/blind-scores.json

`make` writes numbered clips, one sheet of pictures, the instructions and an answer form. Somebody who has not seen the
key fills in the form by looking; `score` compares.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shotstream.engine.stream import Engine
from shotstream.engine.video import VideoWriter
from shotstream.evaluation.film import FilmedShot, Pixels, Take, film, rendered
from shotstream.evaluation.metrics import Measure, Tally
from shotstream.evaluation.sheets import strip
from shotstream.storyworld import WorldStory, sample_story, visible
from shotstream.storyworld.spec import ATTRIBUTES, NOBODY

log = logging.getLogger(__name__)

CLIPS = 24
FIRST_SEED = 50_000
"""Of the held-out stories that clips are taken from: none that the suite measures."""
ASKED = ("character", "place", "framing", "action", "expression")
GROUPS = {"character, place, framing": (ASKED[:3], 0.90), "action, expression": (ASKED[3:], 0.70)}
"""Title -> attributes, share of right answers that is needed."""
Key = Mapping[str, Mapping[str, str]]
"""Number of the clip -> attribute -> what was asked of the model, for what the clip shows."""

INSTRUCTIONS = """# What do these clips show?

{clips} clips of a drawn world, in `clip-NN.mp4`; `sheet.png` has three pictures of each. Look at a clip and write one
word from each list into its line of `answers.csv`. Answer every field that can be told; leave empty what cannot be seen
(what somebody does in a close-up, the face in a wide shot).

{words}
"""


def clip_stories(count: int = CLIPS, seed: int = 0) -> list[WorldStory]:
    """Held-out stories of one shot with one person in it and no steer, in random order, the same for the same seed."""
    numbers = np.random.default_rng(seed).permutation(20 * count) + FIRST_SEED
    return [story for story, _ in zip(_suitable(numbers.tolist()), range(count), strict=False)]


def _suitable(numbers: Sequence[int]) -> Iterator[WorldStory]:
    for number in numbers:
        story = sample_story(number, num_shots=1, split="heldout")
        if story.shots[0].second_character == NOBODY and not story.shots[0].steers:
            yield story


def answers_of(story: WorldStory) -> dict[str, str]:
    """What a viewer of the story's shot should be able to tell."""
    spec = story.shots[0]
    labels = spec.labels()
    seen = {name: labels[name] for name in ASKED if visible(spec, name)}
    if spec.framing == "wide":
        seen.pop("expression")
    return seen


def make(engine: Engine | None, folder: Path, key_file: Path, *, count: int = CLIPS, seed: int = 0) -> None:
    """Write clips, sheet, instructions and form into the folder, and the key elsewhere.

    Args: engine films; None takes renders, to find out how well people read the world itself.
    Raises: ValueError if the key would lie among the clips.
    """
    if folder.resolve() in key_file.resolve().parents:
        raise ValueError(f"the key must not lie among the clips: give --key a path outside {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    stories = clip_stories(count, seed)
    key, strips = {}, []
    for number, story in enumerate(stories, start=1):
        name = f"{number:02d}"
        shot = film(engine, story, Take(seed=story.seed))[0] if engine else _render(story)
        with VideoWriter(folder / f"clip-{name}.mp4") as video:
            for chunk in shot.chunks:
                video.write(chunk)
        strips.append(strip(name, shot))
        key[name] = answers_of(story)
    Image.fromarray(_sheet(strips)).save(folder / "sheet.png")
    words = "\n".join(f"- {name}: {', '.join(ATTRIBUTES[name])}" for name in ASKED)
    (folder / "README.md").write_text(INSTRUCTIONS.format(clips=len(stories), words=words))
    _write_form(folder / "answers.csv", list(key))
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text(json.dumps(key, indent=1) + "\n")


def _render(story: WorldStory) -> FilmedShot:
    return rendered(story, 0, height=192, width=320)


def _sheet(strips: Sequence[Pixels]) -> Pixels:
    """Two strips side by side."""
    padded = [*strips, *[np.zeros_like(strips[0])] * (len(strips) % 2)]
    return np.concatenate([np.concatenate(padded[i : i + 2], axis=1) for i in range(0, len(padded), 2)])


def _write_form(path: Path, clips: Sequence[str]) -> None:
    with path.open("w", newline="") as file:
        form = csv.writer(file)
        form.writerow(["clip", *ASKED])
        form.writerows([clip, *[""] * len(ASKED)] for clip in clips)


def read_answers(path: Path) -> dict[str, dict[str, str]]:
    """A filled form: clip -> attribute -> word. Raises ValueError for a word that is on no list."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {_clip(row["clip"]): {name: _word(name, row.get(name) or "", row["clip"]) for name in ASKED} for row in rows}


def _clip(text: str) -> str:
    return f"{int(text):02d}"


def _word(attribute: str, text: str, clip: str) -> str:
    """The word as the lists have it; capitals, hyphens and spaces do not matter. Empty stays empty."""
    plain = {_plain(word): word for word in ATTRIBUTES[attribute]}
    if text.strip() and _plain(text) not in plain:
        raise ValueError(f"clip {clip}: {attribute} is {text!r}, expected one of {', '.join(plain.values())}")
    return plain[_plain(text)] if text.strip() else ""


def _plain(text: str) -> str:
    return text.strip().lower().replace("-", "").replace(" ", "")


def score(answers: Mapping[str, Mapping[str, str]], key: Key) -> Tally:
    """Right and wrong answers, by attribute and by group; an empty field is a wrong answer."""
    tally = Tally()
    for clip, wanted in key.items():
        for name, value in wanted.items():
            read = answers.get(clip, {}).get(name, "")
            tally.add(name, int(clip), value, read)
            title = next(title for title, (group, _) in GROUPS.items() if name in group)
            tally.add(title, int(clip), f"{name} {value}", f"{name} {read}")
    return tally


def report(tally: Tally) -> dict[str, Any]:
    """Measures, whether the groups reach what is needed, and every wrong answer."""
    measures: dict[str, Measure] = tally.measures(pooled=GROUPS)
    wrong = [
        {"clip": answer.story, "attribute": name, "asked": answer.wanted, "seen": answer.read}
        for name in ASKED
        for answer in tally.answers.get(name, [])
        if not answer.right
    ]
    reached = {title: measures[title].value >= needed for title, (_, needed) in GROUPS.items() if title in measures}
    return {"measures": {name: asdict(m) for name, m in measures.items()}, "reached": reached, "wrong": wrong}


def main(argv: Sequence[str] | None = None) -> None:
    """Make clips, or score answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="write clips and a key")
    making.add_argument("-o", "--output", type=Path, required=True, help="folder of clips")
    making.add_argument("--key", type=Path, required=True, help="where the key goes: not into that folder")
    making.add_argument("--source", choices=("student", "teacher", "truth"), default="student")
    making.add_argument("--weights", type=Path, help="a folder, or a file with the model")
    making.add_argument("--clips", type=int, default=CLIPS)
    making.add_argument("--seed", type=int, default=0, help="of the choice of clips")
    scoring = verbs.add_parser("score", help="compare a filled form with the key")
    scoring.add_argument("answers", type=Path)
    scoring.add_argument("key", type=Path)
    scoring.add_argument("-o", "--output", type=Path, help="write all of it as JSON")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.verb == "make":
        make(_engine(options), options.output, options.key, count=options.clips, seed=options.seed)
        return
    found = report(score(read_answers(options.answers), json.loads(options.key.read_text())))
    for name, measure in found["measures"].items():
        log.info("%-26s %.0f%% (%.0f to %.0f) of %d", name, *_percents(measure), measure["count"])
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def _engine(options: argparse.Namespace) -> Engine | None:
    from shotstream.engine.loading import load

    if options.source == "truth":
        return None
    return load("storyworld", model=options.source, weights=options.weights)


def _percents(measure: Mapping[str, float]) -> list[float]:
    return [100 * measure[name] for name in ("value", "low", "high")]


if __name__ == "__main__":
    main()
