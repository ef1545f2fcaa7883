"""Every parameter of a chunk as a part of the whole network's: its checkpoint key, global shape and position.

Megatron's sharded state dict already knows how tensor, expert and pipeline parallelism and fused projections cut each
weight. Initialisation and the tests of layout independence read it instead of repeating that knowledge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from hcmegatron.platform.megatron import flatten_state_dict
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory


@dataclass(frozen=True)
class ParamShard:
    """A view of a local parameter and where it lies in the global tensor of the same key.

    Attributes:
        data: the local values; writing into it writes into the parameter.
        leading: indices on the axes that the checkpoint puts in front (the expert number of stacked experts).
        offset: start in the remaining axes of `shape`.
    """

    key: str
    data: Tensor
    leading: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]

    def slice_of(self, whole: Tensor) -> Tensor:
        """This part of the global tensor without its leading axes, `whole` [shape]."""
        for axis, (start, size) in enumerate(zip(self.offset, self.data.shape, strict=True)):
            # the vocabulary may be padded further on this rank than in `whole`
            whole = whole.narrow(axis, start, min(size, whole.shape[axis] - start))
        return whole


def sharded_tensors(chunk: nn.Module) -> Iterator[tuple[Tensor, ShardedTensor]]:
    """All parameters and persistent buffers of an (unwrapped) chunk, each with its parts as Megatron describes them.

    A part's data are a view of the parameter or buffer.
    """
    for entry in flatten_state_dict(chunk.sharded_state_dict()):
        built = flatten_state_dict([entry.build()]) if isinstance(entry, ShardedTensorFactory) else [entry]
        for part in built:
            if isinstance(part, ShardedTensor):
                yield entry.data, part


def param_shards(chunk: nn.Module) -> Iterator[ParamShard]:
    """All parameters and persistent buffers of an (unwrapped) chunk, as parts of the whole network."""
    for _, entry in sharded_tensors(chunk):
        axes = entry.prepend_axis_num
        yield ParamShard(
            entry.key,
            entry.data,
            tuple(entry.global_offset[:axes]),
            tuple(entry.global_shape[axes:]),
            tuple(entry.global_offset[axes:]),
        )
