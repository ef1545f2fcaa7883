"""Weights as a function of seed and name: every layout, schedule and number of ranks starts from the same network."""

from __future__ import annotations

import math

import torch
from torch import nn

from hcmegatron.config.schema import Config
from hcmegatron.model.global_view import Part, parts
from hcmegatron.platform.generators import seed_of

# Projections back into the stream: their init is divided by sqrt(2 * layers), as in GPT-2 and Megatron.
OUTPUT_PROJECTIONS = ("self_attention.linear_proj.weight", "linear_fc2.weight")


def initialise(chunk: nn.Module, config: Config) -> None:
    """Fill every weight matrix of the chunk with its normal init; norms and connections keep what they were built with.

    Each global tensor is drawn whole on the CPU from a generator seeded by (training.seed, key) and cut.
    """
    for part in parts(chunk):
        if _is_matrix(part):
            whole = torch.empty(part.shape, dtype=torch.float32)
            whole.normal_(0.0, _std(part.key, config), generator=_generator(config.training.seed, part))
            with torch.no_grad():
                cut = part.slice_of(whole)
                part.data.zero_()[: cut.shape[0]].copy_(cut)


def _is_matrix(part: Part) -> bool:
    # the checkpoint calls a sub-layer's connection by its own name; everything else two-dimensional is a projection
    return len(part.shape) == 2 and "_connection." not in part.key and ".contract." not in part.key


def _std(key: str, config: Config) -> float:
    std = config.model.init_std
    if key.endswith(OUTPUT_PROJECTIONS) or key.endswith("experts.experts.linear_fc2.weight"):
        std /= math.sqrt(2 * config.model.layers)
        if config.connection.scale_output_init and config.connection.kind in ("shc", "dhc"):
            std /= math.sqrt(config.connection.n)
    return std


def _generator(seed: int, part: Part) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, part.key, part.leading))
