"""The streaming rollout with both caches against the published implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shotstream.diffusion.schedule import FlowSchedule
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import Context, Rollout, RolloutConfig
from shotstream.models.checkpoint import load_dit
from shotstream.models.dit import CaptionKV, DiT

pytestmark = pytest.mark.parity
FILE = "student_stream.safetensors"
Check = Callable[[str, Tensor, Tensor], None]


def numbers(vectors: dict[str, Tensor], prefix: str, word: str) -> list[int]:
    """Every N of the names that begin with `{prefix}{word}N`."""
    start = prefix + word
    return sorted({int(k.removeprefix(start).split(".")[0]) for k in vectors if k.startswith(start)})


def captions(vectors: dict[str, Tensor], model: DiT) -> CaptionKV:
    states = torch.zeros(len(numbers(vectors, "", "caption")), model.config.text_len, model.config.text_dim)
    for i, row in enumerate(states):
        row[: len(vectors[f"caption{i}"])] = vectors[f"caption{i}"]
    return model.encode_captions(states)


class Recorder:
    """Stands between rollout and model, to see every pass's raw output."""

    def __init__(self, model: DiT) -> None:
        self.model, self.outputs = model, []
        self._forward = model.forward_tokens

    def __enter__(self) -> list[Tensor]:
        def forward(*args: object, **kwargs: object) -> Tensor | None:
            output = self._forward(*args, **kwargs)
            self.outputs += [] if output is None else [output]
            return output

        self.model.forward_tokens = forward
        return self.outputs

    def __exit__(self, *_: object) -> None:
        del self.model.forward_tokens


@torch.no_grad()
def test_stream_of_shots(parity_dir: Path, parity_schedule: FlowSchedule, assert_parity: Check) -> None:
    check_stream(parity_dir, load_file(parity_dir / FILE), parity_schedule, assert_parity)


@torch.no_grad()
def test_a_shot_of_the_vectors_may_be_shorter_than_the_first(
    parity_dir: Path, parity_schedule: FlowSchedule, assert_parity: Check
) -> None:
    vectors = load_file(parity_dir / FILE)
    shot = f"shot{numbers(vectors, '', 'shot')[-1]}"
    *kept, last = numbers(vectors, f"{shot}.", "chunk")
    if not kept:
        pytest.skip(f"{shot} of these vectors has a single chunk")
    shorter = {name: tensor for name, tensor in vectors.items() if not name.startswith(f"{shot}.chunk{last}.")}
    check_stream(parity_dir, shorter, parity_schedule, assert_parity)


def check_stream(
    parity_dir: Path, vectors: dict[str, Tensor], parity_schedule: FlowSchedule, assert_parity: Check
) -> None:
    model = load_dit(parity_dir / "dit_tiny.safetensors").eval()
    nominal = load_file(parity_dir / "schedule.safetensors")["denoising_steps_nominal"].tolist()
    texts, shots = captions(vectors, model), numbers(vectors, "", "shot")
    most_chunks = max(len(numbers(vectors, f"shot{shot}.", "chunk")) for shot in shots)

    @cache
    def rollout(context_frames: int, chunk_frames: int, height: int, width: int) -> Rollout:
        slab = SlabConfig(
            context_frames=context_frames,
            window_frames=chunk_frames * most_chunks,
            chunk_frames=chunk_frames,
            sink_frames=0,
        )
        config = RolloutConfig(timesteps=parity_schedule.warp_steps(nominal), slab=slab)
        return Rollout(model, config, latent_height=height, latent_width=width)

    for shot in shots:
        _, context_frames, _, height, width = vectors[f"shot{shot}.context_latents"].shape
        chunk_frames = vectors[f"shot{shot}.chunk0.noise"].shape[1]
        check_shot(rollout(context_frames, chunk_frames, height, width), vectors, texts, shot, assert_parity)


def check_shot(rollout: Rollout, vectors: dict[str, Tensor], texts: CaptionKV, shot: int, assert_parity: Check) -> None:
    name, slab = f"shot{shot}", rollout.config.slab
    ids, chunks = vectors[f"{name}.shot_ids"].long(), numbers(vectors, f"{name}.", "chunk")
    # The first shot knows one caption only; later ones look captions up by shot.
    caption_ids = torch.zeros_like(ids) if shot == 0 else ids
    own = texts.select(caption_ids[-1:])
    context_ids, context_captions = ids[None, : slab.context_frames], texts.select(caption_ids[: slab.context_frames])
    rollout.open_shot(Context(vectors[f"{name}.context_latents"], context_ids, ids[-1:], context_captions))
    check_slab(rollout, vectors, f"{name}.context", slice(0, slab.context_frames), assert_parity)
    for chunk in chunks:
        check_chunk(rollout, vectors, own, f"{name}.chunk{chunk}", assert_parity)
    rollout.commit()
    made = slice(slab.context_frames, slab.context_frames + slab.chunk_frames * len(chunks))
    check_slab(rollout, vectors, f"{name}.local", made, assert_parity)


def check_slab(rollout: Rollout, vectors: dict[str, Tensor], name: str, frames: slice, assert_parity: Check) -> None:
    """The slab's tokens of these frames against the vectors' first ones; they may hold more than their chunks fill."""
    slab = rollout.slab
    start, stop = slab.tokens(frames.start), slab.tokens(frames.stop)
    for kind, rows in (("k", slab.keys), ("v", slab.values)):
        for layer in numbers(vectors, f"{name}_{kind}.", "layer"):
            expected = vectors[f"{name}_{kind}.layer{layer}"][:, : stop - start]
            assert_parity(FILE, rows[layer, :, :, start:stop].transpose(1, 2), expected)


def check_chunk(rollout: Rollout, vectors: dict[str, Tensor], own: CaptionKV, name: str, assert_parity: Check) -> None:
    def noise(step: int) -> Tensor:
        return vectors[f"{name}.noise"] if step == 0 else vectors[f"{name}.step{step - 1}.renoise"][None]

    steps = numbers(vectors, f"{name}.", "step")
    with Recorder(rollout.model) as flows:
        result = rollout.next_chunk(own, noise)
    assert len(flows) == len(steps) == result.step + 1
    for step, flow in zip(steps, flows, strict=True):
        assert_parity(FILE, flow, vectors[f"{name}.step{step}.flow"])
    assert_parity(FILE, result.clean, vectors[f"{name}.step{steps[-1]}.x0"])
