"""The suite's results for people: Markdown with a table of aims, one of all measures, and plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shotstream.evaluation.metrics import ENOUGH_STORIES
from shotstream.evaluation.report import DIFFERENCE_TARGET, DRIFT, FRECHET, NOT_SHARES, TARGETS, filmed_on
from shotstream.storyworld.probe import NEEDED_ACCURACY

MODELS = ("student", "teacher")
SUMMARY = (
    "prompt_following_of_ceiling",
    "said/character",
    "said/place",
    "said/framing",
    "said/action",
    "said/expression",
    "pronoun",
    "hidden_mark",
    "layout",
    "steering",
)
"""Measures in the first plot."""


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Write the report and, where matplotlib is installed, its plots beside it."""
    models = [name for name in MODELS if name in content]
    parts = ["# What the storyworld model does", *_circumstances(content, models), *_targets(content)]
    parts += _plots(path, content, models)
    parts += ["## All measures", "", HOW_TO_READ, "", table(content), *_trust(content, models)]
    parts += _drift(content, models)
    path.write_text("\n".join(parts) + "\n")


HOW_TO_READ = (
    "Shares in percent, with 95% intervals over stories, or the number of stories where there are too few for one. "
    "*Ceiling*: the drawn world itself, through the codec, read by the same probe. *Chance*: the same answers dealt "
    "out at random, those of each attribute among themselves. Of the short stories; `layout_recall` and `…_rule` of "
    "the long ones too, `hidden_mark_shot_12` of those alone. Sharpness is in grey levels. Frechet distances are of "
    "probe features: to the renders of the same shots, and of every second story to the renders of those between."
)


