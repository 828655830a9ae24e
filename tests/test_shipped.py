"""What ships inside the package is small, in bfloat16, and says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from shotstream.presets import PACKAGE_WEIGHTS

FILES = sorted(PACKAGE_WEIGHTS.rglob("*.safetensors"))
LIMIT_BYTES = 16_000_000


def test_weights_ship() -> None:
    assert {path.stem for path in FILES} >= {"codec", "student", "teacher", "probe"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_file_is_small_and_says_how_it_was_made(path: Path) -> None:
    assert path.stat().st_size < LIMIT_BYTES
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}
    for key in ("config", "recipe"):
        assert json.loads(metadata[key])
