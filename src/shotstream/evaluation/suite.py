"""How good is the storyworld model? `shotstream evaluate --suite storyworld --stories 50 -o results.json`

Held-out stories are filmed over the live path and read back by the probe, an attribute only where the frames show it
and where the probe can be trusted. Everything stands beside its ceiling (renders through the codec) and beside chance.

- following: what captions say, left-out defaults, pronouns, by attribute and by shot
- memory: shot 1 is *rendered* with a mark drawn uniformly, the others are generated; the same without memory, and
  against the marks of unrelated stories
- own memory: the same in stories that the model made from the first shot on
- steering: what a steer asked for is there within two chunks, and is not in the twin of the same seed without it
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream.engine.stream import Engine
from shotstream.evaluation.film import FilmedShot, Take, film, rendered, through_codec, with_uniform_marks
from shotstream.evaluation.metrics import Answer, Tally, sharpness
from shotstream.evaluation.report import Part, results, write_results
from shotstream.evaluation.text_path import said_attributes
from shotstream.presets import PACKAGE_WEIGHTS
from shotstream.storyworld import WorldStory, held_out_pairs, sample_story, visible
from shotstream.storyworld.probe import Probe, ProbeScores, load_probe
from shotstream.storyworld.sampler import NUM_CHUNKS
from shotstream.storyworld.spec import NOBODY

log = logging.getLogger(__name__)

PROBE_FILE = PACKAGE_WEIGHTS / "storyworld" / "probe.safetensors"
STEER_CHUNKS = 2
"""A steer has this many chunks to show."""
LONG_SHOTS = 12
LONG_SEED = 100_000
"""Added to the seeds of long stories, so that they are stories of their own."""
MARK_ATTRIBUTES = ("mark", "second_mark")
PLACE_ATTRIBUTES = ("layout", "tint")

Pixels = NDArray[np.uint8]
Reading = dict[str, str]
"""Attribute -> value read from one chunk."""


class Reader(Protocol):
    """What the suite needs of a probe."""

    def read(self, shot: FilmedShot) -> list[Reading]:
        """One reading per chunk."""
        ...

    def scored(self, attribute: str, framing: str) -> bool:
        """Whether its readings of the attribute at this framing are to be trusted."""
        ...


class ProbeReader:
    """The trained probe."""

    def __init__(self, probe: Probe, scores: ProbeScores) -> None:
        self.probe, self.scores = probe, scores

    def read(self, shot: FilmedShot) -> list[Reading]:
        first, *others = shot.chunks
        readings = self.probe.read(torch.from_numpy(first[None]))
        return readings + (self.probe.read(torch.from_numpy(np.stack(others))) if others else [])

    def scored(self, attribute: str, framing: str) -> bool:
        return self.scores.scored(attribute, framing)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What is filmed."""

    stories: int = 50
    shots: int = 4
    long_stories: int = 0
    """Stories of `LONG_SHOTS` shots, beside the others."""
    first_seed: int = 0
    """Of the held-out stories."""
    num_chunks: int = NUM_CHUNKS
    seed: int = 0
    """Of the noise."""
    parts: tuple[Part, ...] = ("ceiling", "following", "memory", "steering")

    def __post_init__(self) -> None:
        if self.stories < 1 or self.shots < 2:
            raise ValueError(f"need at least one story of two shots, got {self.stories} of {self.shots}")

    @property
    def lengths(self) -> dict[int, int]:
        """Number of each story -> its shots."""
        short = range(self.first_seed, self.first_seed + self.stories)
        long = range(self.first_seed + LONG_SEED, self.first_seed + LONG_SEED + self.long_stories)
        return dict.fromkeys(short, self.shots) | dict.fromkeys(long, LONG_SHOTS)


@dataclass
class StoryResult:
    """Everything measured on one story."""

    story: int
    ceiling: Tally = field(default_factory=Tally)
    model: Tally = field(default_factory=Tally)
    sharpness: dict[str, list[float]] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0


