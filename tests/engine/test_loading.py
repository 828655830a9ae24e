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


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_what_was_freed_is_given_back() -> None:
    program = """
import numpy as np
from shotstream.engine.loading import give_back_freed_memory, keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
assert keep_freed_memory()
blocks = [np.ones(1 << 18) for _ in range(64)]
between = [bytes(1000) for _ in range(64)]
top = np.ones(1 << 18)
full = resident()
del blocks
kept = resident()
assert give_back_freed_memory()
print(full - kept, full - resident())
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean, check=True)
    kept, given_back = map(float, done.stdout.split())
    assert kept < 16
    assert given_back > 100
