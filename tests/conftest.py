"""Fixtures shared by all tests: where the parity vectors are, and the table of largest errors printed at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shotstream.models.dit import DiT, DiTConfig

TOLERANCE = 2e-5
"""Largest absolute float32 difference from the published implementation that counts as the same mathematics."""

_largest_errors: dict[str, float] = {}


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of vectors from the published implementation; tests that need it skip where it is absent."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SHOTSTREAM_PARITY_DIR", root / ".." / "shared" / "parity"))
    if not folder.is_dir():
        pytest.skip(f"no parity vectors at {folder}: set SHOTSTREAM_PARITY_DIR")
    return folder


@pytest.fixture
def assert_parity() -> Callable[[str, Tensor, Tensor], None]:
    """Check one tensor against its vector and remember the largest error of the file."""

    def check(file: str, actual: Tensor, expected: Tensor) -> None:
        assert actual.shape == expected.shape, f"{file}: shape {list(actual.shape)}, expected {list(expected.shape)}"
        error = (actual.double() - expected.double()).abs().max().item()
        _largest_errors[file] = max(error, _largest_errors.get(file, 0.0))
        assert error <= TOLERANCE, f"{file}: differs by {error:.2e}, allowed {TOLERANCE:.0e}"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _largest_errors:
        terminalreporter.section("parity: largest absolute error per file")
        for file, error in sorted(_largest_errors.items()):
            terminalreporter.write_line(f"{file:40s} {error:.2e}")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> DiTConfig:
    """A network of a few thousand weights with every part of the real one."""
    return DiTConfig(
        dim=32,
        ffn_dim=48,
        num_heads=2,
        num_layers=2,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        text_len=5,
        freq_dim=16,
    )


@pytest.fixture
def tiny_dit(tiny_config: DiTConfig, _fixed_seed: None) -> DiT:
    """Random weights, no gate closed, so that every part has a say in the output."""
    return DiT(tiny_config)
