"""The streaming rollout with both caches against the published implementation."""

from __future__ import annotations

from collections.abc import Callable
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


def count(vectors: dict[str, Tensor], prefix: str, word: str) -> int:
    """How many `{prefix}{word}N` there are."""
    return len({k[len(prefix) :].split(".")[0] for k in vectors if k.startswith(prefix + word)})


def captions(vectors: dict[str, Tensor], model: DiT) -> CaptionKV:
    states = torch.zeros(count(vectors, "", "caption"), model.config.text_len, model.config.text_dim)
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
    model = load_dit(parity_dir / "dit_tiny.safetensors").eval()
    vectors = load_file(parity_dir / FILE)
    schedule = load_file(parity_dir / "schedule.safetensors")
    nominal = schedule["denoising_steps_nominal"].tolist()
    _, context_frames, _, height, width = vectors["shot0.context_latents"].shape
    chunk_frames = vectors["shot0.chunk0.noise"].shape[1]
    chunks = count(vectors, "shot0.", "chunk")
    slab = SlabConfig(
        context_frames=context_frames, window_frames=chunk_frames * chunks, chunk_frames=chunk_frames, sink_frames=0
    )
    config = RolloutConfig(timesteps=parity_schedule.warp_steps(nominal), slab=slab)
    rollout = Rollout(model, config, latent_height=height, latent_width=width)
    texts = captions(vectors, model)
    for shot in range(count(vectors, "", "shot")):
        check_shot(rollout, vectors, texts, shot, chunks, assert_parity)


def check_shot(
    rollout: Rollout, vectors: dict[str, Tensor], texts: CaptionKV, shot: int, chunks: int, assert_parity: Check
) -> None:
    name, context_frames = f"shot{shot}", rollout.config.slab.context_frames
    ids = vectors[f"{name}.shot_ids"].long()
    # The first shot knows one caption only; later ones look captions up by shot.
    caption_ids = torch.zeros_like(ids) if shot == 0 else ids
    own = texts.select(caption_ids[-1:])
    context_ids, context_captions = ids[None, :context_frames], texts.select(caption_ids[:context_frames])
    rollout.open_shot(Context(vectors[f"{name}.context_latents"], context_ids, ids[-1:], context_captions))
    for layer in range(len(rollout.slab.keys)):
        stop = rollout.slab.tokens(context_frames)
        assert_parity(
            FILE, rollout.slab.keys[layer, :, :, :stop].transpose(1, 2), vectors[f"{name}.context_k.layer{layer}"]
        )
        assert_parity(
            FILE, rollout.slab.values[layer, :, :, :stop].transpose(1, 2), vectors[f"{name}.context_v.layer{layer}"]
        )
    for chunk in range(chunks):
        check_chunk(rollout, vectors, own, f"{name}.chunk{chunk}", assert_parity)
    rollout.commit()
    for layer in range(len(rollout.slab.keys)):
        assert_parity(
            FILE, rollout.slab.keys[layer, :, :, stop:].transpose(1, 2), vectors[f"{name}.local_k.layer{layer}"]
        )
        assert_parity(
            FILE, rollout.slab.values[layer, :, :, stop:].transpose(1, 2), vectors[f"{name}.local_v.layer{layer}"]
        )


def check_chunk(rollout: Rollout, vectors: dict[str, Tensor], own: CaptionKV, name: str, assert_parity: Check) -> None:
    def noise(step: int) -> Tensor:
        return vectors[f"{name}.noise"] if step == 0 else vectors[f"{name}.step{step - 1}.renoise"][None]

    with Recorder(rollout.model) as flows:
        result = rollout.next_chunk(own, noise)
    steps = count(vectors, f"{name}.", "step")
    assert len(flows) == steps == result.step + 1
    for step, flow in enumerate(flows):
        assert_parity(FILE, flow, vectors[f"{name}.step{step}.flow"])
    assert_parity(FILE, result.clean, vectors[f"{name}.step{steps - 1}.x0"])
