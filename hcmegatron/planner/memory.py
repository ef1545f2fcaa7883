"""Bytes that training needs on a rank, from configuration alone: a word before anything is allocated.

Weights, gradients and optimizer state are counted; of the activations only the residual streams, which a wide
connection makes large. So what a run really needs is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.connections import facts
from hcmegatron.planner.flops import attention_parameters, mlp_parameters
from hcmegatron.planner.parameters import attention_norms, norm_parameters


class Part(NamedTuple):
    """The layers of one chunk of a rank, and whether it has the embedding and the head."""

    layers: range
    first: bool
    last: bool


def rank_parameters(config: Config, vocab_size: int, parts: Sequence[Part]) -> int:
    """Parameters that one rank holds, as sharded by tensor and expert parallelism.

    What Megatron keeps whole on every tensor-parallel rank (norms, routers, connections) counts whole; MLA's small
    down-projections are taken as sharded.

    Args:
        vocab_size: padded.
        parts: the rank's chunks.
    """
    model, moe, tensor, C = config.model, config.moe, config.parallel.tensor, config.model.hidden_size
    expert = mlp_parameters(config, moe.ffn_hidden_size)
    shared = (
        attention_norms(config) + 2 * norm_parameters(config) + 2 * facts.parameters(config.connection, C)
    )
    total = 0
    for part in parts:
        for layer in part.layers:
            total += shared + attention_parameters(config) // tensor
            if moe.experts and layer >= moe.first_dense:
                own = moe.experts * expert // (config.parallel.expert * config.parallel.expert_tensor)
                total += C * moe.experts + own + moe.shared_experts * expert // tensor
            else:
                total += mlp_parameters(config, model.ffn_hidden_size) // tensor
        total += (
            C
            * vocab_size
            // tensor
            * (part.first + (part.last and not (part.first and model.tie_embeddings)))
        )
        total += part.last * (norm_parameters(config) + facts.contract_parameters(config.connection, C))
    return total


def bytes_a_parameter(config: Config, data_parallel: int) -> float:
    """Of weight, gradient and AdamW's two moments; with bf16 the gradient and a master weight are fp32.

    With a distributed optimizer the state is shared out over data-parallel ranks.
    """
    shards = data_parallel if distributed_optimizer(config) else 1
    match config.training.dtype:
        case "bf16":
            return 6 + 12 / shards
        case "fp64":
            return 16 + 16 / shards
    return 8 + 8 / shards


def stream_bytes(config: Config, parts: Sequence[Part], live: int) -> int:
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
    return round(
        2 * layers * live * tokens * width * {"bf16": 2, "fp32": 4, "fp64": 8}[config.training.dtype]
    )
