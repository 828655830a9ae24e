"""The networks against vectors of the published implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from shotstream.diffusion.flow import add_noise
from shotstream.diffusion.schedule import FlowSchedule
from shotstream.models.attention import SegmentAttention
from shotstream.models.checkpoint import load_dit
from shotstream.models.dit import DiT

pytestmark = pytest.mark.parity
Check = Callable[[str, Tensor, Tensor], None]


@pytest.fixture(scope="module")
def model(parity_dir: Path) -> DiT:
    return load_dit(parity_dir / "dit_tiny.safetensors")


def captions_of(vectors: dict[str, Tensor], model: DiT, prefix: str = "") -> Tensor:
    """Zero-padded states of caption0, caption1, ... [S, text_len, text_dim]."""
    names = [k for k in vectors if k.startswith(f"{prefix}caption")]
    names.sort(key=lambda name: int(name.rpartition("caption")[2]))
    states = torch.zeros(len(names), model.config.text_len, model.config.text_dim)
    for row, name in enumerate(names):
        states[row, : len(vectors[name])] = vectors[name]
    return states


def run(
    model: DiT, latents: Tensor, timesteps: Tensor, shot_ids: Tensor, states: Tensor, sizes: tuple[int, ...]
) -> Tensor:
    frames = latents.shape[1]
    rows, columns = model.config.grid(*latents.shape[-2:])
    caption_ids = shot_ids.long() if len(states) > 1 else torch.zeros(frames, dtype=torch.long)
    with torch.no_grad():
        return model(
            latents,
            timesteps,
            positions_BF=torch.arange(frames)[None],
            shot_ids_BF=shot_ids[None],
            captions=model.encode_captions(states),
            caption_ids_BF=caption_ids[None],
            attention=SegmentAttention(sizes=sizes, tokens_per_frame=rows * columns),
        )


def test_schedule(parity_dir: Path, parity_schedule: FlowSchedule, assert_parity: Check) -> None:
    file, schedule = "schedule.safetensors", parity_schedule
    vectors = load_file(parity_dir / file)
    # Timesteps are on a scale of 1000: compared on the scale of sigma, where float32 resolves the tolerance.
    assert_parity(file, schedule.sigmas, vectors["sigmas_1000"])
    assert_parity(file, schedule.timesteps / 1000, vectors["timesteps_1000"] / 1000)
    assert_parity(file, schedule.training_weights, vectors["training_weight_1000"])
    warped = torch.tensor(schedule.warp_steps(vectors["denoising_steps_nominal"].tolist()))
    assert_parity(file, warped / 1000, vectors["denoising_steps_warped"] / 1000)
    sampling = schedule.sampling_sigmas(len(vectors["sampling_sigmas_50"]))
    assert_parity(file, sampling, vectors["sampling_sigmas_50"])
    assert_parity(file, sampling, vectors["sampling_timesteps_50"] / 1000)
    noisy = add_noise(
        vectors["add_noise.x0"][None],
        vectors["add_noise.noise"][None],
        schedule.sigma_of(vectors["add_noise.timestep"])[None],
    )
    assert_parity(file, noisy[0], vectors["add_noise.out"])


def test_teacher_forward(parity_dir: Path, model: DiT, assert_parity: Check) -> None:
    file = "teacher_forward.safetensors"
    vectors = load_file(parity_dir / file)
    for case in sorted({k.split(".")[0] for k in vectors}):
        latents = vectors[f"{case}.latents"]
        frames = latents.shape[1]
        timesteps = vectors[f"{case}.timestep"].expand(1, frames)
        states = captions_of(vectors, model, f"{case}.")
        flow = run(model, latents, timesteps, vectors[f"{case}.shot_ids"], states, (frames,))
        assert_parity(file, flow, vectors[f"{case}.flow"])


def test_student_block_causal(parity_dir: Path, model: DiT, assert_parity: Check) -> None:
    file = "student_block_causal.safetensors"
    vectors = load_file(parity_dir / file)
    latents, timesteps, shot_ids = vectors["latents"], vectors["timesteps"], vectors["shot_ids"]
    sizes = segments_of(timesteps[0], shot_ids)
    flow = run(model, latents, timesteps, shot_ids, captions_of(vectors, model), sizes)
    assert_parity(file, flow, vectors["flow"])


def segments_of(timesteps: Tensor, shot_ids: Tensor) -> tuple[int, ...]:
    """Context frames are those of earlier shots, the rest are chunks: frames of one timestep, or of two in a row."""
    context = int((shot_ids != shot_ids[-1]).sum())  # a chunk may be at t = 0 as well
    runs = timesteps[context:].unique_consecutive(return_counts=True)[1].tolist()
    chunk = math.gcd(*runs)
    return (context, *[chunk] * (sum(runs) // chunk))


def test_segments_are_read_from_the_vectors() -> None:
    ids = torch.tensor([0, 1, 2, 2, 2, 2, 2, 2])
    assert segments_of(torch.tensor([0, 0, 5, 5, 5, 7, 7, 7]), ids) == (2, 3, 3)
    assert segments_of(torch.tensor([0, 0, 0, 0, 0, 7, 7, 7]), ids) == (2, 3, 3)
    assert segments_of(torch.tensor([0, 9, 9, 9, 9, 0, 0, 4, 4]), torch.tensor([0] + [1] * 8)) == (1, 2, 2, 2, 2)


def test_the_tenth_caption_comes_after_the_second(model: DiT) -> None:
    vectors = {f"caption{i}": torch.full((1, model.config.text_dim), float(i)) for i in (10, 2, 0, 1)}
    assert captions_of(vectors, model)[:, 0, 0].tolist() == [0, 1, 2, 10]


def test_reference_layout_holds_the_same_weights(parity_dir: Path, model: DiT) -> None:
    with safe_open(parity_dir / "dit_tiny.safetensors", "pt") as file:
        assert "config" in file.metadata()
    reference = load_dit(parity_dir / "dit_tiny_reference_layout.pt", config=model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reference.state_dict()[name], tensor), name
