"""What a checkpoint holds: the tensors of model and optimizer, each as boxes of the whole network's tensors.

Every parameter is stored once, in the precision in which the optimizer updates it, under its key in the model; Adam's
moments, or Muon's momentum, are beside it, under optimizer.state.<moment>.<key>. Which rank holds what, which of
Megatron's optimizers it is in, how those group and shard parameters, and the precision that the model computes in, are
thus free to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from hcmegatron.model.gpt import unwrap
from hcmegatron.model.param_shards import sharded_tensors
from hcmegatron.training.by_role import ByRole, adam_of, moments
from hcmegatron.training.shard_files import TensorShard
from hcmegatron.training.tensor_boxes import boxes_of_range
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    MegatronOptimizer,
)


@dataclass(frozen=True)
class Updated:
    """Elements start.. of a flattened parameter, as its optimizer holds them.

    Attributes:
        weights: what is updated: of the parameter itself, or an fp32 copy of its elements.
        optimizer: torch's, or Adam and Muon, which has the moments.
    """

    start: int
    weights: Tensor
    optimizer: torch.optim.Optimizer | ByRole


def to_save(chunks: list[nn.Module], optimizer: ChainedOptimizer) -> Iterator[TensorShard]:
    """What this rank has of a checkpoint. Data-parallel ranks that hold the same offer the same."""
    held = _updated(optimizer)
    for tensor, part in _parts(chunks):
        # 0 but for the second of tied weights, a mirror's copy, and what tensor-parallel ranks have in common.
        # The last number is the data-parallel rank's.
        if any(part.replica_id[:-1]):
            continue
        if (updated := held.get(tensor)) is not None:
            yield from _of_optimizer(part, tensor, updated, updated.weights)
        elif not isinstance(tensor, nn.Parameter):
            yield _whole(part)


def updating(optimizer: ChainedOptimizer) -> list[torch.optim.Optimizer]:
    """torch's Adams in Megatron's optimizers, of which a rank without parameters of a kind has none."""
    return [adam_of(each.optimizer) for each in optimizer.chained_optimizers if not each.is_stub_optimizer]


def storages(chunks: list[nn.Module], optimizer: ChainedOptimizer) -> list[int]:
    """Where in memory all of it is: as long as that is the same, the views that `to_save` gave are, too."""
    bare = [unwrap(chunk) for chunk in chunks]  # a wrapper's `buffers` are others
    model = [each for chunk in bare for each in chain(chunk.parameters(), chunk.buffers())]
    held = [
        each
        for updated in _updated(optimizer).values()
        for each in (updated.weights, *moments(updated.optimizer, updated.weights).values())
    ]
    return [each.data_ptr() for each in model + held]


def to_load(
    chunks: list[nn.Module], optimizer: ChainedOptimizer
) -> tuple[list[TensorShard], list[TensorShard]]:
    """What this rank wants of a checkpoint: of the model, and of the optimizer.

    Apart, because the model's 16-bit weights and the optimizer's are two targets of the same keys.
    """
    held = _updated(optimizer)
    of_model, of_optimizer = [], []
    for tensor, part in _parts(chunks):
        of_model.append(_whole(part))
        if (updated := held.get(tensor)) is not None:
            itself = updated.weights.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            of_optimizer += _of_optimizer(part, tensor, updated, None if itself else updated.weights)
    return of_model, of_optimizer


def weights_to_load(chunks: list[nn.Module]) -> list[TensorShard]:
    """What a process without optimizer wants of a checkpoint."""
    return [_whole(part) for _, part in _parts(chunks)]


def _parts(chunks: list[nn.Module]) -> Iterator[tuple[Tensor, ShardedTensor]]:
    return chain.from_iterable(sharded_tensors(unwrap(chunk)) for chunk in chunks)


def _whole(part: ShardedTensor) -> TensorShard:
    leading = (1,) * part.prepend_axis_num
    data = part.data.detach().view(leading + tuple(part.local_shape))
    return TensorShard(part.key, data, part.global_shape, part.global_offset, part.allow_shape_mismatch)


def _of_optimizer(
    part: ShardedTensor, parameter: Tensor, updated: Updated, weights: Tensor | None
) -> Iterator[TensorShard]:
    """The elements of a part that the optimizer holds: its weights, if given, and its moments."""
    tensors = {
        f"optimizer.state.{name}.{part.key}": moment
        for name, moment in moments(updated.optimizer, updated.weights).items()
    }
    if weights is not None:
        tensors[part.key] = weights
    axes = part.prepend_axis_num
    leading = tuple(part.global_offset[:axes])
    for key, tensor in tensors.items():
        values = tensor.detach().view(-1)
        for first, offset, size in held_boxes(part, parameter, updated):
            data = values[first : first + math.prod(size)].view((1,) * axes + size)
            yield TensorShard(key, data, part.global_shape, leading + offset, part.allow_shape_mismatch)


def held_boxes(
    part: ShardedTensor, parameter: Tensor, updated: Updated
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """The elements of a part that the optimizer holds, as boxes of the whole tensor without its leading axes.

    Yields:
        (where the box begins in the flattened `updated.weights`, its offset, its size).
    """
    assert part.data.is_contiguous(), f"{part.key}: a part that is no range of its parameter's elements"
    first = part.data.storage_offset() - parameter.storage_offset()
    start = max(first, updated.start)
    stop = min(first + part.data.numel(), updated.start + updated.weights.numel())
    origin, at = part.global_offset[part.prepend_axis_num :], start - updated.start
    for offset, size in boxes_of_range(tuple(part.local_shape), start - first, stop - first):
        yield at, tuple(map(sum, zip(origin, offset, strict=True))), size
        at += math.prod(size)


def _updated(optimizer: ChainedOptimizer) -> dict[Tensor, Updated]:
    """What this rank's optimizers hold, by the model's parameter."""
    return {key: held for each in optimizer.chained_optimizers for key, held in updated_by(each).items()}


def updated_by(optimizer: MegatronOptimizer) -> dict[Tensor, Updated]:
    """What one of Megatron's chained optimizers holds, by the model's parameter."""
    if optimizer.is_stub_optimizer:  # a rank without parameters of its kind
        return {}
    shards = isinstance(optimizer, DistributedOptimizer)

    def start(parameter: Tensor) -> int:
        return optimizer._get_model_param_range_map(parameter)["param"].start if shards else 0

    return {
        parameter: Updated(start(parameter), weights, optimizer.optimizer)
        for parameter, weights in _pairs(optimizer)
    }


def _pairs(optimizer: object) -> Iterable[tuple[Tensor, Tensor]]:
    """(the model's parameter, what is updated) of one of Megatron's optimizers."""
    if isinstance(optimizer, DistributedOptimizer):
        pairs = (
            (optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups),
            (optimizer.model_fp32_groups, optimizer.shard_fp32_groups),
        )
    elif isinstance(optimizer, Float16OptimizerWithFloat16Params):
        pairs = (
            (optimizer.float16_groups, optimizer.fp32_from_float16_groups),
            (optimizer.fp32_from_fp32_groups, optimizer.fp32_from_fp32_groups),
        )
    else:
        own = [group["params"] for group in optimizer.optimizer.param_groups]
        pairs = ((own, own),)
    for models, updated in pairs:
        yield from zip(chain.from_iterable(models), chain.from_iterable(updated), strict=True)
