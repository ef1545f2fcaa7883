"""How many CUDA streams the work of a rank is on, and when its receives are posted, by configuration alone."""

from __future__ import annotations

from collections.abc import Mapping

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, Parallel
from hcmegatron.pipeline.configured_schedule import is_megatrons, placement, training_schedule
from hcmegatron.planner.hops import BANDWIDTH, FLOPS
from hcmegatron.platform.cuda_environment import dangers
from schedules.costs import Costs
from schedules.runtime.program import compile_rank
from schedules.runtime.torch_distributed import MOST_CHANNELS, channels_of

_LANES = 2  # beside computation (lanes.py), where forward and backward overlap
_MEGATRONS = 4  # communicators whose work runs beside computation: tensor, expert and data parallel


def streams(parallel: Parallel) -> int:
    """Of the rank that has most: computation, lanes, a stream for every channel, Megatron's communicators."""
    return 1 + (_LANES if parallel.overlap else 0) + _most_channels(parallel) + _MEGATRONS


def check_channels(parallel: Parallel) -> None:
    """On CUDA only.

    Raises:
        ConfigError: a rank has more channels than torch has streams for.
    """
    most = _most_channels(parallel)
    if most > MOST_CHANNELS:
        raise ConfigError(
            f"parallel.virtual = {parallel.virtual}: a rank would exchange messages over {most} channels, and "
            f"torch has {MOST_CHANNELS} streams for them on a GPU; with two on one stream the pipeline could hang. Use "
            f"parallel.virtual = {parallel.virtual * MOST_CHANNELS // most} or less"
        )


def warnings(parallel: Parallel, environment: Mapping[str, str]) -> list[str]:
    """What of the environment endangers a run of our own schedules on GPUs, in words. Starts nothing, so that it can be
    said before anything hangs."""
    return [] if is_megatrons(parallel) else dangers(environment, streams(parallel))


def receives(config: Config, costs: Costs, microbatches: int, rank: int) -> list[str]:
    """How early pipeline rank `rank` posts receives on a GPU, in words; nothing where there are none of ours.

    Args:
        costs: planner.hops.hop_costs of the schedule.
    """
    parallel = config.parallel
    if is_megatrons(parallel):
        return []
    leads = compile_rank(training_schedule(config, microbatches), rank, costs).leads.values()
    if not leads:
        return []
    least, most = min(leads), max(leads)
    ahead = f"{most} action{'s' if most > 1 else ''}" if least == most else f"{least} to {most} actions"
    hop = costs.link.latency / max(stage.F for stage in costs.stages)
    source = f"by estimate ({BANDWIDTH / 1e9:.0f} GB/s, {FLOPS / 1e12:.0f} TFLOP/s)"
    if parallel.costs is not None:
        source = f"measured ({parallel.costs})"
    return [f"receives are posted {ahead} ahead: a hop takes {hop:.2g} of a stage's forward, {source}"]


def _most_channels(parallel: Parallel) -> int:
    where = placement(parallel)
    return max(len(channels_of(where, rank)) for rank in range(where.ranks))
