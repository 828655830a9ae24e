"""The loop that serves every stage: it knows optimisers, averages, clocks and snapshots, and nothing of video.

A stage says which networks learn, whose turn it is, what a batch is and what the loss is. Everything random in a batch
is addressed by its step and sample number, so the position in the data is the step, and a run that is stopped anywhere
goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from shotstream.training.distributed import (
    World,
    any_of,
    average_gradients,
    average_numbers,
    is_sharded,
    settle,
    shard,
    whole,
)
from shotstream.training.ema import Ema
from shotstream.training.muon import Muon
from shotstream.training.snapshot import SnapshotReader, newest_snapshot, write_snapshot
from shotstream.training.watch import Watched

log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")
MAX_BAD_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """The optimiser of one network and its schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: matrices inside blocks by Muon (Jordan et al. 2024), the rest by AdamW. Its updates are scaled to AdamW's
    size, so that one rate serves both (Liu et al. 2025, arXiv 2502.16982)."""
    learning_rate: float = 8e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest gradient norm."""
    warmup_steps: int = 200
    """Own updates of this network until the full rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Cosine falls to a tenth at the run's last step."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.clip <= 0 or self.warmup_steps < 0:
            raise ValueError(f"need learning_rate > 0, clip > 0, warmup_steps >= 0, got {self}")

    def rate(self, updates: int, progress: float) -> float:
        """Learning rate after `updates` updates of the network, `progress` in [0, 1] through the run."""
        warm = min(1.0, (updates + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        falling = 1.0 if self.schedule == "constant" else 0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * warm * falling


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """One run of one stage."""

    out: str = "runs/default"
    """Folder of snapshots, logs and the final weights."""
    steps: int = 1000
    """Length of the whole run, over all its resumptions."""
    minutes: float | None = None
    """Stop after this long, counting this process only. Resume to go on."""
    minutes_in_all: float | None = None
    """End after this long, over all its resumptions: for runs that are to be equally long."""
    batch_size: int = 128
    """Samples per optimiser step over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per step and process."""
    optimisers: Mapping[str, OptimiserConfig] = field(default_factory=lambda: {"model": OptimiserConfig()})
    """One per network of the stage."""
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """bfloat16 runs products in bfloat16 (autocast); weights, optimiser and averages stay float32."""
    device: str = "auto"
    sharded: bool = False
    """Split each network over the processes (FSDP2) instead of copying it to all."""
    save_minutes: float = 5.0
    log_every: int = 20
    image_every: int = 0
    """Steps between pictures and probe scores in TensorBoard; 0 makes none."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulation {self.accumulation}")
        for name, minutes in (("minutes", self.minutes), ("minutes_in_all", self.minutes_in_all)):
            if minutes is not None and minutes <= 0:
                raise ValueError(f"{name} must be positive, got {minutes}")

    def torch_device(self, world: World) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


class Loss(NamedTuple):
    """One part of a loss, and numbers to log."""

    value: Tensor
    logs: dict[str, Tensor]


class Stage(Protocol, Generic[BatchT]):
    """What a training stage has to say."""

    networks: Mapping[str, nn.Module]
    """The networks that learn, by the names that `TrainerConfig.optimisers` uses."""

    def turn(self, step: int) -> str:
        """Which network learns at this step."""
        ...

    def batch(self, step: int, samples: range) -> BatchT:
        """Samples `samples` of the step's global batch; the same numbers always give the same batch."""
        ...

    def losses(self, batch: BatchT, step: int) -> Iterator[Loss]:
        """Parts whose sum is the batch's mean loss for the network whose turn it is.

        Each part is backpropagated before the next is asked for, so memory is one part's.
        """
        ...

    def carried(self) -> dict[str, Tensor]:
        """Tensors made at earlier steps that later steps of this process need (a reused rollout)."""
        ...

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Take `carried` back."""
        ...

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        """Pictures of its own to look at, uint8 [H, W, 3]."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    reason: Literal["finished", "out of time", "stopped"]
    samples_per_second: float
    logs: dict[str, float]
    """Mean of each logged number over the last interval."""


