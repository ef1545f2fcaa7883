"""Adam's state by parameter, whichever Adam is there: torch's, Transformer Engine's or apex's.

torch keeps the count of updates beside each parameter's moments, the others in the parameter group. They do not count
in a group without parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The running means of a parameter's gradient and of its square, zero where it had no update yet."""
    state = optimizer.state[parameter]
    if not state:
        state |= {name: torch.zeros_like(parameter) for name in MOMENTS}
        if isinstance(optimizer, torch.optim.Adam):
            state["step"] = torch.tensor(0.0)
    return {name: state[name] for name in MOMENTS}


def updates(optimizer: torch.optim.Optimizer) -> int:
    """How often the parameters were updated; 0 where there are none."""
    if isinstance(optimizer, torch.optim.Adam):
        counts = {int(state["step"]) for state in optimizer.state.values()}
    else:
        counts = {int(group["step"]) for group in _with_parameters(optimizer) if "step" in group}
    assert len(counts) <= 1, f"parameters that were updated {sorted(counts)} times"
    return max(counts, default=0)


def set_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Go on counting from there. Every parameter that has moments gets it."""
    if isinstance(optimizer, torch.optim.Adam):
        for state in optimizer.state.values():
            state["step"] = torch.tensor(float(count))
    else:
        for group in _with_parameters(optimizer):
            group["step"] = count


def _with_parameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if group["params"]]
