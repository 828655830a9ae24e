from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # worlds.py: tests are not a package

from worlds import write_library


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def library_of_two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories of the same numbers, 24 of them square and 12 wide."""
    folder = write_library(tmp_path_factory.mktemp("sizes"))
    return write_library(folder, stories=12, seed=1, size=(4, 6), first_shard=2)
