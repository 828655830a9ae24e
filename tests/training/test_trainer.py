"""A run that is stopped anywhere goes on as if it had not been; two processes are one."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import assert_same_weights, launch
from PIL import Image
from torch import Tensor, nn
from two_processes import STAGES

from shotstream.training.ema import Ema
from shotstream.training.randomness import generator_at, normal
from shotstream.training.snapshot import newest_snapshot
from shotstream.training.trainer import Loss, OptimiserConfig, Trainer, TrainerConfig
from shotstream.training.watch import Watched


@dataclass
class ToyStage:
    """Two networks take turns; one thing is carried from step to step."""

    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Tensor = field(default_factory=lambda: torch.zeros(3))
    stop_at: int | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.networks = {
            "generator": nn.Linear(3, 3),
            "critic": nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 3)),
        }

    def turn(self, step: int) -> str:
        return "generator" if step % 3 == 0 else "critic"

    def batch(self, step: int, samples: range) -> Tensor:
        return torch.stack([normal(generator_at("toy", step, i), (3,)) for i in samples])

    def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        output = self.networks[self.turn(step)](batch)
        loss = (output - batch.cumsum(1) - self.memory).square().mean()
        self.memory = 0.5 * self.memory + 0.1 * output.detach().mean(0)
        yield Loss(loss, {"size": output.detach().abs().mean()})

    def carried(self) -> dict[str, Tensor]:
        return {"memory": self.memory}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        self.memory = carried["memory"]

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        return {}


def _config(out: Path, **changes: object) -> TrainerConfig:
    optimisers = {"generator": OptimiserConfig(warmup_steps=2), "critic": OptimiserConfig(schedule="cosine")}
    config = TrainerConfig(
        out=str(out), steps=11, batch_size=4, precision="float32", device="cpu", optimisers=optimisers
    )
    return replace(config, **changes)


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    live = {f"{n}.{k}": v for n, net in trainer.stage.networks.items() for k, v in net.state_dict().items()}
    averaged = {f"ema.{n}.{k}": v for n, ema in trainer.emas.items() for k, v in ema.shadow.items()}
    return live | averaged


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path):
    whole = Trainer(ToyStage(), _config(tmp_path / "whole"))
    assert whole.run().reason == "finished"
    first = Trainer(ToyStage(stop_at=4), _config(tmp_path / "parts"))
    outcome = first.run()
    assert (outcome.reason, outcome.step) == ("stopped", 5)
    torch.rand(17)  # another process has other global random numbers
    second = Trainer(ToyStage(), _config(tmp_path / "parts"))
    assert second.run().step == 11
    for (name, a), b in zip(_weights(whole).items(), _weights(second).values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(whole.stage.carried()["memory"], second.stage.carried()["memory"])


def test_numbers_and_pictures_reach_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the `train` extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, :3] = (250, 10, 60)
    config = _config(tmp_path, steps=2, log_every=1, image_every=1)
    trainer = Trainer(ToyStage(), config, watch=lambda: Watched({"samples": picture}, {"probe/mark": 0.75}))
    trainer.run()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("probe/mark")] == [(1, 0.75), (2, 0.75)]
    assert {"size", "samples_per_second"} <= set(board.Tags()["scalars"])
    shown = board.Images("samples")
    assert [event.step for event in shown] == [1, 2]
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(shown[-1].encoded_image_string))), picture)


class _BlocksStage(ToyStage):
    """A network with blocks, whose matrices Muon trains."""

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        blocks = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 3))})
        blocks.forward = lambda x: blocks["blocks"](x)
        self.networks = {"generator": blocks}

    def turn(self, step: int) -> str:
        return "generator"


MUON = {"generator": OptimiserConfig(kind="muon", learning_rate=0.01, weight_decay=0.0, warmup_steps=0)}


def test_muon_moves_every_direction_of_a_matrix_about_alike(tmp_path: Path):
    stage = _BlocksStage()
    before = stage.networks["generator"].state_dict()["blocks.0.weight"].clone()
    Trainer(stage, _config(tmp_path, steps=1, optimisers=MUON)).run()
    change = stage.networks["generator"].state_dict()["blocks.0.weight"] - before
    sizes = torch.linalg.svdvals(change) / (0.01 * 0.2 * 8**0.5)
    assert sizes.min() > 0.5
    assert sizes.max() < 1.5


def test_muon_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path):
    whole = Trainer(_BlocksStage(), _config(tmp_path / "whole", optimisers=MUON))
    whole.run()
    Trainer(_BlocksStage(stop_at=4), _config(tmp_path / "parts", optimisers=MUON)).run()
    second = Trainer(_BlocksStage(), _config(tmp_path / "parts", optimisers=MUON))
    assert second.run().step == 11
    for (name, a), b in zip(_weights(whole).items(), _weights(second).values(), strict=True):
        assert torch.equal(a, b), name


def test_muon_says_what_it_needs(tmp_path: Path):
    with pytest.raises(ValueError, match=r"matrices inside blocks.*choose adamw"):
        Trainer(ToyStage(), _config(tmp_path, optimisers={**MUON, "critic": OptimiserConfig()}))


def test_a_finished_run_is_left_alone(tmp_path: Path):
    Trainer(ToyStage(), _config(tmp_path)).run()
    again = Trainer(ToyStage(), _config(tmp_path))
    assert again.run().step == 11
    assert again.updates == {"generator": 4, "critic": 7}


def test_time_is_up_is_not_the_end(tmp_path: Path):
    outcome = Trainer(ToyStage(), _config(tmp_path, minutes=1e-9)).run()
    assert (outcome.reason, outcome.step) == ("out of time", 1)


def test_time_in_all_counts_what_was_spent_before_a_stop(tmp_path: Path):
    first = Trainer(ToyStage(stop_at=4), _config(tmp_path, minutes_in_all=10)).run()
    assert (first.reason, first.step) == ("stopped", 5)
    for _ in range(2):
        later = Trainer(ToyStage(), _config(tmp_path, minutes_in_all=1e-9)).run()
        assert (later.reason, later.step) == ("out of time", 5)
    assert Trainer(ToyStage(), _config(tmp_path, minutes_in_all=10)).run().reason == "finished"


def test_a_half_written_snapshot_is_never_read(tmp_path: Path):
    trainer = Trainer(ToyStage(), _config(tmp_path, steps=3))
    trainer.run()
    (tmp_path / "snapshots" / ".partial-00000009").mkdir()
    (tmp_path / "snapshots" / "step-00000009").mkdir()  # a disk that filled up: no state.json
    newest = newest_snapshot(tmp_path / "snapshots")
    assert newest is not None
    assert newest.name == "step-00000003"


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path):
    runs = []
    for accumulation in (1, 4):
        stage = ToyStage()
        stage.losses = lambda batch, step, s=stage: iter(
            [Loss((s.networks[s.turn(step)](batch) - batch).square().mean(), {})]
        )
        trainer = Trainer(stage, _config(tmp_path / str(accumulation), accumulation=accumulation))
        trainer.run()
        runs.append(_weights(trainer))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-5, atol=1e-6)


def test_another_networks_snapshot_is_refused(tmp_path: Path):
    Trainer(ToyStage(), _config(tmp_path, steps=2)).run()
    stage = ToyStage()
    stage.networks = {"generator": nn.Linear(3, 3), "critic": nn.Linear(3, 3)}
    with pytest.raises(ValueError, match="another stage or network"):
        Trainer(stage, _config(tmp_path, steps=4)).run()


def test_an_update_without_a_finite_gradient_is_skipped(tmp_path: Path):
    stage = ToyStage()
    trainer = Trainer(stage, _config(tmp_path))
    stage.batch = lambda step, samples: torch.full((len(samples), 3), float("nan") if step == 0 else 1.0)
    before = {k: v.clone() for k, v in stage.networks["generator"].state_dict().items()}
    stage.memory = torch.zeros(3)
    trainer.train_step()
    assert all(torch.equal(before[k], v) for k, v in stage.networks["generator"].state_dict().items())
    assert trainer.updates["generator"] == 0


def test_a_network_that_never_has_a_finite_gradient_ends_the_run_though_the_other_learns(tmp_path: Path):
    stage = ToyStage()
    trainer = Trainer(stage, _config(tmp_path, steps=60))
    usual = stage.batch
    stage.batch = lambda step, samples: usual(step, samples) * (float("nan") if step % 3 == 0 else 1.0)
    stage.losses = lambda batch, step: iter([Loss(stage.networks[stage.turn(step)](batch).square().mean(), {})])
    with pytest.raises(FloatingPointError, match="updates of generator in a row"):
        trainer.run()
    assert trainer.updates["critic"] > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"part": "guided"}, "part"),
        ({"data": "elsewhere/other"}, "data"),
        ({"init": "runs/c2/weights.safetensors"}, "init"),
        ({"init": "/moved/runs/c1/weights.safetensors"}, ""),
        ({"trainer": {"optimisers": {"generator": {"kind": "muon"}}, "steps": 7}}, "trainer.optimisers.generator.kind"),
        ({"data": "elsewhere/latents", "newly": 1, "minutes": 3}, ""),
        ({"trainer": {"optimisers": {"generator": {"kind": "adamw"}}, "steps": 99}}, ""),
    ],
)
def test_a_run_goes_on_by_the_recipe_it_was_begun_with(tmp_path: Path, change: dict[str, object], named: str):
    recipe = {
        "part": "real",
        "data": "runs/latents",
        "init": "runs/c1/weights.safetensors",
        "trainer": {"optimisers": {"generator": {"kind": "adamw"}}, "steps": 4},
    }
    Trainer(ToyStage(), _config(tmp_path, steps=2), recipe=recipe).run()
    again = Trainer(ToyStage(), _config(tmp_path, steps=4), recipe=recipe | change)
    if named:
        with pytest.raises(ValueError, match=rf"another recipe \({named}\)"):
            again.run()
    else:
        assert again.run().step == 4


def test_learning_rate_warms_up_then_falls():
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    assert config.rate(0, 0) == pytest.approx(0.1)
    assert config.rate(9, 0) == pytest.approx(1.0)
    assert config.rate(500, 0.5) == pytest.approx(0.55)
    assert config.rate(900, 1.0) == pytest.approx(0.1)


def test_ema_keeps_moving_where_bfloat16_would_stand_still():
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(network.weight)
    ema = Ema(network, decay=0.999, ramp=False)
    nn.init.constant_(network.weight, 2.0)
    for _ in range(1000):
        ema.update(network)
    assert ema.shadow["weight"].item() == pytest.approx(2 - 0.999**1000, rel=1e-4)


def test_ema_ramp_forgets_the_start():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 100.0)
    ema = Ema(network, decay=0.999)
    nn.init.constant_(network.weight, 1.0)
    for _ in range(60):
        ema.update(network)
    assert ema.shadow["weight"].item() == pytest.approx(1.0, abs=0.01)


def test_applied_average_is_taken_back():
    network = nn.Linear(2, 2)
    own = network.weight.detach().clone()
    ema = Ema(network)
    ema.shadow["weight"].zero_()
    with ema.applied(network):
        assert network.weight.abs().max() == 0
    assert torch.equal(network.weight, own)


def _train(
    out: Path, *, processes: int, sharded: bool = False, stages: Sequence[str] = ("teacher",)
) -> subprocess.Popen[bytes]:
    return launch(f"two_processes.run({str(out)!r}, {list(stages)}, sharded={sharded})", out, processes=processes)


# A process that has finished sometimes aborts while PyTorch takes its threads down ("terminate called ...").
@pytest.mark.flaky(reruns=2, only_rerun="At index")
def test_two_processes_equal_one(tmp_path: Path):
    """Tiny networks in every stage on the same global batch, copied over the processes, the teacher's also split:
    weights agree to 1e-5."""
    one, pair, split = (tmp_path / name for name in ("one", "pair", "split"))
    runs = [_train(one, processes=1, stages=STAGES), _train(pair, processes=2, stages=STAGES)]
    runs.append(_train(split, processes=2, sharded=True))
    assert [run.wait(timeout=240) for run in runs] == [0, 0, 0]
    for stage in STAGES:
        assert_same_weights(one / stage, pair / stage)
    assert_same_weights(one / "teacher", split / "teacher")
    shutil.move(split / "teacher" / "weights.pt", tmp_path / "weights.pt")
    assert _train(split, processes=1).wait(timeout=240) == 0  # its snapshot, on one process
    assert_same_weights(one / "teacher", split / "teacher")