class Trainer(Generic[BatchT]):
    """Runs a stage from its last snapshot to its end, its time limit or a signal."""

    def __init__(
        self,
        stage: Stage[BatchT],
        config: TrainerConfig,
        world: World | None = None,
        *,
        recipe: Any = None,
        watch: Callable[[], Watched] | None = None,
    ) -> None:
        """`recipe` is the resolved config of the whole run; it is saved with each snapshot.

        `watch` is called every `image_every` steps, with the averaged weights in place.
        """
        if set(config.optimisers) != set(stage.networks):
            raise ValueError(f"optimisers {sorted(config.optimisers)} do not match networks {sorted(stage.networks)}")
        self.stage = stage
        self.config = config
        self.world = world or World()
        self.device = config.torch_device(self.world)
        self.recipe = recipe
        self.watch = watch
        self.folder = Path(config.out)
        self.step = 0
        self.updates = dict.fromkeys(stage.networks, 0)
        for network in stage.networks.values():
            network.to(self.device)
            if config.sharded and self.world.size > 1:
                shard(network)
        self.emas = {name: Ema(n, decay=config.ema_decay) for name, n in stage.networks.items()}
        self.optimisers = {name: _optimisers(n, config.optimisers[name]) for name, n in stage.networks.items()}
        self._bad_steps = dict.fromkeys(stage.networks, 0)
        self._seconds_before = 0.0
        """Of earlier processes, up to the snapshot that this one went on from."""
        self._started = time.monotonic()
        self._own_share = _micro_batches(self.world.share(config.batch_size), config.accumulation)

    def run(self) -> Outcome:
        """Train. Continues from the newest snapshot in `out`, saves every few minutes and when it ends."""
        self.resume()
        started, started_at = time.monotonic(), self.step
        self._started = last_save = started
        meter, board = _Meter(), _board(self.folder, self.world)
        reason: Literal["finished", "out of time", "stopped"] = "finished"
        with _stop_on_signal() as stop, _progress(self.world) as progress:
            task = progress.add_task(self.folder.name, total=self.config.steps, completed=self.step, note="")
            while self.step < self.config.steps:
                if self._agree(self._is_long_enough()):
                    reason = "out of time"
                    break
                meter.add(self.train_step())
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    logs = self._report(meter, board, started, started_at)
                    progress.update(task, note=_note(logs))
                if self.config.image_every and self.step % self.config.image_every == 0:
                    self._show(board)
                progress.update(task, completed=self.step)
                now = time.monotonic()
                if self._agree(stop.is_set):
                    reason = "stopped"
                    break
                if self._agree(self._out_of_time(now - started)):
                    reason = "out of time"
                    break
                if self._agree(now - last_save > 60 * self.config.save_minutes):
                    self.save()
                    last_save = now
        self.save()
        board.close()
        seconds = max(time.monotonic() - started, 1e-9)
        rate = (self.step - started_at) * self.config.batch_size / seconds
        log.info("%s at step %d: %s, %.1f samples/s", self.folder.name, self.step, reason, rate)
        return Outcome(step=self.step, reason=reason, samples_per_second=rate, logs=meter.last)

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step of the network whose turn it is. Returns what the stage logged."""
        name = self.stage.turn(self.step)
        network = self.stage.networks[name]
        logs = self._accumulate_gradients()
        parameters = [p for p in network.parameters() if p.requires_grad]
        average_gradients(parameters, self.world)
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.config.optimisers[name].clip))
        logs[f"{name}/gradient_norm"] = norm
        if torch.isfinite(norm):
            self._update(name)
            self._bad_steps[name] = 0
        else:
            self._count_bad_step(name)
        for other in self.stage.networks.values():
            other.zero_grad(set_to_none=True)
        settle(self.stage.networks.values())
        self.step += 1
        return logs

    def save(self) -> None:
        """Write a snapshot of everything the continuation depends on."""
        state = {
            "updates": self.updates,
            "ema_updates": {name: ema.updates for name, ema in self.emas.items()},
            "recipe": to_json(self.recipe),
            "seconds": self._seconds(),
        }
        write_snapshot(self.folder / "snapshots", self.step, state, self._tensors(), self.world)

    def resume(self) -> bool:
        """Load the newest snapshot of this run, if any. Returns whether there was one.

        Raises ValueError if it is of another recipe: how long, where and at which precision to train may differ.
        """
        path = newest_snapshot(self.folder / "snapshots")
        if path is None:
            return False
        reader = SnapshotReader(path, self.world)
        if others := sorted(differing(reader.state.get("recipe"), to_json(self.recipe))):
            raise ValueError(
                f"{self.folder} holds a run of another recipe ({', '.join(others[:5])}): "
                "go on with the same one, or give another --out"
            )
        for name, network in self.stage.networks.items():
            self._load_network(name, network, reader)
        self.updates = dict(reader.state["updates"])
        self.step = int(reader.state["step"])
        self._seconds_before = float(reader.state.get("seconds", 0.0))
        self.stage.restore({n: reader.read(f"own/{n}").to(self.device) for n in reader.names("own/")})
        torch.set_rng_state(reader.read("rng/cpu"))
        if self.device.type == "cuda" and reader.names("rng/cuda"):
            torch.cuda.set_rng_state(reader.read("rng/cuda"), self.device)
        log.info("resumed %s at step %d", path, self.step)
        return True

    def _accumulate_gradients(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for samples in self._own_share:
            for loss in self._parts(self.stage.batch(self.step, samples)):
                torch.autograd.backward(loss.value / len(self._own_share))
                for key, value in {"loss": loss.value, **loss.logs}.items():
                    share = value.detach() / len(self._own_share)
                    total[key] = total[key] + share if key in total else share
        return total

    def _parts(self, batch: BatchT) -> Iterator[Loss]:
        """The stage's losses, made under autocast; what the caller does between them is not."""
        parts = self.stage.losses(batch, self.step)
        bfloat16 = self.config.precision == "bfloat16"
        # Without the cache of cast weights: one filled by a rollout without gradient would cut the replay's gradient.
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _update(self, name: str) -> None:
        rate = self.config.optimisers[name].rate(self.updates[name], self.step / self.config.steps)
        for optimiser in self.optimisers[name]:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.emas[name].update(self.stage.networks[name])
        self.updates[name] += 1

    def _count_bad_step(self, name: str) -> None:
        self._bad_steps[name] += 1
        log.warning("step %d: gradient of %s is not finite, update skipped", self.step, name)
        if self._bad_steps[name] >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{MAX_BAD_STEPS} updates of {name} in a row had no finite gradient: lower the learning rate"
            )

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for name, network in self.stage.networks.items():
            tensors |= {f"network/{name}/{key}": value for key, value in network.state_dict().items()}
            tensors |= {f"ema/{name}/{key}": value for key, value in self.emas[name].shadow.items()}
            tensors |= _optimiser_tensors(name, network, self.optimisers[name])
        return tensors | {f"own/{key}": value for key, value in self.stage.carried().items()}

    def _load_network(self, name: str, network: nn.Module, reader: SnapshotReader) -> None:
        with torch.no_grad():
            for key, value in network.state_dict().items():
                value.copy_(reader.read(f"network/{name}/{key}", value))
        ema = self.emas[name]
        shadow = {key: reader.read(f"ema/{name}/{key}", value) for key, value in ema.shadow.items()}
        ema.load(shadow, int(reader.state["ema_updates"][name]))
        _load_optimisers(name, network, self.optimisers[name], reader)

    def _agree(self, flag: bool) -> bool:
        return any_of(flag, self.world, self.device)

    def _seconds(self) -> float:
        """How long the run took so far, over all its resumptions."""
        return self._seconds_before + time.monotonic() - self._started

    def _is_long_enough(self) -> bool:
        return self.config.minutes_in_all is not None and self._seconds() > 60 * self.config.minutes_in_all

    def _out_of_time(self, seconds: float) -> bool:
        return self.config.minutes is not None and seconds > 60 * self.config.minutes

    def _report(self, meter: _Meter, board: Any, started: float, started_at: int) -> dict[str, float]:
        logs = average_numbers(meter.mean(), self.world, self.device)
        done = (self.step - started_at) * self.config.batch_size
        logs["samples_per_second"] = done / max(time.monotonic() - started, 1e-9)
        for key, value in logs.items():
            board.add_scalar(key, value, self.step)
        log.info("step %d %s", self.step, " ".join(f"{k}={v:.4g}" for k, v in logs.items()))
        meter.last = logs
        return logs

    def _show(self, board: Any) -> None:
        pictures, scores = self.stage.pictures(self.step), dict[str, float]()
        if self.watch is not None:
            with _averaged(self.stage.networks, self.emas):
                seen = self.watch()
            settle(self.stage.networks.values())
            pictures, scores = pictures | seen.pictures, seen.scores
        for key, picture in pictures.items():
            board.add_image(key, picture, self.step, dataformats="HWC")
        for key, score in scores.items():
            board.add_scalar(key, score, self.step)
        if scores:
            log.info("step %d %s", self.step, " ".join(f"{key}={score:.2f}" for key, score in scores.items()))


