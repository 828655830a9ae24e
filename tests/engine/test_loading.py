"""What loading decides about the machine."""

from __future__ import annotations

import os

import pytest
import torch

from shotstream.engine.loading import keep_freed_memory, load, serving_threads, share_one_heap


@pytest.mark.parametrize(("logical", "threads"), [(1, 1), (2, 1), (4, 2), (8, 4), (64, 4)])
def test_half_of_the_logical_cpus_make_the_picture(monkeypatch: pytest.MonkeyPatch, logical: int, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(logical)), raising=False)
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
