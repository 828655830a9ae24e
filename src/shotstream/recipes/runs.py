"""What all recipes share: flags that change daily, building a network, and the files a finished stage leaves."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from shotstream.engine.loading import default_precision
from shotstream.models.checkpoint import (
    load_dit,
    load_strictly,
    merge_lora,
    plain_names,
    read_tensors,
    save_dit,
    split_lora,
)
from shotstream.models.codec import ChunkedCodec, Codec
from shotstream.models.dit import DiT, DiTConfig
from shotstream.models.lora import LoRALinear
from shotstream.models.tiny_codec import TinyCodec
from shotstream.models.wan_codec import WanCodec
from shotstream.training.data import LatentLibrary, SamplerConfig
from shotstream.training.distributed import World, whole
from shotstream.training.trainer import Outcome, Stage, Trainer, TrainerConfig, differing, to_json
from shotstream.training.watch import Watcher

log = logging.getLogger(__name__)


def parser(description: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Flags of every stage. Anything else is changed in Python with `dataclasses.replace`."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--out", required=True, help="folder of this run; a run found there is continued")
    if data:
        flags.add_argument("--data", required=True, help="folder of latents from shotstream.recipes.latents")
    flags.add_argument("--init", help="weights to start from (a stage's weights.safetensors)")
    flags.add_argument("--minutes", type=float, help="stop after this long; the same command continues")
    flags.add_argument("--steps", type=int, help="length of the whole run")
    flags.add_argument("--batch", type=int, help="samples per step over all processes")
    flags.add_argument("--accumulation", type=int, help="micro-batches per step and process")
    flags.add_argument("--learning-rate", type=float)
    flags.add_argument("--optimiser", choices=("adamw", "muon"), help="of the network that learns")
    flags.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="default: bfloat16, on CPUs without it float32"
    )
    flags.add_argument("--device", help="cpu, cuda, cuda:1 ...; a GPU is taken where there is one")
    flags.add_argument("--threads", type=int, help="CPU threads")
    flags.add_argument("--seed", type=int)
    flags.add_argument("--sharded", action="store_true", help="split networks over the processes (FSDP2)")
    flags.add_argument("--compile", action="store_true", help="torch.compile the network (not for distillation)")
    flags.add_argument("--image-every", type=int, help="steps between pictures in TensorBoard")
    return flags


def refuse_unused(flags: argparse.ArgumentParser, given: argparse.Namespace, what: str, *names: str) -> None:
    """End with an error where a flag is given that does nothing here."""
    for name in names:
        if getattr(given, name) not in (None, False):
            flags.error(f"--{name.replace('_', '-')} does nothing for {what}: leave it out")


def add_frames_flag(flags: argparse.ArgumentParser) -> None:
    """The flag whose value `with_frames` takes."""
    flags.add_argument(
        "--frames",
        type=lambda text: tuple(int(number) for number in text.split(",")),
        metavar="N[,N...]",
        help="latent frames of a shot, from its opening; of several numbers each step draws one; default: all",
    )


def with_frames(config: SamplerConfig, frames: tuple[int, ...] | None) -> SamplerConfig:
    """Samples of the lengths that `--frames` asks for."""
    if frames is None:
        return config
    if any(number < 3 or number % 3 for number in frames):
        raise ValueError(f"--frames takes whole chunks, multiples of 3, got {', '.join(map(str, frames))}")
    return replace(config, target_frames=max(frames), lengths=frames if len(frames) > 1 else ())


def with_shares(config: SamplerConfig, given: argparse.Namespace) -> SamplerConfig:
    """Which samples are favoured, as far as a recipe has flags for it and they are given."""
    shares = {name: getattr(given, name, None) for name in ("two_people", "steered", "person_share")}
    return replace(config, **{name: share for name, share in shares.items() if share is not None})


def start(arguments: argparse.Namespace) -> None:
    """Set up logging and threads."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)


def precision_of(arguments: argparse.Namespace) -> Literal["float32", "bfloat16"]:
    """What the flags ask for, else what the device is fast in."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return arguments.precision or default_precision(torch.device(device))


def with_flags(config: TrainerConfig, arguments: argparse.Namespace) -> TrainerConfig:
    """The trainer's config with what the command line changes. Rate and optimiser are of the first network."""
    names = {
        "out": "out",
        "minutes": "minutes",
        "steps": "steps",
        "batch": "batch_size",
        "accumulation": "accumulation",
    }
    names |= {"device": "device", "image_every": "image_every"}
    given = {field: getattr(arguments, flag) for flag, field in names.items() if getattr(arguments, flag) is not None}
    given["precision"] = precision_of(arguments)
    optimisers = dict(config.optimisers)
    first = next(iter(optimisers))
    if arguments.learning_rate is not None:
        optimisers[first] = replace(optimisers[first], learning_rate=arguments.learning_rate)
    if arguments.optimiser is not None:
        optimisers[first] = replace(optimisers[first], kind=arguments.optimiser)
    return replace(config, **given, optimisers=optimisers, sharded=arguments.sharded)


