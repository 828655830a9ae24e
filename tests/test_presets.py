"""Presets are consistent in themselves, and weights are found where the documentation says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shotstream.engine.loading import load_text
from shotstream.engine.stream import Engine
from shotstream.inventory import list_weights
from shotstream.models import text
from shotstream.models.checkpoint import load_dit, save_dit
from shotstream.presets import (
    PRESETS,
    STORYWORLD,
    WAN_1_3B,
    WEIGHTS_VARIABLE,
    Preset,
    find_local_minilm,
    find_weights,
    get_preset,
)


def test_the_known_presets_have_the_decided_sizes() -> None:
    assert set(PRESETS) == {"storyworld", "wan-1.3b"}
    assert (STORYWORLD.latent_height, STORYWORLD.latent_width) == (12, 20)
    assert (WAN_1_3B.latent_height, WAN_1_3B.latent_width) == (60, 104)
    assert STORYWORLD.dit.grid(12, 20) == (6, 10)
    assert WAN_1_3B.student_timesteps == pytest.approx((1000.0, 957.928772, 888.888916, 737.588623), abs=1e-3)
    assert STORYWORLD.student_timesteps == pytest.approx((1000.0, 919.5, 780.2, 375.6), abs=0.1)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'nope': choose one of storyworld, wan-1\.3b"):
        get_preset("nope")


def test_a_given_folder_comes_before_the_shared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, shared = tmp_path / "given", tmp_path / "shared"
    for folder in (given, shared / "storyworld"):
        folder.mkdir(parents=True)
        (folder / "student.safetensors").touch()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(shared))
    assert find_weights(STORYWORLD, "student", given) == given / "student.safetensors"
    assert find_weights(STORYWORLD, "student") == shared / "storyworld" / "student.safetensors"
    assert find_weights(STORYWORLD, "student", given / "student.safetensors") == given / "student.safetensors"


def test_a_larger_model_is_found_and_listed_as_shards(tmp_path: Path, tiny_preset: Preset, tiny_engine: Engine) -> None:
    model = tiny_engine.model
    index = save_dit(tmp_path / "student.safetensors", model, dtype=torch.float32, shard_bytes=8000)
    shards = sorted(tmp_path.glob("student-*.safetensors"))
    assert find_weights(tiny_preset, "student", tmp_path) == index
    assert find_weights(tiny_preset, "student", index) == index
    for place in (tmp_path, index):
        loaded = load_dit(find_weights(tiny_preset, "student", place))
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    listed = [entry.path for entry in list_weights(tiny_preset, tmp_path) if entry.part == "student"]
    assert listed == [str(path) for path in (index, *shards)]
    shards[-1].unlink()
    missing = list_weights(tiny_preset, tmp_path)[len(shards)]
    assert missing.path == ""
    assert f"{shards[-1]} is missing" in missing.summary
    with pytest.raises(ValueError, match=f"no weights file at {shards[-1]}"):
        load_dit(find_weights(tiny_preset, "student", tmp_path))


def test_a_folder_may_hold_the_hub_repositories_side_by_side(tmp_path: Path) -> None:
    base = tmp_path / "Wan2.1-T2V-1.3B"
    base.mkdir()
    (base / "Wan2.1_VAE.pth").touch()
    (base / "models_t5_umt5-xxl-enc-bf16.pth").touch()
    assert find_weights(WAN_1_3B, "codec", tmp_path) == base / "Wan2.1_VAE.pth"
    assert find_weights(WAN_1_3B, "text", tmp_path) == base


def test_taehv_is_taken_for_the_wan_vae_where_somebody_put_it(tmp_path: Path) -> None:
    base = tmp_path / "Wan2.1-T2V-1.3B"
    base.mkdir()
    (base / "Wan2.1_VAE.pth").touch()
    (base / "taew2_1.pth").touch()
    assert find_weights(WAN_1_3B, "codec", tmp_path) == base / "taew2_1.pth"
    (tmp_path / "taew2_1.safetensors").touch()
    assert find_weights(WAN_1_3B, "codec", tmp_path) == tmp_path / "taew2_1.safetensors"


def test_minilm_may_lie_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    given, shared = tmp_path / "given", tmp_path / "shared"
    assert find_local_minilm(STORYWORLD, tmp_path) is None
    (shared / "minilm").mkdir(parents=True)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(shared))
    assert find_local_minilm(STORYWORLD) == shared / "minilm"
    (shared / "storyworld" / "minilm").mkdir(parents=True)
    assert find_local_minilm(STORYWORLD) == shared / "storyworld" / "minilm"
    (given / "minilm").mkdir(parents=True)
    assert find_local_minilm(STORYWORLD, given) == given / "minilm"
    assert find_weights(STORYWORLD, "student", given).name == "student.safetensors"


def test_loading_and_the_inventory_take_it_where_the_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not importlib.util.find_spec(text.MINILM_PACKAGE):
        pytest.skip("the MiniLM weights package is not installed: run `make test`, which installs it")
    (tmp_path / "minilm").symlink_to(text.resolve_minilm())
    find = importlib.util.find_spec  # transformers asks it about others while it is imported
    monkeypatch.setattr(
        text.importlib.util, "find_spec", lambda name, *more: None if name == text.MINILM_PACKAGE else find(name, *more)
    )
    encoder = load_text(STORYWORLD, tmp_path, torch.device("cpu"))
    assert encoder.encoder.folder == tmp_path / "minilm"
    entries = {entry.part: entry for entry in list_weights(STORYWORLD, tmp_path)}
    assert entries["text"].path == str(tmp_path / "minilm" / "model.safetensors")


def test_the_inventory_lists_what_would_be_used_or_refuses_as_loading_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("package", "package/storyworld", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("package/storyworld/student", "package/storyworld/codec", "package/storyworld/probe", "mine"):
        save_file({"weight": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    for module in ("presets", "inventory"):
        monkeypatch.setattr(f"shotstream.{module}.PACKAGE_WEIGHTS", tmp_path / "package")
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    mine = tmp_path / "mine.safetensors"
    listed = [(entry.part, entry.path) for entry in list_weights(STORYWORLD, mine) if entry.part != "text"]
    assert listed == [
        *((role, str(find_weights(STORYWORLD, role, mine))) for role in ("student", "teacher", "codec")),
        ("probe", str(tmp_path / "package/storyworld/probe.safetensors")),
    ]
    for folder in ("empty", "absent"):
        with pytest.raises(ValueError, match="no weights") as refused:
            list_weights(STORYWORLD, tmp_path / folder)
        with pytest.raises(ValueError, match=re.escape(str(refused.value))):
            find_weights(STORYWORLD, "student", tmp_path / folder)


def test_missing_weights_say_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shotstream.presets.PACKAGE_WEIGHTS", tmp_path / "package")
    with pytest.raises(ValueError, match=r"looked in .*package"):
        find_weights(STORYWORLD, "codec")
    with pytest.raises(ValueError, match="holds no weights"):
        find_weights(STORYWORLD, "codec", tmp_path)
    with pytest.raises(ValueError, match="no weights at"):
        find_weights(STORYWORLD, "codec", tmp_path / "absent")
    with pytest.raises(ValueError, match="its parts are student, teacher, codec"):
        find_weights(STORYWORLD, "text")


def test_without_the_hub_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pass --weights FOLDER"):
        find_weights(WAN_1_3B, "student")
