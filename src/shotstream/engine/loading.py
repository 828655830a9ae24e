"""From a preset's name to an engine that is ready to stream."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Set
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from shotstream.engine.fake import FAKE, FakeEngine
from shotstream.engine.stream import Engine, TeacherEngine
from shotstream.models.checkpoint import load_dit, read_tensors
from shotstream.models.codec import ChunkedCodec, Codec
from shotstream.models.dit import DiTConfig
from shotstream.models.text import (
    CachedTextEncoder,
    MiniLMEncoder,
    TextEncoder,
    load_text_encoder,
    resolve_minilm,
)
from shotstream.models.vocabulary import VOCABULARY_FILE, UnknownWords, Vocabulary
from shotstream.presets import PACKAGE_WEIGHTS, Preset, find_local_minilm, find_weights, get_preset


def load(
    preset: str | Preset = "storyworld",
    *,
    model: Literal["student", "teacher"] = "student",
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    num_steps: int | None = None,
    threads: int | None = None,
) -> Engine:
    """Load everything a preset needs.

    Args: preset "fake" needs no weights: it draws numbered pictures at a set pace, for building and testing a player.
        Its engine has no model, and `generate` and `bench` cannot do without.
        weights is a folder, or a file with the student or teacher; None looks in the package, then the hub.
        device defaults to CUDA where there is one; dtype to bfloat16 where the device is fast in it.
        num_steps: Euler steps of the teacher.
        threads: for work on the CPU, in this whole process (torch has one setting); None: see `filming_threads`. Other
        numbers round otherwise: the same story has other last bits.
    Raises: ValueError naming what is missing or does not fit, and the way out.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if preset == FAKE.name:
        return FakeEngine()
    config = get_preset(preset) if isinstance(preset, str) else preset
    place = choose_device(device)
    kind = dtype or default_dtype(place)
    if place.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(threads or filming_threads())
    path = find_weights(config, model, weights)
    dit = load_dit(path, config=None if config.codec == "tiny" else config.dit)
    if dit.config != config.dit:
        raise ValueError(
            f"{path} is a {model} not of preset {config.name}: {_differences(dit.config, config.dit)}: pass one that is"
        )
    dit = dit.cast_for_inference(kind).to(place).fuse_for_serving()
    codec, text = load_codec(config, weights, place, kind), load_text(config, weights, place)
    if model == "teacher":
        return TeacherEngine(config, dit, codec, text, num_steps=num_steps)
    return Engine(config, dit, codec, text)


def _differences(found: DiTConfig, expected: DiTConfig) -> str:
    values = ((f.name, getattr(found, f.name), getattr(expected, f.name)) for f in fields(DiTConfig))
    return ", ".join(f"{name} is {one}, expected {other}" for name, one, other in values if one != other)


def choose_device(wanted: torch.device | str | None = None) -> torch.device:
    """The device that is asked for; without one CUDA where there is one. Raises: ValueError if it is not here."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()
    # Each backend that is missing says so in its own way.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"no device {str(wanted)!r} here: use cpu, or cuda where there is a GPU") from error
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is computed natively (GPUs, CPUs with AMX or AVX512-BF16), else float32."""
    return torch.bfloat16 if device.type != "cpu" or _cpu_computes_bfloat16() else torch.float32


def _cpu_computes_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, without which they are emulated.

    oneDNN alone cannot tell: it says yes of every x86 CPU with AVX-512, and on a Xeon without AVX512-BF16 its products
    are five times slower in bfloat16 than in float32 (28 and 138 GFLOP/s a core).
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # Older torch does not list what the CPU has; then oneDNN's word has to do.
    listed = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return listed.get("architecture") != "x86_64" or bool(listed.get("avx512_bf16") or listed.get("amx_bf16"))


def default_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """The name of `default_dtype`, as recipes write it down."""
    return "bfloat16" if default_dtype(device) == torch.bfloat16 else "float32"