def _circumstances(content: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    lines = []
    for model in models:
        details = content[f"{model}_details"]
        measured, config = details["measured"], details["measured"]["config"]
        stories = f"{config['stories']} stories of {config['shots']} shots, {config['long_stories']} long ones"
        lines.append(f"{model}: {stories}; {filmed_on(measured)}; {measured['date']}, commit {measured['commit']}.  ")
        lines.append(f"TransNetV2: {details['transnet']}. Samples learnt by heart: {_by_heart(details)}.  ")
        lines.append(f"{_speed(details)}  ")
    return ["", *lines, ""]


def _speed(details: Mapping[str, Any]) -> str:
    rate = details.get("frames_per_second")
    if rate is None:
        return "No frames were timed."
    count = details.get("processes", 1)
    together = f", each of {count} processes side by side" if count > 1 else ""
    return f"Denoised and decoded at {rate:.1f} frames/s{together}."


def _by_heart(details: Mapping[str, Any]) -> str:
    nearest = details["nearest_training_latent"]
    if isinstance(nearest, str):
        return nearest
    ratio = _cell(nearest["ratio"], percent=False)
    return f"{100 * nearest['learnt_by_heart']:.0f}% of {nearest['samples']} (distance {ratio} of a held-out render's)"


def _targets(content: Mapping[str, Any]) -> list[str]:
    """What was asked of the student, and what it does."""
    lines = [
        "## What was asked of the student",
        "",
        "| measure | needed | hoped for | measured | |",
        "|---|---|---|---|---|",
    ]
    for name, (needed, hoped) in TARGETS.items():
        row = content.get("student", {}).get(name)
        lines.append(
            f"| {name} | {_percent(needed)} | {_percent(hoped)} | {_cell(row)} | {_verdict(row, needed, hoped)} |"
        )
    paired = content.get("student_minus_teacher", {}).get("mean_of_attributes")
    needed, hoped = (-limit for limit in DIFFERENCE_TARGET)
    verdict = _verdict(paired, needed, hoped)
    lines.append(
        f"| student minus teacher, paired | {_percent(needed)} | {_percent(hoped)} | {_cell(paired)} | {verdict} |"
    )
    return [*lines, "", *_left_out(content)]


def _left_out(content: Mapping[str, Any]) -> list[str]:
    rare = content.get("student_details", {}).get("left_out_of_following", [])
    names = ", ".join(name.removeprefix("said/") for name in rare)
    return [
        f"Asked in fewer than {ENOUGH_STORIES} stories, so not in the mean of prompt following: {names}.",
        "",
    ] * bool(rare)


def _trust(content: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """How well the probe reads renders, by attribute and framing: what it reads worse than that is not asked."""
    accuracy = content[f"{models[0]}_details"]["probe"]["accuracy"]
    framings = sorted({framing for row in accuracy.values() for framing in row})
    if not framings:
        return []
    lines = ["", "## What is asked", "", TRUST, "", f"| attribute | {' | '.join(framings)} |"]
    lines.append("|---" * (len(framings) + 1) + "|")
    for name, row in sorted(accuracy.items()):
        cells = [_trusted(row.get(framing)) for framing in framings]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


TRUST = (
    f"The probe's accuracy on held-out renders through the codec. Below {100 * NEEDED_ACCURACY:.0f}% (in brackets) an "
    "attribute is not asked at that framing, so a mean over shots says nothing of those."
)


def _trusted(accuracy: float | None) -> str:
    if accuracy is None:
        return ""
    return _percent(accuracy) if accuracy >= NEEDED_ACCURACY else f"({_percent(accuracy)})"


def _verdict(row: Mapping[str, Any] | None, needed: float, hoped: float) -> str:
    if not row:
        return "not measured"
    return "hoped for" if row["value"] >= hoped else "enough" if row["value"] >= needed else "**missed**"


def table(content: Mapping[str, Any]) -> str:
    """Markdown: one row per measure, one column per model, with intervals, ceiling and chance."""
    models = [name for name in MODELS if name in content]
    ceiling = content.get("ceiling", {})
    names = sorted({name for model in models for name in content[model]})
    lines = [
        f"| measure | {' | '.join(models)} | ceiling | chance | readings |",
        "|---" * (len(models) + 4) + "|",
    ]
    for name in names:
        rows = [content[model].get(name) for model in models]
        first = next(row for row in rows if row)
        percent = name not in NOT_SHARES
        cells = [_cell(row, percent=percent) for row in [*rows, ceiling.get(name)]]
        lines.append(f"| {name} | {' | '.join(cells)} | {_percent(first['chance'])} | {first['count']} |")
    return "\n".join(lines) + "\n"


def _drift(content: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """Measures by shot."""
    lines: list[str] = []
    for model in models:
        found = content[f"{model}_details"]["by_shot"]["model"]
        shots = sorted({int(shot) for row in found.values() for shot in row})
        if not shots:
            continue
        lines += ["", f"## The {model} by shot", "", "| measure | " + " | ".join(map(str, shots)) + " |"]
        lines.append("|---" * (len(shots) + 1) + "|")
        for name, row in found.items():
            percent = name not in NOT_SHARES
            cells = [_number(row[str(s)]["value"], percent) if str(s) in row else "" for s in shots]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(row: Mapping[str, Any] | None, *, percent: bool = True) -> str:
    if not row:
        return ""
    value, low, high = (_number(row[key], percent) for key in ("value", "low", "high"))
    # Of so few stories drawn again, an interval would look surer than it is.
    few = row.get("stories", ENOUGH_STORIES) < ENOUGH_STORIES
    return (
        f"{value} ({row['stories']} {'story' if row['stories'] == 1 else 'stories'})"
        if few
        else f"{value} ({low} to {high})"
    )


def _number(value: float, percent: bool) -> str:
    return _percent(value) if percent else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _plots(path: Path, content: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """Draw, and say where the pictures are."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["(No plots: matplotlib is not installed.)", ""]
    from shotstream.evaluation import plots

    ceiling = content.get("ceiling", {})
    bars, lines = path.with_suffix(".png"), path.with_name(f"{path.stem}-by-shot.png")
    rows = {name: [name] for name in SUMMARY if any(name in content[model] for model in models)}
    groups = {model: content[model] for model in models} | {"ceiling": ceiling}
    plots.bars(bars, list(rows), groups, chance=content[models[0]])
    series = {model: content[f"{model}_details"]["by_shot"]["model"] for model in models}
    series["ceiling"] = content[f"{models[0]}_details"]["by_shot"]["ceiling"]
    shown = [name for name in (*DRIFT, FRECHET) if any(name in part for part in series.values())]
    pictures = [f"![measures]({bars.name})", ""]
    if shown:
        plots.by_shot(lines, shown, series)
        pictures += [f"![by shot]({lines.name})", ""]
    return pictures