def evaluate_story(engine: Engine, reader: Reader, number: int, config: SuiteConfig) -> StoryResult:
    """Film one held-out story in all ways and read it back."""
    story = sample_story(number, num_shots=config.lengths[number], split="heldout")
    story = with_uniform_marks(story, np.random.default_rng([number, 1]))
    result = StoryResult(story=number)
    renders = _renders(engine, story, config)
    if "ceiling" in config.parts:
        copies = [through_codec(shot, engine.codec) for shot in renders]
        readings = [reader.read(shot) for shot in copies]
        result.ceiling.update(following(reader, story, number, readings))
        result.ceiling.update(memory(reader, story, number, readings))
        result.sharpness["ceiling"] = [sharpness(shot.chunks[-1]) for shot in copies]
    if {"following", "steering"} & set(config.parts):
        _own_story(engine, reader, story, result, config)
    if "memory" in config.parts:
        _given_first_shot(engine, reader, story, renders[0], result, config)
    return result


def _renders(engine: Engine, story: WorldStory, config: SuiteConfig) -> list[FilmedShot]:
    size = {"height": engine.preset.height, "width": engine.preset.width}
    count = len(story.shots) if "ceiling" in config.parts else 1
    return [rendered(story, index, **size, num_chunks=config.num_chunks) for index in range(count)]


def _own_story(engine: Engine, reader: Reader, story: WorldStory, result: StoryResult, config: SuiteConfig) -> None:
    """Everything generated, from the first shot on."""
    shots = film(engine, story, Take(seed=config.seed + story.seed, num_chunks=config.num_chunks))
    readings = [reader.read(shot) for shot in shots]
    result.frames += sum(len(shot.frames) for shot in shots)
    result.seconds += sum(shot.seconds for shot in shots)
    result.sharpness["model"] = [sharpness(shot.chunks[-1]) for shot in shots]
    result.model.update(following(reader, story, result.story, readings))
    result.model.update(own_memory(reader, story, result.story, readings))
    if "steering" in config.parts:
        for index in range(len(story.shots)):
            if story.shots[index].steers:
                twin = _twin(engine, story, shots[:index], index, config)
                result.model.update(steering(reader, story, result.story, index, readings[index], reader.read(twin)))


def _twin(
    engine: Engine, story: WorldStory, earlier: Sequence[FilmedShot], index: int, config: SuiteConfig
) -> FilmedShot:
    """The same shot after the same shots from the same noise, but never steered."""
    take = Take(
        seed=config.seed + story.seed, given=earlier, last_shot=index, steered=False, num_chunks=config.num_chunks
    )
    return film(engine, story, take)[-1]


def _given_first_shot(
    engine: Engine, reader: Reader, story: WorldStory, first: FilmedShot, result: StoryResult, config: SuiteConfig
) -> None:
    """Shot 1 is a render; the rest is generated, with and without memory."""
    for prefix, remember in (("", True), ("forgetful_", False)):
        take = Take(seed=config.seed + story.seed + 1, given=(first,), remember=remember, num_chunks=config.num_chunks)
        generated = film(engine, story, take)[1:]
        unread: list[Reading] = []
        readings = [unread, *(reader.read(shot) for shot in generated)]
        result.model.update(memory(reader, story, result.story, readings, prefix=prefix))


def following(reader: Reader, story: WorldStory, number: int, readings: Sequence[Sequence[Reading]]) -> Tally:
    """Do the frames show what the captions say?

    Names: said/ATTRIBUTE, left_out/ATTRIBUTE (a default nobody mentioned), said_in_shot/N, pronoun (who "he" is),
    two_people/ATTRIBUTE, unseen_pair/ATTRIBUTE (character with a place or action that training never showed).
    """
    tally = Tally()
    for index, spec in enumerate(story.shots):
        for chunk, reading in enumerate(readings[index]):
            said = said_attributes(story, index, chunk)
            labels = spec.labels(chunk)
            for name in spec.known | said:
                if not _counts(reader, story, index, chunk, name):
                    continue
                wanted, read = labels[name], reading[name]
                if name in said:
                    tally.add(f"said/{name}", number, wanted, read)
                    tally.add(f"said_in_shot/{index + 1:02d}", number, f"{name} {wanted}", f"{name} {read}")
                    if spec.second_character != NOBODY:
                        tally.add(f"two_people/{name}", number, wanted, read)
                    if (spec.character, name, wanted) in held_out_pairs():
                        tally.add(f"unseen_pair/{name}", number, wanted, read)
                elif name == "character":
                    tally.add("pronoun", number, wanted, read)
                elif not spec.recall_sources(name):
                    tally.add(f"left_out/{name}", number, wanted, read)
    return tally


