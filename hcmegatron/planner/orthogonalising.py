"""The time that Muon's whole matrices take on a machine. Without torch."""

from __future__ import annotations

from hcmegatron.config.schema import distributed_optimizer
from hcmegatron.connections import accounting
from hcmegatron.planner.counts import held_matrices
from hcmegatron.planner.layers import Matrix, attention, feed_forward
from hcmegatron.planner.layout import Group, Layout
from hcmegatron.planner.newton_schulz import iterations, sides
from hcmegatron.planner.rates import Rates
from hcmegatron.planner.state_bytes import ITEMSIZE, of_network


def orthogonalising(layout: Layout, rates: Rates, rank: int) -> float:
    """Seconds of a pipeline rank's Newton-Schulz iterations, and of what is exchanged for them; 0 without Muon.

    All ranks of the stage share its matrices, evenly here. With one tensor-parallel rank and whole optimizer state
    nothing is gathered; with the state sharded, or weights split, every rank's part of the momentum goes to owners
    elsewhere, which is the most that can be. Updates come back to all that is held.
    """
    if layout.config.optimizer.name != "muon":
        return 0.0
    ranks = layout.gpus // layout.config.parallel.pipeline
    computed = sum(_seconds(layout, rates, matrix) for matrix in _of_stage(layout, rank)) / ranks
    held, sharded = held_matrices(layout, rank), distributed_optimizer(layout.config)
    shards = {name: layout.expert_data if name == "experts" else layout.data for name in held}
    updated = sum(count / (shards[name] if sharded else 1) for name, count in held.items())
    parallel = layout.config.parallel
    split = sharded or max(parallel.tensor, parallel.expert_tensor) > 1
    gathered = sum(count / shards[name] for name, count in held.items()) if split else 0.0
    group = Group(ranks, min(ranks, layout.machine.gpus_per_node))
    size = of_network(layout.config).gradient
    return computed + sum(rates.all_to_all(count * size, group, 1) for count in (gathered, updated))


def _of_stage(layout: Layout, rank: int) -> list[Matrix]:
    """Muon's matrices of a pipeline rank's stages, whole; of experts all."""
    config, found = layout.config, []
    C = config.model.hidden_size
    connection = [
        Matrix(name, *parameter.shape)
        for name, parameter in accounting.table(config.connection, C).items()
        if parameter.optimizer_role == "matrix"
    ]
    for stage in layout.held(rank):
        for layer in stage.layers:
            of_network = (*attention(config), *feed_forward(config, layer))
            found += [matrix for matrix in of_network if matrix.optimizer_role == "matrix"]
            found += 2 * connection
    return found


def _seconds(layout: Layout, rates: Rates, matrix: Matrix) -> float:
    """Of all matrices of a key."""
    config = layout.config
    itemsize = ITEMSIZE[config.training.dtype]
    once = sum(
        rates.matmul(m, m, n, itemsize) + rates.matmul(m, m, m, itemsize) + rates.matmul(m, n, m, itemsize)
        for m, n in sides(matrix)
    )
    return matrix.count * iterations(config.muon) * once
