"""Turn a stage's averaged float32 weights into the bfloat16 file that the package ships.

    python -m shotstream.recipes.ship runs/d2/weights.safetensors --to weights/storyworld/student.safetensors

Config, recipe and step go along in the metadata, so that training can go on from the shipped file alone. Of absolute
paths in the recipe only the last name is kept: the others tell of one machine.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shotstream.models.checkpoint import load_dit, read_tensors, save_dit

log = logging.getLogger(__name__)

LARGEST_FILE = 16_000_000
"""Bytes; larger networks are shipped in shards."""


def ship(source: Path, target: Path) -> int:
    """Write `target` and return its size in bytes. Raises ValueError if it would be too large for one file."""
    model = load_dit(source)
    size = 2 * sum(p.numel() for p in model.parameters())
    if size > LARGEST_FILE:
        raise ValueError(f"{source} would be {size / 1e6:.1f} MB in bfloat16, a shipped file may have 16 MB")
    _, metadata = read_tensors(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    recipe = json.dumps(_without_folders(json.loads(metadata.get("recipe") or "{}")))
    save_dit(target, model, recipe=recipe, step=metadata.get("step", ""))
    return target.stat().st_size


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return f"runs/{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("source", type=Path, help="a stage's weights.safetensors")
    flags.add_argument("--to", type=Path, required=True, help="file to write")
    given = flags.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("wrote %s, %.1f MB", given.to, ship(given.source, given.to) / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
