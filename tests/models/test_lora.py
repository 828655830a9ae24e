"""Live adapters: nothing at first, the same merged as live, and files that fit both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shotstream.models.attention import SegmentAttention
from shotstream.models.checkpoint import merge_lora, plain_names, split_lora
from shotstream.models.dit import DiT, DiTConfig
from shotstream.models.lora import (
    LoRAConfig,
    inject_lora,
    load_lora_state_dict,
    lora_parameters,
    lora_state_dict,
    merge_lora_layers,
)

CONFIG = LoRAConfig(rank=3, alpha=6.0)


def run(model: DiT) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        torch.randn(1, 3, 4, 4, 4, generator=generator),
        torch.full((1, 3), 500.0),
        positions_BF=torch.arange(3)[None],
        shot_ids_BF=torch.zeros(1, 3),
        captions=model.encode_captions(torch.randn(1, 5, 8, generator=generator)),
        caption_ids_BF=torch.zeros(1, 3, dtype=torch.long),
        attention=SegmentAttention(sizes=(3,), tokens_per_frame=4),
    )


@pytest.fixture
def adapted(tiny_dit: DiT) -> DiT:
    """Adapters that do something."""
    inject_lora(tiny_dit, CONFIG)
    with torch.no_grad():
        for parameter in lora_parameters(tiny_dit):
            parameter.normal_(std=0.3)
    return tiny_dit


def test_size_at_the_published_rank() -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig())
    inject_lora(model, LoRAConfig(rank=256, alpha=256))
    state = lora_state_dict(model)
    assert len(state) == 600
    assert len(lora_parameters(model)) == 600
    assert sum(parameter.numel() for parameter in lora_parameters(model)) == 349_962_240
    block = "base_model.model.blocks.29"
    assert state[f"{block}.self_attn.q.lora_A.weight"].shape == (256, 1536)
    assert state[f"{block}.cross_attn.o.lora_B.weight"].shape == (1536, 256)
    assert state[f"{block}.ffn.0.lora_B.weight"].shape == (8960, 256)
    assert state[f"{block}.ffn.2.lora_A.weight"].shape == (256, 8960)


def test_fresh_adapters_change_nothing(tiny_dit: DiT) -> None:
    before = run(tiny_dit)
    inject_lora(tiny_dit, CONFIG)
    assert torch.equal(run(tiny_dit), before)


def test_only_adapters_train(tiny_dit: DiT) -> None:
    inject_lora(tiny_dit, CONFIG)
    trainable = {name for name, parameter in tiny_dit.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in tiny_dit.named_parameters() if ".lora_" in name}
    assert len(trainable) == 2 * 10 * tiny_dit.config.num_layers
    run(tiny_dit).square().mean().backward()
    # A's gradient passes through B, which is zero at the start.
    assert all(bool(layer.grad.any()) for layer in lora_parameters(tiny_dit)[1::2] if layer.grad is not None)


def test_merged_equals_live(adapted: DiT) -> None:
    names = set(DiT(adapted.config).state_dict())
    live = run(adapted).detach()
    merge_lora_layers(adapted)
    assert set(adapted.state_dict()) == names
    torch.testing.assert_close(run(adapted), live, rtol=0, atol=1e-5)


def test_live_equals_the_formula(adapted: DiT) -> None:
    layer = adapted.get_submodule("blocks.1.ffn.0")
    x = torch.randn(4, 32)
    delta = CONFIG.alpha / CONFIG.rank * layer.lora_B.weight @ layer.lora_A.weight
    expected = x @ (layer.base_layer.weight + delta).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_bfloat16_layers_keep_float32_adapters(tiny_dit: DiT) -> None:
    tiny_dit.cast_for_inference(torch.bfloat16)
    inject_lora(tiny_dit, CONFIG)
    assert {parameter.dtype for parameter in lora_parameters(tiny_dit)} == {torch.float32}
    assert run(tiny_dit).dtype == torch.bfloat16
    merge_lora_layers(tiny_dit)
    assert tiny_dit.blocks[0].self_attn.q.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
    ],
    ids=["peft_file", "peft_live", "bare", "fsdp"],
)
def test_adapters_move_to_another_model(adapted: DiT, rename: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    twin = DiT(adapted.config)
    inject_lora(twin, CONFIG)
    load_lora_state_dict(twin, {rename(name): tensor for name, tensor in lora_state_dict(adapted).items()})
    assert torch.equal(run(twin), run(adapted))


def test_whole_live_state_merges_as_a_checkpoint(adapted: DiT) -> None:
    base, adapters = split_lora(plain_names(adapted.state_dict()))
    merged = DiT(adapted.config)
    merged.load_state_dict(merge_lora(base, adapters, scale=CONFIG.scale))
    torch.testing.assert_close(run(merged), run(adapted), rtol=0, atol=1e-5)


def test_adapting_twice_is_refused(adapted: DiT) -> None:
    with pytest.raises(ValueError, match="adapters already"):
        inject_lora(adapted, CONFIG)


def test_nothing_to_adapt(tiny_dit: DiT) -> None:
    with pytest.raises(ValueError, match="patch_embedding has no linear layer"):
        inject_lora(tiny_dit, CONFIG, inside="patch_embedding")


def test_adapters_of_another_rank_are_refused(adapted: DiT) -> None:
    other = DiT(adapted.config)
    inject_lora(other, LoRAConfig(rank=4))
    with pytest.raises(ValueError, match=r"is \[3, 32\], expected \[4, 32\]"):
        load_lora_state_dict(other, lora_state_dict(adapted))


def test_missing_and_unknown_adapters_are_named(adapted: DiT) -> None:
    state = {name.replace("blocks.1.ffn.0", "blocks.9.ffn.0"): t for name, t in lora_state_dict(adapted).items()}
    with pytest.raises(ValueError, match=r"1 adapters missing.*blocks\.1\.ffn\.0.*1 unknown.*blocks\.9\.ffn\.0"):
        load_lora_state_dict(adapted, state)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}])
def test_impossible_config(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rank >= 1 and alpha > 0"):
        LoRAConfig(**settings)  # type: ignore[arg-type]