def memory(
    reader: Reader, story: WorldStory, number: int, readings: Sequence[Sequence[Reading]], *, prefix: str = ""
) -> Tally:
    """Do later shots show what only shot 1 showed: marks of its people, layout and tint of its place?

    Names: hidden_mark, hidden_mark/shot_N, layout, tint and so on, each after the prefix.
    """
    tally = Tally()
    for index in range(1, len(story.shots)):
        for chunk, reading in enumerate(readings[index]):
            for name, wanted in _seen_in_first_shot(story, index).items():
                if _counts(reader, story, index, chunk, name):
                    kind = "hidden_mark" if name in MARK_ATTRIBUTES else name
                    tally.add(f"{prefix}{kind}", number, wanted, reading[name])
                    tally.add(f"{prefix}{kind}/shot_{index + 1:02d}", number, wanted, reading[name])
    return tally


def _seen_in_first_shot(story: WorldStory, index: int) -> dict[str, str]:
    """Hidden attributes of a later shot that shot 1 showed, with their values."""
    first, spec = story.shots[0], story.shots[index]
    labels, seen = spec.labels(), {}
    met = {first.character, first.second_character} - {NOBODY}
    for name, person in (("mark", spec.character), ("second_mark", spec.second_character)):
        if person in met:
            seen[name] = labels[name]
    if spec.place == first.place:
        seen["tint"] = labels["tint"]
        if first.framing != "close-up":
            seen["layout"] = labels["layout"]
    return seen


def own_memory(reader: Reader, story: WorldStory, number: int, readings: Sequence[Sequence[Reading]]) -> Tally:
    """Does a story of the model's own stay true to itself? Names: own_hidden_mark, own_layout, own_tint, first_mark.

    The first reading of a person's mark, or of a place, is what later shots are held to.
    """
    tally = Tally()
    before: dict[tuple[str, str], str] = {}
    for index, spec in enumerate(story.shots):
        owners = {
            "mark": spec.character,
            "second_mark": spec.second_character,
            "layout": spec.place,
            "tint": spec.place,
        }
        now: dict[tuple[str, str], str] = {}
        for chunk, reading in enumerate(readings[index]):
            for name, owner in owners.items():
                if owner == NOBODY or not _counts(reader, story, index, chunk, name):
                    continue
                kind = "mark" if name in MARK_ATTRIBUTES else name
                if (kind, owner) in before:
                    title = "hidden_mark" if kind == "mark" else kind
                    tally.add(f"own_{title}", number, before[kind, owner], reading[name])
                elif (kind, owner) not in now:
                    now[kind, owner] = reading[name]
                    if name == "mark":
                        tally.add("first_mark", number, getattr(spec, name), reading[name])
        before |= now
    return tally


def steering(
    reader: Reader,
    story: WorldStory,
    number: int,
    index: int,
    steered: Sequence[Reading],
    twin: Sequence[Reading],
) -> Tally:
    """Does each steer of a shot show within two chunks, is it absent without it, and does all else stay?

    Names: steering, steering/ATTRIBUTE, steering_keeps/ATTRIBUTE (mark and place).
    """
    tally = Tally()
    spec = story.shots[index]
    for change in spec.steers:
        later = [s.chunk for s in spec.steers if s.attribute == change.attribute and s.chunk > change.chunk]
        end = min([change.chunk + STEER_CHUNKS, len(steered), *later])
        window = [c for c in range(change.chunk, end) if _counts(reader, story, index, c, change.attribute)]
        if not window:
            continue
        present = any(steered[c][change.attribute] == change.value for c in window)
        absent = all(twin[c][change.attribute] != change.value for c in window)
        outcome = "done" if present and absent else "not done"
        tally.add("steering", number, "done", outcome)
        tally.add(f"steering/{change.attribute}", number, "done", outcome)
        for name in ("mark", "place"):
            if _counts(reader, story, index, window[-1], name):
                tally.add(f"steering_keeps/{name}", number, steered[change.chunk - 1][name], steered[window[-1]][name])
    return tally


