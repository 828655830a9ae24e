"""How good is the storyworld model? `shotstream evaluate --suite storyworld --stories 200 --long-stories 50`

Held-out stories are filmed over the live path and read back by the probe, an attribute only where the frames show it
and where the probe can be trusted. Everything stands beside its ceiling (renders through the codec) and beside chance.

- following: what captions say, left-out defaults, pronouns, cuts, sharpness, and memory in stories of the model's own
- memory: shot 1 is *rendered* with a mark drawn uniformly, the others are generated
- forgetful: the same with the memory zeroed
- unrelated: do two stories with the same captions agree on what no caption says?
- steering: what a steer asked for is there within two chunks, and is not in the twin of the same seed without it
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from shotstream.children import end_with_parent
from shotstream.engine.stream import Engine
from shotstream.evaluation import cuts, questions
from shotstream.evaluation.film import FilmedShot, Take, film, rendered, through_codec, with_uniform_marks
from shotstream.evaluation.journal import Findings, Journal, StoryResult
from shotstream.evaluation.metrics import Tally, sharpness
from shotstream.evaluation.readers import ProbeReader, Reader, Reading, Seen
from shotstream.evaluation.report import machine
from shotstream.evaluation.transnet import TransNetCuts
from shotstream.evaluation.transnet import available as transnet_is_available
from shotstream.models.checkpoint import config_of
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD, Preset
from shotstream.storyworld import WorldStory, sample_story
from shotstream.storyworld.probe import load_probe
from shotstream.storyworld.sampler import NUM_CHUNKS

log = logging.getLogger(__name__)

Part = Literal["ceiling", "following", "memory", "forgetful", "unrelated", "steering"]
PARTS: tuple[Part, ...] = get_args(Part)
PROBE_FILE = PACKAGE_WEIGHTS / "storyworld" / "probe.safetensors"
LONG_SHOTS = 12
LONG_SEED = 100_000
"""Added to the seeds of long stories, so that they are stories of their own."""
CONTROL_EVERY = 4
"""What stands beside memory (forgetful, unrelated) is filmed for one short story in so many."""
OTHER_SEED = 1_000_000
"""Added to the noise seed of an unrelated story."""

CutFinder = Callable[[Any], list[int]]
Detectors = Mapping[str, CutFinder]
"""Name -> finder of cuts in uint8 [T, H, W, 3]."""
EXACT: Detectors = {"": cuts.find_cuts}


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What is filmed."""

    stories: int = 200
    shots: int = 4
    long_stories: int = 0
    """Stories of `LONG_SHOTS` shots, beside the others: how everything changes along a story."""
    first_seed: int = 0
    """Of the held-out stories."""
    num_chunks: int = NUM_CHUNKS
    seed: int = 0
    """Of the noise."""
    parts: tuple[Part, ...] = PARTS

    def __post_init__(self) -> None:
        if self.stories < 0 or self.long_stories < 0 or not self.stories + self.long_stories or self.shots < 2:
            raise ValueError(f"need at least one story of two shots, got {self.stories} of {self.shots}")

    @property
    def lengths(self) -> dict[int, int]:
        """Number of each story -> its shots."""
        short = range(self.first_seed, self.first_seed + self.stories)
        long = range(self.first_seed + LONG_SEED, self.first_seed + LONG_SEED + self.long_stories)
        return dict.fromkeys(short, self.shots) | dict.fromkeys(long, LONG_SHOTS)

    def is_long(self, number: int) -> bool:
        return number >= self.first_seed + LONG_SEED


class Crew(NamedTuple):
    """What films and what looks."""

    engine: Engine
    reader: Reader
    detectors: Detectors = EXACT


def evaluate_story(crew: Crew, number: int, config: SuiteConfig) -> StoryResult:
    """Film one held-out story in all ways and read it back."""
    story = sample_story(number, num_shots=config.lengths[number], split="heldout")
    story = with_uniform_marks(story, np.random.default_rng([number, 1]))
    result = StoryResult(story=number, shots=len(story.shots), machine=machine(crew.engine.model.device))
    filming = _Filming(*crew, story=story, config=config)
    if "ceiling" in config.parts:
        result.ceiling = filming.ceiling()
    if {"following", "steering", "unrelated"} & set(config.parts):
        result.model = filming.own_story(result)
    if "memory" in config.parts:
        result.model.tally.update(filming.given_first_shot(remember=True))
    if "forgetful" in config.parts and filming.is_control:
        result.model.tally.update(filming.given_first_shot(remember=False))
    return result


