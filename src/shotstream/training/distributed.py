"""Training on several processes: one place that knows about ranks.

A small network is copied to every process and gradients are averaged (`average_gradients`); a large one is split with
FSDP2 (`shard`). Both give the gradient of the mean loss over the global batch, which is what one process computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank within this machine: the number of its device."""

    def share(self, count: int) -> range:
        """This process's contiguous part of `count` samples."""
        if count % self.size:
            raise ValueError(f"global batch {count} cannot be split evenly over {self.size} processes")
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def joined(*, timeout_minutes: float = 30) -> Iterator[World]:
    """Join the processes that `torchrun` started; without it, be a world of one. Leaves the group at the end."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=timeout_minutes))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local_rank)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=local_rank)
        dist.barrier()  # nobody leaves while another still has something to say to it
    finally:
        dist.destroy_process_group()


FORWARD_METHODS = ("encode_captions", "embed_time", "forward_tokens")
"""Methods of a network, beside `forward`, that read its parameters."""


def shard(module: nn.Module) -> None:
    """Split a network's parameters, gradients and optimiser states over all processes with FSDP2, in place.

    The network is one unit that stays gathered from its first use in a step to `settle`: caches and losses call several
    of its methods in turn. So memory per process is one full copy of the weights and a share of everything else.
    Parameters are gathered in their own dtype and cast by autocast, which leaves the time embedding in float32.
    """
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for name in FORWARD_METHODS:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def settle(modules: Iterable[nn.Module]) -> None:
    """Let go of gathered parameters, so that the next use gathers what the optimiser has written."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, wherever its parts are. All processes must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    return any(isinstance(p, DTensor) for p in parameters)


def average_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Replace gradients by their mean over all processes, in place. Nothing to do alone or under FSDP2, which does so.

    A parameter without a gradient counts as zero: all processes must send the same sizes.
    """
    if world.size == 1 or is_sharded(parameters):
        return
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    gradients = [p.grad for p in parameters if p.grad is not None]
    bucket = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(bucket)
    bucket /= world.size
    parts = torch.split(bucket, [g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def average_numbers(values: dict[str, float], world: World, device: torch.device) -> dict[str, float]:
    """Mean of each logged number over all processes. All must log the same names."""
    if world.size == 1 or not values:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return dict(zip(values, (packed / world.size).tolist(), strict=True))


def any_of(flag: bool, world: World, device: torch.device) -> bool:
    """Whether any process says yes, so that all stop at the same step."""
    if world.size == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes.item() > 0)


def barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