class _Meter:
    """Sums logged numbers on their device; they are read once per report, not once per step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.last: dict[str, float] = {}

    def add(self, logs: Mapping[str, Tensor]) -> None:
        for key, value in logs.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def mean(self) -> dict[str, float]:
        """Means since the last call."""
        means = {key: float(total) / self.counts[key] for key, total in sorted(self.sums.items())}
        self.sums, self.counts = {}, {}
        return means


class _NoBoard:
    """Stands in where TensorBoard is not installed, or on all processes but the first."""

    def add_scalar(self, *_: object) -> None: ...

    def add_image(self, *_: object, **__: object) -> None: ...

    def close(self) -> None: ...


def _board(folder: Path, world: World) -> Any:
    if not world.is_first:
        return _NoBoard()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed: numbers go to the log only (pip install 'shotstream[train]')")
        return _NoBoard()
    return SummaryWriter(str(folder / "board"))


class _Stop:
    is_set = False

    def set(self, number: int, _: FrameType | None) -> None:
        log.warning("signal %d: saving after this step", number)
        self.is_set = True


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """SIGTERM and Ctrl-C end the run after the current step, with a snapshot."""
    stop = _Stop()
    try:
        before = {number: signal.signal(number, stop.set) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs us decides when to stop
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _averaged(networks: Mapping[str, nn.Module], emas: Mapping[str, Ema]) -> Iterator[None]:
    own = {name: {k: v.clone() for k, v in n.state_dict().items()} for name, n in networks.items()}
    for name, network in networks.items():
        emas[name].copy_to(network)
    try:
        yield
    finally:
        for name, network in networks.items():
            network.load_state_dict(own[name])


def _progress(world: World) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, disable=not world.is_first, transient=False)


def _note(logs: Mapping[str, float]) -> str:
    loss = f"loss {logs['loss']:.4f}, " if "loss" in logs else ""
    return f"{loss}{logs['samples_per_second']:.1f} samples/s"


def _micro_batches(share: range, count: int) -> list[range]:
    if len(share) % count:
        raise ValueError(f"{len(share)} samples per process cannot be split into {count} micro-batches")
    each = len(share) // count
    return [share[i * each : (i + 1) * each] for i in range(count)]


def _optimisers(network: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if config.kind == "adamw":
        return [_adamw(list(named.values()), config)]
    hidden = {name: p for name, p in named.items() if p.ndim == 2 and "blocks." in name}
    if not hidden or is_sharded(hidden.values()):
        raise ValueError(
            f"the optimiser muon needs whole matrices inside blocks; {type(network).__name__} has "
            f"{'sharded ones' if hidden else 'none'}: choose adamw"
        )
    muon = Muon(list(hidden.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
    return [muon, _adamw([p for name, p in named.items() if name not in hidden], config)]


def _adamw(parameters: Sequence[nn.Parameter], config: OptimiserConfig) -> torch.optim.AdamW:
    """Matrices decay; biases, norms and modulation, whose zero means nothing, do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2 and p.shape[0] > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, foreach=True
    )


