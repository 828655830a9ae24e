"""The page's own tests, run by node: the state, the player, the client, and the twin of the barcode reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shotstream.engine.barcode import Barcode, caption_hash, draw_barcode

ROOT = Path(__file__).resolve().parents[2]
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="the page's tests need node (version 20 or newer)")
def test_the_page_keeps_its_promises() -> None:
    picture = np.zeros((3, 32, 3), np.uint8)
    code = Barcode(story=7, shot=41, take=3, chunk=12, frame=9001, caption=caption_hash("a fox on the beach"))
    draw_barcode(picture, code)
    tests = sorted(str(path) for path in (ROOT / "tests" / "page").glob("*.test.js"))
    run = subprocess.run(
        [str(NODE), "--test", *tests],
        env=os.environ | {"BARCODE": json.dumps(picture[:, :, 0].tolist())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_asks_no_other_host_for_anything() -> None:
    for path in (ROOT / "src" / "shotstream" / "server" / "static").iterdir():
        text = path.read_text()
        allowed = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in allowed, path
        assert "https://" not in allowed, path
        assert "innerHTML" not in text, f"{path} must show what people wrote as text only"
