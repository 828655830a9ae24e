"""Turn the teacher into a causal student.

    python -m shotstream.recipes.causal_init real  --data latents --init teacher.safetensors --out runs/c1
    python -m shotstream.recipes.causal_init pairs --data latents --init teacher.safetensors --out runs/pairs
    python -m shotstream.recipes.causal_init ode   --data runs/pairs --init runs/c1/weights.safetensors --out runs/c2
    python -m shotstream.recipes.causal_init guided --data latents --init student.safetensors --guidance 2 --out runs/c3

real: block-causal flow matching on real shots. pairs: trajectories of the guided teacher. ode: regression onto the
latents in which they end. guided: what the student would say with guidance by captions, learnt into one pass.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from shotstream.engine.rollout import RolloutConfig
from shotstream.engine.teacher import TeacherConfig
from shotstream.models.checkpoint import load_dit
from shotstream.models.dit import DiT, DiTConfig
from shotstream.presets import STORYWORLD
from shotstream.recipes import watching
from shotstream.recipes.runs import (
    add_frames_flag,
    build_dit,
    compile_blocks,
    keep_settings,
    parser,
    precision_of,
    refuse_unused,
    start,
    train,
    with_flags,
    with_frames,
    with_shares,
)
from shotstream.recipes.watching import WatchConfig, watch_student
from shotstream.training.causal_init import (
    CausalConfig,
    GuidedStage,
    OdeStage,
    PairConfig,
    PairStore,
    RealCausalStage,
    make_pairs,
)
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.distributed import World, joined
from shotstream.training.trainer import OptimiserConfig, Outcome, TrainerConfig

log = logging.getLogger(__name__)

Part = Literal["real", "ode", "guided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalRecipe:
    """Everything that decides one causal training run."""

    part: Part
    data: str
    """Latents for `real` and `guided`, trajectories for `ode`."""
    causal: CausalConfig
    trainer: TrainerConfig
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(drop_text=0.0))
    dit: DiTConfig = STORYWORLD.dit
    init: str | None = None
    compiled: bool = False
    watch: WatchConfig | None = None
    """`ode` watches held-out stories alone: trajectories tell no labels."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsRecipe:
    """Everything that decides a set of trajectories."""

    data: str
    out: str
    init: str
    pairs: PairConfig
    count: int = 600
    negative_prompt: str = ""
    """One of the data's captions, which guidance steers away from; empty: from none."""
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(drop_text=0.0, drop_context=0.0, captions_only=True)
    )
    compiled: bool = False
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0


def config(part: Part, *, data: str, out: str) -> CausalRecipe:
    """The storyworld recipe of one training part."""
    steps, batch = (500, 12) if part == "ode" else (300, 12)
    optimiser = OptimiserConfig(kind="muon", learning_rate=1e-4, schedule="cosine", warmup_steps=20)
    trainer = TrainerConfig(out=out, steps=steps, batch_size=batch, optimisers={"model": optimiser}, ema_decay=0.99)
    causal = CausalConfig(
        timesteps=STORYWORLD.student_timesteps,
        chunk_frames=STORYWORLD.slab.chunk_frames,
        guidance=2.0 if part == "guided" else 1.0,
    )
    return CausalRecipe(part=part, data=data, causal=causal, trainer=trainer)


def with_guidance(recipe: CausalRecipe, guidance: float) -> CausalRecipe:
    """Real shots with guidance in the student's own answer, which needs blank samples beside the others."""
    causal = replace(recipe.causal, guidance=guidance)
    return replace(recipe, causal=causal, sampler=replace(recipe.sampler, drop_all=0.1 if guidance > 1 else 0.0))


def pairs_config(*, data: str, out: str, init: str, guidance_scale: float, num_steps: int = 24) -> PairsRecipe:
    """The storyworld recipe of trajectories; the kept steps are those at the student's noise levels."""
    sigmas = tuple(STORYWORLD.schedule.sampling_sigmas(num_steps).tolist())
    sampler = TeacherConfig(sigmas=sigmas, guidance_scale=guidance_scale, slab=STORYWORLD.slab)
    kept = tuple(round((1 - level / 1000) * num_steps) for level in STORYWORLD.student_levels)
    return PairsRecipe(data=data, out=out, init=init, pairs=PairConfig(sampler=sampler, kept_steps=kept))


def run(recipe: CausalRecipe, world: World | None = None) -> Outcome:
    """Train, or go on training, by this recipe."""
    world = world or World()
    device = recipe.trainer.torch_device(world)
    if recipe.part != "ode":
        library = LatentLibrary(recipe.data, text_length=recipe.dit.text_len)
        model = build_dit(recipe.dit, library, recipe.init, recipe.seed)
        sampler = Sampler(library, recipe.sampler, (recipe.seed, "causal"), device)
        stage: RealCausalStage | OdeStage = RealCausalStage(model, recipe.causal, recipe.seed, sampler=sampler)
        if recipe.part == "guided":
            stage = _guided(recipe, model, sampler, device)
    else:
        if recipe.init is None:
            raise ValueError("`ode` starts from a student: pass --init with the weights of `real` or of the teacher")
        model = load_dit(recipe.init).float().train()
        stage = OdeStage(model, recipe.causal, recipe.seed, pairs=PairStore(recipe.data), device=device)
    watch = None
    if recipe.watch is not None:
        if recipe.part == "ode":
            sampler = _heldout(recipe.watch, recipe.sampler, model, device)
        rollout = RolloutConfig(timesteps=recipe.causal.timesteps, slab=STORYWORLD.slab)
        watch = watch_student(model, sampler, rollout, recipe.watch)
    if recipe.compiled:
        compile_blocks(model)
    return train(stage, recipe.trainer, world, recipe, watch=watch)


