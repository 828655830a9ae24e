"""Finished stories of a run, one line each, so that a long run can be stopped and continued.

The first line says what is measured with what; a journal of something else is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotstream.evaluation.metrics import Answer, Number, Tally

Features = NDArray[np.float32]


@dataclass
class Findings:
    """What was found in one way of making a story."""

    tally: Tally = field(default_factory=Tally)
    features: dict[int, Features] = field(default_factory=dict)
    """Shot, from 1 -> [chunks, E]."""


@dataclass
class StoryResult:
    """Everything measured on one story."""

    story: int
    shots: int
    ceiling: Findings = field(default_factory=Findings)
    model: Findings = field(default_factory=Findings)
    frames: int = 0
    seconds: float = 0.0
    machine: str = ""
    """What it was filmed on; empty where an older journal does not say."""


class Journal:
    """A file that grows by a line per story."""

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        """Raises ValueError if the file is about another subject."""
        self.path = path
        self.done: dict[int, StoryResult] = {}
        heading = json.dumps(dict(subject), sort_keys=True)
        text = path.read_text() if path.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a killed run may have left half a line
        if lines and lines[0] != heading:
            raise ValueError(f"{path} is of another run ({lines[0][:200]}...): name another journal, or remove it")
        for line in lines[1:]:
            result = _from_json(line)
            self.done[result.story] = result
        whole = "".join(f"{line}\n" for line in lines or [heading])
        if text != whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(whole)

    def add(self, result: StoryResult) -> None:
        """Keep a finished story."""
        self.done[result.story] = result
        with self.path.open("a") as file:
            file.write(_to_json(result) + "\n")


def _to_json(result: StoryResult) -> str:
    entry: dict[str, Any] = {"story": result.story, "shots": result.shots}
    entry |= {"frames": result.frames, "seconds": result.seconds, "machine": result.machine}
    entry |= {"ceiling": _plain(result.ceiling), "model": _plain(result.model)}
    return json.dumps(entry)


def _plain(findings: Findings) -> dict[str, Any]:
    tally = findings.tally
    return {
        "answers": {name: [(a.shot, a.wanted, a.read) for a in group] for name, group in tally.answers.items()},
        "numbers": {name: [(n.shot, n.value) for n in group] for name, group in tally.numbers.items()},
        "features": {shot: _packed(values) for shot, values in findings.features.items()},
    }


def _packed(values: Features) -> tuple[int, str]:
    return len(values), base64.b64encode(values.astype(np.float16).tobytes()).decode()


def _from_json(line: str) -> StoryResult:
    entry = json.loads(line)
    story = int(entry["story"])
    parts = {name: _findings(entry[name], story) for name in ("ceiling", "model")}
    return StoryResult(
        story=story,
        shots=entry["shots"],
        frames=entry["frames"],
        seconds=entry["seconds"],
        machine=entry.get("machine", ""),
        **parts,
    )


def _findings(plain: Mapping[str, Any], story: int) -> Findings:
    answers = {
        name: [Answer(story=story, shot=shot, wanted=w, read=r) for shot, w, r in group]
        for name, group in plain["answers"].items()
    }
    numbers = {
        name: [Number(story=story, shot=shot, value=value) for shot, value in group]
        for name, group in plain["numbers"].items()
    }
    features = {
        int(shot): np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32).reshape(count, -1)
        for shot, (count, text) in plain["features"].items()
    }
    return Findings(Tally(answers, numbers), features)
