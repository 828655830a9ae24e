"""The rotary table against its closed form, and what attention may and may not learn from it."""

from __future__ import annotations

import cmath
import itertools

import pytest
import torch

from shotstream.models.rope import rotary_table, rotate, rotate_complex, rotate_plain, split_pairs

THETA = 1 / 6


def angle(pair: int, position: int, shot_id: int, row: int, column: int) -> float:
    """The published formula for 128-wide heads: 22 temporal pairs, 21 of rows, 21 of columns."""
    if pair < 22:
        return position * 10000 ** (-2 * pair / 44) + shot_id * THETA
    if pair < 43:
        return row * 10000 ** (-2 * (pair - 22) / 42)
    return column * 10000 ** (-2 * (pair - 43) / 42)


@pytest.mark.parametrize(("head_dim", "expected"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (16, (4, 2, 2))])
def test_pairs_of_a_head(head_dim: int, expected: tuple[int, int, int]) -> None:
    assert split_pairs(head_dim) == expected


def test_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="even, got 15"):
        split_pairs(15)


def test_closed_form_with_a_shot_id_and_a_later_start() -> None:
    start, shot_ids, height, width = 6, (0, 5), 2, 3
    positions = torch.arange(start, start + 2)[None]
    table = rotary_table(positions, torch.tensor([shot_ids]), head_dim=128, height=height, width=width, theta=THETA)
    x = torch.randn(1, 2 * height * width, 2, 128)
    turned = rotate(x, table)
    for token, (frame, row, column) in enumerate(itertools.product(range(2), range(height), range(width))):
        for pair in range(64):
            turn = cmath.exp(1j * angle(pair, start + frame, shot_ids[frame], row, column))
            for head in range(2):
                before, after = (
                    x[0, token, head, 2 * pair : 2 * pair + 2],
                    turned[0, token, head, 2 * pair : 2 * pair + 2],
                )
                expected = complex(*before.tolist()) * turn
                assert abs(complex(*after.tolist()) - expected) < 1e-6


def scores(query: tuple[int, int], key: tuple[int, int], theta: float = THETA) -> torch.Tensor:
    """Attention score between the first tokens of two frames given as (position, shot id)."""
    torch.manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 32).unbind(0)
    tables = [
        rotary_table(torch.tensor([[p]]), torch.tensor([[s]]), head_dim=32, height=1, width=1, theta=theta)
        for p, s in (query, key)
    ]
    return (rotate(q, tables[0]) * rotate(k, tables[1])).sum()


def test_only_distances_in_time_and_in_cuts_matter() -> None:
    torch.testing.assert_close(scores((9, 3), (4, 1)), scores((59, 13), (54, 11)), rtol=0, atol=2e-5)


def test_a_cut_is_seen_at_the_same_distance_in_time() -> None:
    assert (scores((9, 3), (4, 3)) - scores((9, 3), (4, 2))).abs() > 1e-2


def test_theta_of_zero_hides_cuts() -> None:
    assert scores((9, 3), (4, 3), theta=0) == scores((9, 8), (4, 2), theta=0)


def test_rows_of_a_batch_have_their_own_positions_and_shots() -> None:
    positions, shots = torch.tensor([[0, 1], [6, 7]]), torch.tensor([[0, 0], [4, 5]])
    both = rotary_table(positions, shots, head_dim=16, height=2, width=2, theta=THETA)
    for row in range(2):
        alone = rotary_table(
            positions[row : row + 1], shots[row : row + 1], head_dim=16, height=2, width=2, theta=THETA
        )
        assert torch.equal(both.cos[row : row + 1], alone.cos)
        assert torch.equal(both.sin[row : row + 1], alone.sin)


def test_tokens_is_a_view_of_the_table() -> None:
    table = rotary_table(torch.arange(4)[None], torch.zeros(1, 4), head_dim=16, height=1, width=2, theta=THETA)
    part = table.tokens(2, 6)
    assert part.cos.data_ptr() == table.cos[:, 2:].data_ptr()
    x = torch.randn(1, 8, 1, 16)
    assert torch.equal(rotate(x[:, 2:6], part), rotate(x, table)[:, 2:6])


def test_bfloat16_is_turned_in_float32() -> None:
    table = rotary_table(torch.tensor([[60]]), torch.tensor([[9]]), head_dim=16, height=1, width=1, theta=THETA)
    x = torch.randn(1, 1, 1, 16).bfloat16()
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_the_complex_product_equals_the_plain_rotation() -> None:
    x = torch.randn(2, 6, 2, 12)
    table = rotary_table(
        torch.arange(2.0)[None], torch.tensor([[0.0, 3.0]]), head_dim=12, height=1, width=3, theta=1 / 6
    )
    torch.testing.assert_close(rotate_complex(x, table), rotate_plain(x, table), atol=1e-6, rtol=0)
