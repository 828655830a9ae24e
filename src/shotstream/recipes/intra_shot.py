"""Distil the student within a shot, on its own chunks, with true frames of earlier shots as memory.

    python -m shotstream.recipes.intra_shot --data latents --init runs/c2/weights.safetensors \\
        --teacher runs/t4/weights.safetensors --out runs/d1

Leaves generator.safetensors (the student) and critic.safetensors.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shotstream.engine.rollout import RolloutConfig
from shotstream.models.checkpoint import load_dit
from shotstream.models.dit import DiT
from shotstream.models.lora import LoRAConfig
from shotstream.presets import STORYWORLD
from shotstream.recipes import watching
from shotstream.recipes.runs import (
    add_frames_flag,
    parser,
    refuse_unused,
    start,
    train,
    with_flags,
    with_frames,
    with_shares,
)
from shotstream.recipes.watching import WatchConfig, watch_student
from shotstream.training.causal_init import CausalConfig, OdeStage, PairStore
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distill import CRITIC, GENERATOR, DistillConfig, DistillStage
from shotstream.training.distributed import World, joined
from shotstream.training.trainer import OptimiserConfig, Outcome, TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRecipe:
    """Everything that decides a distillation run."""

    data: str
    init: str
    """The student's weights."""
    teacher: str
    distill: DistillConfig
    trainer: TrainerConfig
    critic: str | None = None
    """None starts it as the teacher."""
    pairs: str | None = None
    """Teacher trajectories, for `distill.anchor_weight`."""
    codec: str | None = None
    """Only where history is the student's own."""
    negative_prompt: str = ""
    """One of the data's captions, which the teacher's guidance steers away from; empty: from none."""
    walk_shots: int = 4
    watch: WatchConfig | None = None
    lora: LoRAConfig | None = None
    """Train adapters on generator and critic instead of all weights."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(drop_text=0.0, captions_only=True))
    seed: int = 0


def distill_config() -> DistillConfig:
    """Storyworld's own numbers; additive guidance is one less than the usual form's."""
    rollout = RolloutConfig(timesteps=STORYWORLD.student_timesteps, slab=STORYWORLD.slab)
    guidance = STORYWORLD.guidance_scale - 1
    return DistillConfig(rollout=rollout, guidance_scale=guidance, shift=STORYWORLD.schedule.shift)


def optimisers(generator_rate: float, critic_rate: float) -> dict[str, OptimiserConfig]:
    """Without momentum in the first moment: each network chases a moving one."""
    shared = OptimiserConfig(betas=(0.0, 0.999), warmup_steps=10)
    return {
        GENERATOR: replace(shared, learning_rate=generator_rate),
        CRITIC: replace(shared, learning_rate=critic_rate, clip=10.0),
    }


def config(*, data: str, out: str, init: str, teacher: str) -> DistillRecipe:
    """The storyworld recipe: 200 critic updates, then 265 rounds of one generator and four critic updates."""
    distill = distill_config()
    steps = distill.critic_warmup + 265 * (1 + distill.critic_steps)
    trainer = TrainerConfig(
        out=out, steps=steps, batch_size=8, optimisers=optimisers(2e-5, 1e-4), ema_decay=0.99, log_every=5
    )
    return DistillRecipe(data=data, init=init, teacher=teacher, distill=distill, trainer=trainer)


def add_flags(flags: ArgumentParser) -> None:
    """Flags of both distillation stages, for `with_distill_flags`."""
    flags.add_argument("--teacher", required=True, help="the teacher's weights")
    flags.add_argument("--guidance", type=float, help="of the teacher, additive")
    flags.add_argument("--negative-prompt", help="one of the data's captions, which guidance steers away from")
    flags.add_argument("--lowest-sigma", type=float, help="the least noise at which teacher and critic compare")
    flags.add_argument("--critic-steps", type=int, help="critic updates after each of the generator")
    flags.add_argument("--critic-rate", type=float, help="of the critic; --learning-rate is the generator's")


def with_distill_flags(recipe: DistillRecipe, given: Namespace) -> DistillRecipe:
    """The recipe with what the command line changes of the turns, the guidance and the training."""
    changes = {
        "guidance_scale": given.guidance,
        "lowest_sigma": given.lowest_sigma,
        "critic_steps": given.critic_steps,
    }
    distill = replace(recipe.distill, **{name: value for name, value in changes.items() if value is not None})
    trainer = with_flags(recipe.trainer, given)
    if given.critic_rate is not None:
        critic = replace(trainer.optimisers[CRITIC], learning_rate=given.critic_rate)
        trainer = replace(trainer, optimisers={**trainer.optimisers, CRITIC: critic})
    negative_prompt = given.negative_prompt or recipe.negative_prompt
    return replace(recipe, distill=distill, trainer=trainer, negative_prompt=negative_prompt)


def networks(recipe: DistillRecipe) -> tuple[DiT, DiT, DiT]:
    """Generator, critic and teacher."""
    generator, teacher = load_dit(recipe.init).float().train(), load_dit(recipe.teacher).float()
    return generator, load_dit(recipe.critic or recipe.teacher).float().train(), teacher


def run(recipe: DistillRecipe, world: World | None = None) -> Outcome:
    """Train, or go on training, by this recipe."""
    world = world or World()
    device = recipe.trainer.torch_device(world)
    generator, critic, teacher = networks(recipe)
    library = LatentLibrary(recipe.data, text_length=generator.config.text_len)
    sampler = Sampler(library, recipe.sampler, (recipe.seed, "intra-shot"), device)
    anchor = None
    if recipe.pairs is not None:
        causal = CausalConfig(timesteps=recipe.distill.rollout.timesteps)
        anchor = OdeStage(generator, causal, recipe.seed, pairs=PairStore(recipe.pairs), device=device)
    stage = DistillStage(
        generator,
        critic,
        teacher.to(device),
        recipe.distill,
        sampler,
        seed=recipe.seed,
        anchor=anchor,
        negative=library.states_of(recipe.negative_prompt),
    )
    watch = None
    if recipe.watch is not None:
        watch = watch_student(generator, stage.sampler, recipe.distill.rollout, recipe.watch)
    return train(stage, recipe.trainer, world, recipe, exported=(GENERATOR, CRITIC), watch=watch)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser(__doc__)
    watching.add_flags(flags)
    add_flags(flags)
    flags.add_argument("--critic", help="the critic's weights; without it, it starts as the teacher")
    add_frames_flag(flags)
    flags.add_argument("--two-people", type=float, help="share of samples from shots of two people alone")
    flags.add_argument("--steered", type=float, help="share of samples from shots whose caption changes on the way")
    flags.add_argument("--critic-warmup", type=int, help="critic updates before the first of the generator")
    flags.add_argument("--pairs", help="teacher trajectories, whose regression is added to the generator's loss")
    given = flags.parse_args(arguments)
    if given.init is None:
        flags.error("distillation starts from a causal student: pass --init")
    refuse_unused(flags, given, "distillation", "compile")
    start(given)
    recipe = config(data=given.data, out=given.out, init=given.init, teacher=given.teacher)
    recipe = replace(with_distill_flags(recipe, given), critic=given.critic, pairs=given.pairs)
    warmup = recipe.distill.critic_warmup if given.critic_warmup is None else given.critic_warmup
    distill = replace(recipe.distill, anchor_weight=0.25 if given.pairs else 0.0, critic_warmup=warmup)
    sampler = with_frames(with_shares(recipe.sampler, given), given.frames)
    recipe = replace(recipe, distill=distill, sampler=sampler)
    with joined() as world:
        run(replace(recipe, seed=given.seed or 0, watch=watching.from_flags(given)), world)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