def _heldout(watch: WatchConfig, samples: SamplerConfig, model: DiT, device: torch.device) -> Sampler:
    if watch.heldout is None:
        raise ValueError("trajectories tell no labels to watch `ode` by: pass --watch-data with a folder of latents")
    return Sampler(LatentLibrary(watch.heldout, text_length=model.config.text_len), samples, device=device)


def _guided(recipe: CausalRecipe, model: DiT, sampler: Sampler, device: torch.device) -> GuidedStage:
    if recipe.init is None:
        raise ValueError("`guided` goes on from a student: pass --init")
    if recipe.causal.guidance <= 1:
        raise ValueError(
            f"guidance of {recipe.causal.guidance} is what the student says already: pass --guidance above 1"
        )
    guide = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    if recipe.compiled:
        compile_blocks(guide)
    scale, causal = recipe.causal.guidance, replace(recipe.causal, guidance=1.0)
    return GuidedStage(model, causal, recipe.seed, sampler=sampler, guide=guide, scale=scale)


def run_pairs(recipe: PairsRecipe, world: World | None = None, *, minutes: float | None = None) -> None:
    """Make the trajectories that are not there yet; several processes share the files.

    Raises ValueError if those that are there were made otherwise.
    """
    world = world or World()
    if world.is_first:
        keep_settings(Path(recipe.out), recipe, free={"count"})
    device = TrainerConfig(device=recipe.device).torch_device(world)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    teacher = load_dit(recipe.init).to(device, torch.float32).eval().requires_grad_(False)
    if recipe.compiled:
        compile_blocks(teacher)
    library = LatentLibrary(recipe.data, text_length=teacher.config.text_len)
    sampler = Sampler(library, recipe.sampler, (recipe.seed, "pairs"), device)
    negative = library.states_of(recipe.negative_prompt)
    files = range(world.rank, -(-recipe.count // recipe.pairs.batch_size), world.size)
    began = time.monotonic()
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        making = make_pairs(teacher, sampler, recipe.pairs, Path(recipe.out), files, negative=negative, until=until)
        for made, number in enumerate(making):
            seconds = (time.monotonic() - began) / ((made + 1) * recipe.pairs.batch_size)
            log.info(
                "trajectories %d of %d, %.1f s each", (number + 1) * recipe.pairs.batch_size, recipe.count, seconds
            )


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parser(__doc__)
    watching.add_flags(flags)
    flags.add_argument("part", choices=("real", "pairs", "ode", "guided"))
    flags.add_argument(
        "--guidance", type=float, help="pairs: of the teacher; real, guided: what is learnt into the answer; 1: none"
    )
    flags.add_argument(
        "--own-history",
        type=float,
        help="real, guided: share of steps whose history is drawn by the student, or its guide",
    )
    add_frames_flag(flags)
    flags.add_argument("--two-people", type=float, help="real, guided: share of samples from shots of two people alone")
    flags.add_argument(
        "--steered", type=float, help="real, guided: share of samples from shots whose caption changes on the way"
    )
    flags.add_argument("--person-share", type=float, help="real, guided: share of a frame's loss for people, if few")
    flags.add_argument("--negative-prompt", help="pairs: one of the data's captions, which guidance steers away from")
    flags.add_argument("--count", type=int, default=600, help="trajectories")
    given = flags.parse_args(arguments)
    if given.part in ("pairs", "ode"):  # trajectories are of whole shots, whose beginnings a causal student sees alike
        refuse_unused(flags, given, given.part, "frames", "own_history", "two_people", "steered", "person_share")
    if given.part == "pairs":
        trained = ("steps", "batch", "accumulation", "learning_rate", "optimiser", "sharded", "image_every")
        refuse_unused(flags, given, given.part, *trained, "watch_codec", "watch_probe", "watch_data")
    else:
        refuse_unused(flags, given, given.part, "negative_prompt")
    if given.part == "ode":
        refuse_unused(flags, given, given.part, "guidance")
    start(given)
    with joined() as world:
        if given.part != "pairs":
            recipe = config(given.part, data=given.data, out=given.out)
            recipe = replace(recipe, init=given.init, trainer=with_flags(recipe.trainer, given), seed=given.seed or 0)
            recipe = replace(recipe, compiled=given.compile, watch=watching.from_flags(given))
            if given.part == "real" and given.guidance is not None:
                recipe = with_guidance(recipe, given.guidance)
            if given.part == "guided" and given.guidance is not None:
                recipe = replace(recipe, causal=replace(recipe.causal, guidance=given.guidance))
            if given.part in ("real", "guided") and given.own_history is not None:
                recipe = replace(recipe, causal=replace(recipe.causal, own_history=given.own_history))
            if given.part in ("real", "guided"):
                recipe = replace(recipe, sampler=with_shares(recipe.sampler, given))
            recipe = replace(recipe, sampler=with_frames(recipe.sampler, given.frames))
            run(recipe, world)
            return 0
        if given.init is None:
            flags.error("pairs need the teacher: pass --init")
        guidance = STORYWORLD.guidance_scale if given.guidance is None else given.guidance
        pairs = pairs_config(data=given.data, out=given.out, init=given.init, guidance_scale=guidance)
        pairs = replace(pairs, count=given.count, device=given.device or "auto", seed=given.seed or 0)
        pairs = replace(pairs, precision=precision_of(given), compiled=given.compile)
        pairs = replace(pairs, negative_prompt=given.negative_prompt or "")
        run_pairs(pairs, world, minutes=given.minutes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
