"""How live measurements are written down: raw rows as CSV, a summary and its conditions as JSON, a table."""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from benchmarks.live_browser import ROOT
from rich.console import Console
from rich.table import Table

from shotstream.bench import busy_warning, commit_name, hardware_name

RESULTS = ROOT / "docs" / "results"
REHEARSALS = ROOT / "out" / "live"

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Target:
    """What a measurement should come to."""

    name: str
    value: float
    limit: float
    unit: str = "s"

    @property
    def is_met(self) -> bool:
        """A measurement that found nothing (nan) meets no target."""
        return self.value <= self.limit


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank); nan for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def conditions(preset: str, load_before: float) -> dict[str, Any]:
    """Where, when and how."""
    return {
        "preset": preset,
        "hardware": hardware_name(torch.device("cpu")),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "commit": commit_name(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def warn_if_busy() -> float:
    """The load before a measurement; warns if it is too high for numbers that mean anything."""
    load = os.getloadavg()[0]
    if warning := busy_warning(load):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    return load


def write(name: str, rows: Sequence[Any], summary: Mapping[str, Any], *, record: bool) -> None:
    """Write `name`.csv and `name`.json, to docs/results or, for a rehearsal, to out/live.

    Args: rows are dataclasses of one kind.
    """
    folder = RESULTS if record else REHEARSALS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rounded(asdict(row)) for row in rows)
    (folder / f"{name}.json").write_text(json.dumps(_rounded(summary), indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {folder / name}.csv and .json", highlight=False)


def show(title: str, targets: Sequence[Target]) -> None:
    """The table for people."""
    table = Table("what", "measured", "target", "", title=title)
    for target in targets:
        verdict = "[green]met[/]" if target.is_met else "[red]missed[/]"
        table.add_row(target.name, f"{target.value:.3g} {target.unit}", f"{target.limit:.3g} {target.unit}", verdict)
    Console().print(table)


def as_json(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """For the summary."""
    return [{**asdict(target), "met": target.is_met} for target in targets]


def _rounded(value: Any) -> Any:
    """Numbers to three places, so that files can be read; what was not found (nan) becomes null."""
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
