"""Megatron's communicators, which NCCL makes at their first message."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.distributed as dist

from hcmegatron.platform.distributed import device
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection


def start_communicators(groups: ProcessGroupCollection) -> None:
    """A message through the default group and every group of the collection that this rank belongs to. Collective:
    all ranks go through the same fields in the same order."""
    found = [getattr(groups, field.name, None) for field in fields(groups)]
    found.append(parallel_state.get_tensor_and_data_parallel_group(check_initialized=False))  # has no field
    token = torch.ones((), device=device())
    for group in (dist.group.WORLD, *found):
        if isinstance(group, dist.ProcessGroup):  # and neither None, nor a group of others
            dist.all_reduce(token, group=group)
