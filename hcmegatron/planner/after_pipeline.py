"""What follows the pipeline in a step: gradient reduction, sums over DualPipe's copies, parameter gather, optimizer."""

from __future__ import annotations

from collections import Counter

from hcmegatron.config.schema import distributed_optimizer
from hcmegatron.planner.counts import held_matrices, held_parameters
from hcmegatron.planner.layout import Group, Layout
from hcmegatron.planner.orthogonalising import orthogonalising
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.state_bytes import of_network

LAST_BUCKET = 0.1  # of a reduction that overlaps with backward: what is left when backward ends, at least


def after_the_pipeline(layout: Layout, operations: Operations) -> Counter[str]:
    """Gradient reduction, sums over DualPipe's copies, parameter gather and optimizer, on the slowest rank."""
    parallel, rates = layout.config.parallel, operations.rates
    weight, gradient, _ = of_network(layout.config)
    sharded = distributed_optimizer(layout.config)
    worst: Counter[str] = Counter()
    for rank in layout.distinct_ranks:
        held = held_parameters(layout, rank)
        experts = held["experts"]
        dense = held.total() - experts
        own: Counter[str] = Counter()
        groups = ((dense, layout.data_group), (experts, layout.expert_data_group))
        reduced = sum(rates.ring(count * gradient, group) for count, group in groups)
        gathered = sum(
            rates.ring(count * (weight if sharded else gradient), group) for count, group in groups
        )
        if not sharded:  # one all-reduce
            reduced, gathered = reduced + gathered, 0.0
        one = [operations.of_stage(stage).phases for stage in layout.model_stages[rank]]
        if parallel.overlap_grad_reduce:
            behind = sum(dgrad + wgrad for _, dgrad, wgrad in one)
            reduced = max(LAST_BUCKET * reduced, reduced - behind)
        if parallel.overlap_param_gather:
            behind = sum(forward for forward, _, _ in one)
            gathered = max(LAST_BUCKET * gathered, gathered - behind)
        own["gradient reduction"], own["parameter gather"] = reduced, gathered
        if len(layout.placement.paths) > 1:
            mirror = parallel.pipeline - 1 - rank
            pair = Group(2, 2 if layout.same_node(rank, mirror) else 1)
            own["mirrors"] = 2 * rates.ring(held.total() * gradient, pair)
        # gradient and state are read, state and weight written; norm, scaling and clearing pass the gradients
        moved = 3.0 * held.total() * gradient
        matrices = held_matrices(layout, rank)
        of_matrices, of_others = (of_network(layout.config, role).state for role in ("matrix", "adamw"))
        for name, count in held.items():
            shards = layout.expert_data if name == "experts" else layout.data
            state = matrices[name] * of_matrices + (count - matrices[name]) * of_others
            moved += (count * (gradient + weight) + 2 * state) / (shards if sharded else 1)
        own["optimizer"] = rates.memory(moved) + orthogonalising(layout, rates, rank)
        if own.total() > worst.total():
            worst = own
    return worst
