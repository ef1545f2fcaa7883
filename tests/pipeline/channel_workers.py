"""What the ranks of the channels' tests run."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.pipeline.placement import placement
from hcmegatron.platform.distributed import megatron_groups
from schedules.actions import Kind
from schedules.placement import Placement
from schedules.plan import Message
from schedules.runtime.torch_distributed import DistributedTransport, channels
from tests.emulated import nccl

CUDA = torch.device("cuda")  # which the CPU adapter answers for


def channels_of(configs: list[Config], limit: float) -> list[list[int]]:
    """Per configuration, how many groups this rank had made or joined before, and its channels: made twice,
    each time with a message through every one, and ended."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=limit)
    found = []
    for config in configs:
        where = placement(config)
        with megatron_groups(config) as groups, nccl.installed() as given:
            before = len(dist.distributed_c10d._world.pg_names)
            for time in range(2):
                transport = DistributedTransport(groups.pp, where, CUDA, timeout=timeout)
                made = sorted(transport._channels)
                _exchange(transport, where, groups.pp.rank(), 100 * groups.dp.rank() + time)
                transport.close()
                assert len(dist.distributed_c10d._world.pg_names) == before
            assert all(options.is_high_priority_stream and options._timeout == timeout for options in given)
            found.append((before, made))
    return found


def _exchange(transport: DistributedTransport, where: Placement, rank: int, mark: int) -> None:
    """A number through every channel at once, received in another order than they were sent in."""
    ends = where.rank_of
    through = {
        channel: Message(Kind.F, *channel, 0, ends[channel[0]], ends[channel[1]])
        for channel in channels(where)
    }
    values = {channel: torch.tensor([mark + 0.01 * number]) for number, channel in enumerate(through)}
    sent = [
        transport.send(message, values[channel])
        for channel, message in through.items()
        if message.source_rank == rank
    ]
    for channel, message in reversed(through.items()):
        if message.target_rank == rank:
            buffer = torch.zeros(1)
            transport.receive(message, buffer).wait()
            assert torch.equal(buffer, values[channel]), (channel, buffer, values[channel])
    for pending in sent:
        pending.wait()
