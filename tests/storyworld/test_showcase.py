"""The sheet and the clip that show a story to a person."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install shotstream[world]")

import av
from PIL import Image

from shotstream import cli
from shotstream.storyworld.showcase import main


def test_world_writes_a_sheet_and_a_playable_clip(tmp_path, capsys):
    main(["--seed", "5", "--shots", "1", "-o", str(tmp_path)])
    sheet, clip = capsys.readouterr().out.split()
    assert Image.open(sheet).size == (5 * 320, 192 + 46)
    with av.open(clip) as container:
        assert sum(1 for _ in container.decode(video=0)) == 81


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("name", ["story-5.png", "story-5.mp4"])
def test_a_full_disk_is_said_of_the_file(name, tmp_path):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=name):
        main(["--seed", "5", "--shots", "1", "-o", str(tmp_path)])


@pytest.mark.parametrize("shots", ["0", "13"])
def test_a_length_that_help_does_not_offer_is_refused_before_anything_is_drawn(shots, tmp_path, capsys):
    assert cli.main(["world", "--shots", shots, "-o", str(tmp_path / "world")]) == 2
    assert capsys.readouterr().err == f"shotstream: error: --shots takes 1 to 12, got {shots}\n"
    assert not (tmp_path / "world").exists()
