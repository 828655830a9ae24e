"""What loading decides about the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from shotstream.engine import loading
from shotstream.engine.loading import keep_freed_memory, load, reserve_heap, serving_threads, share_one_heap


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
    assert not reserve_heap.__wrapped__()


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_what_the_heap_reserves_is_there_for_what_comes() -> None:
    program = """
import numpy as np
from shotstream.engine.loading import keep_freed_memory, reserve_heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
assert keep_freed_memory()
before = resident()
assert reserve_heap(48 << 20)
reserved = resident()
assert reserve_heap(48 << 20)
again = resident()
blocks = [np.ones(3 << 17) for _ in range(12)]
print(reserved - before, again - reserved, resident() - reserved)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean, check=True)
    reserved, again, grown = map(float, done.stdout.split())
    assert reserved > 40
    assert again < 1, "only once"
    assert grown < 4, "of 36 MB"
