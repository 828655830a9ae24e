"""Results of the suite: JSON for programs, a report with plots for people.

The JSON holds one object per model (`student`, `teacher`) and `ceiling`, each measure with its interval; the student's
headlines, shares of 1, at the top; and under MODEL_details how it was measured, `long` stories and drift by shot.
Shares of single stories lie in a file beside it, so that models can be compared story by story.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shotstream.engine.loading import choose_device, default_precision, hardware_name
from shotstream.evaluation.journal import Features, Findings, StoryResult
from shotstream.evaluation.metrics import (
    Measure,
    Tally,
    entropy_measure,
    frechet_measure,
    mean_of_attributes,
    of_ceiling,
    paired_mean,
    rare_names,
)
from shotstream.storyworld.probe import ProbeScores
from shotstream.storyworld.spec import MARKS

if TYPE_CHECKING:
    from shotstream.evaluation.suite import SuiteConfig

FOLLOWING = "prompt_following_of_ceiling"
GROUPS = {
    f"{FOLLOWING}/character_place_framing": ("said/character", "said/place", "said/framing"),
    f"{FOLLOWING}/expression_action": ("said/expression", "said/action"),
}
HEADLINES = (
    FOLLOWING,
    "hidden_mark_shots_2_4",
    "hidden_mark_shot_12",
    "layout_recall",
    "steering_within_2_chunks",
    "shot_cut_accuracy",
)
"""Keys at the top of the file, shares of 1."""
TARGETS: dict[str, tuple[float, float]] = {
    FOLLOWING: (0.80, 0.92),
    f"{FOLLOWING}/character_place_framing": (0.90, 0.98),
    f"{FOLLOWING}/expression_action": (0.65, 0.85),
    "hidden_mark_shots_2_4": (0.75, 0.92),
    "hidden_mark_shot_12": (0.65, 0.88),
    "layout_recall": (0.65, 0.85),
    "steering_within_2_chunks": (0.70, 0.88),
    "shot_cut_accuracy": (0.97, 0.99),
    "no_false_cut": (0.98, 0.995),
}
"""Measure -> (what is needed, what is hoped for)."""
DIFFERENCE_TARGET = (0.05, 0.03)
"""The student may be this far below its teacher, in the mean over attributes: needed, hoped for."""
FRECHET = "frechet_distance"
"""From the renders of the same shots."""
FRECHET_OTHERS = "frechet_to_other_stories"
"""Of every second story from the renders of those between: the renders themselves have one too, as the ceiling."""
NOT_SHARES = ("sharpness", FRECHET, FRECHET_OTHERS)
"""Measures that are no share of 1."""
DRIFT = ("said", "hidden_mark", "layout", "tint", "own_hidden_mark", "sharpness", "no_false_cut", "planned_cut_seen")
"""What the plots show by shot."""


def results(
    stories: Sequence[StoryResult], scores: ProbeScores, config: SuiteConfig, *, processes: int = 1
) -> dict[str, Any]:
    """Everything measured, as plain values: `ceiling` and `model`, headlines, `details` and `per_story`.

    Of the short stories, but for what only long ones can show (`hidden_mark_shot_12`) and what both tell of
    (`layout_recall`, `…_rule`). processes: so many filmed side by side; the speed told is that of one of them.
    """
    long = [story for story in stories if config.is_long(story.story)]
    short = [story for story in stories if not config.is_long(story.story)] or long
    ceiling, model = measures_of(short, "ceiling"), measures_of(short, "model")
    tallies = {which: pooled(short, which) for which in ("ceiling", "model")}
    model |= relative(tallies["model"], tallies["ceiling"]) | _headlines(stories, short, long, "model")
    ceiling |= _headlines(stories, short, long, "ceiling")
    frames, seconds = sum(s.frames for s in stories), sum(s.seconds for s in stories)
    details: dict[str, Any] = {
        "long": {which: plain(measures_of(long, which)) for which in ("ceiling", "model")} if long else {},
        "by_shot": {which: _plain_by_shot(long or short, which) for which in ("ceiling", "model")},
        "frames_per_second": frames / seconds if seconds else None,
        "processes": processes,
        "probe": asdict(scores),
        "left_out_of_following": rare_names(tallies["model"], _said(tallies["model"])),
        "measured": circumstances() | {"machines": machines(stories), "config": asdict(config)},
    }
    return {
        "ceiling": plain(ceiling),
        "model": plain(model),
        **{name: round(model[name].value, 4) if name in model else None for name in HEADLINES},
        "details": details,
        "per_story": rounded(pooled(short, "model").per_story()),
    }


def pooled(stories: Sequence[StoryResult], which: str) -> Tally:
    tally = Tally()
    for story in stories:
        tally.update(_part(story, which).tally)
    return tally


def _part(story: StoryResult, which: str) -> Findings:
    return story.ceiling if which == "ceiling" else story.model


def measures_of(stories: Sequence[StoryResult], which: str) -> dict[str, Measure]:
    """Everything found in the renders ("ceiling") or in what the model made ("model")."""
    tally = pooled(stories, which)
    marks = _first_marks(tally)
    measures = tally.measures()
    if marks:
        measures["first_mark_entropy"] = entropy_measure(marks, len(MARKS))
    return measures | _frechet(stories, which)


def _first_marks(tally: Tally) -> dict[int, str]:
    """Story -> the mark that its first shot was given, as the first chunk that shows it does."""
    marks: dict[int, str] = {}
    for answer in tally.answers.pop("first_mark", []):
        if answer.shot == 1:
            marks.setdefault(answer.story, answer.read)  # the lead's; a second person may wear one, too
    return marks


def _frechet(stories: Sequence[StoryResult], which: str, shot: int | None = None) -> dict[str, Measure]:
    """Distances of probe features; none where there are fewer samples than two for each of their dimensions."""
    truth = {story.story: _features(story.ceiling, shot) for story in stories}
    made = {story.story: _features(_part(story, which), shot) for story in stories}
    numbers = sorted(number for number in truth if len(truth[number]) and len(made[number]))
    pairs = {FRECHET_OTHERS: (numbers[::2], numbers[1::2])}
    if which != "ceiling":
        pairs[FRECHET] = (numbers, numbers)
    measures = {}
    for name, sides in pairs.items():
        ours, theirs = ({n: group[n] for n in side} for group, side in zip((made, truth), sides, strict=True))
        if all(_enough(group) for group in (ours, theirs)):
            measures[name] = frechet_measure(ours, theirs)
    return measures


def _enough(features: Mapping[int, Features]) -> bool:
    parts = list(features.values())
    return len(parts) > 1 and sum(len(part) for part in parts) >= 2 * parts[0].shape[1]


def _features(findings: Findings, shot: int | None) -> Features:
    parts = [values for number, values in findings.features.items() if shot in (None, number)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def relative(model: Tally, ceiling: Tally) -> dict[str, Measure]:
    """Following of captions as a share of the ceiling: the mean over attributes, groups, and each attribute."""
    names = _said(model)
    asked = {FOLLOWING: names} | {title: list(group) for title, group in GROUPS.items()}
    asked |= {name.replace("said/", "of_ceiling/"): [name] for name in names}
    measures = {title: of_ceiling(model, ceiling, group) for title, group in asked.items()}
    return {title: measure for title, measure in measures.items() if measure}


def _said(tally: Tally) -> list[str]:
    """The attributes that captions say."""
    return sorted(name for name in tally.answers if name.startswith("said/"))


def _headlines(
    stories: Sequence[StoryResult], short: Sequence[StoryResult], long: Sequence[StoryResult], which: str
) -> dict[str, Measure]:
    few, many, everything = (pooled(group, which).answers for group in (short, long, stories))
    groups = {
        "hidden_mark_shots_2_4": [a for a in few.get("hidden_mark", []) if 2 <= a.shot <= 4],
        "hidden_mark_shot_12": [a for a in many.get("hidden_mark", []) if a.shot == 12],
        "layout_recall": everything.get("layout", []),
        "steering_within_2_chunks": few.get("steering", []),
    }
    # Only long stories return to what the published rule has forgotten.
    groups |= {name: answers for name, answers in everything.items() if name.endswith("_rule")}
    return Tally(answers={name: list(answers) for name, answers in groups.items() if answers}).measures()


def by_shot(stories: Sequence[StoryResult], which: str) -> dict[str, dict[int, Measure]]:
    """Measure -> shot, from 1 -> measure: how everything changes along a story."""
    tally = pooled(stories, which)
    tally.answers.pop("first_mark", None)
    found: dict[str, dict[int, Measure]] = {}
    for shot in range(1, max((story.shots for story in stories), default=0) + 1):
        measures = tally.of_shots({shot}).measures()
        for name, measure in (measures | _frechet(stories, which, shot)).items():
            found.setdefault(name, {})[shot] = measure
    return found


def paired_differences(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Measure]:
    """Paired differences over the stories that both told: each measure, and the mean over what captions say."""
    shared = {
        name: paired_mean(_stories(student[name]), _stories(teacher[name])) for name in student if name in teacher
    }
    found = {name: measure for name, measure in shared.items() if measure}
    names = [name for name in found if name.startswith("said/")]
    mean = paired_mean(*(mean_of_attributes({name: model[name] for name in names}) for model in (student, teacher)))
    return ({"mean_of_attributes": mean} if mean else {}) | found


def _stories(values: Mapping[Any, float]) -> dict[int, float]:
    """JSON knows no numbers as keys."""
    return {int(story): value for story, value in values.items()}


def plain(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """As JSON has them, to four digits."""
    return {name: {key: _round(value) for key, value in asdict(measure).items()} for name, measure in measures.items()}


def _plain_by_shot(stories: Sequence[StoryResult], which: str) -> dict[str, Any]:
    found = by_shot(stories, which)
    return {name: plain({str(shot): measure for shot, measure in shots.items()}) for name, shots in found.items()}


def rounded(table: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    """As JSON has them, to four digits."""
    return {name: {str(story): _round(value) for story, value in row.items()} for name, row in table.items()}


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def machine(device: torch.device) -> str:
    """What this process films on, and how."""
    return f"{hardware_name(device)}, {torch.get_num_threads()} threads, {default_precision(device)}"


def machines(stories: Sequence[StoryResult]) -> dict[str, int]:
    """How many stories were filmed on what: a long journal may have grown in several places."""
    return dict(Counter(story.machine or "not recorded" for story in stories).most_common())


def filmed_on(measured: Mapping[str, Any]) -> str:
    """The machine of a run, or how many stories each of several filmed."""
    found: Mapping[str, int] = measured.get("machines") or {measured["hardware"]: 0}
    if len(found) == 1:
        return next(iter(found))
    return " and ".join(f"{count} on {name}" for name, count in found.items())


def circumstances() -> dict[str, Any]:
    """Where and when something was measured, and by which code."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "commit": commit or "unknown",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": machine(choose_device()),
        "load_average": os.getloadavg()[0],
    }


