"""The biases of loss-free balancing, of every layer's router."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.model.gpt import unwrap


def router_biases(
    chunks: Sequence[nn.Module], layers: int, experts: int, device: torch.device
) -> dict[int, Tensor]:
    """By layer, from 0, [experts] on the CPU, where its router has them; on rank 0 alone. Collective over all ranks.

    Args:
        chunks: this rank's, wrapped or not.
        layers, experts: of the whole network.
    """
    biases = torch.full((layers, experts), -math.inf, device=device)
    for chunk in chunks:
        for layer in unwrap(chunk).decoder.layers:
            if layer.is_moe and layer.mlp.router.expert_bias is not None:
                biases[layer.layer_number - 1] = layer.mlp.router.expert_bias
    if biases.numel():
        dist.reduce(biases, 0, dist.ReduceOp.MAX)  # ranks that have the same layer have the same biases
    return (
        {layer: bias for layer, bias in enumerate(biases.double().cpu()) if bias.isfinite().all()}
        if experts
        else {}
    )
