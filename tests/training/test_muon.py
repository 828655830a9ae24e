"""The update of every matrix is made orthogonal, as the published optimiser does it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shotstream.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_every_direction_becomes_about_one_and_none_is_turned(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = orthogonal(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    sizes = left.T @ made @ right.T
    assert torch.linalg.svdvals(made).min() > 0.5
    assert torch.linalg.svdvals(made).max() < 1.5
    torch.testing.assert_close(sizes, torch.diag(sizes.diagonal()), atol=1e-9, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_steps_are_those_of_torch_up_to_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(16, 24, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(16, 24, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert expected.norm() > 0.1
    assert (moved - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(mine.state[ours]["momentum_buffer"], other.state[theirs]["momentum_buffer"])
