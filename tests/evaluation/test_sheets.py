"""Contact sheets show every way of making a story, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skia", reason="sheets draw the truth: pip install 'shotstream[eval]'")

from shotstream.engine.stream import Engine
from shotstream.evaluation.film import rendered
from shotstream.evaluation.sheets import (
    CAPTION_HEIGHT,
    PICTURES,
    _halved,
    best_and_worst,
    overview,
    sheet,
    story_rows,
    write_sheets,
)
from shotstream.storyworld import sample_story


def test_a_sheet_has_a_row_for_truth_codec_and_each_model(tiny_engine: Engine):
    story = sample_story(2, num_shots=1, split="heldout")
    rows = story_rows(story, {"student": tiny_engine})
    assert list(rows) == ["truth", "codec", "student"]
    picture = sheet(story, rows)
    height, width = tiny_engine.preset.height, tiny_engine.preset.width
    assert picture.shape == (CAPTION_HEIGHT + 3 * height, PICTURES * width, 3)
    first = rows["truth"][0].frames[0]
    assert np.array_equal(picture[CAPTION_HEIGHT + 25 : CAPTION_HEIGHT + height, 0:width], first[25:])


def test_sheets_are_written_one_per_story(tiny_engine: Engine, tmp_path: Path):
    paths = write_sheets({"student": tiny_engine}, tmp_path / "media", stories=[3])
    assert [path.name for path in paths] == ["story-03.jpg"]
    assert Image.open(paths[0]).width == PICTURES * tiny_engine.preset.width


def test_an_overview_has_a_row_per_story_from_best_to_worst(tiny_engine: Engine):
    height, width = tiny_engine.preset.height // 2, tiny_engine.preset.width // 2
    bar = CAPTION_HEIGHT // 2
    picture = overview(tiny_engine, {3: 0.5, 7: 0.75})
    assert picture.shape == (2 * (bar + height), 8 * width, 3)
    first = rendered(sample_story(7, num_shots=4, split="heldout"), 0, height=2 * height, width=2 * width)
    difference = picture[bar : bar + height, :width].astype(int) - _halved(first.frames[40])
    assert np.abs(difference).max() == 0


def test_no_model_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one model"):
        write_sheets({}, tmp_path)


def test_best_and_worst_are_those_that_follow_their_captions():
    shares = {"said/place": {str(n): n / 24 for n in range(30)}, "hidden_mark": {str(n): 1.0 for n in range(30)}}
    assert best_and_worst(shares, 2) == ([23, 22], [0, 1])
    with pytest.raises(ValueError, match="fixed stories"):
        best_and_worst({"said/place": {"3": 1.0}}, 2)
