"""A word about memory before anything is allocated: the kernel ends a process that grows too large without one."""

from __future__ import annotations

import torch

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from hcmegatron.pipeline.configured_schedule import most_held, placement
from hcmegatron.planner.buffers import parameters, resident
from hcmegatron.planner.parameters import parameters_by_role, total_parameters
from hcmegatron.planner.stages import ModelStage, stages
from hcmegatron.planner.state_bytes import stream_bytes
from hcmegatron.platform import standard_streams
from hcmegatron.platform.available_memory import available_bytes
from hcmegatron.platform.ranks import RankInfo


def stages_of_rank(config: Config, pipeline_rank: int) -> list[ModelStage]:
    """The chunks of a pipeline rank."""
    where = placement(config.parallel)
    layers = stages(config.model.layers, where.model_stages)
    return [layers[where.model_stage(stage)] for stage in where.stages_of(pipeline_rank)]


def copied_bytes(config: Config, vocab_size: int, ranks: RankInfo) -> float:
    """Of this machine's memory, for what its ranks copy to save it in the background: of every parameter weight and
    its moments, Adam's two or Muon's one, each on one of all ranks."""
    if not config.checkpoint.asynchronous:
        return 0
    moments = {"adamw": 2, "matrix": 1 if config.optimizer.name == "muon" else 2}
    roles = parameters_by_role(config, vocab_size)
    numbers = sum((1 + moments[role]) * sum(parts.values()) for role, parts in roles.items())
    return numbers * ranks.local_world_size / ranks.world_size * (8 if config.training.dtype == "fp64" else 4)


def expected_memory(config: Config, vocab_size: int, ranks: RankInfo, micro_batches: int) -> str:
    """What training will need, in words; warns where it is close to what there is. On rank 0.

    Raises:
        ConfigError: weights, gradients and optimizer alone do not fit.
    """
    parallel = config.parallel
    chunks = [stages_of_rank(config, rank) for rank in range(parallel.pipeline)]
    held = [sum(p.numbers for part in own for p in parameters(config, vocab_size, part)) for own in chunks]
    state = [
        resident(config, vocab_size, own, ranks.world_size, first=rank == 0).total
        for rank, own in enumerate(chunks)
    ]
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
        room, where = available_bytes(), f"the {ranks.local_world_size} ranks of this machine"
    words = f"{_size(need)} for weights, gradients and optimizer state of {where}"
    if need > room:
        raise ConfigError(
            f"the model has {total_parameters(config, vocab_size):,} parameters and needs {words}, and "
            f"{_size(room)} can be had; make it smaller (connection.n = {config.connection.n}, "
            f"model.layers = {config.model.layers}, model.hidden_size = {config.model.hidden_size}), or split it "
            "over more machines (parallel.pipeline, tensor, expert)"
        )
    if more > room:
        standard_streams.tell(
            f"hcmegatron: warning: training needs {words}, and {_size(more - need)} at least for residual streams, "
            f"and {_size(room)} can be had; recompute.mode = block keeps fewer"
        )
    left = available_bytes() - (0 if torch.cuda.is_available() else more)
    if 0 < left < (copies := copied_bytes(config, vocab_size, ranks)):
        standard_streams.tell(
            f"hcmegatron: warning: saving keeps a copy of the state, {_size(copies)} of this machine's memory, where "
            f"{_size(left)} are left; checkpoint.asynchronous = false goes without, and stops training for every save"
        )
    return (
        f"{total_parameters(config, vocab_size):,} parameters, at most {max(held):,} on a rank; memory: {words}, "
        f"{_size(more - need)} at least for residual streams; {_size(room)} can be had"
    )


def _size(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
