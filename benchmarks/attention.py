"""Measures the two attention twins at the shapes of storyworld, to decide which one `attend` uses on a device.

With one thread on a CPU the clock is processor time, so that other work on the machine does not count.

    python benchmarks/attention.py [--device cpu] [--threads 1] [--out docs/results/attention.json]

Prints a table for people, then one JSON line. The same goes into --out under the device's name, beside what other
devices gave there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from shotstream.models.attention import attend_fused, attend_plain

TWINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"plain": attend_plain, "fused": attend_fused}
HEADS, HEAD_DIM = 2, 128
SLAB_TOKENS = 27 * 60
"""Tokens of a whole slab: keys of a chunk are a prefix view of it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape. Tokens: 60 a frame, 180 a chunk, 1260 a shot, 360 of context."""

    name: str
    dtype: str
    batch: int = 1
    queries: int = 180
    keys: int
    backward: bool = False
    repeats: int = 40


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    fastest_ms: float
    """Least disturbed by whatever else the machine does."""


def cases() -> list[Case]:
    """Serving passes from the first chunk to the full window, captions; training on chunks and on whole shots."""
    serving = [("chunk", keys) for keys in (360, 540, 900, 1260, 1620)] + [("captions", 64)]
    training = [(180, 180), (180, 900), (180, 1620), (720, 720), (1080, 1080), (1620, 1620)]
    found = []
    for dtype in ("bfloat16", "float32"):
        found += [Case(name=name, dtype=dtype, keys=keys) for name, keys in serving]
        for queries, keys in training:
            case = Case(name="training", dtype=dtype, batch=8, queries=queries, keys=keys, backward=True, repeats=6)
            found.append(case)
    return found


def inputs(case: Case, device: str) -> list[Tensor]:
    """q, k, v as the model makes them: queries transposed from [B, L, N, D], keys a prefix of a slab."""
    dtype = getattr(torch, case.dtype)
    q = torch.randn(case.batch, case.queries, HEADS, HEAD_DIM, device=device, dtype=dtype).transpose(1, 2)
    slab = torch.randn(2, case.batch, HEADS, max(SLAB_TOKENS, case.keys), HEAD_DIM, device=device, dtype=dtype)
    return [x.requires_grad_(case.backward) for x in (q, slab[0, :, :, : case.keys], slab[1, :, :, : case.keys])]


def measure(case: Case, device: str) -> dict[str, Timing]:
    """Time both twins in turn, so that a busy moment hits both."""
    qkv = inputs(case, device)
    seconds: dict[str, list[float]] = {name: [] for name in TWINS}
    for repeat in range(case.repeats + 1):
        for name, twin in TWINS.items():
            elapsed = time_once(twin, qkv, case, device)
            if repeat:  # The first call warms up.
                seconds[name].append(elapsed)
    return {
        name: Timing(median_ms=round(1e3 * statistics.median(s), 3), fastest_ms=round(1e3 * min(s), 3))
        for name, s in seconds.items()
    }


def clock(device: str) -> Callable[[], float]:
    """Processor time of a single thread, wall clock for anything else."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def time_once(twin: Callable[..., Tensor], qkv: list[Tensor], case: Case, device: str) -> float:
    now = clock(device)
    synchronise(device)
    start = now()
    output = twin(*qkv)
    if case.backward:
        torch.autograd.grad(output.sum(), qkv)
    synchronise(device)
    return now() - start


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    # Two CPUs of one name may differ in what they multiply with.
    listed = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    extra = [shown for flag, shown in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX")) if listed.get(flag)]
    return ", ".join([name, f"{os.cpu_count()} cores", torch.backends.cpu.get_cpu_capability(), *extra])


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/attention.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    load_before = os.getloadavg()[0]
    print(f"{'case':10s} {'dtype':9s} {'B':>2s} {'L':>5s} {'S':>5s} {'plain ms':>10s} {'fused ms':>10s}  faster")
    rows = [measured_row(case, arguments.device) for case in cases()]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "clock": clock(arguments.device).__name__,
        "load_average": round(load_before, 2),
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "rows": rows,
    }
    device = hardware(arguments.device)
    known = json.loads(arguments.out.read_text())["devices"] if arguments.out.is_file() else {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"devices": known | {device: report}}, indent=1) + "\n")
    print(json.dumps({"device": device} | report))


def measured_row(case: Case, device: str) -> dict[str, object]:
    timings = measure(case, device)
    plain, fused = timings["plain"], timings["fused"]
    faster = "plain" if plain.median_ms <= fused.median_ms else "fused"
    print(
        f"{case.name:10s} {case.dtype:9s} {case.batch:2d} {case.queries:5d} {case.keys:5d} "
        f"{plain.median_ms:10.3f} {fused.median_ms:10.3f}  {faster}"
    )
    return {**asdict(case), "plain": asdict(plain), "fused": asdict(fused), "faster": faster}


if __name__ == "__main__":
    main()