@dataclass(frozen=True)
class _Filming:
    """One story and everything that films and reads it."""

    engine: Engine
    reader: Reader
    detectors: Detectors
    story: WorldStory
    config: SuiteConfig

    @property
    def is_control(self) -> bool:
        """Whether the story is also filmed in ways that say what chance would do."""
        number = self.story.seed
        return not self.config.is_long(number) and (number - self.config.first_seed) % CONTROL_EVERY == 0

    def ceiling(self) -> Findings:
        """The drawn world itself, seen through the codec."""
        shots = [through_codec(self.rendered(index), self.engine.codec) for index in range(len(self.story.shots))]
        findings, seen = self.look(shots)
        readings = [part.readings for part in seen]
        number = self.story.seed
        findings.tally.update(questions.following(self.reader, self.story, number, readings))
        findings.tally.update(questions.memory(self.reader, self.story, number, readings))
        plain = questions.never_steered(self.story)
        for index in self.steered():
            twin = through_codec(self.rendered(index, plain), self.engine.codec)
            findings.tally.update(self.steering(index, readings[index], twin))
        return findings

    def own_story(self, result: StoryResult) -> Findings:
        """Everything generated, from the first shot on."""
        shots = film(self.engine, self.story, self.take())
        findings, seen = self.look(shots)
        readings = [part.readings for part in seen]
        asked = (self.reader, self.story, self.story.seed, readings)
        result.frames = sum(len(shot.frames) for shot in shots)
        result.seconds = sum(shot.seconds for shot in shots)
        findings.tally.update(questions.following(*asked))
        findings.tally.update(questions.own_memory(*asked))
        if "unrelated" in self.config.parts and self.is_control:
            other = film(self.engine, self.story, self.take(seed=OTHER_SEED, last_shot=0))[0]
            findings.tally.update(questions.unrelated(*asked, self.reader.look(other).readings))
        for index in self.steered():
            findings.tally.update(self.steering(index, readings[index], self.twin(shots[:index], index)))
        return findings

    def given_first_shot(self, *, remember: bool) -> Tally:
        """Shot 1 is a render; the rest is generated, with or without memory."""
        take = self.take(seed=1, given=(self.rendered(0),), remember=remember)
        generated = film(self.engine, self.story, take)[1:]
        unread: list[Reading] = []
        readings = [unread, *(self.reader.look(shot).readings for shot in generated)]
        prefix = "" if remember else "forgetful_"
        return questions.memory(self.reader, self.story, self.story.seed, readings, prefix=prefix)

    def look(self, shots: Sequence[FilmedShot]) -> tuple[Findings, list[Seen]]:
        """Read all shots, and measure what needs no label."""
        seen = [self.reader.look(shot) for shot in shots]
        findings = Findings(features={index + 1: part.features for index, part in enumerate(seen)})
        number = self.story.seed
        for index, shot in enumerate(shots, start=1):
            ends = np.stack([chunk[-1] for chunk in shot.chunks])
            findings.tally.note("sharpness", number, sharpness(ends), shot=index)
        findings.tally.update(self.cut_scores(shots))
        return findings, seen

    def cut_scores(self, shots: Sequence[FilmedShot]) -> Tally:
        """Names: shot_cut_accuracy, planned_cut_seen, no_false_cut; those of further detectors after their names."""
        tally, number = Tally(), self.story.seed
        frames, lengths = np.concatenate([shot.frames for shot in shots]), [len(shot.frames) for shot in shots]
        planned = cuts.planned_cuts(lengths)
        for name, find in self.detectors.items():
            prefix, found = f"{name}_" if name else "", find(frames)
            tally.note(f"{prefix}shot_cut_accuracy", number, cuts.shot_cut_accuracy(found, planned, len(frames)))
            for index, cut in enumerate(planned, start=2):
                seen = any(abs(cut - other) <= 1 for other in found)
                tally.note(f"{prefix}planned_cut_seen", number, float(seen), shot=index)
            for index, count in enumerate(cuts.false_cuts(found, lengths), start=1):
                tally.note(f"{prefix}no_false_cut", number, float(count == 0), shot=index)
        return tally

    def steered(self) -> list[int]:
        """Shots whose steers are judged, as long as steering is asked for."""
        if "steering" not in self.config.parts:
            return []
        chunks = self.config.num_chunks
        return [i for i, spec in enumerate(self.story.shots) if questions.last_steered_chunk(spec, chunks) >= 0]

    def twin(self, earlier: Sequence[FilmedShot], index: int) -> FilmedShot:
        """The same shot after the same shots from the same noise, but never steered; as far as it is looked at."""
        needed = questions.last_steered_chunk(self.story.shots[index], self.config.num_chunks) + 1
        take = self.take(given=earlier, last_shot=index, last_chunks=needed, steered=False)
        return film(self.engine, self.story, take)[-1]

    def steering(self, index: int, steered: Sequence[Reading], twin: FilmedShot) -> Tally:
        read = self.reader.look(twin).readings
        return questions.steering(self.reader, self.story, self.story.seed, index, steered, read)

    def take(self, *, seed: int = 0, **changes: Any) -> Take:
        return Take(seed=self.config.seed + self.story.seed + seed, num_chunks=self.config.num_chunks, **changes)

    def rendered(self, index: int, story: WorldStory | None = None) -> FilmedShot:
        preset = self.engine.preset
        return rendered(
            story or self.story, index, height=preset.height, width=preset.width, num_chunks=self.config.num_chunks
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What measures what: enough for a process to load it."""

    model: Literal["student", "teacher"] = "student"
    weights: Path | None = None
    probe: Path = PROBE_FILE
    steps: int | None = None
    device: str | None = None
    transnet: bool = False
    own_config: bool = False
    """Take the network's config from the weights, which may differ from the preset's."""
    context_frames: int | None = None
    """Places of the global cache, if not the preset's."""

    @property
    def preset(self) -> Preset:
        preset = STORYWORLD
        if self.own_config and self.weights is not None:
            preset = replace(preset, dit=config_of(self.weights))
        if self.context_frames is not None:
            preset = replace(preset, slab=replace(preset.slab, context_frames=self.context_frames))
        return preset

    def load(self) -> tuple[Engine, ProbeReader]:
        from shotstream.engine.loading import load

        reader = ProbeReader(*load_probe(self.probe))
        engine = load(self.preset, model=self.model, weights=self.weights, device=self.device, num_steps=self.steps)
        return engine, reader

    def detectors(self, stack: ExitStack) -> Detectors:
        """The exact finder, and TransNetV2 if wanted."""
        return {**EXACT, "transnet": stack.enter_context(TransNetCuts())} if self.transnet else EXACT

    def subject(self, engine: Engine, config: SuiteConfig) -> dict[str, Any]:
        """What a journal is about: the same weights, probe and settings, but any number of stories."""
        settings = {k: v for k, v in asdict(config).items() if k not in ("stories", "long_stories")}
        probe = hashlib.sha256(self.probe.read_bytes()).hexdigest()[:16]
        measured = {"model": fingerprint(engine), "probe": probe, "steps": self.steps, "transnet": self.transnet}
        keep = {} if self.model == "teacher" else {"frames_after_steer": engine.preset.frames_after_steer}
        return measured | keep | settings


def fingerprint(engine: Engine) -> str:
    """Of everything that an engine has learnt, to the digits of bfloat16: the same at every precision it runs in."""
    digest = hashlib.sha256()
    for module in (engine.model, engine.codec):
        for name, value in sorted(module.state_dict().items() if isinstance(module, torch.nn.Module) else ()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().bfloat16().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def evaluate(
    engine: Engine,
    reader: Reader,
    config: SuiteConfig,
    journal: Journal | None = None,
    detectors: Detectors = EXACT,
) -> Iterator[StoryResult]:
    """All stories of the suite, see `told`."""
    return told(config.lengths, partial(evaluate_story, Crew(engine, reader, detectors), config=config), journal)


def told(
    numbers: Iterable[int], tell: Callable[[int], StoryResult], journal: Journal | None = None
) -> Iterator[StoryResult]:
    """One result per story. With a journal, finished stories are kept there and not filmed again."""
    done = journal.done if journal else {}
    for number in numbers:
        if number in done:
            yield done[number]
            continue
        result = tell(number)
        if journal:
            journal.add(result)
        yield result


def told_in_processes(
    setup: Setup,
    numbers: Iterable[int],
    tell: Callable[[Crew, int], StoryResult],
    processes: int,
    journal: Journal | None = None,
) -> Iterator[StoryResult]:
    """The same by several processes of one thread each: on a CPU more than twice as fast as threads of one process.

    Args: tell must be known by name to another process, or a partial of what is.
    """
    done, wanted = dict(journal.done) if journal else {}, list(numbers)
    yield from (done[number] for number in wanted if number in done)
    missing = [number for number in wanted if number not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_load_worker, initargs=(setup, tell)) as pool:
        for result in pool.map(_work, missing):
            if journal:
                journal.add(result)
            yield result


_worker: dict[str, Any] = {}
"""What a process of `told_in_processes` has loaded."""


def _load_worker(setup: Setup, tell: Callable[[Crew, int], StoryResult]) -> None:
    end_with_parent()
    engine, reader = setup.load()
    torch.set_num_threads(1)
    _worker["tell"] = partial(tell, Crew(engine, reader, setup.detectors(ExitStack())))


def _work(number: int) -> StoryResult:
    result: StoryResult = _worker["tell"](number)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shotstream evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=("storyworld",), default="storyworld")
    add("--stories", type=int, default=200)
    add("--shots", type=int, default=4, help="shots of each story")
    add("--long-stories", type=int, default=0, help=f"stories of {LONG_SHOTS} shots, beside those")
    add("--first-seed", type=int, default=0, help="first of the held-out stories")
    add("--seed", type=int, default=0, help="of the noise")
    add("--model", choices=("student", "teacher"), default="student")
    add("--steps", type=int, help="of the teacher")
    add("--weights", type=Path, help="a folder, or a file with the model")
    add("--probe", type=Path, default=PROBE_FILE)
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--transnet", choices=("auto", "off"), default="auto", help="find cuts with TransNetV2 too, if installed")
    add("--training-data", type=Path, help="latents that were trained on: look for samples learnt by heart")
    add("--device")
    add("--processes", type=int, default=1, help="film in this many processes of one thread each")
    add("-o", "--output", type=Path, default=Path("docs/results/storyworld.json"))
    add("--journal", type=Path, help="keep finished stories here, and go on from them")
    return parser


def main(argv: Sequence[str] | None = None, *, progress: Callable[[str], None] = log.info) -> None:
    """Measure a model on held-out stories and write the results as JSON, with a report and plots beside it."""
    options = _parser().parse_args(argv)
    if options.steps is not None and options.model != "teacher":
        raise ValueError("--steps is for --model teacher: the student's steps belong to it")
    config = SuiteConfig(
        stories=options.stories,
        shots=options.shots,
        long_stories=options.long_stories,
        first_seed=options.first_seed,
        seed=options.seed,
        parts=tuple(options.parts),
    )
    setup = Setup(
        model=options.model,
        weights=options.weights,
        probe=options.probe,
        steps=options.steps,
        device=options.device,
        transnet=options.transnet == "auto" and transnet_is_available(),
    )
    measure(setup, config, options, progress)


def measure(setup: Setup, config: SuiteConfig, options: argparse.Namespace, progress: Callable[[str], None]) -> None:
    """Film, read, and write what was found."""
    from shotstream.evaluation.novelty import novelty
    from shotstream.evaluation.report import results, write_results

    engine, reader = setup.load()
    journal = Journal(options.journal, setup.subject(engine, config)) if options.journal else None
    finished = []
    with ExitStack() as stack:
        if options.processes > 1:
            tell = partial(evaluate_story, config=config)
            stories = told_in_processes(setup, config.lengths, tell, options.processes, journal)
        else:
            stories = evaluate(engine, reader, config, journal, setup.detectors(stack))
        for result in stories:
            finished.append(result)
            progress(f"story {len(finished)} of {len(config.lengths)}")
    content = results(finished, reader.scores, config, processes=options.processes)
    content["details"]["weights"] = fingerprint(engine)
    without = "left out" if options.transnet == "off" else "not installed"
    content["details"]["transnet"] = "measured" if setup.transnet else without
    copied = novelty(engine, options.training_data) if options.training_data else None
    content["details"]["nearest_training_latent"] = copied or "not measured: no --training-data given"
    write_results(options.output, setup.model, content)


if __name__ == "__main__":
    main()
