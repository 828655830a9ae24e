"""Train the storyworld codec: `python -m shotstream.recipes.codec --minutes 45 --out runs/codec`."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.training.codec import (
    CodecTrainConfig,
    CodecTrainer,
    heldout_clips,
    latent_statistics,
    measure,
    widened,
    write_grid,
)
from shotstream.training.codec_data import ClipSource, CodecDataConfig, ShapesSource, StoryworldSource


def storyworld_codec(minutes: float = 45.0, latent_channels: int = 32) -> CodecTrainConfig:
    """192x320, 16x in space: the shipped codec."""
    return CodecTrainConfig(minutes=minutes, codec=TinyCodecConfig(latent_channels=latent_channels))


def storyworld_codec_small(minutes: float = 45.0, latent_channels: int = 16) -> CodecTrainConfig:
    """96x160, 8x in space: the same latent grid at a quarter of the pixels, for comparison."""
    data = CodecDataConfig(crop_sides=(48, 56, 64), pixel_budget=3 * 9 * 56 * 56)
    return CodecTrainConfig(minutes=minutes, codec=TinyCodecConfig(latent_channels=latent_channels, patch=2), data=data)


def sources(world: str, height: int, width: int) -> tuple[ClipSource, ClipSource]:
    """Where training clips and held-out clips come from."""
    if world == "shapes":
        shapes = ShapesSource(height=height, width=width)
        return shapes, shapes
    train = StoryworldSource(height=height, width=width)
    return train, StoryworldSource(height=height, width=width, split="heldout")


def finish(trainer: CodecTrainer, path: Path, *, statistics_clips: int = 64) -> dict[str, float]:
    """Measure latent statistics of the averaged weights, write the file to ship, and measure that very file."""
    codec = trainer.ema.eval()
    if not trainer.config.freeze_encoder:
        stats = latent_statistics(codec, trainer.source, clips=statistics_clips, num_frames=13, seed=5)
        codec.set_latent_statistics(*stats)
    recipe = {"train": asdict(trainer.config), "steps": trainer.step, "minutes": trainer.elapsed_s / 60}
    codec = codec.to(torch.bfloat16)
    codec.save(path, {"recipe": json.dumps(recipe)})
    clips = heldout_clips(trainer.heldout, 24, 33)
    metrics, pairs = measure(TinyCodec.load(path), clips)
    write_grid(pairs, trainer.out / "grid_final.png")
    metrics["megabytes"] = path.stat().st_size / 1e6
    stamp = datetime.date.today().isoformat()
    codec.save(path, {"recipe": json.dumps(recipe), "metrics": json.dumps(metrics), "date": stamp})
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=45.0, help="training time, over all resumed runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, pictures and the codec")
    parser.add_argument("--world", choices=("storyworld", "shapes"), default="storyworld")
    parser.add_argument("--small", action="store_true", help="96x160 pixels and stride 8 instead of 192x320 and 16")
    parser.add_argument("--latent-channels", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--init", type=Path, help="start from this codec, widened if --latent-channels asks for more than it has"
    )
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="train the decoder alone; latents keep their meaning"
    )
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--box-weight", type=float, help="how much more a pixel of a face or a mark counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--finish", action="store_true", help="take the checkpoint as it is: no training, only the file"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

    trainer = build_trainer(options)
    if not options.finish:
        trainer.run()
    metrics = finish(trainer, options.out / "codec.safetensors")
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in metrics.items()}) + "\n")
    return 0


def build_trainer(options: argparse.Namespace) -> CodecTrainer:
    """The run the options ask for, resumed from its folder if there is a checkpoint, else from `--init` if given."""
    make = storyworld_codec_small if options.small else storyworld_codec
    config = make(options.minutes, options.latent_channels or (16 if options.small else 32))
    init = TinyCodec.load(options.init) if options.init else None
    if init is not None and options.latent_channels:
        init = widened(init, options.latent_channels)
    changes: dict[str, Any] = {"seed": options.seed, "freeze_encoder": options.freeze_encoder}
    if init is not None:
        changes["codec"] = init.config
    elif options.freeze_encoder:
        raise ValueError("--freeze-encoder needs --init: there is no encoder to keep")
    if options.learning_rate:
        changes["learning_rate"] = options.learning_rate
    if options.box_weight is not None:
        changes["data"] = replace(config.data, box_weight=options.box_weight)
    config = replace(config, **changes)
    height, width = (96, 160) if options.small else (192, 320)
    trainer = CodecTrainer(config, *sources(options.world, height, width), options.out)
    if not trainer.resume():
        trainer.start_from(init) if init is not None else trainer.start_fresh()
    return trainer


if __name__ == "__main__":
    sys.exit(main())
