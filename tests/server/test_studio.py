"""How many stories an engine is fast enough for."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from shotstream.engine.worker import Pace
from shotstream.server.studio import Studio


@pytest.mark.parametrize(("frames_per_second", "slots"), [(10, 1), (41.9, 1), (42, 2), (62.9, 2), (63, 3)])
def test_a_story_is_given_21_frames_a_second_and_one_story_always_runs(frames_per_second: float, slots: int) -> None:
    nothing: Any = Mock()
    pace = Pace(open_s=0.1, chunk_s=12 / frames_per_second, frames_per_second=frames_per_second)

    async def opened() -> int:
        studio = Studio(nothing, nothing, writer_name="template")
        studio.open(nothing, nothing, pace)
        return studio.slots

    assert asyncio.run(opened()) == slots
