"""Bytes that training needs on a rank, from configuration alone: a word before anything is allocated.

Weights, gradients and optimizer state are counted; of the activations only the residual streams, which a wide
connection makes large. So what a run really needs is more.
"""

from __future__ import annotations

from collections.abc import Sequence

from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.connections import facts
from hcmegatron.planner.layers import Matrix, attention, feed_forward, final_norm, vocabulary
from hcmegatron.planner.parameters import layer_norm_parameters, norm_parameters
from hcmegatron.planner.stages import Stage

ITEMSIZE = {"bf16": 2, "fp32": 4, "fp64": 8}  # bytes of a number, by training.dtype


def rank_parameters(config: Config, vocab_size: int, parts: Sequence[Stage]) -> int:
    """Parameters that one rank holds, as sharded by tensor and expert parallelism.

    What Megatron keeps whole on every tensor-parallel rank (norms, routers, connections) counts whole; MLA's small
    down-projections are taken as sharded.

    Args:
        vocab_size: padded.
        parts: the rank's chunks.
    """
    C = config.model.hidden_size
    around = layer_norm_parameters(config) + 2 * facts.parameters(config.connection, C)
    embedding, head = vocabulary(config, vocab_size)[0], vocabulary(config, vocab_size)[-1]
    total = 0
    for part in parts:
        for layer in part.layers:
            total += around
            total += sum(_held(config, matrix) for matrix in attention(config) + feed_forward(config, layer))
        if part.first:
            total += _held(config, embedding)
        if part.last:
            tied = part.first and config.model.tie_embeddings
            total += 0 if tied else _held(config, head)
            total += norm_parameters(final_norm(config)) + facts.contract_parameters(config.connection, C)
    return total


def expert_parameters(config: Config, parts: Sequence[Stage]) -> int:
    """Those among them that belong to routed experts."""
    layers = [layer for part in parts for layer in part.layers]
    found = [matrix for layer in layers for matrix in feed_forward(config, layer) if matrix.split == "expert"]
    return sum(_held(config, matrix) for matrix in found)


def _held(config: Config, matrix: Matrix) -> int:
    parallel = config.parallel
    ranks = {"tensor": parallel.tensor, "expert": parallel.expert * parallel.expert_tensor, "whole": 1}
    return matrix.size * matrix.count // ranks[matrix.split]


def bytes_a_parameter(config: Config, ranks: int) -> float:
    """Of weight, gradient and AdamW's two moments; with bf16 the gradient and a master weight are fp32.

    With a distributed optimizer the state is shared out over `ranks`: the parameter's data-parallel ones.
    """
    shards = ranks if distributed_optimizer(config) else 1
    match config.training.dtype:
        case "bf16":
            return 6 + 12 / shards
        case "fp64":
            return 16 + 16 / shards
    return 8 + 8 / shards


def state_bytes(config: Config, vocab_size: int, parts: Sequence[Stage], world_size: int) -> float:
    """Weights, gradients and optimizer state of one rank, whose chunks are `parts`.

    Experts have data-parallel ranks of their own: those of the world that hold the same part of them, world / (pipeline
    x expert x expert tensor), as Megatron's groups and gradient buffers have it (DistributedDataParallel's
    intra_expt_dp_group).
    """
    parallel = config.parallel
    of_dense = world_size // (parallel.pipeline * parallel.tensor)
    of_experts = world_size // (parallel.pipeline * parallel.expert * parallel.expert_tensor)
    experts = expert_parameters(config, parts)
    dense = rank_parameters(config, vocab_size, parts) - experts
    return dense * bytes_a_parameter(config, of_dense) + experts * bytes_a_parameter(config, of_experts)


def stream_bytes(config: Config, parts: Sequence[Stage], live: int) -> int:
    """Stream states that wait for backward: two a layer, with none computed again.

    Args:
        live: (micro-batch, chunk) pairs that the rank holds at most.
    """
    if config.recompute.mode in ("block", "full") or not parts:
        return 0
    width = config.model.hidden_size * facts.streams(config.connection)
    tokens = config.training.micro_batch * config.data.sequence_length
    if config.parallel.sequence:
        tokens //= config.parallel.tensor
    layers = sum(len(part.layers) for part in parts) / len(parts)
    return round(2 * layers * live * tokens * width * ITEMSIZE[config.training.dtype])
