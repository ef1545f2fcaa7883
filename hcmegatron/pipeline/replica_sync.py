"""What keeps the two replicas of every stage one network, where micro-batches enter at both ends (DualPipe).

Rank r of P and its mirror, P-1-r, hold the same two stages, each on another path. Replicas start equal because weights
are a function of their keys; they stay equal because the gradients and the experts' token counts of both paths are
summed before anything else is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Parallel
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.platform.distributed import device
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.moe.router import Router
from schedules.placement import Placement
from schedules.runtime.groups import groups_of_all


class ReplicaSync:
    """This rank's chunks and their replicas on its mirror. Creating one is collective over all ranks, every method over
    the pair.

    Args:
        chunks: wrapped, in ascending order of their stage ids.
        pipeline: the pipeline's group.
        timeout: of a sum; None: torch's default.
    """

    def __init__(
        self,
        chunks: list[DistributedDataParallel],
        where: Placement,
        pipeline: dist.ProcessGroup,
        timeout: timedelta | None = None,
    ) -> None:
        own = where.stages_of(pipeline.rank())
        # by model stage, so that both ranks of a pair go through them in the same order
        by_stage = dict(zip(map(where.model_stage, own), chunks, strict=True))
        self.chunks = [by_stage[stage] for stage in sorted(by_stage)]
        members = dist.get_process_group_ranks(pipeline)
        self.group = _own_group([members[where.rank_of[copy]] for copy in where.copies(own[0])], timeout)
        layouts: list[list | None] = [None] * self.group.size()
        dist.all_gather_object(layouts, [_layout(chunk) for chunk in self.chunks], group=self.group)
        assert layouts[0] == layouts[-1], "the gradients of a stage's copies lie in different places"
        different = self.different()
        assert not different, f"copies of a stage that do not start equal: {different}"

    def close(self) -> None:
        """End the pair's group, on both of its ranks; ending torch.distributed ends it too."""
        dist.destroy_process_group(self.group)

    def sum(self) -> None:
        """Give both replicas the sum of their gradients and of the tokens that each expert got."""
        for chunk in self.chunks:
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
                dist.all_reduce(buffer.grad_data, group=self.group)
            for module in chunk.modules():
                if isinstance(module, Router) and module.expert_bias is not None:
                    dist.all_reduce(module.local_tokens_per_expert, group=self.group)

    def different(self) -> list[str]:
        """Names of parameters and buffers that are not the same, bit for bit, in both replicas."""
        return [
            name
            for chunk in self.chunks
            for name, tensor in _tensors(chunk)
            if not _same(tensor.detach().contiguous(), self.group)
        ]


def replicas_planned(parallel: Parallel, chunks: list[nn.Module]) -> list[str]:
    """What two copies of the parameters cost this rank, in words; nothing where there is one."""
    if len(placement(parallel).paths) == 1:
        return []
    held = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    return [
        f"{parallel.schedule} keeps two copies of every stage: {held:,} parameters on this rank, with their "
        "gradients and optimizer state; dualpipev would keep half as many"
    ]


def _own_group(pair: list[int], timeout: timedelta | None) -> dist.ProcessGroup:
    """The group of these two global ranks."""
    pair = sorted(pair)
    groups = {
        each: dist.new_group(list(each), timeout=timeout, group_desc="mirrors")
        for each in groups_of_all(pair, device())
    }
    return groups[tuple(pair)]


def _tensors(chunk: DistributedDataParallel) -> Iterator[tuple[str, Tensor]]:
    model = unwrap(chunk)
    yield from model.named_parameters()
    yield from model.named_buffers()


def _layout(chunk: DistributedDataParallel) -> list[tuple[str, int, int]]:
    """Names of the parameters in the gradient buffers, which are summed whole, with their places there."""
    names = {parameter: name for name, parameter in chunk.named_parameters()}
    return [
        (names[parameter], start, end)
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        for parameter, (start, end, *_) in buffer.param_index_map.items()
    ]


def _same(tensor: Tensor, group: dist.ProcessGroup) -> bool:
    """Whether all ranks of the group hold the same bits."""
    copies = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(copies, tensor, group=group)
    # as bytes: a NaN equals itself, -0 is not 0
    return all(
        torch.equal(copy.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)) for copy in copies
    )
