"""The twins agree, and attention by segments is attention under a mask."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from shotstream.models.attention import SegmentAttention, attend, attend_fused, attend_plain

Visible = tuple[tuple[int, ...], ...] | None
STRUCTURES: dict[str, tuple[tuple[int, ...], Visible]] = {
    "bidirectional": ((5,), None),
    "block_causal": ((2, 1, 1, 1), None),
    "independent_after_context": ((2, 1, 1), ((0,), (0, 1), (0, 2))),
    "clean_history_then_noisy": ((2, 1, 1, 1), ((0,), (0, 1), (0, 2), (0, 1, 3))),
    "everything_sees_everything": ((2, 1, 2), ((0, 1, 2),) * 3),
}


@dataclass(frozen=True)
class MaskedAttention:
    """The definition: one softmax over the whole sequence under a boolean mask."""

    segments: SegmentAttention

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        segment = torch.repeat_interleave(
            torch.arange(len(self.segments.sizes)),
            torch.tensor(self.segments.sizes) * self.segments.tokens_per_frame,
        )
        cut = torch.isin(segment, torch.tensor(sorted(self.segments.detached)))[:, None]
        k, v = torch.where(cut, k.detach(), k), torch.where(cut, v.detach(), v)
        allowed = torch.tensor(
            [[j in self._reads(i) for j in segment.tolist()] for i in segment.tolist()], dtype=torch.bool
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v

    def _reads(self, segment: int) -> tuple[int, ...]:
        visible = self.segments.visible
        return tuple(range(segment + 1)) if visible is None else visible[segment]


def qkv(batch: int = 2, heads: int = 2, tokens: int = 15, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, batch, heads, tokens, width).unbind(0)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("length", [1, 7, 33])
@pytest.mark.parametrize("width", [16, 128])
def test_fused_equals_plain(length: int, width: int) -> None:
    q, k, v = torch.randn(2, 3, length, width), torch.randn(2, 3, 40, width), torch.randn(2, 3, 40, width)
    torch.testing.assert_close(attend_fused(q, k, v), attend_plain(q, k, v), rtol=0, atol=1e-5)


def test_fused_equals_plain_on_the_prefix_of_a_slab() -> None:
    slab_k, slab_v = torch.randn(2, 2, 2, 40, 16).unbind(0)
    q = torch.randn(2, 5, 2, 16).transpose(1, 2)
    fused, plain = (twin(q, slab_k[:, :, :23], slab_v[:, :, :23]) for twin in (attend_fused, attend_plain))
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)


def test_fused_equals_plain_in_gradient() -> None:
    weight = torch.randn(2, 2, 15, 16)
    leaves = qkv()
    plain = torch.autograd.grad((attend_plain(*leaves) * weight).sum(), leaves)
    fused = torch.autograd.grad((attend_fused(*leaves) * weight).sum(), leaves)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_fused_equals_plain_in_bfloat16_within_its_resolution() -> None:
    q, k, v = (x.detach().bfloat16() for x in qkv(tokens=64, width=128))
    exact = attend_plain(q.double(), k.double(), v.double())
    for twin in (attend_plain, attend_fused, attend):
        assert twin(q, k, v).dtype == torch.bfloat16
        torch.testing.assert_close(twin(q, k, v).double(), exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", STRUCTURES)
def test_segments_equal_a_mask(name: str) -> None:
    sizes, visible = STRUCTURES[name]
    segments = SegmentAttention(sizes=sizes, tokens_per_frame=3, visible=visible)
    q, k, v = qkv(tokens=3 * sum(sizes))
    torch.testing.assert_close(segments(0, q, k, v), MaskedAttention(segments)(0, q, k, v), rtol=0, atol=1e-6)


@pytest.mark.parametrize("detached", [(), (0,), (0, 1, 2)])
def test_detached_segments_send_no_gradient_to_readers(detached: tuple[int, ...]) -> None:
    sizes, visible = STRUCTURES["clean_history_then_noisy"]
    segments = SegmentAttention(sizes=sizes, tokens_per_frame=3, visible=visible, detached=frozenset(detached))
    leaves = qkv(tokens=15)
    weight = torch.randn(2, 2, 15, 16)
    actual = torch.autograd.grad((segments(0, *leaves) * weight).sum(), leaves)
    expected = torch.autograd.grad((MaskedAttention(segments)(0, *leaves) * weight).sum(), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for segment in detached:
        start = 3 * sum(sizes[:segment])
        assert not actual[1][:, :, start : start + 3 * sizes[segment]].any()


def test_later_segments_never_change_earlier_ones() -> None:
    segments = SegmentAttention(sizes=(2, 1, 1), tokens_per_frame=3)
    q, k, v = (x.detach() for x in qkv(tokens=12))
    before = segments(0, q, k, v)
    for x in (q, k, v):
        x[:, :, 9:] += 1
    after = segments(0, q, k, v)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_segments_keep_nothing() -> None:
    _, k, v = qkv()
    SegmentAttention(sizes=(5,), tokens_per_frame=3).store(0, k, v)


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_empty_segments_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        SegmentAttention(sizes=sizes, tokens_per_frame=3)


def test_visible_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="visible lists 1 segments, sizes lists 2"):
        SegmentAttention(sizes=(3, 3), tokens_per_frame=3, visible=((0,),))


def test_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hold 12 tokens, the sequence has 15"):
        SegmentAttention(sizes=(2, 2), tokens_per_frame=3)(0, *qkv())
