"""Exponential moving average of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """A float32 shadow of every parameter, whatever the dtype the network trains in.

    A bfloat16 shadow would stop moving: at decay 0.999 the update is below its resolution. With `ramp` the decay starts
    low, (1 + n) / (10 + n) after n updates, so early averages forget the random start.
    """

    def __init__(self, module: nn.Module, *, decay: float = 0.999, ramp: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    def decay_now(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.ramp else self.decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadow towards the network, in place."""
        weight = 1 - self.decay_now()
        live = [p.detach().float() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), live, weight)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the shadow into the network's parameters, in place."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadow[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the block the network carries the averaged weights; afterwards its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved shadow."""
        if shadow.keys() != self.shadow.keys():
            raise ValueError(f"saved EMA differs in {sorted(shadow.keys() ^ self.shadow.keys())[:3]}")
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.updates = updates
