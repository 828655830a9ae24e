"""The page's own tests, run by node: the state, the player, the client, and the twin of the barcode reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from shotstream.engine.barcode import Barcode, caption_hash, draw_barcode, read_barcode
from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.server.media import ChunkEncoder
from shotstream.server.security import MAX_STORY

ROOT = Path(__file__).resolve().parents[2]
NODE = shutil.which("node")


needs_node = pytest.mark.skipif(NODE is None, reason="the page's tests need node (version 20.19 or newer)")


@needs_node
def test_the_page_keeps_its_promises() -> None:
    picture = np.zeros((3, 32, 3), np.uint8)
    code = Barcode(story=7, shot=41, take=3, chunk=12, frame=9001, caption=caption_hash("a fox on the beach"))
    draw_barcode(picture, code)
    tests = sorted(str(path) for path in (ROOT / "tests" / "page").glob("*.test.js"))
    run = subprocess.run(
        [str(NODE), "--test", *tests],
        env=os.environ | {"BARCODE": json.dumps(picture[:, :, 0].tolist()), "MAX_STORY": str(MAX_STORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@needs_node
def test_the_downloaded_film_holds_what_was_aired_and_nothing_that_a_cut_made_void(tmp_path: Path) -> None:
    encoder, stream = ChunkEncoder(320, 192), FakeEngine(FakeConfig(chunk_ms=0, open_ms=0)).stream()
    headers = []
    start = 0
    for shot, num_chunks, aired in ((0, 6, 60), (1, 2, 21)):
        stream.cut(f"shot {shot}", num_chunks=num_chunks)
        begin = start
        for chunk in stream:
            (tmp_path / f"{len(headers)}.m4s").write_bytes(encoder.encode(chunk.frames))
            place = {"numFrames": len(chunk.frames), "sequence": len(headers), "epoch": shot, "start": start}
            headers.append({"shot": shot, "chunk": chunk.index, "take": 0, "newEpoch": chunk.index == 0, **place})
            start += len(chunk.frames)
        start = begin + aired
    (tmp_path / "init.mp4").write_bytes(encoder.init_segment)
    (tmp_path / "chunks.json").write_text(json.dumps(headers))
    subprocess.run([str(NODE), str(ROOT / "tests" / "page" / "make_film.js"), str(tmp_path)], check=True, timeout=60)
    with av.open(str(tmp_path / "film.mp4")) as film:
        pictures = list(film.decode(video=0))
    codes = [read_barcode(picture.to_ndarray(format="rgb24")) for picture in pictures]
    assert [(code.shot, code.frame) for code in codes if code] == [(0, i) for i in range(60)] + [
        (1, i) for i in range(21)
    ]
    assert [float(picture.time) for picture in pictures] == [i / 16 for i in range(81)]


def test_the_page_asks_no_other_host_for_anything() -> None:
    for path in (ROOT / "src" / "shotstream" / "server" / "static").iterdir():
        text = path.read_text()
        allowed = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in allowed, path
        assert "https://" not in allowed, path
        assert "innerHTML" not in text, f"{path} must show what people wrote as text only"
