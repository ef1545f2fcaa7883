"""What the ranks of the tests of imports run."""

from __future__ import annotations

import sys
from unittest import mock

import torch


def optimizers() -> dict[str, tuple[list[float], bool]]:
    """By optimizer: a parameter of (1, 2) after a step of 0.1, and whether a differentiable step can be differentiated.

    ImportError where one imports the tracer, which the fork server may have done already.
    """
    kinds = ((torch.optim.AdamW, {"weight_decay": 0.0}), (torch.optim.SGD, {}))
    with mock.patch.dict(sys.modules, {"torch._dynamo": None}):
        return {
            kind.__name__: (_after_a_step(kind, options), _differentiable(kind, options))
            for kind, options in kinds
        }


def _after_a_step(kind: type[torch.optim.Optimizer], options: dict[str, float]) -> list[float]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = kind([parameter], lr=0.1, **options)
    parameter.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return parameter.tolist()


def _differentiable(kind: type[torch.optim.Optimizer], options: dict[str, float]) -> bool:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    parameter = leaf.clone()
    optimizer = kind([parameter], lr=0.1, differentiable=True, **options)
    parameter.grad = torch.ones(2)
    optimizer.step()
    return parameter.requires_grad and parameter.grad_fn is not None


def done(*_: object) -> int:
    """A rank's work, with a status that no mistake has."""
    return 7
