"""Check the text path: `python -m shotstream.recipes.text_path -o docs/results/text_path.json`.

Trains a readout on frozen token states of training captions and scores it on captions whose templates it never saw.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shotstream.evaluation.text_path import (
    CaptionSet,
    LayerEncoder,
    ReadoutConfig,
    caption_set,
    encode_captions,
    mistakes,
    predict,
    summary,
    train_readout,
)

REQUIRED = 0.99

log = logging.getLogger(__name__)


def check_layer(train: CaptionSet, test: CaptionSet, layer: int, config: ReadoutConfig, show: int) -> dict[str, Any]:
    """Accuracies of a readout of one MiniLM layer on the held-out captions."""
    encoder = LayerEncoder(layer=layer)
    log.info("layer %d: encoding %d captions", layer, len(train.captions) + len(test.captions))
    states = encode_captions(encoder, train.captions)
    targets = torch.where(train.stated >= 0, train.stated, train.silent)
    readout = train_readout(states, targets, config)
    predicted = predict(readout, encode_captions(encoder, test.captions))
    scores = summary(predicted, test)
    for name, (accuracy, count) in scores["stated"].items():
        log.info("layer %d %-17s %.4f of %d", layer, name, accuracy, count)
        for caption, stated, read in mistakes(predicted, test, name, limit=show):
            log.info("    %s -> %s: %s", stated, read, caption)
    return {
        "layer": layer,
        "failed": sorted(name for name, (accuracy, _) in scores["stated"].items() if accuracy < REQUIRED),
        **{
            part: {name: {"accuracy": round(accuracy, 4), "captions": n} for name, (accuracy, n) in table.items()}
            for part, table in scores.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file; without one the result is only printed")
    parser.add_argument("--layers", type=int, nargs="+", default=[6], help="MiniLM layers to read, 6 is the last")
    parser.add_argument("--stories", type=int, default=2000, help="training stories")
    parser.add_argument("--heldout-stories", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mistakes", type=int, default=0, help="misread captions to show per attribute")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    train, test = caption_set("train", options.stories), caption_set("heldout", options.heldout_stories)
    config = ReadoutConfig(steps=options.steps)
    result = {
        "what": "share of held-out captions whose attribute one cross-attention layer reads from frozen MiniLM states",
        "command": f"python -m shotstream.recipes.text_path --layers {' '.join(map(str, options.layers))} "
        f"--stories {options.stories} --heldout-stories {options.heldout_stories} --steps {options.steps}",
        "hardware": f"{platform.machine()} CPU, {options.threads} thread",
        "date": datetime.date.today().isoformat(),
        "required": REQUIRED,
        "captions": {"train": len(train.captions), "heldout": len(test.captions)},
        "layers": [check_layer(train, test, layer, config, options.mistakes) for layer in options.layers],
    }
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
