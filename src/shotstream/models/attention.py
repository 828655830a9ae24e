"""Attention over keys that may live in several places.

`attend` is softmax(q k^T / sqrt(D)) v. It has a plain twin and a fused one with the same signature; which is used is
chosen per device from measurements (`benchmarks/attention.py`, docs/results/attention.json), not at run time, so
that the same machine always gives the same bits.

B batch, L query tokens, S key tokens, N heads, D head width. Queries, keys and values are [B, N, tokens, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED_BACKWARD_QUERIES = 1000
"""From here on the fused backward pass is the faster one on a CPU, in bfloat16 too (720: not yet, 1080: it is)."""


def attend_plain(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    """The definition: explicit matrix product, softmax, matrix product. Returns [B, N, L, D]."""
    scores = (q_BNLD * (1 / math.sqrt(q_BNLD.shape[-1]))) @ k_BNSD.transpose(-1, -2)
    return scores.softmax(-1).to(v_BNSD.dtype) @ v_BNSD


def attend_fused(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    """The same through PyTorch's fused kernels. Returns [B, N, L, D]."""
    return F.scaled_dot_product_attention(q_BNLD, k_BNSD, v_BNSD)


def attend(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    """Attention by the twin that measured faster: on a CPU in bfloat16 the fused one.

    Accelerators take it too: `benchmarks/attention.py` runs there, but has not been run yet. In float32 on a CPU they
    are about even. With gradient a CPU takes the plain one for a few queries (a chunk's: up to 2.3 times faster), the
    fused one for those of a whole shot (up to 1.6 times).
    """
    few = q_BNLD.shape[2] < FUSED_BACKWARD_QUERIES
    if few and q_BNLD.device.type == "cpu" and q_BNLD.requires_grad:
        return attend_plain(q_BNLD, k_BNSD, v_BNSD)
    return attend_fused(q_BNLD, k_BNSD, v_BNSD)


class SelfAttention(Protocol):
    """Where a block's rotated keys go and which keys its queries read.

    Called once per block with q, k, v [B, N, L, D]; returns [B, N, L, D]. `store` alone is called where only the keys
    are wanted (the last block of a commit).
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SegmentAttention:
    """Training form: the sequence is cut into segments and each reads a set of whole segments. Exact, without a mask.

    One segment is bidirectional attention; (6, 3, 3, 3) is block-causal with six context frames in front;
    (6, 1, 1) with visible ((0,), (0, 1), (0, 2)) is two independent frames sharing a context.
    """

    sizes: tuple[int, ...]
    """Latent frames per segment, in sequence order."""
    tokens_per_frame: int
    visible: tuple[tuple[int, ...], ...] | None = None
    """Per segment, the segments it reads in ascending order. None: itself and all before it."""
    detached: frozenset[int] = frozenset()
    """Segments whose keys and values carry no gradient to their readers (history in self-forcing)."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"segments must hold at least one frame each, got sizes={self.sizes}")
        if self.visible is not None and len(self.visible) != len(self.sizes):
            raise ValueError(f"visible lists {len(self.visible)} segments, sizes lists {len(self.sizes)}")

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lengths = [size * self.tokens_per_frame for size in self.sizes]
        if sum(lengths) != q.shape[2]:
            raise ValueError(f"segments {self.sizes} hold {sum(lengths)} tokens, the sequence has {q.shape[2]}")
        keys, values = self._parts(k, lengths), self._parts(v, lengths)
        outputs = [
            attend(q_i, _gather(keys, self._reads(i)), _gather(values, self._reads(i)))
            for i, q_i in enumerate(torch.split(q, lengths, dim=2))
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Nothing is kept between calls."""

    def _parts(self, x: Tensor, lengths: list[int]) -> list[Tensor]:
        return [part.detach() if i in self.detached else part for i, part in enumerate(torch.split(x, lengths, dim=2))]

    def _reads(self, segment: int) -> Sequence[int]:
        return range(segment + 1) if self.visible is None else self.visible[segment]


def _gather(parts: Sequence[Tensor], wanted: Sequence[int]) -> Tensor:
    chosen = [parts[i] for i in wanted]
    return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=2)
