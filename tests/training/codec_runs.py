"""A codec run of a few thousand weights on moving shapes, here and in other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig
from shotstream.training.codec import CodecLossConfig, CodecStage, start_linear
from shotstream.training.codec_data import CodecDataConfig, CropSampler, ShapesSource
from shotstream.training.distributed import World, joined
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig

SHAPES = ShapesSource(height=64, width=96)
SMALL = TinyCodecConfig(
    latent_channels=16,
    encoder_widths=(32, 32, 32),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(32, 32, 32),
    decoder_blocks=(1, 1, 1),
)
DATA = CodecDataConfig(crop_sides=(32, 48), clip_frames=(1, 5), pool=2, sample_pixels=5 * 32 * 32)
CPU = torch.device("cpu")


def make_stage(
    *, crop_steps: int = 100, measure_every: int = 50, linear: bool = True, freeze_encoder: bool = False
) -> CodecStage:
    torch.manual_seed(0)
    codec = TinyCodec(SMALL)
    if linear:
        start_linear(codec, SHAPES, clips=4)
    codec.encoder.requires_grad_(not freeze_encoder)
    config = CodecLossConfig(measure_every=measure_every)
    return CodecStage(codec, CropSampler(SHAPES, DATA, 0), config, CPU, crop_steps=crop_steps)


def make_trainer(
    out: Path,
    *,
    steps: int,
    world: World | None = None,
    accumulation: int = 1,
    learning_rate: float = 1e-3,
    **stage: Any,
) -> Trainer:
    optimisers = {"model": OptimiserConfig(learning_rate=learning_rate, warmup_steps=1, schedule="cosine")}
    config = TrainerConfig(
        out=str(out),
        steps=steps,
        batch_size=4,
        accumulation=accumulation,
        precision="float32",
        device="cpu",
        optimisers=optimisers,
        log_every=1000,
    )
    return Trainer(make_stage(**stage), config, world)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    """Live and averaged, and the sd of the latents."""
    live = {f"live.{name}": value for name, value in trainer.stage.model.state_dict().items()}
    return live | trainer.emas["model"].shadow


def run(out: str) -> None:
    """Train for a few steps on as many processes as were started, the last one on whole frames.

    At a low rate: Adam turns what rounding leaves of a gradient that is nearly zero into a step of up to the rate.
    """
    with joined() as world:
        trainer = make_trainer(Path(out), steps=5, world=world, learning_rate=2e-4, measure_every=2, crop_steps=4)
        trainer.run()
        if world.is_first:
            torch.save(weights_of(trainer), Path(out) / "weights.pt")
