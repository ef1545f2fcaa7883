"""AdamW and Muon as the one optimizer that Megatron's classes around it know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hcmegatron.platform import adam
from hcmegatron.training.muon import Muon


class ByRole:
    """Muon for matrices, Adam for the rest. torch's interface, as far as Megatron and checkpoints use it."""

    def __init__(self, adamw: torch.optim.Optimizer, muon: Muon) -> None:
        self.adamw, self.muon = adamw, muon

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Adam's, then Muon's; the groups themselves, for rates to be written into."""
        return self.adamw.param_groups + self.muon.param_groups

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """By parameter."""
        return {**self.adamw.state, **self.muon.state}

    def step(self) -> None:
        """Update everything that this rank holds."""
        self.adamw.step()
        self.muon.step()

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the parameter's own optimizer remembers of its gradients."""
        if any(parameter is each for group in self.muon.param_groups for each in group["params"]):
            return self.muon.moments(parameter)
        return adam.moments(self.adamw, parameter)


def moments(optimizer: torch.optim.Optimizer | ByRole, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimizer remembers of a parameter's gradients, by name; zero where it had no update yet."""
    if isinstance(optimizer, ByRole):
        return optimizer.moments(parameter)
    return adam.moments(optimizer, parameter)


def adam_of(optimizer: torch.optim.Optimizer | ByRole) -> torch.optim.Optimizer:
    """The one of both that counts its updates."""
    return optimizer.adamw if isinstance(optimizer, ByRole) else optimizer