def hardware_name(device: torch.device) -> str:
    """Return the names of the GPU, if used, and of the CPU with its cores."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cpu = f"{cpu} ({os.cpu_count()} cores)"
    return f"{torch.cuda.get_device_name(device)}, {cpu}" if device.type == "cuda" else cpu


def filming_threads() -> int:
    """Threads for one stream on a CPU that has nothing else to do, from 1 to 4: what OMP_NUM_THREADS says, else one a
    core where bfloat16 is native, where the two threads of a core would share one unit for matrices, and one a logical
    CPU elsewhere: in float32 two CPUs with AVX2 make 27 frames a second where one makes 15.
    """
    logical = _logical_cpus()
    return _threads(cores_among(logical) if _native_bfloat16() else len(logical))


def serving_threads() -> int:
    """The same where encoder, player and viewers need the CPU as well: half of the logical CPUs with native bfloat16.

    On two cores one thread shows the first picture 0.62 s after a cut (p95), two show it after 1.1 s and stall eight
    times a minute, although they film half as fast again. In float32 one would be too slow for the 16 frames a second
    that are shown.
    """
    logical = len(_logical_cpus())
    return _threads(logical // 2 if _native_bfloat16() else logical)


def _threads(wanted: int) -> int:
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else max(1, min(4, wanted))


def _logical_cpus() -> Set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _native_bfloat16() -> bool:
    return default_dtype(torch.device("cpu")) == torch.bfloat16


def cores_among(logical: Set[int], topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that these logical CPUs lie on, as Linux tells it; half as many as CPUs where nothing does."""
    try:
        siblings = {(topology / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip() for cpu in logical}
    except OSError:
        return len(logical) // 2
    return len(siblings)


def keep_freed_memory(trim_bytes: int = 1 << 29, mmap_bytes: int = 1 << 25) -> bool:
    """Let the C library keep what it is given back for the next tensor; returns whether it could be told.

    By default glibc returns large blocks to the system at once, and every chunk pays for them again in page faults: a
    sixth of its time (measured). Does nothing with another C library, or where MALLOC_ variables are set.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return _tell_malloc(trim_threshold, trim_bytes) and _tell_malloc(mmap_threshold, mmap_bytes)


def share_one_heap() -> bool:
    """Let all threads take memory from one heap; returns whether it could be told. For before there are threads.

    By default glibc gives each thread heaps of 64 MB of its own, and a tensor that does not fit into what is left of
    one opens the next: a live story grew by 30 MB in one step now and then.
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    return _tell_malloc(arena_max, 1)


@cache
def reserve_heap(num_bytes: int = 32 << 20) -> bool:
    """Grow the heap by so much once, beyond what it took so far; returns whether it did. For when all is warm.

    A live story's large tensors come and go in ever another order, and now and then one finds no room between what has
    stayed: the heap then grows by 2 to 5 MB, about as often as once a minute (measured). It finds room here instead.
    The blocks are small, and as many as it takes: a large one would only fill what is free between two chunks.
    """
    libc = _malloc_to_tell()
    if not hasattr(libc, "mallinfo2"):
        return False
    libc.mallinfo2.restype = _HeapSize
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block, blocks = 1 << 16, list[int | None]()
    enough = libc.mallinfo2().arena + num_bytes
    while libc.mallinfo2().arena < enough and len(blocks) < _MOST_BLOCKS:
        blocks += [libc.malloc(block) for _ in range(16)]
    for place in filter(None, blocks):
        ctypes.memset(place, 0, block)
        libc.free(place)
    return len(blocks) < _MOST_BLOCKS


class _HeapSize(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        *((f"other_{i}", ctypes.c_size_t) for i in range(9)),
    )


_MOST_BLOCKS = 8192


def _tell_malloc(parameter: int, value: int) -> bool:
    tune = getattr(_malloc_to_tell(), "mallopt", None)
    return tune is not None and bool(tune(parameter, value))


def _malloc_to_tell() -> Any:
    """The C library, or None where somebody chose by MALLOC_ variables or it may be another than glibc."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    return None if chosen or not sys.platform.startswith("linux") else ctypes.CDLL(None)


def load_codec(preset: Preset, weights: str | Path | None, device: torch.device, dtype: torch.dtype) -> Codec:
    """The preset's codec on a device; for Wan's latents the VAE or TAEHV, whichever the file holds.

    Raises: ValueError if its weights are of another kind, or of another size.
    """
    path = find_weights(preset, "codec", weights)
    codec: ChunkedCodec
    if preset.codec == "wan":
        from shotstream.models.taehv import Taehv, is_taehv
        from shotstream.models.wan_codec import WanCodec

        names, _ = read_tensors(path)
        kind: type[Taehv] | type[WanCodec] = Taehv if is_taehv(names) else WanCodec
        codec = kind.load(path, dtype=dtype)
    else:
        from shotstream.models.tiny_codec import TinyCodec

        codec = TinyCodec.load(path, dtype=dtype)
    _check_codec(codec, preset, path)
    return codec.to(device).prepare_for_serving()


def _check_codec(codec: Codec, preset: Preset, path: Path) -> None:
    found = (codec.latent_channels, codec.spatial_stride)
    expected = (preset.dit.out_channels, preset.spatial_stride)
    if found != expected:
        raise ValueError(
            f"{path} makes latents of {found[0]} channels at stride {found[1]}, preset {preset.name} needs "
            f"{expected[0]} at {expected[1]}: pass the codec that its model was trained with"
        )


def load_unknown_words(preset: Preset, text: TextEncoder | None) -> UnknownWords | None:
    """What finds the words that a preset's model cannot draw; None where no vocabulary ships with it."""
    path = PACKAGE_WEIGHTS / preset.name / VOCABULARY_FILE
    encoder = text.encoder if isinstance(text, CachedTextEncoder) else text
    if not path.is_file() or not isinstance(encoder, MiniLMEncoder):
        return None
    return UnknownWords(Vocabulary.read(path), encoder.embed)


def load_text(preset: Preset, weights: str | Path | None, device: torch.device) -> CachedTextEncoder:
    """The preset's text encoder. A small one stays on the CPU: a caption costs milliseconds there."""
    if preset.text.encoder == "minilm":
        return load_text_encoder(preset.text, resolve_minilm(find_local_minilm(preset, weights)))
    return load_text_encoder(preset.text, find_weights(preset, "text", weights), device=device)
