"""The shipped weights, SIGKILL from another process: nothing that was announced is ever lost or different."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.killing import POINTS, Life, Stage, Witness  # type: ignore[import-not-found]

from shotstream.server import protocol as p

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def _go_on(witness: Witness, life: Life) -> None:
    """Begin the story, or go on with it."""
    _, status = witness.join(life.port)
    if status.state == "idle":
        witness.give(p.Start, text="A fox walks along the beach", num_chunks=60)
    else:
        assert status.state == "paused", status
        witness.give(p.Resume)


def _receive_chunks(witness: Witness, count: int) -> None:
    while count:
        count -= isinstance(witness.receive(), p.ChunkReady)


def test_a_story_killed_at_every_named_point_has_all_that_it_told(stage: Stage, tmp_path: Path) -> None:
    witness = Witness()
    for point in ("", *POINTS):
        life = stage.serve(tmp_path, point, 3 if point in ("denoise", "mid-write") else 1)
        _go_on(witness, life)
        if point in ("", "cut", "retake"):
            _receive_chunks(witness, 1)
            witness.give(p.Steer, text="Now make him look surprised")
        if point == "cut":
            witness.give(p.Cut, text="Transition to a wide shot of the city", num_chunks=60)
        elif point == "retake":
            witness.give(p.Retake, node=1)
        elif point:
            witness.give(p.Steer, text="Now it is raining", at=p.At(shot=0, chunk=50))
        else:
            _receive_chunks(witness, 3)
        if point:
            assert life.wait_for_point() == point
        life.kill()
        witness.drain()
    fetched, found = stage.last_life(tmp_path), stage.inspect(tmp_path)
    assert witness.compare(found, fetched) == []
    assert len(witness.shas) >= 4
    assert found["refilmed"] >= 6, "latents, captions and media were made anew and compared"
    assert "superseded" in witness.endings.values() or "failed" in witness.endings.values()


def test_a_story_killed_at_any_moment_goes_on_with_the_frames_it_would_have_had(stage: Stage, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    dice = random.Random(seed)
    witness = Witness()
    for _ in range(2):
        life = stage.serve(tmp_path)
        _go_on(witness, life)
        _receive_chunks(witness, 1)
        match dice.randrange(3):
            case 0:
                witness.give(p.Cut, text="The fox dances in the snow", num_chunks=60)
            case 1:
                witness.give(p.Retake, node=witness.head)
            case _:
                witness.give(p.Undo)
        time.sleep(dice.uniform(0.0, 0.8))
        life.kill()
        witness.drain()
    fetched, found = stage.last_life(tmp_path), stage.inspect(tmp_path)
    assert witness.compare(found, fetched) == []
    assert found["refilmed"] > 0
