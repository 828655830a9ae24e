"""Fine-tunes that differ in one thing: equally long, from the same student.

    python -m shotstream.recipes.ablations theta_1_3 --data latents --init student.safetensors --out runs/ablations
    python -m shotstream.recipes.ablations stage_1_only --data latents --init runs/d1/generator.safetensors \\
        --critic runs/d1/critic.safetensors --teacher teacher.safetensors --codec codec.safetensors --out runs/ablations

Another shot indicator is learnt on real shots, as the causal stage does; what stages of distillation are worth, by
distillation. Leaves OUT/NAME/student.safetensors, which `python -m shotstream.evaluation.ablations NAME --weights`
measures. Only the student is changed: teacher and critic say what is likely, and keep telling shots apart as they
learnt to.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from shotstream.models.checkpoint import config_of, load_dit, save_dit
from shotstream.models.dit import DiT
from shotstream.recipes import causal_init, inter_shot, intra_shot
from shotstream.recipes.causal_init import CausalRecipe
from shotstream.recipes.intra_shot import DistillRecipe
from shotstream.recipes.runs import keep_settings, start
from shotstream.training.distill import CRITIC, GENERATOR
from shotstream.training.trainer import TrainerConfig

log = logging.getLogger(__name__)

ENOUGH_STEPS = 1_000_000
"""Time ends a distillation, not steps."""
Stage = Literal["real", "intra", "inter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """One fine-tune. The defaults are the method's own."""

    network: dict[str, Any] = field(default_factory=dict)
    """Fields of the student's `DiTConfig` that are changed."""
    context_frames: int | None = None
    """Places of the global cache, if not the preset's."""
    intra_share: float | None = None
    """Of the time of a distillation: stage 1, on true history. The rest is stage 2, on the student's own. None: no
    distillation, but real shots."""


