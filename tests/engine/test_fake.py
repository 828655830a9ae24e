"""The fake engine keeps a stream's promises, and its pictures say what they are after encoding and scaling."""

from __future__ import annotations

import io
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

import shotstream
from shotstream.engine.barcode import Barcode, caption_hash, draw_barcode, read_barcode
from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.server.media import ChunkEncoder

CODE = Barcode(story=7, shot=41, take=3, chunk=12, frame=9001, caption=caption_hash("a fox on the beach"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(FakeConfig(chunk_ms=0, open_ms=0))


def test_a_barcode_reads_back_what_was_written() -> None:
    picture = np.full((192, 320, 3), 90, np.uint8)
    draw_barcode(picture, CODE)
    assert read_barcode(picture) == CODE


def test_a_picture_without_a_barcode_gives_none() -> None:
    assert read_barcode(np.full((192, 320, 3), 200, np.uint8)) is None


@pytest.mark.parametrize("size", [(320, 192), (832, 480)])
def test_barcodes_survive_encoding_and_scaling(size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    for picture in noise:
        draw_barcode(picture, CODE)
    encoder = ChunkEncoder(width, height)
    with av.open(io.BytesIO(encoder.init_segment + encoder.encode(noise))) as container:
        shown = [frame.to_image() for frame in container.decode(video=0)]
    for picture in shown:
        squeezed = picture.resize((224, height * 224 // width), Image.Resampling.BILINEAR).resize(size)
        assert read_barcode(np.asarray(squeezed)) == CODE


def test_its_frames_name_shot_chunk_frame_and_caption(engine: FakeEngine) -> None:
    stream = engine.stream(seed=3, global_caption="A film.")
    stream.cut("a fox on the beach", num_chunks=3)
    chunks = [next(stream)]
    stream.steer("make him look surprised")
    chunks += stream
    stream.cut("a wide view of the city", num_chunks=1)
    chunks += stream
    read = [read_barcode(frame) for chunk in chunks for frame in chunk.frames]
    assert [len(chunk.frames) for chunk in chunks] == [9, 12, 12, 9]
    assert [code.frame for code in read if code] == [*range(33), *range(9)]
    assert [code.shot for code in read if code] == [0] * 33 + [1] * 9
    assert [code.caption for code in read if code] == [
        caption_hash(chunk.caption) for chunk in chunks for _ in chunk.frames
    ]
    assert len(chunks[3].context) == 6, "the second shot remembers the first"


def test_a_cut_ends_the_running_chunk(engine: FakeEngine) -> None:
    stream = FakeEngine(FakeConfig(chunk_ms=400, open_ms=0)).stream()
    stream.cut("one")
    next(stream)
    threading.Timer(0.05, stream.cut, ["two"]).start()
    chunk = next(stream)
    assert (chunk.shot, chunk.index) == (1, 0)


def test_a_chunk_takes_the_set_time() -> None:
    stream = FakeEngine(FakeConfig(chunk_ms=60, open_ms=30)).stream()
    stream.cut("one")
    started = time.perf_counter()
    timings = next(stream).timings
    assert time.perf_counter() - started >= 0.09
    assert timings.denoise >= 60
    assert timings.context >= 30


def test_it_is_loaded_like_any_preset() -> None:
    assert shotstream.load("fake").preset.name == "fake"
