"""Norms of a step's gradients by sub-layer, as its gradient norm counts them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.connections.build import parameter_of
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.distributed import device
from hcmegatron.training.checkpoint_state import updated_by
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

WHOLE = ""  # all of a sub-layer's parameters


def gradient_norms(
    chunks: list[nn.Module], optimizer: ChainedOptimizer, tp: dist.ProcessGroup, layers: int, names: list[str]
) -> dict[str, Tensor]:
    """[S] of each of a connection's parameters in `names`, and of WHOLE: every parameter of the sub-layer, with its
    connection and norms. On the CPU, in fp64. Collective over all ranks.

    Of the gradients as the optimizer has them after its step: clipped, where they were. What several ranks hold is
    counted on one of them.

    Args:
        tp: the tensor-parallel group.
        layers: of the whole network.
    """
    column = {name: index for index, name in enumerate([WHOLE, *names])}
    places = _places(chunks, column)
    sums = torch.zeros(2 * layers, len(column), dtype=torch.float64, device=device())
    for each in optimizer.chained_optimizers:
        own = torch.zeros_like(sums)
        for parameter, updated in updated_by(each).items():
            gradient = updated.weights.grad
            if parameter not in places or gradient is None or not _counts(parameter, tp):
                continue
            sublayer, which = places[parameter]
            square = gradient.double().square().sum()
            own[sublayer, 0] += square
            if which:
                own[sublayer, which] += square
        dist.all_reduce(own, group=each.get_grad_stats_parallel_group())
        sums += own
    return {name: sums[:, index].sqrt().cpu() for name, index in column.items()}


def _places(chunks: list[nn.Module], column: dict[str, int]) -> dict[nn.Parameter, tuple[int, int]]:
    """Of every parameter of the layers: its sub-layer, and its column, 0 for those that are no connection's."""
    found = {}
    for chunk in chunks:
        for layer in unwrap(chunk).decoder.layers:
            first = 2 * (layer.layer_number - 1)
            of_attention = ("attention_connection", "self_attention", "input_layernorm", "attention_output")
            for name, parameter in layer.named_parameters():
                sublayer = first + (not name.startswith(of_attention))
                own = name.rpartition(".")[2] if parameter_of(parameter) else WHOLE
                found[parameter] = sublayer, column[own]
    return found


def _counts(parameter: nn.Parameter, tp: dist.ProcessGroup) -> bool:
    """Whether this rank is the one that Megatron counts it on."""
    return param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, tp)