ABLATIONS: dict[str, Ablation] = {
    "trained_chosen": Ablation(),
    "trained_no_indicator": Ablation(network={"theta": 0.0}),
    "trained_learnable_embedding": Ablation(network={"theta": 0.0, "opening_embedding": True}),
    "theta_1_12": Ablation(network={"theta": 1 / 12}),
    "theta_1_3": Ablation(network={"theta": 1 / 3}),
    "theta_1": Ablation(network={"theta": 1.0}),
    # Real shots would need latents that were encoded with nine frames in mind; compare with stage_2_only.
    "context_9": Ablation(context_frames=9, intra_share=0.0),
    "both_stages": Ablation(intra_share=0.5),
    "stage_1_only": Ablation(intra_share=1.0),
    "stage_2_only": Ablation(intra_share=0.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What all fine-tunes share."""

    data: str
    init: str
    """The student that all start from."""
    out: str
    critic: str | None = None
    """For distillation, like `teacher` and `codec`."""
    teacher: str | None = None
    codec: str | None = None
    minutes: float = 20.0
    """Of a distillation, both stages together."""
    walk_shots: int = 4
    batch: int = 8
    seed: int = 0
    compiled: bool = False
    real_steps: int = 240
    """Of a fine-tune on real shots: about 20 minutes of one core with bfloat16."""
    steps: int = ENOUGH_STEPS
    """Of each stage of a distillation."""


def run(name: str, common: Start) -> Path:
    """Fine-tune by this name, or return what an earlier run made: the student's file.

    Raises: ValueError for an unknown name, or a distillation that lacks a file.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}: choose from {', '.join(ABLATIONS)}")
    ablation, folder = ABLATIONS[name], Path(common.out) / name
    finished = folder / "student.safetensors"
    if not finished.is_file():
        _check_files(name, ablation, common)
    keep_settings(folder, common)
    if finished.is_file():
        return finished
    torch.manual_seed(common.seed)
    student, critic = folder / "start.safetensors", common.critic
    save_dit(student, changed(load_dit(common.init), ablation.network), dtype=torch.float32)
    for stage in stages(ablation):
        now = replace(common, init=str(student), critic=critic)
        if stage == "real":
            outcome = causal_init.run(real_recipe(now, folder))
            student = folder / stage / "weights.safetensors"
        else:
            outcome = (intra_shot if stage == "intra" else inter_shot).run(recipe_of(stage, ablation, now, folder))
            student, critic = folder / stage / f"{GENERATOR}.safetensors", str(folder / stage / f"{CRITIC}.safetensors")
        if outcome.reason == "stopped":
            raise KeyboardInterrupt(f"{name} was stopped at step {outcome.step}: the same command goes on")
    shutil.copyfile(student, finished)
    log.info("measure it: python -m shotstream.evaluation.ablations %s --weights %s", name, finished)
    return finished


def changed(model: DiT, network: dict[str, Any]) -> DiT:
    """The same weights in a network with another config; a new embedding starts at zero."""
    other = DiT(replace(model.config, **network))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def _check_files(name: str, ablation: Ablation, common: Start) -> None:
    needed = () if ablation.intra_share is None else ("critic", "teacher", "codec")
    missing = [f"--{file} FILE" for file in needed if getattr(common, file) is None]
    if missing:
        raise ValueError(f"{name} is a distillation: pass {', '.join(missing)}")


def stages(ablation: Ablation) -> tuple[Stage, ...]:
    if ablation.intra_share is None:
        return ("real",)
    shares: dict[Stage, float] = {"intra": ablation.intra_share, "inter": 1 - ablation.intra_share}
    return tuple(stage for stage, share in shares.items() if share)


def real_recipe(common: Start, folder: Path) -> CausalRecipe:
    """The causal stage once more: openings of a shot, partly on history of the student's own, with guidance."""
    recipe = causal_init.config("real", data=common.data, out=str(folder / "real"))
    recipe = causal_init.with_guidance(recipe, 2.0)
    optimisers = {"model": replace(recipe.trainer.optimisers["model"], learning_rate=5e-4)}
    return replace(
        recipe,
        init=common.init,
        dit=config_of(common.init),
        causal=replace(recipe.causal, own_history=0.3),
        sampler=replace(recipe.sampler, lengths=(3, 3, 6, 12), target_frames=12, two_people=0.25),
        trainer=replace(
            recipe.trainer, optimisers=optimisers, steps=common.real_steps, batch_size=common.batch, save_minutes=3.0
        ),
        compiled=common.compiled,
        seed=common.seed,
    )


def recipe_of(stage: Stage, ablation: Ablation, common: Start, folder: Path) -> DistillRecipe:
    """One stage's recipe. Its critic goes on from a trained one, so the student learns from the first step on."""
    assert common.teacher
    assert common.critic
    assert common.codec
    assert ablation.intra_share is not None
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
    return replace(config, steps=common.steps, minutes_in_all=minutes, batch_size=common.batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune one or several, one after the other."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("names", nargs="+", choices=("all", *ABLATIONS))
    for name, meaning in {
        "data": "folder of latents",
        "init": "the student that all start from",
        "out": "folder of these runs",
    }.items():
        flags.add_argument(f"--{name}", required=True, help=meaning)
    for name, meaning in {
        "critic": "for distillation: the student's critic",
        "teacher": "for distillation: the teacher's weights",
        "codec": "for distillation: the codec that the latents were made with",
    }.items():
        flags.add_argument(f"--{name}", help=meaning)
    flags.add_argument("--minutes", type=float, default=20.0, help="of each distillation, both stages together")
    flags.add_argument("--real-steps", type=int, default=240, help="of each fine-tune on real shots")
    flags.add_argument("--compile", action="store_true", dest="compiled", help="torch.compile (not for distillation)")
    flags.add_argument("--walk-shots", type=int, default=4)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--threads", type=int, help="CPU threads")
    given = flags.parse_args(arguments)
    start(given)
    values = {name: value for name, value in vars(given).items() if name not in ("names", "threads")}
    names = list(ABLATIONS) if "all" in given.names else given.names
    for name in names:
        _check_files(name, ABLATIONS[name], Start(**values))
    for name in names:
        run(name, Start(**values))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
