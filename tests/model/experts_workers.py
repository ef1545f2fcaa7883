"""What the ranks of test_experts.py do: grouped experts beside Megatron's sequential ones."""

from __future__ import annotations

from unittest import mock

import torch
from torch.nn import functional as F

from hcmegatron.model.experts import GroupedExperts
from hcmegatron.model.param_shards import param_shards
from hcmegatron.model.transformer_config import transformer_config
from hcmegatron.platform.distributed import megatron_groups
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from tests.layouts.network import chunks_of
from tests.small_configs import small


def both(counts: list[int], dtype: str, activation: str) -> dict:
    """Outputs and gradients of the two on tokens of which counts[e] go to expert e."""
    config = small("moe", "residual")
    config.moe.experts, config.training.dtype, config.model.activation = len(counts), dtype, activation
    with megatron_groups(config) as groups:
        megatron = transformer_config(config)
        torch.manual_seed(3)
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        sequential = SequentialMLP(len(counts), megatron, linears, groups)
        grouped = GroupedExperts(len(counts), megatron, None, groups)
        for e, expert in enumerate(sequential.local_experts):
            for linear in ("linear_fc1", "linear_fc2"):
                weight = getattr(expert, linear).weight
                torch.nn.init.normal_(weight, std=0.1)
                getattr(grouped, linear).weight.data[e] = weight.detach()
        tokens = torch.randn(sum(counts), config.model.hidden_size).to(megatron.params_dtype)
        probs, gradient = torch.rand(sum(counts)), torch.randn_like(tokens)
        found = {}
        for name, experts in (("sequential", sequential), ("grouped", grouped)):
            x, p = tokens.clone().requires_grad_(), probs.clone().requires_grad_()
            y, bias = experts(x, torch.tensor(counts), p)
            assert bias is None
            y.backward(gradient)
            found[name] = {"y": y.detach(), "tokens": x.grad, "probs": p.grad}
        for linear in ("linear_fc1", "linear_fc2"):
            stacked = torch.stack(
                [getattr(expert, linear).weight.grad for expert in sequential.local_experts]
            )
            found["sequential"][linear] = stacked
            found["grouped"][linear] = getattr(grouped, linear).weight.grad
        return found


def rows_multiplied(counts: list[int], dtype: str) -> list[list[int]]:
    """How many rows every expert has in each of the products of a forward and its backward."""
    config = small("moe", "residual")
    config.moe.experts, config.training.dtype = len(counts), dtype
    found = []
    product = F.grouped_mm

    def recorded(*arguments, offs):
        found.append(offs.diff(prepend=offs.new_zeros(1)).tolist())
        return product(*arguments, offs=offs)

    with megatron_groups(config) as groups, mock.patch.object(F, "grouped_mm", recorded):
        experts = GroupedExperts(len(counts), transformer_config(config), None, groups)
        for linear in (experts.linear_fc1, experts.linear_fc2):
            torch.nn.init.normal_(linear.weight)
        tokens = torch.randn(sum(counts), config.model.hidden_size, dtype=experts.linear_fc1.weight.dtype)
        y, _ = experts(tokens.requires_grad_(), torch.tensor(counts), torch.rand(sum(counts)))
        assert y.shape == tokens.shape
        y.sum().backward()
    return found


def same_parts(parallel: dict) -> tuple[list, list]:
    """Keys, places and initial values of every part, of networks with grouped and with sequential experts."""
    found = []
    for grouped in (True, False):
        config = small("moe", "residual", **parallel)
        config.moe.grouped = grouped
        with megatron_groups(config) as groups:
            (chunk,) = chunks_of(config, groups)
            key = lambda part: (part.key, part.leading, part.offset)  # noqa: E731
            found.append([(*key(p), p.shape, p.data.clone()) for p in sorted(param_shards(chunk), key=key)])
    return found[0], found[1]


def interchange(directory: str, parallel: dict, saved_grouped: bool) -> bool:
    """Whether a checkpoint of one kind of experts loads into the other with the same values."""
    config = small("moe", "residual", **parallel)
    config.moe.grouped = saved_grouped
    with megatron_groups(config) as groups:
        (chunk,) = chunks_of(config, groups)
        before = {(p.key, p.leading, p.offset): p.data.clone() for p in param_shards(chunk)}
        dist_checkpointing.save(chunk.sharded_state_dict(), directory)
    config.moe.grouped, config.training.seed = not saved_grouped, 99
    with megatron_groups(config) as groups:
        (chunk,) = chunks_of(config, groups)
        different = any(
            not torch.equal(before[p.key, p.leading, p.offset], p.data) for p in param_shards(chunk)
        )
        state = dist_checkpointing.load(chunk.sharded_state_dict(), directory)
        chunk.load_state_dict(state, strict=True)
        after = {(p.key, p.leading, p.offset): p.data for p in param_shards(chunk)}
        return (
            different
            and before.keys() == after.keys()
            and all(torch.equal(before[k], after[k]) for k in after)
        )
