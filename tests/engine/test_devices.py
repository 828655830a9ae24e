"""A model may lie elsewhere than what is drawn and remembered on the CPU. Runs without a GPU: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shotstream.engine.stream import Engine, TeacherEngine
from shotstream.models.codec import ChunkedCodec
from shotstream.models.tiny_codec import TinyCodec


@pytest.fixture(autouse=True)
def _decoding_that_meta_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path views convolutions' results as words, and those on `meta` have another layout than anywhere."""
    monkeypatch.setattr(TinyCodec, "decode_chunk", ChunkedCodec.decode_chunk)


def test_pictures_remembered_on_the_cpu_reach_a_codec_elsewhere(
    engine_on: Callable[..., Engine], elsewhere: torch.device
) -> None:
    stream = engine_on(elsewhere, dtype=torch.bfloat16).stream()
    stream.cut("a fox on the beach", num_chunks=2)
    assert len(list(stream)) == 2
    stream.pin((0, 5))
    stream.cut("a wide shot of the city", num_chunks=5)  # longer than its window
    chunks = list(stream)
    assert (0, 5) in [frame.id for frame in chunks[0].context]
    stream.steer("he looks surprised")
    chunks += list(stream)
    assert [chunk.latent.device.type for chunk in chunks] == ["meta"] * 8


def test_the_noise_of_a_whole_shot_reaches_a_teacher_elsewhere(
    engine_on: Callable[..., Engine], elsewhere: torch.device
) -> None:
    stream = engine_on(elsewhere, kind=TeacherEngine).stream()
    for caption in ("a fox on the beach", "a wide shot of the city"):
        stream.cut(caption, num_chunks=3)
        assert len(list(stream)) == 3
