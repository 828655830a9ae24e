"""Carry what a stage has learnt over to a newer network: new + share * (after - before).

    python -m shotstream.recipes.carry_over runs/t2-longer/weights.safetensors --after runs/c1/weights.safetensors \\
        --before runs/t2/weights.safetensors -o runs/c1-start.safetensors

So the stage before can train on beside the stage after it, and neither has to be done again. Task arithmetic, Ilharco
et al. 2022 (arXiv:2212.04089). What comes out is a start, to be trained a little more. With the older network as the
newer one, too, a share takes back part of a stage that went too far:

    python -m shotstream.recipes.carry_over student.safetensors --after runs/c3/weights.safetensors \\
        --before student.safetensors --share 0.5 -o runs/half.safetensors
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shotstream.models.checkpoint import load_dit, read_tensors, save_dit

log = logging.getLogger(__name__)


@torch.no_grad()
def carry_over(newer: Path, after: Path, before: Path, target: Path, *, share: float = 1.0) -> None:
    """Write float32 weights, with the stage's recipe and step in the metadata.

    Raises: ValueError if the networks are configured differently.
    """
    models = {path: load_dit(path).float() for path in (newer, after, before)}
    result = models[newer]
    for path, model in models.items():
        if model.config != result.config:
            raise ValueError(f"{path} is a network of {model.config}, {newer} of {result.config}: take networks alike")
    learnt, known = models[after].state_dict(), models[before].state_dict()
    for name, value in result.state_dict().items():
        value.add_(learnt[name] - known[name], alpha=share)
    _, metadata = read_tensors(after)
    recipe: dict[str, Any] = {"newer": str(newer), "after": str(after), "before": str(before), "share": share}
    recipe["stage"] = json.loads(metadata.get("recipe") or "{}")  # a half step ships and says what it is half of
    save_dit(target, result, dtype=torch.float32, recipe=json.dumps(recipe), step=metadata.get("step", "0"))


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("newer", type=Path, help="the network to carry over to")
    flags.add_argument("--after", type=Path, required=True, help="what the stage made")
    flags.add_argument("--before", type=Path, required=True, help="what it started from")
    flags.add_argument("--share", type=float, default=1.0, help="of what the stage made (default 1)")
    flags.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    given = flags.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    carry_over(given.newer, given.after, given.before, given.output, share=given.share)
    log.info("wrote %s", given.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