def _optimiser_tensors(name: str, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"optimiser/{name}/{key}/{part}": value
        for optimiser in optimisers
        for key, p in network.named_parameters()
        for part, value in optimiser.state.get(p, {}).items()
    }


def _load_optimisers(
    name: str, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer], reader: SnapshotReader
) -> None:
    keys = {p: key for key, p in network.named_parameters()}
    for optimiser in optimisers:
        for p in (p for group in optimiser.param_groups for p in group["params"]):
            prefix = f"optimiser/{name}/{keys[p]}/"
            parts = {part: reader.read(prefix + part, None if part == "step" else p) for part in reader.names(prefix)}
            if parts:
                # In the weight's own memory order, which files do not keep: mixed orders cost time at every update.
                optimiser.state[p] = {
                    part: v if part == "step" else torch.empty_like(p, dtype=v.dtype).copy_(v)
                    for part, v in parts.items()
                }


FREE_TO_CHANGE = {
    *("out", "steps", "minutes", "minutes_in_all", "accumulation", "precision", "device", "sharded", "compiled"),
    *("save_minutes", "log_every", "image_every", "watch"),
}
"""Fields of a recipe that may be others when a run goes on."""


def differing(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Names of what two recipes both have and that is not the same.

    Runs may move: of a folder its own name counts, of a file also the folder it lies in, as stages name theirs alike.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (before.keys() & now.keys()) - FREE_TO_CHANGE:
            yield from differing(before[key], now[key], f"{name}.{key}" if name else key)
    elif isinstance(before, str) and isinstance(now, str):
        if _place(before) != _place(now):
            yield name
    elif before != now:
        yield name


def _place(path: str) -> tuple[str, ...]:
    return Path(path).parts[-2 if Path(path).suffix else -1 :]


def to_json(value: Any) -> Any:
    """A config as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(v) for v in value]
    return (
        value
        if value is None or isinstance(value, (str, int, float, bool))
        else json.loads(json.dumps(value, default=str))
    )
