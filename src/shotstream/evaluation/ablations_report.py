"""What the ablations say, beside what the paper (ShotStream, arXiv:2603.25746, tables 3 and 4) says, as Markdown."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shotstream.evaluation.metrics import ENOUGH_STORIES, LEVEL, Measure, paired_mean
from shotstream.evaluation.report import filmed_on

MEASURES = {
    "following": "what captions say",
    "hidden_mark": "hidden mark, shot 1 given",
    "layout": "layout on return, shot 1 given",
    "own_hidden_mark": "hidden mark, own story",
    "shot_cut_accuracy": "shot cut accuracy",
    "no_false_cut": "shots without a false cut",
}
"""Measure -> heading. All are shares of 1, the more the better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Variants of one choice, in a sensible order."""

    title: str
    variants: tuple[str, ...]
    chosen: str = "chosen"


GROUPS = (
    Group(title="Memory", variants=("chosen", "no_global_cache", "single_shot")),
    Group(title="Shot indicator", variants=("chosen", "no_indicator")),
    Group(title="How many frames are remembered", variants=("context_1", "context_2", "context_4", "chosen")),
    Group(title="Which frames are remembered", variants=("first_frame", "first_and_last", "chosen")),
    Group(title="Captions of remembered frames", variants=("target_caption", "chosen")),
    Group(title="Denoising steps", variants=("steps_1", "steps_2", "steps_3", "chosen")),
    Group(
        title="Shot indicator, trained",
        variants=(
            "trained_no_indicator",
            "trained_learnable_embedding",
            "theta_1_12",
            "trained_chosen",
            "theta_1_3",
            "theta_1",
        ),
        chosen="trained_chosen",
    ),
    Group(title="Nine remembered frames, trained", variants=("stage_2_only", "context_9"), chosen="stage_2_only"),
    Group(
        title="Stages of distillation, trained",
        variants=("stage_1_only", "stage_2_only", "both_stages"),
        chosen="both_stages",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The paper's choice beat something in four of its measures: inter-shot subject and background, text, cuts."""

    chosen: str
    other: str
    subject: tuple[float, float]
    """Inter-shot subject consistency: chosen, other. Our nearest measure is the hidden mark."""
    background: tuple[float, float]
    """Ours is the layout."""
    text: tuple[float, float]
    """Ours is what captions say."""
    cuts: tuple[float, float]

    @property
    def by_measure(self) -> dict[str, tuple[float, float]]:
        return {
            "hidden_mark": self.subject,
            "layout": self.background,
            "following": self.text,
            "shot_cut_accuracy": self.cuts,
        }


def _claim(chosen: str, other: str, subject: float, background: float, text: float, cuts: float) -> Claim:
    return Claim(
        chosen=chosen,
        other=other,
        subject=(0.654, subject),
        background=(0.645, background),
        text=(0.234, text),
        cuts=(0.978, cuts),
    )


CLAIMS = (
    _claim("chosen", "first_frame", 0.618, 0.612, 0.212, 0.956),
    _claim("chosen", "first_and_last", 0.629, 0.638, 0.223, 0.969),
    _claim("chosen", "target_caption", 0.609, 0.572, 0.194, 0.937),
    _claim("chosen", "no_indicator", 0.507, 0.465, 0.203, 0.967),
    _claim("trained_chosen", "trained_no_indicator", 0.507, 0.465, 0.203, 0.967),
    _claim("trained_chosen", "trained_learnable_embedding", 0.518, 0.588, 0.204, 0.972),
    _claim("both_stages", "stage_1_only", 0.604, 0.622, 0.224, 0.976),
    _claim("both_stages", "stage_2_only", 0.583, 0.547, 0.218, 0.975),
)
"""In all of them the paper's choice was better."""

INTRO = """# Ablations in the drawn world

The same held-out stories are told with one thing changed. Shares in percent, 95% intervals over stories; differences
are taken story by story. What was filmed on other machines was also rounded otherwise, and is marked. Without training
a variant asks a finished student to do without something it was trained with, which is a harder test than the paper's,
whose variants were trained so; the trained ones are equally long fine-tunes of one checkpoint.
"""


