"""What loading decides about the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shotstream.engine import loading
from shotstream.engine.loading import (
    cores_among,
    default_dtype,
    filming_threads,
    keep_freed_memory,
    load,
    load_codec,
    reserve_heap,
    serving_threads,
    share_one_heap,
)
from shotstream.engine.stream import Engine
from shotstream.models.taehv import Taehv, TaehvConfig
from shotstream.presets import WAN_1_3B


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, torch.dtype], None]:
    """Pretends to be a machine with so many logical CPUs, fast in this dtype."""

    def pretend(logical: int, dtype: torch.dtype) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(logical)), raising=False)
        monkeypatch.setattr(loading, "default_dtype", lambda device: dtype)

    return pretend


AVX512 = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("onednn", "listed", "dtype"),
    [
        (True, AVX512, torch.float32),
        (True, AVX512 | {"avx512_bf16": True}, torch.bfloat16),
        (True, AVX512 | {"amx_bf16": True}, torch.bfloat16),
        (True, {"architecture": "aarch64"}, torch.bfloat16),
        (False, {"architecture": "aarch64"}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_need_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, listed: Mapping[str, object], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)
    assert default_dtype(torch.device("cpu")) == dtype
    assert default_dtype(torch.device("meta")) == torch.bfloat16


@pytest.mark.parametrize(("logical", "threads"), [(1, 1), (2, 1), (4, 2), (8, 4), (64, 4)])
def test_half_of_the_logical_cpus_serve_where_bfloat16_is_native(
    machine: Callable[[int, torch.dtype], None], logical: int, threads: int
) -> None:
    machine(logical, torch.bfloat16)
    assert serving_threads() == threads


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 3), (8, 4)])
def test_every_core_films_where_bfloat16_is_native(
    machine: Callable[[int, torch.dtype], None], monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    machine(8, torch.bfloat16)
    monkeypatch.setattr(loading, "cores_among", lambda cpus: cores)
    assert filming_threads() == threads


def topology(folder: Path, siblings: Sequence[str]) -> Path:
    """As Linux describes the logical CPU of each place: those that share its core."""
    for cpu, names in enumerate(siblings):
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{names}\n")
    return folder


def test_cpus_that_share_a_core_count_once(tmp_path: Path) -> None:
    pairs = topology(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert cores_among({0, 1, 2, 3}, pairs) == 2
    assert cores_among({0, 2}, pairs) == 1
    assert cores_among({0, 1}, pairs) == 2


def test_cpus_that_are_cores_of_their_own_count_each(tmp_path: Path) -> None:
    assert cores_among({0, 1}, topology(tmp_path, ["0", "1"])) == 2


def test_two_cpus_are_one_core_where_nothing_tells(tmp_path: Path) -> None:
    assert cores_among({0, 1, 2, 3}, tmp_path / "nothing") == 2


@pytest.mark.parametrize(("logical", "threads"), [(1, 1), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_all_logical_cpus_make_the_picture_in_float32(
    machine: Callable[[int, torch.dtype], None], logical: int, threads: int
) -> None:
    machine(logical, torch.float32)
    assert serving_threads() == filming_threads() == threads


def test_who_sets_omp_num_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert serving_threads() == filming_threads() == torch.get_num_threads()


@pytest.mark.parametrize("name", ["taew2_1.safetensors", "taew2_1.pth", "Wan2.1_VAE.pth"])
def test_taehv_draws_for_wan_by_the_names_in_its_file(tiny_engine: Engine, tmp_path: Path, name: str) -> None:
    published = Taehv(TaehvConfig(latent_channels=4, encoder_width=8, decoder_widths=(16, 12, 8, 8)))
    weights = {key: weight.contiguous() for key, weight in published.state_dict().items()}
    (save_file if name.endswith(".safetensors") else torch.save)(weights, tmp_path / name)
    preset = replace(tiny_engine.preset, codec="wan", files=WAN_1_3B.files, spatial_stride=8)
    codec = load_codec(preset, tmp_path, torch.device("cpu"), torch.float32)
    assert isinstance(codec, Taehv)
    stream = Engine(preset, tiny_engine.model, codec, tiny_engine.text).stream()
    for caption in ("a fox", "the sea"):
        stream.cut(caption, num_chunks=2)
        assert [chunk.frames.shape for chunk in stream] == [(9, 32, 64, 3), (12, 32, 64, 3)]


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
