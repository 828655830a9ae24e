"""Files hold the frames that were written, in their colours, and also when the run was killed half-way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from shotstream.engine.video import ShotSampler, VideoWriter, check_writable, write_sheet


def _flat(colour: tuple[int, int, int], num_frames: int) -> np.ndarray:
    return np.full((num_frames, 64, 96, 3), colour, dtype=np.uint8)


def _read(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_frames_and_colours_come_back(tmp_path: Path) -> None:
    colours = [(200, 40, 30), (20, 160, 90), (240, 240, 250)]
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for colour in colours:
            writer.write(_flat(colour, 9))
    frames = _read(tmp_path / "a.mp4")
    assert len(frames) == 27
    for index, colour in enumerate(colours):
        assert np.abs(frames[9 * index + 4].reshape(-1, 3).mean(0) - colour).max() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.codec_context.colorspace) == ("h264", 16, 1)


FILM_AND_SAY_SO = """
import sys, time, numpy as np
from shotstream.engine.video import VideoWriter
writer = VideoWriter(sys.argv[1])
for num_frames in (9, 12, 12):
    writer.write(np.full((num_frames, 64, 96, 3), (10, 200, 30), np.uint8))
    print("chunk", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("reported", "num_frames"), [(1, 9), (2, 21), (3, 33)])
def test_a_killed_run_leaves_every_chunk_that_it_reported(tmp_path: Path, reported: int, num_frames: int) -> None:
    command = [sys.executable, "-c", FILM_AND_SAY_SO, str(tmp_path / "a.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(reported):
            assert process.stdout.readline() == "chunk\n"
        process.kill()
    assert len(_read(tmp_path / "a.mp4")) >= num_frames


def test_time_goes_on_across_fragments(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=16) as writer:
        for num_frames in (9, 12, 12):
            writer.write(_flat((10, 200, 30), num_frames))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration == 33 / 16 * av.time_base
        assert [frame.time for frame in container.decode(video=0)] == [index / 16 for index in range(33)]
        container.seek(int(1.5 * av.time_base))  # to the nearest group of pictures
        assert next(container.decode(video=0)).time == 21 / 16


def test_an_earlier_file_is_untouched_until_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    VideoWriter(path).close()
    assert path.read_bytes() == b"precious"


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(_flat((0, 0, 0), 1))
        with pytest.raises(ValueError, match="the file has"):
            writer.write(np.zeros((1, 32, 96, 3), np.uint8))
        with pytest.raises(ValueError, match="uint8"):
            writer.write(np.zeros((1, 64, 96, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "message"), [("a.avi", "must end in .mp4"), ("none/a.mp4", "does not exist")])
def test_unwritable_paths_are_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_writable(tmp_path / name, suffixes=(".mp4",))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_writable(tmp_path / "a.mp4", suffixes=(".mp4",))


def test_the_sampler_keeps_evenly_spaced_frames_with_both_ends() -> None:
    frames = np.arange(33, dtype=np.uint8)[:, None, None, None].repeat(3, axis=-1)
    sampler = ShotSampler("a fox", num_frames=33, count=5)
    for part in np.split(frames, [9, 21]):
        sampler.add(part)
    assert [int(picture[0, 0, 0]) for picture in sampler.pictures] == [0, 8, 16, 24, 32]


def test_a_sheet_has_a_row_per_shot_and_wraps_captions(tmp_path: Path) -> None:
    rows = []
    for caption in ("a fox", "a long caption " * 30):
        rows.append(ShotSampler(caption, num_frames=9, count=3))
        rows[-1].add(_flat((200, 30, 30), 9))
    write_sheet(rows, tmp_path / "a.png", cell_width=96)
    width, height = Image.open(tmp_path / "a.png").size
    assert width == 8 + 3 * (96 + 8)
    assert height > 2 * 64 + 300
