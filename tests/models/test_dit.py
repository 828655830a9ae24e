"""What the network promises apart from its numbers: names, routing of captions and timesteps, forms that agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from shotstream.models.attention import SegmentAttention, attend
from shotstream.models.dit import CaptionKV, DiT, DiTConfig, timestep_features

FRAMES, TOKENS = 6, 4
"""Latent frames of the test sequences, and tokens of one 4 x 4 latent."""


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, FRAMES, 4, 4, 4)


@pytest.fixture
def captions(tiny_dit: DiT) -> CaptionKV:
    return tiny_dit.encode_captions(torch.randn(3, 5, 8))


def run(
    model: DiT,
    latents: Tensor,
    captions: CaptionKV,
    *,
    timesteps: Tensor | None = None,
    caption_ids: Tensor | None = None,
    positions: Tensor | None = None,
    sizes: tuple[int, ...] = (FRAMES,),
    visible: tuple[tuple[int, ...], ...] | None = None,
) -> Tensor:
    batch, frames = latents.shape[:2]
    zeros = torch.zeros(batch, frames)
    return model(
        latents,
        torch.full((batch, frames), 500.0) if timesteps is None else timesteps,
        positions_BF=torch.arange(frames).expand(batch, -1) if positions is None else positions,
        shot_ids_BF=zeros,
        captions=captions,
        caption_ids_BF=zeros.long() if caption_ids is None else caption_ids,
        attention=SegmentAttention(sizes=sizes, tokens_per_frame=TOKENS, visible=visible),
    )


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 1.3B network's tensors."""
    dim, ffn = 1536, 8960
    linear = {
        "text_embedding.0": (dim, 4096),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, 256),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (64, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, dim)}
    for i in range(30):
        block = f"blocks.{i}"
        linear |= {f"{block}.ffn.0": (ffn, dim), f"{block}.ffn.2": (dim, ffn)}
        shapes |= {f"{block}.modulation": (1, 6, dim), f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        for part in ("self_attn", "cross_attn"):
            linear |= {f"{block}.{part}.{name}": (dim, dim) for name in "qkvo"}
            shapes |= {f"{block}.{part}.norm_{name}.weight": (dim,) for name in "qk"}
    shapes |= {"patch_embedding.weight": (dim, 16, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in linear.items()}


def test_tensors_of_the_published_size() -> None:
    with torch.device("meta"):
        state = DiT(DiTConfig()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_shapes()
    assert len(state) == 825
    assert sum(tensor.numel() for tensor in state.values()) == 1_418_996_800
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("blocks.7.")) == 46_440_704


def test_patches_are_those_of_the_convolution(tiny_dit: DiT, latents: Tensor) -> None:
    convolved = tiny_dit.patch_embedding(latents.transpose(1, 2))
    expected = convolved.flatten(3).permute(0, 2, 3, 1)
    torch.testing.assert_close(tiny_dit._patchify(latents), expected, rtol=0, atol=1e-6)


def test_output_patches_hold_their_channels_fastest(tiny_dit: DiT) -> None:
    y = torch.arange(16.0).expand(1, 1, TOKENS, 16)
    latents = tiny_dit._unpatchify(y, 2, 2)
    assert latents[0, 0, :, 0, 1].tolist() == [4, 5, 6, 7]
    assert latents[0, 0, :, 3, 2].tolist() == [8, 9, 10, 11]


def test_timestep_features_are_cosines_then_sines() -> None:
    features = timestep_features(torch.tensor([[0.0, 957.928772]]), 8)
    frequencies = [10000 ** (-j / 4) for j in range(4)]
    for t, row in zip((0.0, 957.928772), features[0].tolist(), strict=True):
        expected = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_caption_only_reaches_the_frames_that_name_it(tiny_config: DiTConfig, latents: Tensor) -> None:
    model = DiT(replace(tiny_config, num_layers=1))
    states = torch.randn(3, 5, 8)
    ids = torch.tensor([[0, 0, 1, 1, 2, 1], [2, 1, 0, 0, 0, 2]])
    before = run(model, latents, model.encode_captions(states), caption_ids=ids)
    states[1] += 1
    after = run(model, latents, model.encode_captions(states), caption_ids=ids)
    changed = (before != after).flatten(2).any(-1)
    assert torch.equal(changed, ids == 1)


def test_one_caption_a_row_equals_the_same_caption_on_every_frame(
    tiny_dit: DiT, latents: Tensor, captions: CaptionKV
) -> None:
    ids = torch.tensor([2, 1])
    per_frame = run(tiny_dit, latents, captions, caption_ids=ids[:, None].expand(-1, FRAMES))
    per_row = tiny_dit.forward_tokens(
        latents,
        tiny_dit.embed_time(torch.full((1, 1), 500.0)),
        tiny_dit.rotary(torch.arange(FRAMES)[None], torch.zeros(1, FRAMES), 4, 4),
        captions.select(ids),
        SegmentAttention(sizes=(FRAMES,), tokens_per_frame=TOKENS),
    )
    assert per_row is not None
    torch.testing.assert_close(per_row, per_frame, rtol=0, atol=1e-5)


def test_stacked_captions_are_the_captions(tiny_dit: DiT) -> None:
    states = torch.randn(3, 5, 8)
    together = tiny_dit.encode_captions(states)
    stacked = CaptionKV.stack([tiny_dit.encode_captions(states[:1]), tiny_dit.encode_captions(states[1:])])
    for a, b in zip((*stacked.keys, *stacked.values), (*together.keys, *together.values), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_positions_beyond_a_captions_end_are_read_too(tiny_dit: DiT, latents: Tensor) -> None:
    states = torch.randn(1, 5, 8)
    states[:, 3:] = 0
    captions = tiny_dit.encode_captions(states)
    shorter = CaptionKV(tuple(k[:, :, :3] for k in captions.keys), tuple(v[:, :, :3] for v in captions.values))
    assert (run(tiny_dit, latents, captions) - run(tiny_dit, latents, shorter)).abs().max() > 1e-3


def test_every_frame_has_its_own_timestep(tiny_dit: DiT, latents: Tensor, captions: CaptionKV) -> None:
    timesteps = torch.tensor([[0.0, 1000, 737.6, 20, 888.9, 500], [1.0, 2, 3, 4, 5, 6]])
    # Frames that read only themselves are independent, so each must equal a run of its own.
    alone = tuple((i,) for i in range(FRAMES))
    together = run(tiny_dit, latents, captions, timesteps=timesteps, sizes=(1,) * FRAMES, visible=alone)
    for frame in range(FRAMES):
        one = slice(frame, frame + 1)
        single = run(
            tiny_dit,
            latents[:, one],
            captions,
            timesteps=timesteps[:, one],
            positions=torch.full((2, 1), frame),
            sizes=(1,),
        )
        torch.testing.assert_close(together[:, one], single, rtol=0, atol=1e-5)


def test_student_that_sees_everything_at_one_timestep_is_the_teacher(
    tiny_dit: DiT, latents: Tensor, captions: CaptionKV
) -> None:
    teacher = run(tiny_dit, latents, captions)
    student = run(tiny_dit, latents, captions, sizes=(2, 1, 3), visible=((0, 1, 2),) * 3)
    torch.testing.assert_close(student, teacher, rtol=0, atol=1e-5)


def test_later_segments_never_change_earlier_ones(tiny_dit: DiT, latents: Tensor, captions: CaptionKV) -> None:
    before = run(tiny_dit, latents, captions, sizes=(2, 2, 2))
    latents[:, 4:] += 1
    after = run(tiny_dit, latents, captions, sizes=(2, 2, 2))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@dataclass
class RecordingAttention:
    """Bidirectional attention that remembers what every layer stored."""

    stored: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.store(layer, k, v)
        return attend(q, k, v)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        assert layer not in self.stored
        self.stored[layer] = (k, v)


def test_keys_only_stores_the_keys_of_a_full_pass(tiny_dit: DiT, latents: Tensor, captions: CaptionKV) -> None:
    time = tiny_dit.embed_time(torch.zeros(1, 1))
    rotary = tiny_dit.rotary(torch.arange(FRAMES)[None], torch.full((1, FRAMES), 3), 4, 4)
    full, short = RecordingAttention(), RecordingAttention()
    own = captions.select(torch.tensor([0, 2]))
    assert tiny_dit.forward_tokens(latents, time, rotary, own, full) is not None
    assert tiny_dit.forward_tokens(latents, time, rotary, own, short, keys_only=True) is None
    assert full.stored.keys() == short.stored.keys() == {0, 1}
    for layer, (k, v) in full.stored.items():
        assert torch.equal(k, short.stored[layer][0])
        assert torch.equal(v, short.stored[layer][1])


def test_fresh_training_weights_predict_zero_and_learn(tiny_dit: DiT, latents: Tensor) -> None:
    tiny_dit.init_for_training()
    output = run(tiny_dit, latents, tiny_dit.encode_captions(torch.randn(1, 5, 8)))
    assert not output.any()
    (output - latents).square().mean().backward()
    gradient = tiny_dit.head.head.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_cast_for_inference_keeps_time_precise(tiny_dit: DiT, latents: Tensor) -> None:
    states = torch.randn(1, 5, 8)
    exact = run(tiny_dit, latents, tiny_dit.encode_captions(states)).detach()
    tiny_dit.cast_for_inference(torch.bfloat16)
    cast = run(tiny_dit, latents, tiny_dit.encode_captions(states))
    assert tiny_dit.dtype == cast.dtype == torch.bfloat16
    assert tiny_dit.time_projection[1].weight.dtype == torch.float32
    assert not any(p.requires_grad for p in tiny_dit.parameters())
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=0.05)


def test_caption_states_of_another_shape(tiny_dit: DiT) -> None:
    with pytest.raises(ValueError, match=r"\[S, 5, 8\], got \[1, 6, 8\]"):
        tiny_dit.encode_captions(torch.zeros(1, 6, 8))


def test_latent_that_patches_do_not_tile(tiny_dit: DiT, captions: CaptionKV) -> None:
    with pytest.raises(ValueError, match="5x4 is not a multiple of the patch 2x2"):
        run(tiny_dit, torch.zeros(1, FRAMES, 4, 5, 4), captions)


@pytest.mark.parametrize(
    ("field_values", "message"),
    [
        ({"num_heads": 5}, "must split into 5 heads"),
        ({"dim": 6, "num_heads": 2}, "heads of even width"),
        ({"patch_size": (2, 2, 2)}, "patches span one latent frame"),
        ({"prediction": "noise"}, '"flow" or "clean"'),
    ],
)
def test_impossible_config(field_values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**field_values)  # type: ignore[arg-type]


def test_with_absolute_positions_a_token_knows_where_it_is(tiny_config: DiTConfig) -> None:
    """In a picture of equal cells only boundary effects tell rotary positions apart; the features tell every cell."""
    config = replace(tiny_config, absolute_positions=True)
    with_features, without = DiT(config), DiT(tiny_config)
    without.load_state_dict(with_features.state_dict())
    flat = torch.ones(1, 1, config.in_channels, 8, 8)

    def cells(model: DiT) -> Tensor:
        output = model(
            flat,
            torch.full((1, 1), 500.0),
            positions_BF=torch.zeros(1, 1),
            shot_ids_BF=torch.zeros(1, 1),
            captions=model.encode_captions(torch.zeros(1, config.text_len, config.text_dim)),
            caption_ids_BF=torch.zeros(1, 1, dtype=torch.long),
            attention=SegmentAttention(sizes=(1,), tokens_per_frame=16),
        )
        return output[0, 0, 0, ::2, ::2].flatten()

    with torch.no_grad():
        torch.testing.assert_close(cells(without), cells(without)[:1].expand(16), atol=1e-5, rtol=0)
        assert len(cells(with_features).unique()) == 16


def test_fused_projections_change_nothing(tiny_dit: DiT, latents: Tensor, captions: CaptionKV) -> None:
    before = run(tiny_dit, latents, captions)
    names = list(tiny_dit.state_dict())
    tiny_dit.requires_grad_(False).fuse_for_serving()
    torch.testing.assert_close(run(tiny_dit, latents, captions), before, atol=1e-5, rtol=0)
    assert list(tiny_dit.state_dict()) == names
    tiny_dit.blocks[0].self_attn.k.weight.mul_(2)  # the twin has no weights of its own
    assert not torch.allclose(run(tiny_dit, latents, captions), before, atol=1e-5)