def write_report(path: Path, runs: Mapping[str, Any], shares: Mapping[str, Any]) -> None:
    """Write the report and, where matplotlib is installed, a plot per group beside it.

    Args: runs name -> what `ablations.content_of` gives; shares name -> measure -> story -> share.
    """
    parts = [INTRO, *_measured(runs)]
    if not _only_long(runs):
        parts += [*_claims(runs, shares), *_better(runs, shares)]
    for group in GROUPS:
        if sum(name in runs for name in group.variants) > 1:
            parts += _group(path, group, runs, shares)
    parts += _long(path, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def _only_long(runs: Mapping[str, Any]) -> bool:
    """Whether nothing but shots of three windows was filmed."""
    return bool(runs) and all("by_window" in run for run in runs.values())


def _measured(runs: Mapping[str, Any]) -> list[str]:
    """How many stories, and which variants on what machine, by which code and until when."""
    if not runs:
        return []
    together: dict[str, list[str]] = {}
    for name, run in runs.items():
        together.setdefault(filmed_on(run["measured"]), []).append(name)
    config = next(iter(runs.values()))["measured"]["config"]
    told = f"shots of {config['long_chunks']} chunks" if _only_long(runs) else f"stories of {config['shots']} shots"
    lines = [f"{config['stories']} {told}.", ""]
    for hardware, names in together.items():
        last = max(str(runs[name]["measured"]["date"]) for name in names)
        commits = dict.fromkeys(str(runs[name]["measured"]["commit"]) for name in names)
        lines.append(f"- {', '.join(names)}: {hardware}, until {last}, commit {', '.join(commits)}")
    return [*lines, ""]


def difference(
    shares: Mapping[str, Any], ours: str, other: str, measure: str, *, level: float = LEVEL
) -> Measure | None:
    """Mean over stories of one variant's share minus another's; None if either was not measured."""
    tables = [shares.get(name, {}).get(measure, {}) for name in (ours, other)]
    mine, yours = ({int(story): value for story, value in table.items()} for table in tables)
    return paired_mean(mine, yours, level=level)


def elsewhere(runs: Mapping[str, Any], ours: str, other: str) -> str:
    """A warning where two variants were not filmed on the same machines: another precision rounds otherwise."""
    if ours not in runs or other not in runs:
        return ""
    same = filmed_on(runs[ours]["measured"]) == filmed_on(runs[other]["measured"])
    return "" if same else " (other machine)"


def verdict(measured: Measure | None) -> str:
    """Of a claim that the first is better."""
    if measured is None:
        return "not measured"
    if measured.stories < ENOUGH_STORIES:
        return "too few stories"
    if measured.low > 0:
        return "confirmed"
    return "the other way round" if measured.high < 0 else "cannot be told"


def _claims(runs: Mapping[str, Any], shares: Mapping[str, Any]) -> list[str]:
    lines = ["## The paper's ordering", ""]
    header = ["| choice | against | measure | paper | here, in points | ordering |", "|---|---|---|---|---|---|"]
    rows, verdicts = [], Counter[str]()
    for claim in CLAIMS:
        for measure, (ours, theirs) in claim.by_measure.items():
            found = difference(shares, claim.chosen, claim.other, measure)
            verdicts[verdict(found)] += 1
            row = f"| {claim.chosen} | {claim.other} | {MEASURES[measure]} | {ours:.3f} > {theirs:.3f} |"
            warning = elsewhere(runs, claim.chosen, claim.other) if found else ""
            rows.append(f"{row} {_points(found)} | {verdict(found)}{warning} |")
    counted = ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
    return [*lines, f"Of {verdicts.total()} orderings: {counted}.", "", *header, *rows, ""]


def _better(runs: Mapping[str, Any], shares: Mapping[str, Any]) -> list[str]:
    """Variants that do better than the paper's choice in something and worse in nothing.

    With six measures one choice in seven would look better by luck: better counts at a level that all six share.
    """
    level = 1 - (1 - LEVEL) / len(MEASURES)
    found = []
    for group in GROUPS:
        for name in group.variants:
            if name == group.chosen or name not in runs or group.chosen not in runs:
                continue
            better, worse = (
                {verdict(difference(shares, name, group.chosen, measure, level=at)) for measure in MEASURES}
                for at in (level, LEVEL)
            )
            if "confirmed" in better and "the other way round" not in worse:
                found.append(name)
    names = ", ".join(found) if found else "none"
    return ["## Better than the paper's choice", "", f"Better in something and worse in nothing: {names}.", ""]


def _group(path: Path, group: Group, runs: Mapping[str, Any], shares: Mapping[str, Any]) -> list[str]:
    names = [name for name in group.variants if name in runs]
    lines = [f"## {group.title}", "", f"| variant | {' | '.join(MEASURES.values())} |"]
    lines.append("|---" * (len(MEASURES) + 1) + "|")
    for name in names:
        cells = [_cell(runs[name]["measures"].get(measure)) for measure in MEASURES]
        lines.append(f"| {'**' + name + '**' if name == group.chosen else name} | {' | '.join(cells)} |")
    others = [name for name in names if name != group.chosen] if group.chosen in runs else []
    for name in others:
        cells = [_points(difference(shares, group.chosen, name, measure)) for measure in MEASURES]
        warning = elsewhere(runs, group.chosen, name)
        lines.append(f"| *{group.chosen} minus {name}*{warning} | {' | '.join(cells)} |")
    return [*lines, "", *_plot(path, group, names, runs)]


def _plot(path: Path, group: Group, names: Sequence[str], runs: Mapping[str, Any]) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from shotstream.evaluation import plots

    file = path.with_name(f"{path.stem}-{group.title.lower().replace(', ', '-').replace(' ', '-')}.png")
    panels = {
        title: [runs[name]["measures"].get(measure) for name in names]
        for measure, title in MEASURES.items()
        if any(measure in runs[name]["measures"] for name in names)
    }
    plots.points(file, names, panels, bold=group.chosen)
    return [f"![{group.title}]({file.name})", ""]


def _long(path: Path, runs: Mapping[str, Any]) -> list[str]:
    """Shots three windows long, by window."""
    names = [name for name, run in runs.items() if "by_window" in run]
    if not names:
        return []
    lines = [
        "## Shots three windows long",
        "",
        "| variant | measure | first window | second | third |",
        "|---" * 5 + "|",
    ]
    for name in names:
        windows = runs[name]["by_window"]
        for measure in sorted({m for window in windows.values() for m in window}):
            percent = measure != "sharpness"
            cells = [_cell(windows[str(part)].get(measure), percent=percent) for part in (1, 2, 3)]
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return [*lines, "", *_plot_by_window(path, {name: runs[name]["by_window"] for name in names})]


def _plot_by_window(path: Path, by_window: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A panel per measure of enough stories, a line per variant, along the windows of a shot."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from shotstream.evaluation import plots

    series: dict[str, dict[str, dict[str, Any]]] = {}
    for name, windows in by_window.items():
        for part, measures in windows.items():
            for measure, row in measures.items():
                if row["stories"] < ENOUGH_STORIES:
                    continue
                series.setdefault(name, {}).setdefault(measure, {})[part] = row
    if not series:
        return []
    file = path.with_name(f"{path.stem}-by-window.png")
    plots.by_shot(file, sorted({measure for found in series.values() for measure in found}), series)
    return [f"![by window]({file.name})", ""]


def _cell(row: Mapping[str, Any] | None, *, percent: bool = True) -> str:
    if not row:
        return ""
    value, low, high = (row[key] * (100 if percent else 1) for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _points(found: Measure | None) -> str:
    return "" if found is None else f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
