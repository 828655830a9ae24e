"""What is kept on a shelf is what was put there, in room that was taken once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shotstream.models.shelf import Shelf, apart


def row(value: float) -> Tensor:
    return torch.full((1, 3, 4), value).transpose(1, 2)


def test_each_key_is_made_once_and_the_oldest_gives_its_place() -> None:
    shelf, made = Shelf(2), list[float]()
    for key in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        (given,) = shelf.of(key, lambda key=key: (made.append(key) or row(key),))
        assert torch.equal(given, row(key))
    assert made == [1.0, 2.0, 3.0, 2.0]


def test_room_for_everything_is_taken_at_once_and_never_more() -> None:
    shelf = Shelf(4)
    sizes = [shelf.of(key, lambda: (row(0.0),)) and shelf.num_bytes for key in range(9)]
    assert set(sizes) == {4 * row(0.0).nbytes}


def test_what_was_given_stays_when_its_place_is_taken_and_has_the_strides_of_what_was_put_there() -> None:
    shelf = Shelf(1)
    (given,) = shelf.of("a", lambda: (row(1.0),))
    shelf.of("b", lambda: (row(2.0),))
    assert torch.equal(given, row(1.0))
    assert given.stride() == row(1.0).stride()


def test_what_could_not_be_made_takes_no_place() -> None:
    def fail() -> tuple[Tensor]:
        raise ValueError("empty")

    shelf = Shelf(1)
    shelf.of("a", lambda: (row(1.0),))
    with pytest.raises(ValueError, match="empty"):
        shelf.of("b", fail)
    assert torch.equal(shelf.of("a", fail)[0], row(1.0))


def test_a_shelf_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Shelf(0)


def test_a_copy_apart_is_equal_and_its_own() -> None:
    large = torch.arange(48.0).view(2, 4, 6)
    for dtype in (torch.float32, torch.bfloat16):
        part = large.to(dtype)[:, -1:]
        copy = apart(part)
        assert torch.equal(copy, part)
        assert copy.is_contiguous()
        copy.zero_()
        assert part.any()
