"""Train the probe, which reads every attribute of the drawn world back from frames.

    python -m shotstream.recipes.probe --out runs/one --minutes 45
    python -m shotstream.recipes.probe --out runs/two --init runs/one/probe.safetensors --codec CODEC
    python -m shotstream.recipes.probe --out runs/looks --init runs/two/probe.safetensors --codec CODEC \\
        --looks face body --pool runs/pool

The second command goes on with frames that passed through the codec, which is what generated ones look like. The third
adds second looks at the face and the body, and trains nothing else: all other readings stay as they are. What they
learn from is cut out once and kept in the folder of --pool.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.engine.loading import default_dtype
from shotstream.models.codec import Codec
from shotstream.models.tiny_codec import TinyCodec
from shotstream.recipes.runs import parser, start, with_flags
from shotstream.storyworld.probe import LOOKS, Probe, ProbeConfig, ProbeScores, load_probe, save_probe
from shotstream.training.distributed import World
from shotstream.training.looks import LookStage, Pool, make_pool
from shotstream.training.probe import ProbeDataConfig, ProbeStage, score
from shotstream.training.trainer import OptimiserConfig, Stage, Trainer, TrainerConfig, to_json

log = logging.getLogger(__name__)

LOOK_PIXELS = {"face": 64, "body": 80, "place": 96}
"""Heights of second looks of the probe that ships."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecipe:
    """Everything that decides a run."""

    trainer: TrainerConfig
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    codec: str | None = None
    init: str | None = None
    looks: tuple[str, ...] = ()
    """Second looks to train, alone; none: train all there is."""
    pool: str | None = None
    """Folder of what they learn from, which is made if need be."""
    pool_samples: int = 20_000
    test_chunks: int = 400
    """Held-out chunks, and as many pictures, on which the finished probe is scored."""
    seed: int = 0


def config(out: str, codec: str | None = None) -> ProbeRecipe:
    """The recipe of the probe that ships."""
    optimiser = OptimiserConfig(learning_rate=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.02)
    trainer = TrainerConfig(
        out=out, steps=1500, batch_size=32, optimisers={"model": optimiser}, ema_decay=0.995, device="cpu"
    )
    return ProbeRecipe(trainer=trainer, codec=codec)


def run(recipe: ProbeRecipe) -> ProbeScores | None:
    """Train, or go on training; when the run is complete, score the averaged weights and write `probe.safetensors`."""
    torch.manual_seed(recipe.seed)
    probe = started_from(Path(recipe.init), recipe.looks) if recipe.init else Probe(recipe.probe)
    dtype = default_dtype(torch.device("cpu"))
    codec = TinyCodec.load(Path(recipe.codec), dtype=dtype) if recipe.codec else None
    stage: Stage[Any] = ProbeStage(probe, recipe.data, recipe.seed, codec)
    if recipe.looks:
        stage = LookStage(probe, recipe.looks, _pool(recipe, probe, codec), recipe.seed)
    if recipe.trainer.torch_device(World()).type != "cpu":
        raise ValueError("the probe learns on the CPU, which draws its pictures: leave --device out")
    trainer: Trainer[Any] = Trainer(stage, recipe.trainer, recipe=recipe)
    outcome = trainer.run()
    if outcome.reason == "stopped":
        return None
    with trainer.emas["model"].applied(stage.networks["model"]):
        return _finish(probe.eval(), codec, recipe, outcome.step)


def _pool(recipe: ProbeRecipe, probe: Probe, codec: Codec | None) -> Pool:
    """Samples for second looks, made where there are too few."""
    if recipe.pool is None:
        raise ValueError("second looks learn from a pool of samples: pass --pool FOLDER")
    dtype = default_dtype(torch.device("cpu"))
    make_pool(Path(recipe.pool), probe, recipe.data, recipe.pool_samples, seed=recipe.seed, codec=codec, dtype=dtype)
    return Pool(Path(recipe.pool))


def started_from(path: Path, looks: Sequence[str] = ()) -> Probe:
    """A trained probe to go on with; with names of second looks, these are added if need be and alone are trained."""
    trained = load_probe(path)[0]
    if not looks:
        return trained.requires_grad_(True).train()
    sizes: dict[str, Any] = {f"{look}_pixels": trained.config.pixels(look) or LOOK_PIXELS[look] for look in looks}
    probe = Probe(replace(trained.config, **sizes))
    probe.load_state_dict(probe.state_dict() | trained.state_dict())
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
    flags.add_argument(
        "--looks", nargs="+", choices=tuple(LOOKS), default=(), help="second looks to train, and nothing else"
    )
    flags.add_argument("--pool", help="folder of samples for second looks, made if need be")
    flags.add_argument("--pool-samples", type=int, default=20_000)
    flags.add_argument("--repeats", type=int, help="how often a rendered batch is used (default 6)")
    flags.add_argument(
        "--codec-share", type=float, help="share of the samples that pass through the codec (default 0.6)"
    )
    given = flags.parse_args(arguments)
    start(given)
    recipe = config(given.out, given.codec)
    if given.looks and given.init is None:
        flags.error("--looks are added to a trained probe: pass --init")
    recipe = replace(recipe, looks=tuple(given.looks), pool=given.pool, pool_samples=given.pool_samples)
    changed = {name: getattr(given, name) for name in ("codec_share", "repeats") if getattr(given, name) is not None}
    recipe = replace(recipe, data=replace(recipe.data, **changed))
    recipe = replace(recipe, trainer=with_flags(recipe.trainer, given), init=given.init, seed=given.seed or 0)
    run(replace(recipe, test_chunks=given.test_chunks))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
