"""What loading decides about the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shotstream.engine import loading
from shotstream.engine.loading import keep_freed_memory, load, serving_threads, share_one_heap


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, torch.dtype], None]:
    """Pretends to be a machine with so many logical CPUs, fast in this dtype."""

    def pretend(logical: int, dtype: torch.dtype) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(logical)), raising=False)
        monkeypatch.setattr(loading, "default_dtype", lambda device: dtype)

    return pretend


@pytest.mark.parametrize(("logical", "threads"), [(1, 1), (2, 1), (4, 2), (8, 4), (64, 4)])
def test_half_of_the_logical_cpus_make_the_picture_where_bfloat16_is_native(
    machine: Callable[[int, torch.dtype], None], logical: int, threads: int
) -> None:
    machine(logical, torch.bfloat16)
    assert serving_threads() == threads


@pytest.mark.parametrize(("logical", "threads"), [(1, 1), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_all_logical_cpus_make_the_picture_in_float32(
    machine: Callable[[int, torch.dtype], None], logical: int, threads: int
) -> None:
    machine(logical, torch.float32)
    assert serving_threads() == threads


def test_who_sets_omp_num_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert serving_threads() == torch.get_num_threads()


def test_no_threads_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load("fake", threads=0)


def test_who_sets_malloc_variables_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not share_one_heap()
    assert not keep_freed_memory()


RESERVE = """
from pathlib import Path
import torch
from shotstream.engine.loading import keep_freed_memory, reserve_heap, share_one_heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert share_one_heap() and keep_freed_memory()
before = resident()
reserve_heap(64 << 20)
reserved = resident()
kept = [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(48)]
print(reserved - before, resident() - reserved)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size in /proc")
def test_what_a_heap_has_reserved_is_there_for_later():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", RESERVE], env=environment, capture_output=True, text=True, check=True)
    reserved, more = (int(number) for number in run.stdout.split())
    assert reserved > 56 << 20
    assert more < 8 << 20
