"""Megatron's distributed optimizer over torch's AdamW, which is what it has without apex and Transformer Engine.

torch keeps the step count beside each parameter's moments, the others keep it in the parameter group. Loading (seen in
0.16.1) fails to find it before there are any states, misses it among the loaded moments, and leaves one tensor in all
of them, which the update of each parameter would count up.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer


def prepare_for_loading(optimizer: MegatronOptimizer) -> None:
    """Give distributed optimizers states to read a step off, and a step of its own for every parameter."""
    for each in optimizer.chained_optimizers:
        if not (isinstance(each, DistributedOptimizer) and isinstance(each.optimizer, torch.optim.Adam)):
            continue
        for group in each.optimizer.param_groups:
            for parameter in group["params"]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                each.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
        each._set_main_param_and_optimizer_states = partial(_fill, each)


@torch.no_grad()
def _fill(optimizer: DistributedOptimizer, model_parameter: nn.Parameter, tensors: dict[str, Tensor]) -> None:
    """Loaded values of one parameter's shard. Megatron's own looks for a step among them."""
    group, place = optimizer.model_param_group_index_map[model_parameter]
    parameter = optimizer.optimizer.param_groups[group]["params"][place]
    state = optimizer.optimizer.state[parameter]
    for name, value in tensors.items():
        (parameter if name == "param" else state[name]).copy_(value)
    state["step"] = state["step"].clone()
