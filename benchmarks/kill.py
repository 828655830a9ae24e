"""Kill the live server 50 times and compare everything that it told with what is there and with the story filmed anew.

`python -m benchmarks.kill --record`, with the shipped weights; minutes on two cores. More than half of the kills fall
inside a chunk, every named point is hit, the rest come at any moment.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.killing import POINTS, Stage, Witness
from benchmarks.live_report import REHEARSALS, RESULTS, conditions, warn_if_busy

from shotstream.server import protocol as p

PER_POINT = 3
SHOTS = ("A fox walks along the beach", "Transition to a wide shot of the city", "Cut to a close-up of the fox")
STEERS = ("Now make him look surprised", "Now it is raining", "Then he starts to dance")
NEEDS = {"cut": "cut", "retake": "retake"}


def schedule(kills: int, dice: random.Random) -> list[str]:
    """Where to kill: "" is any moment."""
    others = [point for point in POINTS if point != "denoise"] * PER_POINT
    inside = max(kills // 2 + 1, 1)
    points = [*["denoise"] * inside, *others][:kills]
    points += [""] * (kills - len(points))
    dice.shuffle(points)
    return points


def live(stage: Stage, folder: Path, witness: Witness, point: str, dice: random.Random) -> None:
    """One life of the server: go on, direct a little, die."""
    count = 1 if point in NEEDS else dice.randint(1, 12)
    life = stage.serve(folder, point, count)
    _, status = witness.join(life.port)
    if status.state == "idle":
        witness.give(p.Start, text=SHOTS[0], num_chunks=1000)
    else:
        witness.give(p.Resume)
    _direct(witness, NEEDS.get(point) or dice.choice(["steer", "cut", "retake", "undo", "pending", "nothing"]), dice)
    if point:
        assert life.wait_for_point() == point
    else:
        time.sleep(dice.uniform(0.0, 3.0))
    life.kill()
    witness.drain()


def _direct(witness: Witness, what: str, dice: random.Random) -> None:
    match what:
        case "steer":
            witness.give(p.Steer, text=dice.choice(STEERS))
        case "cut":
            witness.give(p.Cut, text=dice.choice(SHOTS), num_chunks=1000)
        case "retake":
            witness.give(p.Retake, node=max(1, witness.head))
        case "undo":
            witness.give(p.Undo)
        case "pending":
            witness.give(p.Steer, text=dice.choice(STEERS), at=p.At(shot=10**6, chunk=0))


def measure(kills: int, seed: int) -> dict[str, Any]:
    """All kills, then one comparison of everything."""
    dice, witness, begun = random.Random(seed), Witness(), time.monotonic()
    points = schedule(kills, dice)
    with tempfile.TemporaryDirectory() as folder, Stage() as stage:
        for number, point in enumerate(points, start=1):
            live(stage, Path(folder), witness, point, dice)
            print(f"{number}/{kills} {point or 'any moment'}: {len(witness.shas)} chunks told", file=sys.stderr)
        fetched, found = stage.last_life(Path(folder)), stage.inspect(Path(folder))
        wrong = witness.compare(found, fetched)
    outcomes = Counter(outcome for _, outcome in found["commands"])
    return {
        "seed": seed,
        "kills": kills,
        "kills_by_point": dict(Counter(point or "any moment" for point in points)),
        "chunks_told": len(witness.places),
        "media_told": len(witness.shas),
        "chunks_kept": len(found["media"]),
        "chunks_filmed_anew": found["refilmed"],
        "takes": found["takes"],
        "commands_accepted": len(witness.accepted),
        "commands_by_outcome": {str(outcome): count for outcome, count in outcomes.items()},
        "wrong": wrong,
        "seconds": round(time.monotonic() - begun, 1),
        **conditions("storyworld", stage.load),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time; it is printed")
    parser.add_argument("--record", action="store_true", help="write to docs/results instead of out/live")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    warn_if_busy()
    print(f"seed {seed}", file=sys.stderr)
    result = measure(options.kills, seed)
    folder = RESULTS if options.record else REHEARSALS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kill.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
