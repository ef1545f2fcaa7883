"""What the ranks of the tests of imports run."""

from __future__ import annotations

import sys

import torch


def optimizers() -> dict[str, tuple[list[float], bool, bool]]:
    """By optimizer: a parameter of (1, 2) after a step of 0.1, whether the tracer was imported by then, and whether a
    differentiable step can be differentiated."""
    found = {}
    for kind, options in ((torch.optim.AdamW, {"weight_decay": 0.0}), (torch.optim.SGD, {})):
        parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = kind([parameter], lr=0.1, **options)
        parameter.grad = torch.ones(2)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        tracer = "torch._dynamo" in sys.modules
        found[kind.__name__] = parameter.tolist(), tracer, _differentiable(kind, options)
    return found


def _differentiable(kind: type[torch.optim.Optimizer], options: dict[str, float]) -> bool:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    parameter = leaf.clone()
    optimizer = kind([parameter], lr=0.1, differentiable=True, **options)
    parameter.grad = torch.ones(2)
    optimizer.step()
    return parameter.requires_grad and parameter.grad_fn is not None
