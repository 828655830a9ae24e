"""Weights come in under many names, and bad files are refused in words, never run."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shotstream.models.attention import SegmentAttention
from shotstream.models.checkpoint import load_dit, parse_config, read_tensors, save_dit
from shotstream.models.dit import DiT, DiTConfig
from shotstream.models.lora import LoRAConfig, inject_lora, lora_parameters, lora_state_dict

RENAMES: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name,
    "published": lambda name: f"model.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "peft_over_published": lambda name: f"base_model.model.model.{name}",
    "fsdp": lambda name: f"model._fsdp_wrapped_module.{name.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}",
    "checkpointed": lambda name: f"model.{name.replace('blocks.0.', 'blocks.0._checkpoint_wrapped_module.')}",
    "compiled": lambda name: f"_orig_mod.model.{name}",
    "all_at_once": lambda name: (
        "_orig_mod.base_model.model.model._fsdp_wrapped_module."
        + name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    "live_lora": lambda name: f"model.{name.replace('.q.weight', '.q.base_layer.weight')}",
}


def same_weights(a: DiT, b: DiT) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def write_pt(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", RENAMES)
@pytest.mark.parametrize("section", ["generator", None])
def test_every_naming_holds_the_same_weights(tmp_path: Path, tiny_dit: DiT, layout: str, section: str | None) -> None:
    tensors = {RENAMES[layout](name): tensor for name, tensor in tiny_dit.state_dict().items()}
    content = tensors if section is None else {section: tensors, "step": 7, "critic": {"x": torch.zeros(1)}}
    path = write_pt(tmp_path / "weights.pt", content)
    assert same_weights(load_dit(path, config=tiny_dit.config), tiny_dit)


def write_shards(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """Every other tensor into one of two files, and an index."""
    names = [f"diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for part, name in enumerate(names):
        save_file(dict(list(tensors.items())[part::2]), folder / name, metadata)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: names[i % 2] for i, key in enumerate(tensors)}}))
    return index


def test_shards_are_read_through_their_index(tmp_path: Path, tiny_dit: DiT) -> None:
    config = json.dumps(asdict(tiny_dit.config))
    index = write_shards(tmp_path, tiny_dit.state_dict(), config=config)
    assert same_weights(load_dit(index), tiny_dit)
    (tmp_path / "config.json").write_text(config)
    assert same_weights(load_dit(tmp_path), tiny_dit)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match=r"no weights file at .*-00002-of-00002"):
        load_dit(index)


def test_what_does_not_fit_one_file_is_written_as_shards(tmp_path: Path, tiny_dit: DiT) -> None:
    path = tmp_path / "student.safetensors"
    assert save_dit(path, tiny_dit, dtype=torch.float32) == path
    index = save_dit(path, tiny_dit, dtype=torch.float32, shard_bytes=20_000, step="7")
    assert index == tmp_path / "student.safetensors.index.json"
    assert not path.exists()  # the earlier one, which would be read instead
    shards = sorted(tmp_path.glob("student-*-of-*.safetensors"))
    assert len(shards) > 1
    assert max(len(file.read_bytes()) for file in shards) < 2 * 20_000
    for name in (path, index):
        assert same_weights(load_dit(name), tiny_dit)
        assert read_tensors(name)[1]["step"] == "7"
    assert save_dit(path, tiny_dit, dtype=torch.float32) == path
    assert not index.exists(), "the earlier one, which would be read instead"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": 3}}'])
def test_a_broken_index_is_named(tmp_path: Path, tiny_config: DiTConfig, content: str) -> None:
    path = tmp_path / "w.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="cannot read weights from"):
        load_dit(path, config=tiny_config)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_transformer_of_diffusers_gives_the_same_flow_here(tmp_path: Path, sharded: bool) -> None:
    diffusers = pytest.importorskip("diffusers", reason="Diffusers comes with the `wan` extra")
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # its norms and gates begin at ones and zeros
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "10GB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file() == sharded
    ours = load_dit(tmp_path)
    latents, states = torch.randn(1, 3, 4, 4, 6), torch.zeros(1, 512, 8)
    states[:, :7] = torch.randn(7, 8)
    with torch.no_grad():
        wanted = theirs(latents.transpose(1, 2), torch.tensor([700.0]), states).sample.transpose(1, 2)
        flow = ours(
            latents,
            torch.full((1, 3), 700.0),
            positions_BF=torch.arange(3)[None],
            shot_ids_BF=torch.zeros(1, 3),
            captions=ours.encode_captions(states),
            caption_ids_BF=torch.zeros(1, 3, dtype=torch.long),
            attention=SegmentAttention(sizes=(3,), tokens_per_frame=6),
        )
    torch.testing.assert_close(flow, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_file_carries_its_config(tmp_path: Path, tiny_config: DiTConfig, dtype: torch.dtype) -> None:
    config = replace(tiny_config, prediction="clean", theta=0.25)
    model = DiT(config)
    save_dit(tmp_path / "m.safetensors", model, dtype=dtype, recipe="teacher")
    loaded = load_dit(tmp_path / "m.safetensors")
    assert loaded.config == config
    assert loaded.dtype == torch.float32
    expected = {name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_official_folder_with_its_own_config_names(tmp_path: Path, tiny_dit: DiT) -> None:
    official = asdict(tiny_dit.config) | {"in_dim": 4, "out_dim": 4, "model_type": "t2v", "_class_name": "WanModel"}
    del official["in_channels"], official["out_channels"], official["theta"], official["prediction"]
    (tmp_path / "config.json").write_text(json.dumps(official))
    save_file(tiny_dit.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = load_dit(tmp_path)
    assert loaded.config == tiny_dit.config
    assert same_weights(loaded, tiny_dit)


def test_averaged_weights_are_chosen_when_asked_for(tmp_path: Path, tiny_dit: DiT) -> None:
    averaged = DiT(tiny_dit.config)
    fsdp = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in averaged.state_dict().items()}
    raw = {f"model.{name}": tensor for name, tensor in tiny_dit.state_dict().items()}
    path = write_pt(tmp_path / "w.pt", {"generator": raw, "generator_ema": fsdp})
    assert same_weights(load_dit(path, config=tiny_dit.config), tiny_dit)
    assert same_weights(load_dit(path, config=tiny_dit.config, use_ema=True), averaged)


def test_asking_for_averaged_weights_that_are_not_there(tmp_path: Path, tiny_dit: DiT) -> None:
    path = write_pt(tmp_path / "w.pt", {"generator": tiny_dit.state_dict()})
    with pytest.raises(ValueError, match="no averaged weights"):
        load_dit(path, config=tiny_dit.config, use_ema=True)


@pytest.fixture
def adapted(tiny_dit: DiT) -> DiT:
    inject_lora(tiny_dit, LoRAConfig(rank=3, alpha=3))
    with torch.no_grad():
        for parameter in lora_parameters(tiny_dit):
            parameter.normal_(std=0.3)
    return tiny_dit


def merged_weight(adapted: DiT, scale: float = 1.0) -> Tensor:
    layer = adapted.get_submodule("blocks.1.cross_attn.o")
    return layer.base_layer.weight + scale * layer.lora_B.weight @ layer.lora_A.weight


def base_weights(adapted: DiT) -> dict[str, Tensor]:
    return {
        f"model.{name.replace('.base_layer', '')}": tensor
        for name, tensor in adapted.state_dict().items()
        if ".lora_" not in name
    }


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_adapters_of_their_own_file_are_merged(tmp_path: Path, adapted: DiT, scale: float) -> None:
    base = write_pt(tmp_path / "base.pt", {"generator": base_weights(adapted)})
    lora = write_pt(tmp_path / "lora.pt", {"generator_lora": lora_state_dict(adapted), "step": 3})
    loaded = load_dit(base, config=adapted.config, lora=lora, lora_scale=scale)
    torch.testing.assert_close(loaded.blocks[1].cross_attn.o.weight, merged_weight(adapted, scale), rtol=0, atol=1e-6)


def test_adapters_inside_the_file_are_merged(tmp_path: Path, adapted: DiT) -> None:
    names = {name: re.sub(r"(lora_[AB])", r"\1.default", name) for name in adapted.state_dict()}
    state = {f"base_model.model.model.{names[name]}": tensor for name, tensor in adapted.state_dict().items()}
    loaded = load_dit(write_pt(tmp_path / "live.pt", {"generator": state}), config=adapted.config)
    torch.testing.assert_close(loaded.blocks[1].cross_attn.o.weight, merged_weight(adapted), rtol=0, atol=1e-6)


def test_half_an_adapter_is_refused(tmp_path: Path, adapted: DiT) -> None:
    base = write_pt(tmp_path / "base.pt", base_weights(adapted))
    halves = {name: t for name, t in lora_state_dict(adapted).items() if "blocks.0.ffn.0.lora_B" not in name}
    with pytest.raises(ValueError, match=r"LoRA of blocks\.0\.ffn\.0 has only one of its two matrices"):
        load_dit(base, config=adapted.config, lora=write_pt(tmp_path / "l.pt", halves))


def test_adapter_of_a_layer_that_is_not_there(tmp_path: Path, adapted: DiT) -> None:
    base = write_pt(tmp_path / "base.pt", base_weights(adapted))
    strange = {"blocks.9.q.lora_A.weight": torch.zeros(3, 32), "blocks.9.q.lora_B.weight": torch.zeros(32, 3)}
    with pytest.raises(ValueError, match=r"adapts blocks\.9\.q, which the base weights do not have"):
        load_dit(base, config=adapted.config, lora=write_pt(tmp_path / "l.pt", strange))


def test_adapter_of_another_width(tmp_path: Path, adapted: DiT) -> None:
    base = write_pt(tmp_path / "base.pt", base_weights(adapted))
    name = "blocks.0.self_attn.q.lora_"
    wide = {f"{name}A.weight": torch.zeros(3, 64), f"{name}B.weight": torch.zeros(64, 3)}
    with pytest.raises(ValueError, match=r"LoRA of blocks\.0\.self_attn\.q .*expected"):
        load_dit(base, config=adapted.config, lora=write_pt(tmp_path / "l.pt", wide))


def test_lora_file_without_adapters(tmp_path: Path, tiny_dit: DiT) -> None:
    path = write_pt(tmp_path / "base.pt", tiny_dit.state_dict())
    with pytest.raises(ValueError, match="holds no LoRA adapters"):
        load_dit(path, config=tiny_dit.config, lora=path)


def test_missing_and_unknown_tensors_are_named(tmp_path: Path, tiny_dit: DiT) -> None:
    tensors = dict(tiny_dit.state_dict())
    tensors["blocks.7.modulation"] = tensors.pop("head.modulation")
    path = write_pt(tmp_path / "w.pt", tensors)
    with pytest.raises(ValueError, match=r"1 tensors missing.*head\.modulation.*1 unknown.*blocks\.7\.modulation"):
        load_dit(path, config=tiny_dit.config)


def test_weights_of_another_preset(tmp_path: Path, tiny_dit: DiT) -> None:
    path = tmp_path / "w.safetensors"
    save_dit(path, tiny_dit)
    with pytest.raises(
        ValueError, match=r"blocks\.0\.ffn\.0\.weight is \[48, 32\], expected \[64, 32\] \(6 tensors differ"
    ):
        load_dit(path, config=replace(tiny_dit.config, ffn_dim=64))


def test_file_without_a_config(tmp_path: Path, tiny_dit: DiT) -> None:
    save_file(tiny_dit.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not say its config: pass the preset"):
        load_dit(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "{}",
        '{"latent_channels": 4}',
        "[1, 2]",
        '{"dim": "wide"}',
        '{"patch_size": 2}',
        '{"attention_head_dim": 16}',
    ],
)
def test_broken_config(text: str) -> None:
    with pytest.raises(ValueError, match="config"):
        parse_config(text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights file at .*gone\.safetensors"):
        load_dit(tmp_path / "gone.safetensors")


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        load_dit(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file(tmp_path: Path, tiny_dit: DiT, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        write_pt(whole, {"generator": tiny_dit.state_dict()})
    else:
        save_dit(whole, tiny_dit)
    content, broken = whole.read_bytes(), tmp_path / f"broken{suffix}"
    for length in (0, 1, 7, 8, 64, 1000, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"cannot read weights from .*broken\\{suffix}"):
            load_dit(broken, config=tiny_dit.config)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_something_else_by_that_name(tmp_path: Path, tiny_config: DiTConfig, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read weights"):
        load_dit(path, config=tiny_config)


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), {"generator": torch.zeros(1)}])
def test_file_that_is_not_a_dict_of_tensors(tmp_path: Path, tiny_config: DiTConfig, content: object) -> None:
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        load_dit(write_pt(tmp_path / "w.pt", content), config=tiny_config)


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_pickle_is_never_run(
    tmp_path: Path, tiny_dit: DiT, write: Callable[[object, Path], object], nested: bool
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.pt"
    content = {"generator": {**tiny_dit.state_dict(), "x": Payload(proof)}} if nested else Payload(proof)
    write(content, path)
    with pytest.raises(ValueError, match="cannot read weights") as refused:
        load_dit(path, config=tiny_dit.config)
    assert not proof.exists()
    assert "weights_only" not in str(refused.value)  # torch's own text tells how to have it run
