"""Tensors that are kept for a while, in memory that was taken once.

Many small things that stay a little, among large ones that come and go, would cut the free room of a heap into pieces
that the large ones no longer fit into: a process then grows although it keeps nothing more.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class Shelf:
    """What was made for the keys that were asked for last: some tensors each, rows [1, ...] of blocks that never grow.

    Any thread may ask. What is given is a copy: it stays as it is, whatever is put in its place.
    """

    def __init__(self, capacity: int) -> None:
        """Args: capacity is the number of keys; room for all of them is taken and touched when the first is asked for.

        Raises: ValueError if there is none.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._blocks: tuple[Tensor, ...] = ()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """That the blocks take."""
        return sum(block.nbytes for block in self._blocks)

    def of(self, key: Hashable, make: Callable[[], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """The tensors of a key, made unless they are here; always of the same shapes, strides and types."""
        with self._lock:
            if key not in self._slots:
                self._put(key, make())
            self._slots.move_to_end(key)
            slot = self._slots[key]
            return tuple(block[slot : slot + 1].clone() for block in self._blocks)

    def _put(self, key: Hashable, rows: Sequence[Tensor]) -> None:
        self._blocks = self._blocks or tuple(_block(row, self.capacity) for row in rows)
        is_full = len(self._slots) == self.capacity
        slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
        for block, row in zip(self._blocks, rows, strict=True):
            block[slot] = row[0]
        self._slots[key] = slot


def _block(row: Tensor, capacity: int) -> Tensor:
    """Zeros [capacity, ...] whose rows have the strides of `row` [1, ...]: a kernel may round by them."""
    return row.new_empty_strided((capacity, *row.shape[1:]), (row[0].numel(), *row.stride()[1:])).zero_()


def apart(tensor: Tensor) -> Tensor:
    """A contiguous copy in pages of its own, which go when it goes. For what a chunk or a shot keeps on a CPU."""
    if tensor.device.type != "cpu":
        return tensor.clone()
    pages = mmap.mmap(-1, tensor.nbytes)
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