def _with_search(details: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what an earlier run with the same weights found when it looked for samples learnt by heart."""
    name = "nearest_training_latent"
    same = details.get("weights") is not None and details.get("weights") == before.get("weights")
    searched = isinstance(before.get(name), Mapping) and not isinstance(details.get(name), Mapping)
    return {**details, name: before[name]} if same and searched else dict(details)


def write_results(path: Path, model: str, content: Mapping[str, Any]) -> None:
    """Put the results of one model into a JSON file, beside those of others, and write the report next to it.

    The student's headlines stand at the top of the file. PATH.stories.json gets every story's shares.
    """
    from shotstream.evaluation.report_text import write_report

    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    shares_file = path.with_suffix(".stories.json")
    shares: dict[str, Any] = json.loads(shares_file.read_text()) if shares_file.is_file() else {}
    shares[model] = content["per_story"]
    details = _with_search(content["details"], before.get(f"{model}_details", {}))
    merged = before | {model: content["model"], f"{model}_details": details}
    if content["ceiling"] and (model == "student" or "ceiling" not in before):
        merged["ceiling"] = content["ceiling"]
    if model == "student":
        merged |= {name: content[name] for name in HEADLINES}
    same_probe = merged.get("student_details", {}).get("probe") == merged.get("teacher_details", {}).get("probe")
    if {"student", "teacher"} <= shares.keys() and same_probe:
        merged["student_minus_teacher"] = plain(paired_differences(shares["student"], shares["teacher"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=1) + "\n")
    shares_file.write_text(json.dumps(shares) + "\n")
    write_report(path.with_suffix(".md"), merged)
