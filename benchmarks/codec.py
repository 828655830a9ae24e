"""Milliseconds of the tiny codec's live parts: decode one chunk, encode six remembered pictures.

`python benchmarks/codec.py [--weights FILE] [--threads 2]`: a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

from shotstream.models.tiny_codec import TinyCodec


def milliseconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each repeat after two that do not count."""
    times = []
    for turn in range(repeats + 2):
        begun = time.perf_counter()
        work()
        if turn >= 2:
            times.append((time.perf_counter() - begun) * 1e3)
    return times


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="codec file; without it random weights, which take as long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=320)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    codec = (TinyCodec.load(options.weights) if options.weights else TinyCodec()).to(torch.bfloat16).eval()
    cells = (options.height // codec.spatial_stride, options.width // codec.spatial_stride)
    latents = torch.randn(1, 3, codec.latent_channels, *cells)
    pictures = torch.randint(0, 256, (1, 6, options.height, options.width, 3), dtype=torch.uint8)
    state = codec.new_decoder_state()
    codec.decode_chunk(latents, state)
    parts = {
        "decode_chunk_12_frames": milliseconds(lambda: codec.decode_chunk(latents, state), options.repeats),
        "decode_first_chunk_9_frames": milliseconds(
            lambda: codec.decode_chunk(latents, codec.new_decoder_state()), options.repeats
        ),
        "encode_6_pictures": milliseconds(lambda: codec.encode_frames(pictures), options.repeats),
    }
    result = {
        "device": platform.processor() or platform.machine(),
        "threads": options.threads,
        "dtype": "bfloat16",
        "load_average": os.getloadavg()[0],
        **{f"{name}_ms_min": round(min(times), 2) for name, times in parts.items()},
        **{f"{name}_ms_p50": round(statistics.median(times), 2) for name, times in parts.items()},
    }
    for name, times in parts.items():
        print(f"{name:32s} min {min(times):7.1f} ms   p50 {statistics.median(times):7.1f} ms")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
