"""The operations of an MLP and of a mixture of experts."""

from __future__ import annotations

from hcmegatron.planner.layout import Layout
from hcmegatron.planner.operation import Operation, Sizes, is_local, linear, sizes, split
from hcmegatron.planner.rates import Rates


def _mlp(
    rates: Rates, name: str, size: Sizes, C: int, width: float, gated: bool, local: bool
) -> list[Operation]:
    """name: as recomputation calls it."""
    gates, T, z = 2 if gated else 1, size.tokens, size.itemsize
    apart = local and gated
    moved = (7, 10) if apart else (3, 5)  # elements of its width, forward and backward
    return [
        linear(rates, f"{name} 1", "experts", size, T, gates * width, C, name),
        Operation(
            f"{name} activation",
            "experts",
            module=name,
            forward=rates.memory(moved[0] * width * T * z),
            dgrad=rates.memory(moved[1] * width * T * z),
            # both halves, the gate's activation, the other half with its offset, and their product
            kept=(gates + (3 if apart else 1)) * width * T * z,
            left=width * T * z,
            transient=2 * width * T * z,
        ),
        linear(rates, f"{name} 2", "experts", size, T, C, width, name),
    ]


def dense(layout: Layout, rates: Rates) -> list[Operation]:
    """The MLP of a dense layer."""
    config, size = layout.config, sizes(layout.config)
    model, width = config.model, config.model.ffn_hidden_size / config.parallel.tensor
    gated, local = model.activation == "swiglu", is_local(config, rates.assumptions)
    return [
        *_mlp(rates, "mlp", size, model.hidden_size, width, gated, local),
        split(layout, rates, "experts"),
    ]


def experts(layout: Layout, rates: Rates) -> list[Operation]:
    """Router, exchange of tokens, routed and shared experts."""
    config, size, assumed = layout.config, sizes(layout.config), rates.assumptions
    model, moe, parallel = config.model, config.moe, config.parallel
    C, z, gated = model.hidden_size, size.itemsize, model.activation == "swiglu"
    # Every rank of the tensor-parallel group sends its own share of the tokens.
    mine = size.tokens / parallel.tensor
    routed = mine * moe.top_k
    rows = routed * parallel.expert_tensor * assumed.imbalance
    width, local = moe.ffn_hidden_size / parallel.expert_tensor, moe.experts // parallel.expert
    gates = 2 if gated else 1
    moved = (3, 5) if assumed.fused else (10, 16)
    copies = 1 if assumed.fused or local == 1 else 2  # sorted by rank, then by expert
    permute = 2 * copies * routed * C * z
    if moe.dispatcher == "alltoall":
        exchange = rates.all_to_all(routed * assumed.imbalance * C * z, layout.expert_group, moe.top_k)
        if parallel.expert_tensor > 1:
            exchange += rates.ring(rows * C * z, layout.expert_tensor_group)
    else:
        group = layout.expert_group
        exchange = rates.ring(mine * C * z * group.size, group)
    operations = [
        Operation(
            "router",
            "attention",
            forward=rates.memory(mine * (C * (z + 8) + 16 * moe.experts)),
            dgrad=rates.memory(mine * (C * (z + 8) + 16 * moe.experts)),
            wgrad=rates.memory(mine * C * 4),
            kept=mine * (17 * moe.experts + 28 * moe.top_k),  # scores in fp32, choices as 64-bit indices
        ),
        Operation("permute", "attention", forward=rates.memory(permute), dgrad=rates.memory(permute)),
        Operation(
            "dispatch",
            "dispatch",
            "all-to-all",
            forward=exchange,
            dgrad=exchange,
            transient=2 * routed * C * z * assumed.imbalance,
        ),
        Operation("received", "experts", kept=rows * C * z, left=rows * C * z),
        linear(rates, "experts 1", "experts", size, rows, gates * width, C, groups=local),
        Operation(
            "experts activation",
            "experts",
            forward=rates.memory(moved[0] * width * rows * z),
            dgrad=rates.memory(moved[1] * width * rows * z),
            kept=(gates + (2 if assumed.fused else 3)) * width * rows * z,
            left=width * rows * z,
            transient=(2 * C * z + 4 * width) * rows,
        ),
        linear(rates, "experts 2", "experts", size, rows, C, width, groups=local),
        Operation(
            "combine",
            "combine",
            "all-to-all",
            forward=exchange,
            dgrad=exchange,
            transient=2 * routed * C * z * assumed.imbalance,
        ),
        Operation("unpermute", "experts", forward=rates.memory(permute), dgrad=rates.memory(permute)),
    ]
    if moe.shared_experts:
        shared = moe.shared_experts * moe.ffn_hidden_size / parallel.tensor
        operations += _mlp(rates, "shared_experts", size, C, shared, gated, is_local(config, assumed))
        operations.append(split(layout, rates, "experts"))
    return operations
