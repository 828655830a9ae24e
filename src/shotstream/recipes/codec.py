"""Train the storyworld codec.

    python -m shotstream.recipes.codec --out runs/codec
    python -m shotstream.recipes.codec --out runs/k2 --init runs/codec/codec.safetensors --latent-channels 48
    python -m shotstream.recipes.codec --out runs/k3 --init runs/k2/codec.safetensors --freeze-encoder --box-weight 10
    python -m shotstream.recipes.codec --out runs/k3 --measure runs/k3/codec.safetensors

The first starts as a linear codec. The second adds latent channels; the third trains the decoder alone, so that latents
keep their meaning. Each leaves codec.safetensors in its folder, and what it is worth on held-out clips on stdout.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from shotstream.engine.loading import default_dtype
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.recipes.runs import parser, start, with_flags
from shotstream.training.codec import (
    TESTED,
    CodecLossConfig,
    CodecStage,
    CodecWatch,
    NoisyCrops,
    Pair,
    heldout_clips,
    latent_statistics,
    measure,
    side_by_side,
    start_linear,
    widened,
)
from shotstream.training.codec_data import ClipSource, CodecDataConfig, CropSampler, ShapesSource, StoryworldSource
from shotstream.training.distributed import World, joined
from shotstream.training.snapshot import newest_snapshot
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig, to_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecRecipe:
    """Everything that decides a run."""

    trainer: TrainerConfig
    codec: TinyCodecConfig = field(default_factory=TinyCodecConfig)
    """Sizes of the codec; with `init` those of that file, but for the channels asked for."""
    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    world: Literal["storyworld", "shapes"] = "storyworld"
    height: int = 192
    width: int = 320
    whole_frame_share: float = 0.06
    """Last share of the steps, in which nothing is cropped: group norm sees other statistics in crops."""
    init: str | None = None
    """Codec file to start from, widened if `codec` has more channels; without one the start is a linear codec."""
    freeze_encoder: bool = False
    statistics_clips: int = 64
    """On how many clips the finished codec's latents are measured."""
    test_clips: int = 96
    """Others than those that are watched while training: whoever trains until these look good has chosen them."""
    test_frames: int = 33
    seed: int = 0

    def __post_init__(self) -> None:
        stride = self.codec.spatial_stride
        bad = [side for side in (*self.data.crop_sides, self.height, self.width) if side % stride]
        if bad:
            raise ValueError(f"sides {bad} are not multiples of the codec's stride {stride}")
        if self.freeze_encoder and self.init is None:
            raise ValueError("--freeze-encoder needs --init: there is no encoder to keep")
        if self.trainer.sharded:
            raise ValueError("the codec cannot be sharded (FSDP takes no channels_last weights): leave --sharded out")


def config(out: str, *, small: bool = False) -> CodecRecipe:
    """The recipe of the shipped codec, 192x320 and 16x in space; small: 96x160, 8x, a quarter of the pixels."""
    optimiser = OptimiserConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=40, weight_decay=1e-4)
    trainer = TrainerConfig(
        out=out, steps=7000, batch_size=4, optimisers={"model": optimiser}, ema_decay=0.998, image_every=500
    )
    if not small:
        return CodecRecipe(trainer=trainer)
    data = CodecDataConfig(crop_sides=(48, 56, 64), sample_pixels=9 * 48 * 48)
    codec = TinyCodecConfig(latent_channels=16, patch=2)
    return CodecRecipe(trainer=trainer, codec=codec, data=data, height=96, width=160)


def sources(recipe: CodecRecipe) -> tuple[ClipSource, ClipSource]:
    """Where training clips and held-out clips come from."""
    if recipe.world == "shapes":
        shapes = ShapesSource(height=recipe.height, width=recipe.width)
        return shapes, shapes
    drawn = StoryworldSource(height=recipe.height, width=recipe.width)
    return drawn, replace(drawn, split="heldout")


def run(recipe: CodecRecipe, world: World | None = None, *, train: bool = True) -> dict[str, float] | None:
    """Train, or go on training, by this recipe; unless stopped by a signal, finish the codec and say what it is worth.

    The averaged weights and what was measured of them go to `codec.safetensors`. With `train` false the last snapshot
    is finished as it is. Returns held-out PSNRs in dB, None in all processes but the first.
    """
    world = world or World()
    device = recipe.trainer.torch_device(world)
    source, heldout = sources(recipe)
    codec = starting_codec(recipe, source)
    crop_steps = round(recipe.trainer.steps * (1 - recipe.whole_frame_share))
    sampler = CropSampler(source, recipe.data, recipe.seed)
    stage = CodecStage(codec, sampler, recipe.loss, device, crop_steps=crop_steps, seed=recipe.seed)
    watch = CodecWatch(stage.model, heldout)
    trainer: Trainer[NoisyCrops] = Trainer(stage, recipe.trainer, world, recipe=recipe, watch=watch)
    if not train:
        if not trainer.resume():
            raise ValueError(f"there is no snapshot in {recipe.trainer.out} to finish: check --out")
    elif trainer.run().reason == "stopped":
        return None
    trainer.emas["model"].copy_to(stage.model)
    return finish(codec.eval(), recipe, trainer.step, source, heldout) if world.is_first else None


