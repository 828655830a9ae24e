"""What streams promise holds on a GPU, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from shotstream.diffusion.flow import predicted_clean
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import RolloutConfig
from shotstream.engine.stream import Chunk, Engine, Stream, TeacherEngine
from shotstream.models.attention import attend_fused, attend_plain
from shotstream.models.dit import DiT
from shotstream.models.rope import Rotary, rotate_complex, rotate_plain
from shotstream.training.causal_init import CausalConfig, block_causal_output
from shotstream.training.data import Batch
from shotstream.training.distill import RolloutNoise, roll_out

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-4
"""In float32: other kernels add in another order than those of the CPU, whose tests allow a fifth of it."""
SLAB = SlabConfig(context_frames=2, window_frames=12, sink_frames=3)
ROLLOUT = RolloutConfig(timesteps=(1000.0, 700.0, 300.0), slab=SLAB)


def told(stream: Stream) -> list[Chunk]:
    """Two shots, the second longer than the window and steered where the model can be."""
    stream.cut("a fox on the beach", num_chunks=2)
    chunks = list(stream)
    stream.cut("a wide shot of the city", num_chunks=4)
    chunks.append(next(stream))
    if not isinstance(stream.engine, TeacherEngine):
        stream.steer("he looks surprised")
    return chunks + list(stream)


def latents(chunks: Iterable[Chunk]) -> Tensor:
    return torch.cat([chunk.latent for chunk in chunks], dim=1).cpu()


def frames(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks]).astype(int)


def scene(model: DiT, device: torch.device, batch: int = 2) -> Batch:
    """Shots of four chunks with a steer at the second."""
    config, remembered, made = model.config, SLAB.context_frames, SLAB.window_frames
    frame = (config.in_channels, 4, 4)
    captions = [0] * remembered + [1] * SLAB.chunk_frames + [2] * (made - SLAB.chunk_frames)
    data = Batch(
        context=torch.randn(batch, remembered, *frame),
        target=torch.zeros(batch, made, *frame),
        shot_ids=torch.tensor([[0, 1] + [2] * made] * batch),
        text=torch.randn(3, config.text_len, config.text_dim),
        caption_ids=torch.tensor([captions] * batch),
        weight=torch.ones(batch, made, 1, 4, 4),
    )
    return Batch(*(tensor.to(device) for tensor in data))


@pytest.mark.parametrize("exit_step", [0, 2])
def test_streaming_equals_the_masked_form(cuda: torch.device, tiny_dit: DiT, exit_step: int) -> None:
    model = tiny_dit.to(cuda)
    data = scene(model, cuda)
    made = roll_out(model, ROLLOUT, data, RolloutNoise(0, 0, range(2)), exit_step)[1]
    noisy = torch.cat(made.noisy, dim=1)
    sigma = torch.full(noisy.shape[:2], ROLLOUT.timesteps[exit_step] / 1000, device=cuda)
    causal = CausalConfig(timesteps=ROLLOUT.timesteps, chunk_frames=SLAB.chunk_frames)
    with torch.no_grad():
        captions = model.encode_captions(data.text)
        output = block_causal_output(model, data, noisy, sigma, captions, causal, history=made.clean)
    masked = predicted_clean(output, noisy, sigma, model.config.prediction)
    torch.testing.assert_close(made.clean, masked, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [Engine, TeacherEngine])
def test_a_story_is_the_same_on_the_gpu_and_on_the_cpu(
    cuda: torch.device, engine_on: Callable[..., Engine], kind: type[Engine]
) -> None:
    there, here = (told(engine_on(torch.device(name), kind=kind).stream(seed=7)) for name in (cuda, "cpu"))
    torch.testing.assert_close(latents(there), latents(here), rtol=0, atol=10 * TOLERANCE)
    assert np.abs(frames(there) - frames(here)).max() <= 1


def test_a_retake_gives_the_same_bits(cuda: torch.device, engine_on: Callable[..., Engine]) -> None:
    engine = engine_on(cuda, dtype=torch.bfloat16)
    first, again = (told(engine.stream(seed=7)) for _ in range(2))
    assert np.array_equal(frames(first), frames(again))


def test_bfloat16_is_close_to_float32(cuda: torch.device, engine_on: Callable[..., Engine]) -> None:
    exact, short = (latents(told(engine_on(cuda, dtype=d).stream())) for d in (torch.float32, torch.bfloat16))
    assert (short - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_fast_twins_equal_the_plain_ones(cuda: torch.device, dtype: torch.dtype, allowed: float) -> None:
    q, k, v = (torch.randn(2, 2, tokens, 128, device=cuda, dtype=dtype) for tokens in (12, 36, 36))
    torch.testing.assert_close(attend_fused(q, k, v), attend_plain(q, k, v), rtol=0, atol=allowed)
    angles, x = torch.randn(2, 12, 1, 64, device=cuda), torch.randn(2, 12, 2, 128, device=cuda, dtype=dtype)
    rotary = Rotary(angles.cos(), angles.sin())
    torch.testing.assert_close(rotate_complex(x, rotary), rotate_plain(x, rotary), rtol=0, atol=allowed)