def _counts(reader: Reader, story: WorldStory, index: int, chunk: int, attribute: str) -> bool:
    """Whether it is fair to score an attribute in a chunk."""
    spec = story.shots[index]
    if attribute == "camera_motion" and chunk == 0:
        return False
    return visible(spec, attribute, chunk) and reader.scored(attribute, spec.framing)


def evaluate(engine: Engine, reader: Reader, config: SuiteConfig, journal: Path | None = None) -> Iterator[StoryResult]:
    """One result per story. With a journal, finished stories are kept there and not filmed again."""
    done = _read_journal(journal) if journal else {}
    for number in config.lengths:
        if number not in done:
            done[number] = evaluate_story(engine, reader, number, config)
            if journal:
                _append(journal, done[number])
        yield done[number]


def _append(journal: Path, result: StoryResult) -> None:
    def plain(tally: Tally) -> dict[str, list[tuple[str, str]]]:
        return {name: [(a.wanted, a.read) for a in answers] for name, answers in tally.answers.items()}

    entry = {"story": result.story, "frames": result.frames, "seconds": result.seconds, "sharpness": result.sharpness}
    entry |= {"ceiling": plain(result.ceiling), "model": plain(result.model)}
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _read_journal(journal: Path) -> dict[int, StoryResult]:
    def tally(plain: Mapping[str, Sequence[Sequence[str]]], story: int) -> Tally:
        answers = {name: [Answer(story=story, wanted=w, read=r) for w, r in pairs] for name, pairs in plain.items()}
        return Tally(answers=answers)

    done: dict[int, StoryResult] = {}
    for line in journal.read_text().splitlines() if journal.is_file() else []:
        entry = json.loads(line)
        number = int(entry["story"])
        entry |= {name: tally(entry[name], number) for name in ("ceiling", "model")}
        done[number] = StoryResult(**entry)
    return done


def main(argv: Sequence[str] | None = None, *, progress: Callable[[str], None] = log.info) -> None:
    """Measure a model on held-out stories and write the results as JSON, with a table beside it."""
    parser = argparse.ArgumentParser(
        prog="shotstream evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=("storyworld",), default="storyworld")
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--shots", type=int, default=4, help="shots of each story")
    parser.add_argument("--long-stories", type=int, default=0, help=f"stories of {LONG_SHOTS} shots, beside those")
    parser.add_argument("--first-seed", type=int, default=0, help="first of the held-out stories")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--model", choices=("student", "teacher"), default="student")
    parser.add_argument("--steps", type=int, help="of the teacher")
    parser.add_argument("--weights", type=Path, help="a folder, or a file with the model")
    parser.add_argument("--probe", type=Path, default=PROBE_FILE)
    parser.add_argument("--parts", nargs="+", choices=SuiteConfig().parts, default=SuiteConfig().parts)
    parser.add_argument("--device")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/storyworld.json"))
    parser.add_argument("--journal", type=Path, help="keep finished stories here, and go on from them")
    options = parser.parse_args(argv)
    reader = ProbeReader(*load_probe(options.probe))
    from shotstream.engine.loading import load

    engine = load(
        "storyworld", model=options.model, weights=options.weights, device=options.device, num_steps=options.steps
    )
    config = SuiteConfig(
        stories=options.stories,
        shots=options.shots,
        long_stories=options.long_stories,
        first_seed=options.first_seed,
        seed=options.seed,
        parts=tuple(options.parts),
    )
    finished = []
    for result in evaluate(engine, reader, config, options.journal):
        finished.append(result)
        progress(f"story {len(finished)} of {len(config.lengths)}")
    write_results(options.output, options.model, results(finished, reader.scores, config))


if __name__ == "__main__":
    main()
