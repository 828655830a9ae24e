"""A story that says how it was made is filmed again as its film shows it."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from shotstream.engine.retelling import retell
from shotstream.engine.stream import Chunk, Engine
from shotstream.story import Making, Shot, Story


def test_shots_that_wait_for_their_place_are_let_go_once_they_were_shown(tiny_engine: Engine) -> None:
    shots = [
        Shot(caption=f"place {number}", num_chunks=1, making=Making(id=number + 1, number=number))
        for number in range(4)
    ]
    story = Story(shots=tuple(shots), seed=5, order=(2, 1, 3, 2, 4))
    shown: list[tuple[int, weakref.ref[Chunk], int]] = []
    kept: list[set[int]] = []
    for chunk in retell(tiny_engine, story):
        shown.append((chunk.shot, weakref.ref(chunk), int(np.sum(chunk.frames))))
        del chunk
        gc.collect()
        kept.append({shot for shot, one, _ in shown if one() is not None})
    assert [shot for shot, _, _ in shown] == [1, 0, 2, 1, 3]
    assert shown[0][2] == shown[3][2]
    assert 1 in kept[2], "it is shown again"
    assert kept[4] <= {3}