def starting_codec(recipe: CodecRecipe, source: ClipSource) -> TinyCodec:
    """What the first step sees; a run that goes on only needs its sizes."""
    torch.manual_seed(recipe.seed)
    if recipe.init is not None:
        codec = widened(TinyCodec.load(recipe.init), recipe.codec.latent_channels).train()
    else:
        codec = TinyCodec(recipe.codec)
        if newest_snapshot(Path(recipe.trainer.out) / "snapshots") is None:
            start_linear(codec, source)
    if recipe.freeze_encoder:
        codec.encoder.requires_grad_(False)
    return codec


def finish(
    codec: TinyCodec, recipe: CodecRecipe, step: int, source: ClipSource, heldout: ClipSource
) -> dict[str, float]:
    """Measure latent statistics, write the file to ship, and measure that very file. Changes the codec in place."""
    device = codec.device
    if not recipe.freeze_encoder:
        stats = latent_statistics(codec, source, clips=recipe.statistics_clips, num_frames=13, seed=5)
        codec.set_latent_statistics(*stats)
    path = Path(recipe.trainer.out) / "codec.safetensors"
    metadata = {"recipe": json.dumps(to_json(recipe)), "step": str(step)}
    codec = codec.to(torch.bfloat16)
    codec.save(path, metadata)
    metrics, pairs = tested(path, recipe, heldout, device)
    Image.fromarray(side_by_side(pairs)).save(path.with_suffix(".png"))
    metrics["megabytes"] = path.stat().st_size / 1e6
    stamp = datetime.date.today().isoformat()
    codec.save(path, {**metadata, "metrics": json.dumps(metrics), "date": stamp})
    log.info("wrote %s", path)
    return metrics


def tested(
    path: str | Path, recipe: CodecRecipe, heldout: ClipSource, device: torch.device
) -> tuple[dict[str, float], list[Pair]]:
    """What a file is worth on held-out clips that nothing about its training was decided by."""
    codec = TinyCodec.load(path, dtype=default_dtype(device)).to(device)
    return measure(codec, heldout_clips(heldout, recipe.test_clips, recipe.test_frames, seed=TESTED))


def from_flags(given: argparse.Namespace) -> CodecRecipe:
    """The recipe that the command line asks for. Raises: ValueError for what a codec cannot do."""
    if given.compile:
        raise ValueError("the codec's blocks keep state between chunks, which is not compiled: leave --compile out")
    recipe = config(given.out, small=given.small)
    codec = recipe.codec if given.init is None else TinyCodec.load(given.init).config
    if given.latent_channels and given.latent_channels != codec.latent_channels:
        codec = replace(codec, latent_channels=given.latent_channels, latent_mean=(), latent_sd=())
    data = recipe.data if given.box_weight is None else replace(recipe.data, box_weight=given.box_weight)
    return replace(
        recipe,
        codec=codec,
        data=data,
        world=given.world,
        init=given.init,
        freeze_encoder=given.freeze_encoder,
        trainer=with_flags(recipe.trainer, given),
        seed=given.seed or 0,
    )


def flags() -> argparse.ArgumentParser:
    """The flags of every stage and the codec's own."""
    own = parser(__doc__, data=False)
    own.add_argument("--world", choices=("storyworld", "shapes"), default="storyworld")
    own.add_argument("--small", action="store_true", help="96x160 pixels and stride 8 instead of 192x320 and 16")
    own.add_argument("--latent-channels", type=int, help="32, small 16; more than --init has widens it")
    own.add_argument(
        "--freeze-encoder", action="store_true", help="train the decoder alone: latents keep their meaning"
    )
    own.add_argument("--box-weight", type=float, help="how much more a pixel of a face or a mark counts")
    own.add_argument("--measure", metavar="FILE", help="no training: measure this codec on held-out clips")
    own.add_argument("--finish", action="store_true", help="no training: write the codec of the last snapshot")
    return own


def main(arguments: Sequence[str] | None = None) -> int:
    given = flags().parse_args(arguments)
    start(given)
    recipe = from_flags(given)
    if given.measure is not None:
        _print(tested(given.measure, recipe, sources(recipe)[1], recipe.trainer.torch_device(World()))[0])
        return 0
    with joined() as world:
        metrics = run(recipe, world, train=not given.finish)
    if metrics is not None:
        _print(metrics)
    return 0


def _print(metrics: Mapping[str, float]) -> None:
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in metrics.items()}) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
