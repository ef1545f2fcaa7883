"""The forward_backward_func that a configuration asks for: Megatron's own, or ours with the same contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import nn

from hcmegatron.config.schema import Config
from hcmegatron.model.execution import Execution
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import is_megatrons
from hcmegatron.pipeline.megatron_schedule import megatron_schedule
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.planner.hops import hop_costs
from hcmegatron.platform import flight_recorder
from hcmegatron.platform.distributed import default_store
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.runtime.watchdog import Watchdog


def start_watchdog(timeout_s: int, directory: Path) -> Watchdog | None:
    """What ends the job, with the stacks of every rank in `directory`, when a rank stalls for so long.

    None for one rank alone. Close it on all ranks before the first one leaves: rank 0 holds what they share.
    """
    if dist.get_world_size() == 1:
        return None
    ranks = dist.get_rank(), dist.get_world_size()
    return Watchdog(default_store(), *ranks, timeout_s, directory, flight_recorder.dump)


def build_forward_backward(
    config: Config,
    chunks: list[nn.Module],
    groups: ProcessGroupCollection,
    execution: Execution,
    watchdog: Watchdog | None = None,
) -> Callable:
    """What runs the micro-batches of a step through this rank's wrapped chunks. Collective.

    Args:
        execution: how the chunks' nodes are run, as recomputation asks (Recomputation.execution); Execution(): plainly.
        watchdog: is told where our schedules are; Megatron's say nothing.
    """
    if is_megatrons(config.parallel):
        return megatron_schedule(config.parallel, execution)
    models = [unwrap(chunk) for chunk in chunks]
    costs = partial(hop_costs, config)
    return ScheduleRunner(config, costs, chunks, models, groups, execution, watchdog=watchdog)
