"""A whole engine of a few thousand random weights, so that the commands run in milliseconds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shotstream.engine.cache import SlabConfig
from shotstream.engine.stream import Engine
from shotstream.models.dit import DiT, DiTConfig
from shotstream.models.text import TextConfig
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.presets import STORYWORLD, Preset

TEXT_LENGTH = 24


class WordEncoder:
    """Each word is a fixed random vector."""

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
        dim=32, ffn_dim=48, num_heads=2, num_layers=1, in_channels=4, out_channels=4, text_dim=8, text_len=TEXT_LENGTH
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
