"""What was recorded of fifty kills is what was promised of them."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

pytest.importorskip("websockets")

from benchmarks import kill
from benchmarks.killing import POINTS, ROOT


def test_fifty_kills_hit_every_point_and_lost_nothing() -> None:
    path = ROOT / "docs" / "results" / "kill.json"
    if not path.exists():
        pytest.skip("kill was not recorded yet: python -m benchmarks.kill --record")
    recorded = json.loads(path.read_text())
    assert recorded["wrong"] == []
    assert recorded["kills"] == sum(recorded["kills_by_point"].values()) >= 50
    assert recorded["kills_by_point"]["denoise"] >= 25, "inside a chunk"
    assert set(POINTS) <= recorded["kills_by_point"].keys()
    assert recorded["chunks_filmed_anew"] == recorded["chunks_kept"] >= recorded["chunks_told"] > 0
    assert recorded["commands_accepted"] <= sum(recorded["commands_by_outcome"].values())
    assert recorded["commands_by_outcome"].keys() <= {"applied", "superseded", "failed"}, "every one ended"
    assert {"seed", "hardware", "load_before", "commit", "date", "command"} <= recorded.keys()


def test_the_schedule_of_fifty_has_every_point_and_more_than_half_inside_a_chunk() -> None:
    for seed in range(5):
        points = Counter(kill.schedule(50, random.Random(seed)))
        assert points.total() == 50
        assert points["denoise"] > 25
        assert all(points[point] >= 3 for point in POINTS)
        assert points[""] > 0
