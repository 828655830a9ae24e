"""Train the storyworld teacher in four steps, each starting from the one before.

    python -m shotstream.recipes.teacher frames --data latents --out runs/t1
    python -m shotstream.recipes.teacher memory --data latents --out runs/t2 --init runs/t1/weights.safetensors
    python -m shotstream.recipes.teacher clips  --data latents --out runs/t3 --init runs/t2/weights.safetensors
    python -m shotstream.recipes.teacher shots  --data latents --out runs/t4 --init runs/t3/weights.safetensors

frames: lone pictures from captions. memory: six remembered frames and four independent pictures of the next shot, where
identity is learnt cheaply. clips: six remembered frames and twelve latent frames. shots: the full 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from shotstream.models.dit import DiTConfig
from shotstream.presets import STORYWORLD
from shotstream.recipes import watching
from shotstream.recipes.runs import (
    add_frames_flag,
    build_dit,
    compile_blocks,
    parser,
    refuse_unused,
    start,
    train,
    with_flags,
    with_frames,
    with_shares,
)
from shotstream.recipes.watching import WatchConfig, watch_teacher
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distributed import World, joined
from shotstream.training.teacher import FlowConfig, TeacherStage, freeze_all_but_self_attention
from shotstream.training.trainer import OptimiserConfig, Outcome, TrainerConfig

Part = Literal["frames", "memory", "clips", "shots"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecipe:
    """Everything that decides a teacher run."""

    part: Part
    data: str
    sampler: SamplerConfig
    flow: FlowConfig
    trainer: TrainerConfig
    dit: DiTConfig = STORYWORLD.dit
    init: str | None = None
    self_attention_only: bool = False
    """Freeze all else, as the published teacher, which starts from a text-to-video model."""
    compiled: bool = False
    watch: WatchConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.self_attention_only and self.init is None:
            raise ValueError("--self-attention-only needs --init: all else would stay as it was drawn")


def config(part: Part, *, data: str, out: str) -> TeacherRecipe:
    """The storyworld recipe of one step."""
    flow = FlowConfig(shift=3.0)
    if part == "frames":
        sampler = SamplerConfig(context_frames=0, singles=1)
        return _recipe(part, data, out, sampler, flow, steps=4400, batch=128, rate=8e-4)
    if part == "memory":
        return _recipe(part, data, out, SamplerConfig(singles=4), flow, steps=1300, batch=24, rate=5e-4)
    if part == "clips":
        return _recipe(part, data, out, SamplerConfig(target_frames=12), flow, steps=950, batch=24, rate=3e-4)
    return _recipe(part, data, out, SamplerConfig(), flow, steps=210, batch=12, rate=1e-4)


def _recipe(
    part: Part, data: str, out: str, sampler: SamplerConfig, flow: FlowConfig, *, steps: int, batch: int, rate: float
) -> TeacherRecipe:
    optimiser = OptimiserConfig(kind="muon", learning_rate=rate, schedule="cosine", warmup_steps=min(200, steps // 10))
    trainer = TrainerConfig(out=out, steps=steps, batch_size=batch, optimisers={"model": optimiser})
    return TeacherRecipe(part=part, data=data, sampler=sampler, flow=flow, trainer=trainer)


def run(recipe: TeacherRecipe, world: World | None = None) -> Outcome:
    """Train, or go on training, by this recipe."""
    world = world or World()
    library = LatentLibrary(recipe.data, text_length=recipe.dit.text_len)
    model = build_dit(recipe.dit, library, recipe.init, recipe.seed)
    if recipe.self_attention_only:
        freeze_all_but_self_attention(model)
    if recipe.compiled:
        compile_blocks(model)
    device = recipe.trainer.torch_device(world)
    sampler = Sampler(library, recipe.sampler, (recipe.seed, "teacher", recipe.part), device)
    stage = TeacherStage(model, sampler, recipe.flow, recipe.seed)
    watch = None if recipe.watch is None else watch_teacher(stage, recipe.watch)
    return train(stage, recipe.trainer, world, recipe, watch=watch)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser(__doc__)
    watching.add_flags(flags)
    add_frames_flag(flags)
    flags.add_argument("part", choices=get_args(Part))
    flags.add_argument("--two-people", type=float, help="share of samples from shots of two people alone")
    flags.add_argument("--person-share", type=float, help="share of a frame's loss for people, if few")
    flags.add_argument("--self-attention-only", action="store_true", help="freeze all else; needs --init")
    given = flags.parse_args(arguments)
    if given.part in ("frames", "memory"):
        refuse_unused(flags, given, f"{given.part}, which learns from single frames", "frames")
    start(given)
    recipe = config(given.part, data=given.data, out=given.out)
    recipe = replace(recipe, init=given.init, self_attention_only=given.self_attention_only, seed=given.seed or 0)
    recipe = replace(recipe, trainer=with_flags(recipe.trainer, given))
    recipe = replace(recipe, sampler=with_frames(with_shares(recipe.sampler, given), given.frames))
    recipe = replace(recipe, compiled=given.compile, watch=watching.from_flags(given))
    with joined() as world:
        run(recipe, world)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
