"""Weights as a function of seed and name: every layout, schedule and number of ranks starts from the same network."""

from __future__ import annotations

import math

import torch
from torch import nn

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.build import parameter_of
from hcmegatron.model.param_shards import ParamShard, param_shards
from hcmegatron.planner.layers import matrices
from hcmegatron.platform.seeds import seed_of


def initialise_weights(chunk: nn.Module, config: Config) -> None:
    """Fill every weight matrix of the chunk with its normal init; norms and connections keep what they were built with.

    Each global tensor is drawn whole on the CPU from a generator seeded by (training.seed, key) and cut.
    """
    into_stream = {key for key, matrix in matrices(config, 0).items() if matrix.into_stream}
    for part in param_shards(chunk):
        if len(part.shape) == 2 and parameter_of(part.data) is None:
            whole = torch.empty(part.shape, dtype=torch.float32)
            whole.normal_(
                0.0, _std(config, part.key in into_stream), generator=_generator(config.training.seed, part)
            )
            with torch.no_grad():
                cut = part.slice_of(whole)
                part.data.zero_()[: cut.shape[0]].copy_(cut)


def _std(config: Config, into_stream: bool) -> float:
    """init_std; of projections back into the stream divided by sqrt(2 * layers), as in GPT-2 and Megatron, and as the
    connection asks."""
    std = config.model.init_std
    if into_stream:
        std /= math.sqrt(2 * config.model.layers)
        std /= accounting.kind_of(config.connection).output_init_divisor(config.connection)
    return std


def _generator(seed: int, part: ParamShard) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, part.key, part.leading))
