"""Tied embeddings where a placement puts the first and the last stage on one rank: the ends of a V, or of DualPipe."""

from __future__ import annotations

from copy import copy

from torch import nn

from hcmegatron.model.gpt import ConnectionGPT
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.placement import Placement


def embedding_groups(groups: ProcessGroupCollection, where: Placement) -> ProcessGroupCollection:
    """Groups whose embedding group fits the placement.

    Megatron sums the embedding's gradient over the first and the last pipeline rank. Where one rank holds both ends,
    it sums them itself, and the group is this rank alone (context parallelism, which is not there, has such a group).
    """
    ends = {0, where.model_stages - 1}
    if where.ranks == 1 or not ends <= {
        where.model_stage(stage) for stage in where.stages_of(where.rank_of[0])
    }:
        return groups
    assert groups.cp.size() == 1
    groups = copy(groups)
    groups.embd = groups.cp
    return groups


def tied_weights(models: list[ConnectionGPT]) -> tuple[nn.Parameter, nn.Parameter] | None:
    """The input embedding and the head's weight, where they are two chunks' parameters on this rank."""
    first = next((model for model in models if model.pre_process), None)
    last = next((model for model in models if model.post_process), None)
    if first is None or last is None or first is last:
        return None
    return first.embedding.word_embeddings.weight, last.output_layer.weight


def sum_gradients(tied: tuple[nn.Parameter, nn.Parameter]) -> None:
    """Give both parameters the sum of their gradients, so that they stay equal."""
    first, last = tied
    first.main_grad += last.main_grad
    last.main_grad.copy_(first.main_grad)
