"""Second looks of the probe learn from what was cut out once, as if they looked themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install 'shotstream[world]'")

from shotstream.storyworld.probe import ALONE, LOOKS, Probe, ProbeConfig
from shotstream.training import looks
from shotstream.training.looks import NAMES, LookStage, Pool, make_pool
from shotstream.training.probe import UNSEEN, ProbeDataConfig
from shotstream.training.trainer import OptimiserConfig, Trainer, TrainerConfig

CONFIG = ProbeConfig(widths=(8, 16, 16), blocks=(1, 1), face_pixels=32, body_pixels=24, place_pixels=48)
DATA = ProbeDataConfig(two_people_share=0.5)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "SHARD", 4)
    monkeypatch.setattr(looks, "BATCH", 2)


@pytest.fixture
def probe() -> Probe:
    torch.manual_seed(0)
    return Probe(CONFIG)


def test_a_pool_that_was_interrupted_is_the_pool(probe: Probe, tmp_path: Path):
    make_pool(tmp_path / "whole", probe, DATA, 8, seed=1)
    make_pool(tmp_path / "resumed", probe, DATA, 4, seed=1)
    make_pool(tmp_path / "resumed", probe, DATA, 8, seed=1)
    whole, resumed = Pool(tmp_path / "whole"), Pool(tmp_path / "resumed")
    assert len(whole) == len(resumed) == 8
    for name in (*LOOKS, "classes", "places", *(f"first/{name}" for name in NAMES)):
        assert torch.equal(whole.rows(name, range(8)), resumed.rows(name, range(8)))
    assert not torch.equal(whole.rows("face", [0]), whole.rows("face", [5]))


def test_what_is_kept_has_what_a_look_sees_in_its_middle(probe: Probe):
    frames = torch.rand(2, 4, 192, 320, 3)
    seen, kept = probe.seen_by_looks(frames), probe.seen_by_looks(frames, margin=looks.MARGIN)
    for look, picture in seen.pictures.items():
        height, width = CONFIG.size(look)
        top, left = (
            (side - own) // 2 for side, own in zip(kept.pictures[look].shape[2:], (height, width), strict=True)
        )
        middle = kept.pictures[look][:, :, top : top + height, left : left + width]
        torch.testing.assert_close(middle, picture, rtol=0, atol=1e-4)
    logits = probe(frames)  # second looks that are added answer zero yet
    for name in set(NAMES) - set(ALONE):
        torch.testing.assert_close(seen.logits[name], logits[name])


def test_mirrored_people_look_the_other_way(probe: Probe, tmp_path: Path):
    make_pool(tmp_path, probe, DATA, 8, seed=1)
    stage = LookStage(probe, ("face",), Pool(tmp_path), seed=0)
    turned = 0
    for step in range(4):
        batch = stage.batch(step, range(4))
        for sample in range(4):
            rng = looks.generator_at("look", 0, step, sample)
            row, mirror = int(rng.integers(8)), bool(rng.random() < 0.5)
            label = stage.pool.rows("classes", [row])[0, NAMES.index("angle")].item()
            first = stage.pool.rows("first/angle", [row])[0].float()
            turned += mirror
            assert label != UNSEEN
            assert batch.classes["angle"][sample] == (1 - label if mirror else label)
            torch.testing.assert_close(batch.first["angle"][sample], first.flip(0) if mirror else first)
    assert 0 < turned < 16


def test_mirrored_pictures_are_mirrored():
    kept = torch.randint(0, 256, (1, 12, 20, 20), dtype=torch.uint8)
    pictures = [
        looks._shifted(kept, (20, 20), [looks.generator_at("picture")], torch.tensor([mirror]))
        for mirror in (False, True)
    ]
    assert torch.equal(pictures[1], pictures[0].flip(-1))
    assert not torch.equal(pictures[1], pictures[0])


def test_a_look_is_trained_on_top_of_what_the_others_say(probe: Probe, tmp_path: Path):
    """Face and body both tell the angle; the one that is not trained counts as it is."""
    with torch.no_grad():
        for head in probe.looks["face"].heads:
            head.weight.normal_()
    make_pool(tmp_path, probe, DATA, 4, seed=1)
    stage = LookStage(probe, ("body",), Pool(tmp_path), seed=0)
    assert stage.read == ("face", "body")
    batch = stage.batch(0, range(2))
    with torch.no_grad():
        told = [probe.looks[look](batch.pictures[look], batch.place_NP)["angle"] for look in stage.read]
    torch.testing.assert_close(stage.logits(batch)["angle"], batch.first["angle"] + told[0] + told[1])
    next(iter(stage.losses(batch, 0))).value.backward()
    assert all(p.grad is None for p in probe.looks["face"].parameters())
    assert stage.pictures(0)["face"].ndim == 3


def test_a_pool_of_another_size_is_refused(probe: Probe, tmp_path: Path):
    make_pool(tmp_path, probe, DATA, 4, seed=1)
    other = Probe(replace(CONFIG, face_pixels=24))
    with pytest.raises(ValueError, match="a look at the face"):
        LookStage(other, ("face",), Pool(tmp_path), seed=0)


def test_only_the_looks_that_are_trained_change_and_they_learn(probe: Probe, tmp_path: Path):
    make_pool(tmp_path / "pool", probe, DATA, 8, seed=1)
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    stage = LookStage(probe, ("body", "place"), Pool(tmp_path / "pool"), seed=0)
    optimiser = OptimiserConfig(learning_rate=3e-3, warmup_steps=0)
    config = TrainerConfig(
        out=str(tmp_path / "run"), steps=30, batch_size=8, precision="float32", device="cpu",
        optimisers={"model": optimiser},
    )  # fmt: skip
    first = next(iter(stage.losses(stage.batch(0, range(8)), 0))).value.item()
    Trainer(stage, config).run()
    last = next(iter(stage.losses(stage.batch(0, range(8)), 0))).value.item()
    assert last < 0.7 * first
    changed = {name.split(".")[1] for name, value in probe.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"body", "place"}
    assert all(name.startswith("looks.") for name, v in probe.state_dict().items() if not torch.equal(v, before[name]))


def test_an_empty_pool_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="make_pool"):
        Pool(tmp_path)
