"""What the ranks of the channels' tests run."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.pipeline.configured_schedule import placement
from hcmegatron.platform.distributed import megatron_groups, process_groups
from hcmegatron.platform.ranks import discover_ranks
from megatron.core import parallel_state
from schedules.actions import Kind
from schedules.placement import Placement
from schedules.runtime.gpu import CHANNEL_BLOCKS, GPU
from schedules.runtime.torch_distributed import DistributedTransport, channels
from schedules.schedule import Message
from tests.emulated import gpu
from tests.emulated.communicators import Communicator


def channels_of(configs: list[Config], limit: float) -> list[tuple[int, list]]:
    """Per configuration, how many groups this rank had made or joined before, and its channels: made twice,
    each time with a message through every one, and ended. Megatron's groups are the emulated NCCL's too."""
    torch.set_num_threads(1)
    gpu.install()
    timeout = timedelta(seconds=limit)
    found = []
    with process_groups(configs[0], discover_ranks(os.environ)):
        parallel_state.destroy_model_parallel()
        for config in configs:
            with megatron_groups(config) as groups:
                assert isinstance(groups.pp, Communicator) and isinstance(groups.dp, Communicator)
                found.append(_made(config, groups, timeout))
    return found


def _made(config: Config, groups: object, timeout: timedelta) -> tuple[int, list]:
    where = placement(config.parallel)
    before, others = len(dist.distributed_c10d._world.pg_names), set(Communicator.every)
    for time in range(2):
        transport = DistributedTransport(groups.pp, where, GPU.device(), timeout=timeout)
        made = sorted(transport._channels)
        new = set(Communicator.every) - others
        assert len(new) == len(made) == len({id(group.options) for group in new})
        for group in new:
            assert group.size() == 2 and group.options.config.max_ctas == CHANNEL_BLOCKS
            assert group.options.is_high_priority_stream and group.options._timeout == timeout
        _exchange(transport, where, groups.pp.rank(), 100 * groups.dp.rank() + time)
        transport.close()
        assert len(dist.distributed_c10d._world.pg_names) == before
    return before, made


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
