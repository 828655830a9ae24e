"""Fine-tunes that differ in one thing: equally long, from the same student, critic and teacher.

    python -m shotstream.recipes.ablations theta_1_3 --data latents --init runs/d1/generator.safetensors \\
        --critic runs/d1/critic.safetensors --teacher teacher.safetensors --codec codec.safetensors --out runs/ablations

Leaves OUT/NAME/student.safetensors, which `python -m shotstream.evaluation.ablations NAME --weights` measures. Only the
student is changed: teacher and critic say what is likely, and keep telling shots apart as they learnt to.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.models.checkpoint import load_dit, save_dit
from shotstream.models.dit import DiT
from shotstream.recipes import inter_shot, intra_shot
from shotstream.recipes.intra_shot import DistillRecipe
from shotstream.recipes.runs import start
from shotstream.training.distill import CRITIC, GENERATOR
from shotstream.training.trainer import TrainerConfig

log = logging.getLogger(__name__)

ENOUGH_STEPS = 1_000_000
"""Time ends a fine-tune, not steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """One fine-tune. The defaults are the method's own."""

    network: dict[str, Any] = field(default_factory=dict)
    """Fields of the student's `DiTConfig` that are changed."""
    context_frames: int | None = None
    """Places of the global cache, if not the preset's."""
    intra_share: float = 0.5
    """Of the time: stage 1, on true history. The rest is stage 2, on the student's own."""


ABLATIONS: dict[str, Ablation] = {
    "trained_chosen": Ablation(),
    "trained_no_indicator": Ablation(network={"theta": 0.0}),
    "trained_learnable_embedding": Ablation(network={"theta": 0.0, "opening_embedding": True}),
    "theta_1_12": Ablation(network={"theta": 1 / 12}),
    "theta_1_3": Ablation(network={"theta": 1 / 3}),
    "theta_1": Ablation(network={"theta": 1.0}),
    # Stage 1 would need latents that were encoded with nine frames in mind; compare with stage_2_only.
    "context_9": Ablation(context_frames=9, intra_share=0.0),
    "stage_1_only": Ablation(intra_share=1.0),
    "stage_2_only": Ablation(intra_share=0.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What all fine-tunes share."""

    data: str
    init: str
    """The student that all start from."""
    critic: str
    teacher: str
    codec: str
    out: str
    minutes: float = 20.0
    walk_shots: int = 4
    batch: int = 8
    seed: int = 0
    steps: int = ENOUGH_STEPS
    """Of each stage."""


def run(name: str, common: Start) -> Path:
    """Fine-tune by this name, or return what an earlier run made: the student's file.

    Raises: ValueError for an unknown name.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}: choose from {', '.join(ABLATIONS)}")
    ablation, folder = ABLATIONS[name], Path(common.out) / name
    finished = folder / "student.safetensors"
    if finished.is_file():
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(common.seed)
    student, critic = folder / "start.safetensors", common.critic
    save_dit(student, changed(load_dit(common.init), ablation.network), dtype=torch.float32)
    for stage in stages(ablation):
        recipe = recipe_of(stage, ablation, replace(common, init=str(student), critic=critic), folder)
        (intra_shot if stage == "intra" else inter_shot).run(recipe)
        student, critic = folder / stage / f"{GENERATOR}.safetensors", str(folder / stage / f"{CRITIC}.safetensors")
    shutil.copyfile(student, finished)
    log.info("measure it: python -m shotstream.evaluation.ablations %s --weights %s", name, finished)
    return finished


def changed(model: DiT, network: dict[str, Any]) -> DiT:
    """The same weights in a network with another config; a new embedding starts at zero."""
    other = DiT(replace(model.config, **network))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def stages(ablation: Ablation) -> tuple[str, ...]:
    shares = {"intra": ablation.intra_share, "inter": 1 - ablation.intra_share}
    return tuple(stage for stage, share in shares.items() if share)


def recipe_of(stage: str, ablation: Ablation, common: Start, folder: Path) -> DistillRecipe:
    """One stage's recipe. Its critic goes on from a trained one, so the student learns from the first step on."""
    out = str(folder / stage)
    files = {"data": common.data, "init": common.init, "teacher": common.teacher}
    if stage == "intra":
        recipe = replace(intra_shot.config(out=out, **files), critic=common.critic)
    else:
        recipe = inter_shot.config(out=out, critic=common.critic, codec=common.codec, **files)
    share = ablation.intra_share if stage == "intra" else 1 - ablation.intra_share
    distill = replace(recipe.distill, critic_warmup=0)
    sampler = recipe.sampler
    if ablation.context_frames is not None:
        slab = replace(distill.rollout.slab, context_frames=ablation.context_frames)
        distill = replace(distill, rollout=replace(distill.rollout, slab=slab))
        sampler = replace(sampler, context_frames=ablation.context_frames)
    trainer = _trainer(recipe.trainer, common, minutes=share * common.minutes)
    return replace(
        recipe,
        distill=distill,
        sampler=sampler,
        trainer=trainer,
        walk_shots=common.walk_shots,
        seed=common.seed,
    )


def _trainer(config: TrainerConfig, common: Start, *, minutes: float) -> TrainerConfig:
    return replace(config, steps=common.steps, minutes=minutes, batch_size=common.batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune one or several, one after the other."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("names", nargs="+", choices=("all", *ABLATIONS))
    for name, meaning in {
        "data": "folder of latents",
        "init": "the student that all start from",
        "critic": "its critic",
        "teacher": "the teacher's weights",
        "codec": "the codec that the latents were made with",
        "out": "folder of these runs",
    }.items():
        flags.add_argument(f"--{name}", required=True, help=meaning)
    flags.add_argument("--minutes", type=float, default=20.0, help="of each fine-tune, both stages together")
    flags.add_argument("--walk-shots", type=int, default=4)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--threads", type=int, help="CPU threads")
    given = flags.parse_args(arguments)
    start(given)
    values = {name: value for name, value in vars(given).items() if name not in ("names", "threads")}
    for name in ABLATIONS if "all" in given.names else given.names:
        run(name, Start(**values))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
