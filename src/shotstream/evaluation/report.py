"""Results of the suite as JSON for programs and as a table for people."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from shotstream.evaluation.metrics import Measure, Tally, normalised_entropy
from shotstream.storyworld.probe import ProbeScores
from shotstream.storyworld.spec import MARKS

if TYPE_CHECKING:
    from shotstream.evaluation.suite import StoryResult, SuiteConfig

Part = Literal["ceiling", "following", "memory", "steering"]

HEADLINES = {
    "hidden_mark_shots_2_4": ("hidden_mark/shot_02", "hidden_mark/shot_03", "hidden_mark/shot_04"),
    "hidden_mark_shot_12": ("hidden_mark/shot_12",),
    "layout_recall": ("layout",),
    "steering_within_2_chunks": ("steering",),
}
"""Key of the results -> tallies that it pools."""


def results(stories: Sequence[StoryResult], scores: ProbeScores, config: SuiteConfig) -> dict[str, Any]:
    """Everything measured, as plain values: `ceiling`, `model`, headlines (shares of 1), and how it was measured."""
    ceiling, model = _pooled(s.ceiling for s in stories), _pooled(s.model for s in stories)
    marks = [answer.read for answer in model.answers.pop("first_mark", [])]
    ceilings, measures = ceiling.measures(), model.measures()
    content: dict[str, Any] = {
        "ceiling": _plain(ceilings),
        "model": _plain(measures),
        "prompt_following_of_ceiling": following_of_ceiling(measures, ceilings),
    }
    for key, names in HEADLINES.items():
        answers = [answer for name in names for answer in model.answers.get(name, [])]
        pooled = Tally(answers={key: answers} if answers else {}).measures()
        content[key] = pooled[key].value if pooled else None
        content["model"] |= _plain(pooled)
    if marks:
        content["first_mark_entropy"] = normalised_entropy(marks, len(MARKS))
    content["sharpness"] = {key: float(np.mean(v)) for key, v in _sharpness(stories).items()}
    frames, seconds = sum(s.frames for s in stories), sum(s.seconds for s in stories)
    content["frames_per_second"] = frames / seconds if seconds else None
    content["probe"] = asdict(scores)
    content["measured"] = circumstances() | {"config": asdict(config)}
    return content


def following_of_ceiling(model: Mapping[str, Measure], ceiling: Mapping[str, Measure]) -> float | None:
    """Mean over attributes that captions say, each as a share of its ceiling."""
    names = [name for name in model if name.startswith("said/") and name in ceiling and ceiling[name].value > 0]
    return float(np.mean([model[name].value / ceiling[name].value for name in names])) if names else None


def _pooled(tallies: Iterable[Tally]) -> Tally:
    pooled = Tally()
    for tally in tallies:
        pooled.update(tally)
    return pooled


def _plain(measures: Mapping[str, Measure]) -> dict[str, Any]:
    return {
        name: {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(measure).items()}
        for name, measure in measures.items()
    }


def _sharpness(stories: Sequence[StoryResult]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for story in stories:
        for key, part in story.sharpness.items():
            values.setdefault(key, []).extend(part)
    return values


def circumstances() -> dict[str, Any]:
    """Where and when something was measured, and by which code."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "commit": commit or "unknown",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
    }


def write_results(path: Path, model: str, content: dict[str, Any]) -> None:
    """Put the results of one model into a JSON file, beside those of others, and write the table next to it.

    The student's headlines stand at the top of the file, and so does the ceiling.
    """
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    own = dict(content)
    ceiling, measures = own.pop("ceiling"), own.pop("model")
    merged = before | {model: measures, f"{model}_details": own}
    if ceiling:
        merged["ceiling"] = ceiling
    if model == "student":
        merged |= {key: own[key] for key in ("prompt_following_of_ceiling", *HEADLINES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(merged))


def table(content: Mapping[str, Any]) -> str:
    """Markdown: one row per measure, one column per model, with intervals, ceiling and chance."""
    models = [name for name in ("student", "teacher") if name in content]
    ceiling = content.get("ceiling", {})
    names = sorted({name for model in models for name in content[model]})
    lines = [
        f"| measure | {' | '.join(models)} | ceiling | chance | readings |",
        "|---" * (len(models) + 4) + "|",
    ]
    for name in names:
        rows = [content[model].get(name) for model in models]
        first = next(row for row in rows if row)
        cells = [
            *(_cell(row) for row in rows),
            _cell(ceiling.get(name)),
            _percent(first["chance"]),
            str(first["count"]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if not row:
        return ""
    return f"{_percent(row['value'])} ({_percent(row['low'])} to {_percent(row['high'])})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
