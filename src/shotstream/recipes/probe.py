"""Train the probe, which reads every attribute of the drawn world back from frames.

    python -m shotstream.recipes.probe --out runs/one --minutes 45
    python -m shotstream.recipes.probe --out runs/two --init runs/one/probe.safetensors --codec CODEC
    python -m shotstream.recipes.probe --out runs/face --init runs/two/probe.safetensors --codec CODEC --face

The second command goes on with frames that passed through the codec, which is what generated ones look like. The third
adds a second look at the face, and trains nothing else: all other readings stay as they are.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from shotstream.engine.loading import default_dtype
from shotstream.models.codec import Codec
from shotstream.models.tiny_codec import TinyCodec
from shotstream.recipes.runs import parser, start, with_flags
from shotstream.storyworld.probe import Probe, ProbeConfig, ProbeScores, load_probe, save_probe
from shotstream.training.probe import ProbeBatch, ProbeDataConfig, ProbeStage, score
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig, to_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecipe:
    """Everything that decides a run."""

    trainer: TrainerConfig
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    codec: str | None = None
    init: str | None = None
    test_chunks: int = 400
    """Held-out chunks, and as many pictures, on which the finished probe is scored."""
    seed: int = 0


def config(out: str, codec: str | None = None) -> ProbeRecipe:
    """The recipe of the probe that ships."""
    optimiser = OptimiserConfig(learning_rate=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.02)
    trainer = TrainerConfig(out=out, steps=1500, batch_size=32, optimisers={"model": optimiser}, ema_decay=0.995)
    return ProbeRecipe(trainer=trainer, codec=codec)


def run(recipe: ProbeRecipe) -> ProbeScores | None:
    """Train, or go on training; when the run is complete, score the averaged weights and write `probe.safetensors`."""
    torch.manual_seed(recipe.seed)
    probe = started_from(Path(recipe.init), recipe.probe) if recipe.init else Probe(recipe.probe)
    dtype = default_dtype(torch.device("cpu"))
    codec = TinyCodec.load(Path(recipe.codec), dtype=dtype) if recipe.codec else None
    stage = ProbeStage(probe, recipe.data, recipe.seed, codec)
    trainer: Trainer[ProbeBatch] = Trainer(stage, recipe.trainer, recipe=recipe)
    outcome = trainer.run()
    if outcome.reason == "stopped":
        return None
    with trainer.emas["model"].applied(probe):
        return _finish(probe.eval(), codec, recipe, outcome.step)


def started_from(path: Path, config: ProbeConfig) -> Probe:
    """A trained probe to go on with. If it is to look at the face again, that look alone is trained."""
    trained = load_probe(path)[0]
    if not config.face_pixels:
        return trained.requires_grad_(True).train()
    probe = Probe(replace(trained.config, face_pixels=config.face_pixels))
    probe.load_state_dict(probe.state_dict() | trained.state_dict())
    for name, parameter in probe.named_parameters():
        parameter.requires_grad_(name.startswith("face_look."))
    return probe.train()


def _finish(probe: Probe, codec: Codec | None, recipe: ProbeRecipe, step: int) -> ProbeScores:
    scores = score(probe, codec, count=recipe.test_chunks)
    for name, table in scores.accuracy.items():
        log.info("%-17s %s", name, " ".join(f"{key} {value:.3f}" for key, value in sorted(table.items())))
    path = Path(recipe.trainer.out) / "probe.safetensors"
    day = datetime.date.today().isoformat()
    save_probe(probe, path, scores, recipe=json.dumps(to_json(recipe)), step=str(step), date=day)
    log.info("wrote %s", path)
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser(__doc__, data=False)
    flags.add_argument("--codec", help="codec that part of the frames, and all test frames, pass through")
    flags.add_argument("--test-chunks", type=int, default=400)
    flags.add_argument("--face", action="store_true", help="with a second look at the face")
    flags.add_argument("--repeats", type=int, help="how often a rendered batch is used (default 6)")
    flags.add_argument(
        "--codec-share", type=float, help="share of the samples that pass through the codec (default 0.6)"
    )
    given = flags.parse_args(arguments)
    start(given)
    recipe = config(given.out, given.codec)
    if given.face:
        recipe = replace(recipe, probe=replace(recipe.probe, face_pixels=64))
    changed = {name: getattr(given, name) for name in ("codec_share", "repeats") if getattr(given, name) is not None}
    recipe = replace(recipe, data=replace(recipe.data, **changed))
    recipe = replace(recipe, trainer=with_flags(recipe.trainer, given), init=given.init, seed=given.seed or 0)
    run(replace(recipe, test_chunks=given.test_chunks))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