def keep_settings(folder: Path, settings: Any, *, free: Collection[str] = ()) -> None:
    """Write down what a folder's files are made by. Raises ValueError if those that are there were made otherwise.

    Args: free names what may change all the same.
    """
    path = folder / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    if before and (others := sorted(set(differing(before, to_json(settings))) - set(free))):
        raise ValueError(f"{folder} was begun with another {', '.join(others)}: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(settings), indent=1))


def build_dit(config: DiTConfig, library: LatentLibrary, init: str | None, seed: int) -> DiT:
    """The network for these latents: from weights if given, else fresh and the same for the same seed."""
    channels = library.channels
    if init is not None:
        return widened(load_dit(init).float(), channels).train()
    torch.manual_seed(seed)
    return DiT(replace(config, in_channels=channels, out_channels=channels)).init_for_training().train()


@torch.no_grad()
def widened(model: DiT, channels: int) -> DiT:
    """The network for latents with more channels: it treats those it knows as before and predicts zero for the rest.

    Raises: ValueError for fewer channels than it has.
    """
    old = model.config.in_channels
    if channels == old:
        return model
    if channels < old:
        raise ValueError(f"the weights are for {old}-channel latents, the data has {channels}: take another codec")
    wide = DiT(replace(model.config, in_channels=channels, out_channels=channels))
    weights = dict(model.state_dict())
    for name in ("head.head.weight", "head.head.bias"):
        patches = rearrange(weights[name], "(p c) ... -> p ... c", c=old)
        weights[name] = rearrange(F.pad(patches, (0, channels - old)), "p ... c -> (p c) ...")
    weights["patch_embedding.weight"] = F.pad(weights["patch_embedding.weight"], (0, 0) * 3 + (0, channels - old))
    wide.load_state_dict(weights)
    return wide


def read_codec(path: Path | str, device: torch.device) -> Codec:
    """The codec that is there, frozen: ours where a file says its config, else Wan's. Raises: ValueError."""
    codec: ChunkedCodec
    if Path(path).is_dir() or "config" not in read_tensors(path)[1]:
        codec = WanCodec.load(path)
    else:
        codec = TinyCodec.load(path)
    return codec.requires_grad_(False).to(device)


def compile_blocks(model: DiT) -> None:
    """Let torch.compile fuse what lies between the matrix products, in place; names of weights stay as they are.

    A third more samples per second on a CPU, after half a minute of compiling; needs a C++ compiler there.
    """
    for block in model.blocks:
        block.compile()


def train(
    stage: Stage[Any],
    config: TrainerConfig,
    world: World,
    recipe: Any,
    *,
    exported: Sequence[str] = ("model",),
    watch: Watcher | None = None,
) -> Outcome:
    """Run the stage and write the averaged weights of the named networks beside its snapshots.

    One network gives `weights.safetensors`; several give `<name>.safetensors` each. float32, config and recipe inside;
    low-rank adapters are merged.
    """
    trainer = Trainer(stage, config, world, recipe=recipe, watch=watch)
    outcome = trainer.run()
    folder = Path(config.out)
    for name in exported:
        weights = averaged_weights(trainer, name)
        if world.is_first:
            path = folder / f"{'weights' if len(exported) == 1 else name}.safetensors"
            _export(stage.networks[name], weights, path, recipe=recipe, step=outcome.step)
    return outcome


def averaged_weights(trainer: Trainer[Any], name: str) -> dict[str, Tensor]:
    """A network's averaged weights, gathered and with adapters merged. All processes must ask together."""
    network = trainer.stage.networks[name]
    with trainer.emas[name].applied(network):
        tensors = {key: whole(value).detach().cpu().clone() for key, value in network.state_dict().items()}
    scales = {layer.scale for layer in network.modules() if isinstance(layer, LoRALinear)}
    base, adapters = split_lora(plain_names(tensors))
    return merge_lora(base, adapters, scale=scales.pop()) if scales else base


def _export(network: nn.Module, weights: dict[str, Tensor], path: Path, *, recipe: Any, step: int) -> None:
    assert isinstance(network, DiT)
    plain = DiT(network.config)
    load_strictly(plain, weights, "the trained network")
    save_dit(path, plain, dtype=torch.float32, recipe=json.dumps(to_json(recipe)), step=str(step))
    (path.parent / "recipe.json").write_text(json.dumps(to_json(recipe), indent=1))
    log.info("wrote %s", path)
