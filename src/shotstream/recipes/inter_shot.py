"""Distil the student across shots: it walks through stories and remembers what it drew itself.

    python -m shotstream.recipes.inter_shot --data latents --codec codec.safetensors --out runs/d2 \\
        --init runs/d1/generator.safetensors --critic runs/d1/critic.safetensors --teacher runs/t4/weights.safetensors

Leaves generator.safetensors, the student to ship, and critic.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shotstream.models.lora import LoRAConfig, inject_lora
from shotstream.recipes import watching
from shotstream.recipes.intra_shot import (
    DistillRecipe,
    add_flags,
    distill_config,
    networks,
    optimisers,
    with_distill_flags,
)
from shotstream.recipes.runs import parser, read_codec, refuse_unused, start, train
from shotstream.recipes.watching import watch_student
from shotstream.training.data import LatentLibrary, Sampler
from shotstream.training.distill import CRITIC, GENERATOR, InterShotStage
from shotstream.training.distributed import World, joined
from shotstream.training.trainer import Outcome, TrainerConfig


def config(*, data: str, out: str, init: str, critic: str, teacher: str, codec: str) -> DistillRecipe:
    """The storyworld recipe: 50 walks of four shots, one round for each shot."""
    distill = replace(distill_config(), critic_warmup=0)
    trainer = TrainerConfig(
        out=out,
        steps=200 * (1 + distill.critic_steps),
        batch_size=8,
        optimisers=optimisers(1e-5, 1e-4),
        ema_decay=0.99,
        log_every=5,
    )
    return DistillRecipe(
        data=data, init=init, critic=critic, teacher=teacher, codec=codec, distill=distill, trainer=trainer
    )


def run(recipe: DistillRecipe, world: World | None = None) -> Outcome:
    """Train, or go on training, by this recipe."""
    if recipe.codec is None:
        raise ValueError("inter-shot distillation decodes what the student drew: pass --codec")
    world = world or World()
    device = recipe.trainer.torch_device(world)
    generator, critic, teacher = networks(recipe)
    if recipe.lora is not None:
        inject_lora(generator, recipe.lora)
        inject_lora(critic, recipe.lora)
    library = LatentLibrary(recipe.data, text_length=generator.config.text_len)
    stage = InterShotStage(
        generator,
        critic,
        teacher.to(device),
        recipe.distill,
        Sampler(library, recipe.sampler, (recipe.seed, "inter-shot"), device),
        seed=recipe.seed,
        negative=library.states_of(recipe.negative_prompt),
        codec=read_codec(recipe.codec, device),
        walk_shots=recipe.walk_shots,
    )
    watch = None
    if recipe.watch is not None:
        watch = watch_student(generator, stage.sampler, recipe.distill.rollout, recipe.watch)
    return train(stage, recipe.trainer, world, recipe, exported=(GENERATOR, CRITIC), watch=watch)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser(__doc__)
    watching.add_flags(flags)
    add_flags(flags)
    flags.add_argument("--critic", required=True, help="the critic's weights, from the intra-shot run")
    flags.add_argument("--codec", required=True, help="the codec that the latents were made with")
    flags.add_argument("--lora-rank", type=int, help="train adapters of this rank instead of all weights")
    flags.add_argument("--walk-shots", type=int, default=4, help="shots of a walk")
    given = flags.parse_args(arguments)
    if given.init is None:
        flags.error("inter-shot distillation starts from the intra-shot student: pass --init")
    refuse_unused(flags, given, "distillation", "compile")
    start(given)
    recipe = config(
        data=given.data,
        out=given.out,
        init=given.init,
        critic=given.critic,
        teacher=given.teacher,
        codec=given.codec,
    )
    if given.lora_rank is not None:
        recipe = replace(recipe, lora=LoRAConfig(rank=given.lora_rank, alpha=float(given.lora_rank)))
    recipe = replace(with_distill_flags(recipe, given), walk_shots=given.walk_shots)
    with joined() as world:
        run(replace(recipe, seed=given.seed or 0, watch=watching.from_flags(given)), world)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
