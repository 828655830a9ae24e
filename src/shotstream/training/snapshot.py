"""Snapshots of a run: safetensors for tensors, JSON for the rest, written so that a half-written one is never read.

A snapshot is a folder `step-00001200/` with `state.json` and one `rank-00000.safetensors` per process. A tensor split
by FSDP2 is stored as each process's piece of its first axis and put together again when read, by any number of
processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from shotstream.training.distributed import World, barrier

KEPT = 2
"""Snapshots left on disk: if the newest is lost with its disk block, the one before it still resumes."""


def write_snapshot(
    folder: Path, step: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor], world: World
) -> Path:
    """Write this process's part and, once all have, give the snapshot its name. Old snapshots are removed."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier(world)
    own = {name: _local(t) for name, t in tensors.items() if world.is_first or _is_own(name, t)}
    save_file(own, partial / f"rank-{world.rank:05d}.safetensors")
    barrier(world)
    if world.is_first:
        (partial / "state.json").write_text(json.dumps({**state, "step": step, "processes": world.size}, indent=1))
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    barrier(world)
    return final


def newest_snapshot(folder: Path) -> Path | None:
    """The last complete snapshot of a run, if there is one."""
    return max((p for p in folder.glob("step-*") if (p / "state.json").is_file()), default=None)


class SnapshotReader:
    """Reads tensors of a snapshot by name, from any number of processes."""

    def __init__(self, path: Path, world: World | None = None) -> None:
        self.path = path
        self.world = world or World()
        self.state: dict[str, Any] = json.loads((path / "state.json").read_text())
        self._files: list[Any] = [safe_open(f, framework="pt") for f in sorted(path.glob("rank-*.safetensors"))]
        self._names = [set[str](f.keys()) for f in self._files]

    def names(self, prefix: str) -> list[str]:
        """Names below a prefix, without it; of `own/` only those this process wrote."""
        found = set[str]().union(*self._names) if not prefix.startswith("own/") else self._own_names()
        return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """One tensor, split like `like` if that is split. Raises ValueError if the snapshot has none of this name."""
        holders = [i for i, names in enumerate(self._names) if name in names]
        if name.startswith("own/"):
            holders = [self.world.rank]
        if not holders or name not in self._names[holders[0]]:
            raise ValueError(f"snapshot {self.path} has no {name!r}: it was made by another stage or network")
        pieces = [self._files[i].get_tensor(name) for i in holders]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if isinstance(like, DTensor):
            return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
        return whole

    def _own_names(self) -> set[str]:
        carried = any(name.startswith("own/") for names in self._names for name in names)
        if carried and self.state["processes"] != self.world.size:
            raise ValueError(
                f"this stage carries samples of {self.state['processes']} processes: resume on as many, "
                f"not on {self.world.size}"
            )
        return self._names[self.world.rank] if carried else set()


def _is_own(name: str, tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) or name.startswith("own/")


def _local(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().cpu().contiguous().clone()


def _sync(folder: Path) -> None:
    """Make the files durable before the rename makes them visible."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
