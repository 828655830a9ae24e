"""Is the method why it works? One thing is taken away at a time, and the same stories are told.

    python -m shotstream.evaluation.ablations chosen no_indicator first_frame      # some, or: all
    python -m shotstream.evaluation.ablations theta_1_3 --weights runs/theta_1_3/inter/generator.safetensors
    python -m shotstream.evaluation.ablations report

The variants here need no training; those that do are trained by `shotstream.recipes.ablations` and named here with
their weights. Every command adds to docs/results/ablations.json and writes the report, ablations.md, anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shotstream.engine.stream import Engine
from shotstream.evaluation import cuts
from shotstream.evaluation.ablations_report import write_report
from shotstream.evaluation.film import Take, film
from shotstream.evaluation.journal import Findings, Journal, StoryResult
from shotstream.evaluation.metrics import Measure, Tally, mean_of_attributes, sharpness
from shotstream.evaluation.questions import counts
from shotstream.evaluation.readers import Reader
from shotstream.evaluation.report import circumstances, machine, machines, measures_of, plain, pooled, rounded
from shotstream.evaluation.suite import (
    PROBE_FILE,
    Crew,
    Part,
    Setup,
    SuiteConfig,
    evaluate_story,
    told,
    told_in_processes,
)
from shotstream.evaluation.variants import Variant, VariedEngine
from shotstream.storyworld import sample_story
from shotstream.storyworld.sampler import NUM_CHUNKS

log = logging.getLogger(__name__)

CHOSEN = "chosen"
VARIANTS: dict[str, Variant] = {
    CHOSEN: Variant(),
    "no_global_cache": Variant(remember=False),
    "no_indicator": Variant(theta=0.0),
    "context_1": Variant(places=1),
    "context_2": Variant(places=2),
    "context_4": Variant(places=4),
    "first_frame": Variant(pick="first"),
    "first_and_last": Variant(pick="first_and_last"),
    "target_caption": Variant(target_caption=True),
    "steps_1": Variant(steps=1),
    "steps_2": Variant(steps=2),
    "steps_3": Variant(steps=3),
    "single_shot": Variant(single_shot=True),
}
"""What is told in stories of four shots."""
LONG_VARIANTS: dict[str, Variant] = {
    "long_chosen": Variant(),
    "long_no_sink": Variant(sink_frames=0),
    "long_short_window": Variant(window_frames=12),
}
"""What is filmed in single shots of three windows."""
TRAINED = (
    "trained_chosen",
    "trained_no_indicator",
    "trained_learnable_embedding",
    "theta_1_12",
    "theta_1_3",
    "theta_1",
    "context_9",
    "both_stages",
    "stage_1_only",
    "stage_2_only",
)
"""What needs weights of its own."""
STORIES = 50
LONG_CHUNKS = 3 * NUM_CHUNKS


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """The same for all variants that are compared."""

    stories: int = STORIES
    shots: int = 4
    num_chunks: int = NUM_CHUNKS
    long_chunks: int = LONG_CHUNKS
    seed: int = 0

    @property
    def suite(self) -> SuiteConfig:
        parts: tuple[Part, ...] = ("ceiling", "following", "memory")
        return SuiteConfig(
            stories=self.stories, shots=self.shots, num_chunks=self.num_chunks, seed=self.seed, parts=parts
        )


def run(
    engine: Engine, reader: Reader, name: str, config: AblationConfig, journal: Journal | None = None
) -> Iterator[StoryResult]:
    """Film and read all stories in one variant, one by one. Raises ValueError for an unknown name."""
    _check(name)
    return told(range(config.stories), partial(tell, name, config, Crew(engine, reader)), journal)


def _check(name: str) -> None:
    known = [*VARIANTS, *LONG_VARIANTS, *TRAINED]
    if name not in known:
        raise ValueError(f"there is no ablation {name!r}: choose from {', '.join(known)}")


def tell(name: str, config: AblationConfig, crew: Crew, number: int) -> StoryResult:
    """Film and read one story in one variant."""
    if name in LONG_VARIANTS:
        return long_shot(VariedEngine(crew.engine, LONG_VARIANTS[name]), crew.reader, number, config)
    suite = config.suite
    if name != CHOSEN:  # the ceiling is the same for all, and measured once
        suite = replace(suite, parts=tuple(part for part in suite.parts if part != "ceiling"))
    engine = VariedEngine(crew.engine, VARIANTS.get(name, Variant()))
    return evaluate_story(crew._replace(engine=engine), number, suite)


def long_shot(engine: Engine, reader: Reader, number: int, config: AblationConfig) -> StoryResult:
    """A single shot that outlives the window twice, read by window. What tallies call a shot is a third of it.

    Names: said/ATTRIBUTE, kept/ATTRIBUTE (mark, layout, place and character as in the first chunk), sharpness,
    no_false_cut.
    """
    story = sample_story(number, num_shots=1, split="heldout")
    spec = replace(story.shots[0], steers=())
    story = replace(story, shots=(spec,))
    shot = film(engine, story, Take(seed=config.seed + number, num_chunks=config.long_chunks))[0]
    seen = reader.look(shot)
    labels, tally, third = spec.labels(), Tally(), -(-config.long_chunks // 3)
    for chunk, reading in enumerate(seen.readings):
        part = chunk // third + 1
        tally.note("sharpness", number, sharpness(shot.chunks[chunk][-1:]), shot=part)
        for name in sorted(spec.stated):
            if counts(reader, spec, chunk, name):
                tally.add(f"said/{name}", number, labels[name], reading[name], shot=part)
        for name in ("character", "mark", "place", "layout"):
            if chunk and counts(reader, spec, chunk, name):
                tally.add(f"kept/{name}", number, seen.readings[0][name], reading[name], shot=part)
    lengths = [sum(len(c) for c in shot.chunks[start : start + third]) for start in range(0, len(shot.chunks), third)]
    found, ends = cuts.find_cuts(shot.frames), list(itertools.accumulate(lengths))
    for part, (start, end) in enumerate(itertools.pairwise([0, *ends]), start=1):  # nothing is planned at their ends
        tally.note("no_false_cut", number, float(not any(start <= cut < end for cut in found)), shot=part)
    features = {part + 1: seen.features[part * third : (part + 1) * third] for part in range(len(lengths))}
    findings = Findings(tally, features)
    where = machine(engine.model.device)
    return StoryResult(
        story=number, shots=3, model=findings, frames=len(shot.frames), seconds=shot.seconds, machine=where
    )


def content_of(
    stories: Sequence[StoryResult],
    config: AblationConfig,
    *,
    long: bool,
    weights: str | None = None,
    probe: str | None = None,
) -> dict[str, Any]:
    """Plain values of one variant: measures (of long shots by window) and how they were measured."""
    measures = measures_of(stories, "model")
    if not long:
        measures |= _means(pooled(stories, "model"))
    measured = circumstances() | {"machines": machines(stories), "config": asdict(config)}
    measured |= {"weights": weights, "probe": probe}
    content: dict[str, Any] = {"measures": plain(measures), "measured": measured}
    if long:
        tally = pooled(stories, "model")
        content["by_window"] = {str(part): plain(tally.of_shots({part}).measures()) for part in (1, 2, 3)}
    return content


def _means(tally: Tally) -> dict[str, Measure]:
    """What captions say, over attributes alike."""
    mean = Tally()
    for story, value in mean_of_attributes(tally.per_story()).items():
        mean.note("following", story, value)
    return mean.measures()


def add_result(
    path: Path,
    name: str,
    stories: Sequence[StoryResult],
    config: AblationConfig,
    *,
    weights: str | None = None,
    probe: str | None = None,
) -> None:
    """Put one variant into the results, and write the report anew.

    Args: weights and probe: fingerprints of what was filmed and what read it.
    Raises: ValueError if others were told otherwise, read by another probe or, as far as none has weights of its own,
        filmed by another student.
    """
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    for other, run_ in results["runs"].items():
        if run_["measured"]["config"] != asdict(config):
            raise ValueError(
                f"{path} has {other} measured with {run_['measured']['config']}, now {asdict(config)}: use another file"
            )
        untrained = other != name and not {name, other} & set(TRAINED)
        for kind, now, compared in (("probe", probe, other != name), ("weights", weights, untrained)):
            before = run_["measured"].get(kind)
            if compared and None not in (before, now) and before != now:
                raise ValueError(f"{path} has {other} measured with {kind} {before}, now {now}: use another file")
    shares_file = path.with_suffix(".stories.json")
    shares: dict[str, Any] = json.loads(shares_file.read_text()) if shares_file.is_file() else {}
    per_story = pooled(stories, "model").per_story()
    shares[name] = rounded(per_story | {"following": mean_of_attributes(per_story)})
    results["runs"][name] = content_of(stories, config, long=name in LONG_VARIANTS, weights=weights, probe=probe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    shares_file.write_text(json.dumps(shares) + "\n")
    write_report(path.with_suffix(".md"), results["runs"], shares)


def _subject(setup: Setup, engine: Engine, name: str, config: AblationConfig) -> dict[str, Any]:
    subject = setup.subject(engine, config.suite) | {"variant": name}
    return subject | ({"long_chunks": config.long_chunks} if name in LONG_VARIANTS else {})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure variants, one after the other, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", help=f"report, all, {', '.join([*VARIANTS, *LONG_VARIANTS, *TRAINED])}")
    parser.add_argument("--stories", type=int, default=STORIES)
    parser.add_argument("--weights", type=Path, help="a file with the student; without training, a folder will do")
    parser.add_argument("--probe", type=Path, default=PROBE_FILE)
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--processes", type=int, default=1, help="film in this many processes of one thread each")
    parser.add_argument("--journals", type=Path, help="folder to keep finished stories in, and to go on from")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/ablations.json"))
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.variants == ["report"]:
        shares = json.loads(options.output.with_suffix(".stories.json").read_text())
        write_report(options.output.with_suffix(".md"), json.loads(options.output.read_text())["runs"], shares)
        return
    names = [*VARIANTS, *LONG_VARIANTS] if options.variants == ["all"] else options.variants
    for name in names:
        _check(name)
    trained = [name for name in names if name in TRAINED]
    if trained and (options.weights is None or len(names) > 1):
        raise ValueError(f"{trained[0]} has weights of its own: name it alone, with --weights FILE")
    setup = Setup(
        weights=options.weights,
        probe=options.probe,
        device=options.device,
        own_config=bool(trained),
        context_frames=9 if "context_9" in trained else None,
    )
    engine, reader = setup.load()
    config = AblationConfig(stories=options.stories, seed=options.seed)
    for name in names:
        path, subject = (
            options.journals / f"{name}.jsonl" if options.journals else None,
            _subject(setup, engine, name, config),
        )
        journal = Journal(path, subject) if path else None
        if options.processes > 1:
            one, numbers = partial(tell, name, config), range(config.stories)
            stories = told_in_processes(setup, numbers, one, options.processes, journal)
        else:
            stories = run(engine, reader, name, config, journal)
        finished = []
        for story in stories:
            finished.append(story)
            log.info("%s: story %d of %d", name, len(finished), config.stories)
        add_result(options.output, name, finished, config, weights=subject["model"], probe=subject["probe"])


if __name__ == "__main__":
    main()
