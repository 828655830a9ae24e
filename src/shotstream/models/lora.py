"""Live low-rank adapters: y = W x + b + (alpha / rank) B A x on every linear layer inside the blocks.

LoRA, Hu et al. 2021 (arXiv:2106.09685). Names are PEFT's, so that a file written here opens there and the other way
round; models/checkpoint.py merges such files on load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shotstream.models.checkpoint import plain_names, split_lora

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Size and strength of the adapters."""

    rank: int = 256
    alpha: float = 256.0
    """Strength: the update is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"need rank >= 1 and alpha > 0, got rank={self.rank}, alpha={self.alpha}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRALinear(nn.Module):
    """A frozen linear layer with an adapter beside it. The adapter starts at zero, so it changes nothing at first.

    The adapter is float32 whatever the dtype of the layer: its steps are small.
    """

    def __init__(self, base_layer: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = config.scale
        device, width_in, width_out = base_layer.weight.device, base_layer.in_features, base_layer.out_features
        self.lora_A = nn.Linear(width_in, config.rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(config.rank, width_out, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        update: Tensor = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))
        return y + (self.scale * update).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with its adapter added to its weight, in place, computed in float32."""
        weight = self.base_layer.weight
        update = self.lora_B.weight.float() @ self.lora_A.weight.float()
        weight.copy_((weight.float() + self.scale * update).to(weight.dtype))
        return self.base_layer


def inject_lora(model: nn.Module, config: LoRAConfig, *, inside: str = "blocks") -> None:
    """Freeze the model and put an adapter beside every linear layer of its submodule `inside`, in place.

    Parameters are then named `....q.base_layer.weight`, `....q.lora_A.weight`, `....q.lora_B.weight`.
    Raises: ValueError if the model has adapters already, or no linear layer there.
    """
    if any(True for _ in _adapted(model)):
        raise ValueError("the model has LoRA adapters already: merge them first (merge_lora_layers)")
    found = [
        (f"{inside}.{name}", layer)
        for name, layer in model.get_submodule(inside).named_modules()
        if isinstance(layer, nn.Linear)
    ]
    if not found:
        raise ValueError(f"{inside} has no linear layer to adapt")
    model.requires_grad_(False)
    for name, layer in found:
        _replace(model, name, LoRALinear(layer, config))


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What an optimiser trains: A and B of every adapter, in the model's order."""
    return [p for _, layer in _adapted(model) for half in (layer.lora_A, layer.lora_B) for p in half.parameters()]


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters under PEFT's names: `base_model.model.blocks.0.self_attn.q.lora_A.weight`."""
    state: dict[str, Tensor] = {}
    for name, layer in _adapted(model):
        state[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A.weight.detach()
        state[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B.weight.detach()
    return state


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill the adapters from tensors under any of PEFT's namings; base tensors among them are ignored.

    Raises: ValueError if an adapter is missing, unknown or of another shape.
    """
    _, adapters = split_lora(plain_names(tensors))
    layers = dict(_adapted(model))
    missing, unknown = sorted(layers.keys() - adapters.keys()), sorted(adapters.keys() - layers.keys())
    if missing or unknown:
        raise ValueError(
            f"LoRA does not fit: {len(missing)} adapters missing (first: {missing[:2]}), "
            f"{len(unknown)} unknown (first: {unknown[:2]}): was it trained on another preset?"
        )
    for name, layer in layers.items():
        for half, tensor in zip((layer.lora_A.weight, layer.lora_B.weight), adapters[name], strict=True):
            if half.shape != tensor.shape:
                raise ValueError(
                    f"LoRA of {name} is {list(tensor.shape)}, expected {list(half.shape)}: "
                    "inject adapters of the rank the file was trained with"
                )
            half.copy_(tensor)


def merge_lora_layers(model: nn.Module) -> None:
    """Add every adapter to its weight and put plain linear layers back, in place. Parameters stay frozen."""
    for name, layer in list(_adapted(model)):
        _replace(model, name, layer.merged())


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoRALinear))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
