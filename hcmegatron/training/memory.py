"""A word about memory before anything is allocated: the kernel ends a process that grows too large without one."""

from __future__ import annotations

import torch

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.pipeline.placement import most_held, placement
from hcmegatron.planner.memory import rank_parameters, state_bytes, stream_bytes
from hcmegatron.planner.parameters import total_parameters
from hcmegatron.planner.stages import Stage, stages
from hcmegatron.platform.memory import available
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.platform.standard_streams import tell


def parts(config: Config, pipeline_rank: int) -> list[Stage]:
    """The chunks of a pipeline rank."""
    where = placement(config)
    layers = stages(config.model.layers, where.model_stages)
    return [layers[where.model_stage(stage)] for stage in where.stages_of(pipeline_rank)]


def expected(config: Config, vocab_size: int, ranks: RankInfo, micro_batches: int) -> str:
    """What training will need, in words; warns where it is close to what there is. On rank 0.

    Raises:
        ConfigError: weights, gradients and optimizer alone do not fit.
    """
    parallel = config.parallel
    chunks = [parts(config, rank) for rank in range(parallel.pipeline)]
    held = [rank_parameters(config, vocab_size, own) for own in chunks]
    state = [state_bytes(config, vocab_size, own, ranks.world_size) for own in chunks]
    live = [most_held(config, micro_batches, rank).live for rank in range(parallel.pipeline)]
    streams = [stream_bytes(config, own, live[rank]) for rank, own in enumerate(chunks)]
    if torch.cuda.is_available():
        need, more = max(state), max(map(sum, zip(state, streams, strict=True)))
        room, where = (
            torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
            "the fullest GPU",
        )
    else:
        # Which ranks share a machine is the launcher's choice; on average they need this much.
        need = sum(state) / len(state) * ranks.local_world_size
        more = need + sum(streams) / len(streams) * ranks.local_world_size
        room, where = available(), f"the {ranks.local_world_size} ranks of this machine"
    words = f"{_size(need)} for weights, gradients and optimizer state of {where}"
    if need > room:
        raise ConfigError(
            f"the model has {total_parameters(config, vocab_size):,} parameters and needs {words}, and "
            f"{_size(room)} can be had; make it smaller (connection.n = {config.connection.n}, "
            f"model.layers = {config.model.layers}, model.hidden_size = {config.model.hidden_size}), or split it "
            "over more machines (parallel.pipeline, tensor, expert)"
        )
    if more > room:
        tell(
            f"hcmegatron: warning: training needs {words}, and {_size(more - need)} at least for residual streams, "
            f"and {_size(room)} can be had; recompute.mode = block keeps fewer"
        )
    return (
        f"{total_parameters(config, vocab_size):,} parameters, at most {max(held):,} on a rank; memory: {words}, "
        f"{_size(more - need)} at least for residual streams; {_size(room)} can be had"
    )


def _size(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
