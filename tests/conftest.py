"""Fixtures shared by all tests: the parity vectors, the table of largest errors printed at the end, a tiny engine."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shotstream.diffusion.schedule import FlowSchedule
from shotstream.engine.cache import SlabConfig
from shotstream.engine.stream import Engine
from shotstream.models.dit import DiT, DiTConfig
from shotstream.models.text import TextConfig
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.presets import STORYWORLD, Preset

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


@pytest.fixture(scope="session")
def parity_schedule(parity_dir: Path) -> FlowSchedule:
    """The schedule of the vectors. The shift takes the sigma half-way, 1/2, to shift / (1 + shift)."""
    sigmas = load_file(parity_dir / "schedule.safetensors")["sigmas_1000"].double()
    half = sigmas[len(sigmas) // 2].item()
    return FlowSchedule(shift=round(half / (1 - half), 4), num_steps=len(sigmas))  # the table has seven digits


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


TEXT_LENGTH = 64


class WordEncoder:
    """A text encoder in which each word is a fixed random vector."""

    config = TextConfig(encoder="minilm", length=TEXT_LENGTH, width=8)

    def count_tokens(self, caption: str) -> int:
        return len(caption.split())

    def encode(self, captions: Sequence[str]) -> Tensor:
        states = torch.zeros(len(captions), TEXT_LENGTH, 8)
        for row, caption in enumerate(captions):
            for column, word in enumerate(caption.split()):
                generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                states[row, column] = torch.randn(8, generator=generator)
        return states


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    dit = DiTConfig(
        dim=32, ffn_dim=48, num_heads=2, num_layers=2, in_channels=4, out_channels=4, text_dim=8, text_len=TEXT_LENGTH
    )
    return replace(
        STORYWORLD,
        name="tiny",
        dit=dit,
        text=WordEncoder.config,
        height=32,
        width=64,
        slab=SlabConfig(context_frames=2, window_frames=9, sink_frames=3),
        teacher_steps=2,
    )


@pytest.fixture(scope="session")
def tiny_engine(tiny_preset: Preset) -> Engine:
    """A whole engine of a few thousand random weights: streams run in milliseconds."""
    torch.manual_seed(0)
    codec_config = TinyCodecConfig(
        latent_channels=4,
        encoder_widths=(16, 16, 16),
        decoder_widths=(16, 16, 16),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
    )
    model = DiT(tiny_preset.dit).cast_for_inference(torch.float32)
    return Engine(tiny_preset, model, TinyCodec(codec_config).eval(), WordEncoder())


@pytest.fixture
def engine_on(tiny_engine: Engine) -> Callable[..., Engine]:
    """The tiny engine once more on another device, prepared as loading does it; its text encoder stays on the CPU."""

    def build(device: torch.device, *, dtype: torch.dtype = torch.float32, kind: type[Engine] = Engine) -> Engine:
        model = deepcopy(tiny_engine.model).cast_for_inference(dtype).to(device).fuse_for_serving()
        return kind(tiny_engine.preset, model, deepcopy(tiny_engine.codec).to(device), tiny_engine.text)

    return build


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The GPU, with float32 convolutions in full precision. For tests marked `gpu`, which skip where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: run `pytest -m gpu` on a machine that has one")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device other than the CPU on every machine: nothing is computed on `meta`, but what mixes devices raises."""
    autocast, cpu = torch.autocast, Tensor.cpu

    def known_autocast(kind: str, *more: object, **options: object) -> object:
        return nullcontext() if kind == "meta" else autocast(kind, *more, **options)

    monkeypatch.setattr(torch, "autocast", known_autocast)
    monkeypatch.setattr(Tensor, "cpu", lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x))
    return torch.device("meta")
