"""Plots of measures with their intervals. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#3b6ea5", "#d98c3f", "#9a9a9a", "#5b9a68")
Row = Mapping[str, Any]
"""A measure as in the results: value, low, high, chance."""


def bars(
    path: Path, names: Sequence[str], groups: Mapping[str, Mapping[str, Row]], *, chance: Mapping[str, Row]
) -> None:
    """One bar with its interval per measure and group; a tick where chance is."""
    figure, grid = _figure(9, 0.42 * len(names) * max(1, len(groups)) ** 0.5 + 1.2)
    axes = grid.flat[0]
    height = 0.8 / max(1, len(groups))
    for place, (group, measures) in enumerate(groups.items()):
        rows = [(y, measures[name]) for y, name in enumerate(names) if name in measures]
        at = [y + (place - (len(groups) - 1) / 2) * height for y, _ in rows]
        values = [row["value"] for _, row in rows]
        axes.barh(at, values, height, xerr=_errors([row for _, row in rows]), label=group, color=COLOURS[place % 4])
    for y, name in enumerate(names):
        if chance.get(name, {}).get("chance") is not None:
            axes.plot([chance[name]["chance"]] * 2, [y - 0.45, y + 0.45], color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("share, with 95% interval over stories; black: chance")
    axes.legend(frameon=False)
    _save(figure, path)


def by_shot(path: Path, names: Sequence[str], series: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> None:
    """One small plot per measure, one line per group, along the shots of a story."""
    columns = 3
    figure, axes = _figure(11, 2.6 * max(1, -(-len(names) // columns)), rows=-(-len(names) // columns), columns=columns)
    for place, panel in enumerate(axes.flat):
        if place >= len(names):
            panel.axis("off")
            continue
        for number, (group, measures) in enumerate(series.items()):
            shots = sorted(measures.get(names[place], {}).items(), key=lambda item: int(item[0]))
            if shots:
                at, rows = [int(shot) for shot, _ in shots], [row for _, row in shots]
                values, colour = [row["value"] for row in rows], COLOURS[number % 4]
                panel.plot(at, values, label=group, color=colour, marker=".")
                panel.fill_between(at, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, alpha=0.2)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_title(names[place], fontsize=9)
    axes.flat[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def points(path: Path, rows: Sequence[str], panels: Mapping[str, Sequence[Row | None]], *, bold: str) -> None:
    """One panel per measure, one point with its interval per row; the row named `bold` is marked by a line."""
    figure, axes = _figure(3.0 * max(1, len(panels)) + 1.5, 0.34 * len(rows) + 1.2, columns=max(1, len(panels)))
    for panel, (title, measures) in zip(axes.flat, panels.items(), strict=False):
        for y, (name, measure) in enumerate(zip(rows, measures, strict=True)):
            if measure is not None:
                colour = COLOURS[1] if name == bold else COLOURS[0]
                panel.errorbar([measure["value"]], [y], xerr=_errors([measure]), fmt="o", color=colour, capsize=2)
                if name == bold:
                    panel.axvline(measure["value"], color=colour, linewidth=0.8, linestyle=":")
        panel.set_yticks(range(len(rows)), rows if panel is axes.flat[0] else [""] * len(rows))
        panel.invert_yaxis()
        panel.set_title(title, fontsize=9)
    _save(figure, path)


def _errors(rows: Sequence[Row]) -> list[list[float]]:
    below = [max(0.0, row["value"] - row["low"]) for row in rows]
    return [below, [max(0.0, row["high"] - row["value"]) for row in rows]]


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure that no window is needed for, and an array of its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
