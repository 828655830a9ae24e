"""Check the text path: `python -m shotstream.recipes.text_path -o docs/results/text_path.json`.

Trains a readout on frozen token states of training captions and scores it on captions whose templates it never saw.
With `--unfrozen 2` the encoder's last two layers learn as well, on states of the ones below.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shotstream.evaluation.text_path import (
    CaptionSet,
    ReadoutConfig,
    caption_set,
    encode_captions,
    mistakes,
    predict,
    summary,
    train_readout,
)
from shotstream.models.text import MiniLMEncoder

REQUIRED = 0.99

log = logging.getLogger(__name__)


def check_layer(
    train: CaptionSet, test: CaptionSet, layer: int, configs: Sequence[ReadoutConfig], show: int, unfrozen: int = 0
) -> list[dict[str, Any]]:
    """Accuracies on the held-out captions of readouts of one MiniLM layer; unfrozen: as many above it learn as well."""
    encoder = MiniLMEncoder(layers=layer)
    log.info("layer %d: encoding %d captions", layer, len(train.captions) + len(test.captions))
    states, test_states = encode_captions(encoder, train.captions), encode_captions(encoder, test.captions)
    targets = torch.where(train.stated >= 0, train.stated, train.silent)
    checks = []
    for config in configs:
        top = encoder.top_layers(unfrozen) if unfrozen else None
        predicted = predict(train_readout(states, targets, config, top), test_states)
        about = {"layer": layer, "unfrozen": unfrozen, "hops": config.hops, "refiners": config.refiners}
        checks.append(about | _scores(predicted, test))
        for name, row in checks[-1]["stated"].items():
            log.info("layer %d, %d hops: %s %s", layer, config.hops, name, row)
            for caption, stated, read in mistakes(predicted, test, name, limit=show):
                log.info("    %s -> %s: %s", stated, read, caption)
    return checks


def _scores(predicted: torch.Tensor, test: CaptionSet) -> dict[str, Any]:
    scores = summary(predicted, test)
    failed = sorted(name for name, (accuracy, _) in scores["stated"].items() if accuracy < REQUIRED)
    tables = {
        part: {name: {"accuracy": round(accuracy, 4), "captions": n} for name, (accuracy, n) in table.items()}
        for part, table in scores.items()
    }
    return {"below_required": failed, **tables}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file; without one the result is only printed")
    parser.add_argument("--layers", type=int, nargs="+", default=[6], help="MiniLM layers to read, 6 is the last")
    parser.add_argument("--hops", type=int, nargs="+", default=[1, 2], help="cross-attention layers of the readouts")
    parser.add_argument("--unfrozen", type=int, default=0, help="last layers of MiniLM that learn, above the read one")
    parser.add_argument("--refiners", type=int, default=0, help="self-attention layers over the tokens before them")
    parser.add_argument("--learning-rate", type=float, default=ReadoutConfig().learning_rate)
    parser.add_argument("--captions", type=int, default=10000, help="training captions")
    parser.add_argument(
        "--told-before", type=float, default=0.0, help="share of them whose coat the introduction tells"
    )
    parser.add_argument("--heldout-captions", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mistakes", type=int, default=0, help="misread captions to show per attribute")
    options = parser.parse_args(arguments)
    if options.unfrozen and options.layers != [6 - options.unfrozen]:
        parser.error(f"--unfrozen {options.unfrozen} goes with --layers {6 - options.unfrozen}")
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    train = caption_set("train", options.captions, told_before=options.told_before)
    test = caption_set("heldout", options.heldout_captions)
    plain = ReadoutConfig(steps=options.steps, refiners=options.refiners, learning_rate=options.learning_rate)
    configs = [replace(plain, hops=hops) for hops in options.hops]
    result = {
        "what": "share of held-out captions of which a readout of MiniLM's states tells an attribute; "
        "unfrozen: layers of MiniLM that learnt with it; hops: its cross-attention layers",
        "command": f"python -m shotstream.recipes.text_path --layers {' '.join(map(str, options.layers))} "
        f"--hops {' '.join(map(str, options.hops))} "
        f"--unfrozen {options.unfrozen} --refiners {options.refiners} --learning-rate {options.learning_rate} "
        f"--captions {options.captions} --told-before {options.told_before} "
        f"--heldout-captions {options.heldout_captions} --steps {options.steps}",
        "hardware": f"{platform.machine()} CPU, {options.threads} thread",
        "date": datetime.date.today().isoformat(),
        "required": REQUIRED,
        "captions": {"train": len(train.captions), "heldout": len(test.captions)},
        "readouts": [
            check
            for layer in options.layers
            for check in check_layer(train, test, layer, configs, options.mistakes, options.unfrozen)
        ],
    }
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
