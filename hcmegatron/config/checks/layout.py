"""How the model is split over ranks: the pipeline's schedule, the other axes, the world and the batch."""

from __future__ import annotations

import math

from hcmegatron.config.checks.refusals import Shown, divisible, need, refuse
from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES, nearest_schedule
from hcmegatron.config.schema import Config, distributed_optimizer
from hcmegatron.connections.kinds.multiples import nearest_multiples


def smallest_world(config: Config) -> int:
    """Ranks that hold the model once; worlds are multiples of it."""
    p = config.parallel
    return math.lcm(p.pipeline * p.tensor, p.pipeline * p.expert * p.expert_tensor)


def check_world(config: Config, world_size: int) -> int:
    """The data-parallel size of `world_size` ranks; ConfigError where they do not fit layout and batch."""
    p = config.parallel
    split = smallest_world(config)
    layout = f"parallel.pipeline = {p.pipeline} x parallel.tensor = {p.tensor}"
    if p.expert * p.expert_tensor > 1:
        layout += f", parallel.expert = {p.expert} x parallel.expert_tensor = {p.expert_tensor}"
    need(
        world_size % split == 0,
        f"world size {world_size} is not a multiple of {split}, as {layout} asks for",
        f"start {nearest_multiples(world_size, split)} ranks, or change the layout",
    )
    data_parallel = world_size // (p.pipeline * p.tensor)
    check_batch(config, data_parallel)
    return data_parallel


def check_batch(config: Config, data_parallel: int) -> int:
    """Micro-batches of one rank in a step; ConfigError where the global batch does not divide."""
    p, t = config.parallel, config.training
    share = t.micro_batch * data_parallel
    count = t.global_batch // share
    need(
        t.global_batch % share == 0,
        f"training.global_batch = {t.global_batch} is not a multiple of training.micro_batch = "
        f"{t.micro_batch} x data-parallel size {data_parallel} = {share}",
        f"use {nearest_multiples(t.global_batch, share)}",
    )
    schedule = SCHEDULES[p.schedule]
    if found := schedule.misfit(p.pipeline, count):
        none, several = schedule.misfit(p.pipeline, 0), found.multiple > 1
        least = none.smallest if none else 1
        refuse(
            f"training.global_batch = {t.global_batch} makes {count} micro-batches a rank, and parallel.schedule = "
            f"{p.schedule} with parallel.pipeline = {p.pipeline} takes "
            + (f"multiples of {found.multiple}: {found.why}" if several else f"{least} or more"),
            f"use {nearest_multiples(t.global_batch, found.multiple * share)}; "
            f"the smallest that works is {least * share}"
            if several
            else f"use a global batch of {least * share} or more",
        )
    return count


def check_parallel(config: Config, shown: Shown) -> None:
    """ConfigError where schedule, stages or tensor parallelism do not fit the network or each other."""
    _schedule(config, shown)
    _stages(config, shown)
    _tensor(config, shown)
    p = config.parallel
    need(
        not p.overlap_param_gather or (distributed_optimizer(config) and p.overlap_grad_reduce),
        f"{shown('parallel.overlap_param_gather')} gathers the distributed optimizer's shards",
        "set parallel.distributed_optimizer=true and parallel.overlap_grad_reduce=true",
    )


def _schedule(config: Config, shown: Shown) -> None:
    p, schedule = config.parallel, SCHEDULES[config.parallel.schedule]
    need(
        not schedule.chosen or p.virtual is not None,
        f"{shown('parallel.schedule')} needs chunks to interleave",
        "set parallel.virtual to their number on a rank, 2 or more",
    )
    need(
        schedule.chosen or p.virtual is None,
        f"{shown('parallel.virtual')}, but {shown('parallel.schedule')} has no chunks to choose",
        "use an interleaved schedule, or set parallel.virtual=null",
    )
    need(
        not schedule.chosen or p.pipeline > 1,
        f"{shown('parallel.schedule')} interleaves pipeline ranks, but {shown('parallel.pipeline')}",
        f"raise parallel.pipeline, or use parallel.schedule={'megatron_' * (p.schedule in MEGATRONS)}1f1b",
    )
    if found := schedule.misfit(p.pipeline):
        refuse(
            f"{shown('parallel.schedule')} takes multiples of {schedule.ranks_multiple}, and not "
            f"{shown('parallel.pipeline')}: {schedule.ranks_why}",
            f"the smallest above it that works is {found.smallest}",
        )
    need(
        not p.overlap or schedule.pairs,
        f"{shown('parallel.overlap')} pairs forwards with backwards, and {shown('parallel.schedule')} has no pairs",
        f"use parallel.schedule={nearest_schedule(pairs=True)}",
    )
    need(
        not (p.overlap and config.moe.experts) or config.moe.dispatcher == "alltoall",
        f"{shown('parallel.overlap')} with {shown('moe.dispatcher')}, which gathers all micro-batches' tokens into "
        "the same buffer of Megatron's: those of the forward and the backward would mix",
        "use moe.dispatcher=alltoall",
    )


def stages_a_rank(config: Config) -> int:
    """Pipeline stages on every rank, second copies (DualPipe) left out."""
    p, schedule = config.parallel, SCHEDULES[config.parallel.schedule]
    if p.virtual:
        return p.virtual  # without listing what may be millions of stages
    return schedule.placement(p.pipeline).model_stages // p.pipeline


def _stages(config: Config, shown: Shown) -> None:
    layers, p = config.model.layers, config.parallel
    chunks = stages_a_rank(config)
    stages = p.pipeline * chunks
    over = f"{shown('parallel.pipeline')} x {chunks} of {shown('parallel.schedule')}"
    need(
        layers >= stages,
        f"{shown('model.layers')} leaves some of {stages} pipeline stages without a layer ({over})",
        f"use {stages} layers or more, or fewer stages",
    )
    need(
        layers % stages == 0 or p.schedule not in MEGATRONS,
        f"{shown('model.layers')} is not divisible over {stages} pipeline stages ({over}), as Megatron's own "
        "schedules need",
        f"use {nearest_multiples(layers, stages)} layers, stages that divide {layers}, or another schedule",
    )


def _tensor(config: Config, shown: Shown) -> None:
    m, p = config.model, config.parallel
    need(
        not p.sequence or p.tensor > 1,
        f"{shown('parallel.sequence')} splits over tensor ranks, but {shown('parallel.tensor')}",
        "raise parallel.tensor, or set parallel.sequence=false",
    )
    if p.sequence:
        divisible(shown, "data.sequence_length", "parallel.tensor", ", over which the sequence is split")
    divisible(shown, "model.heads", "parallel.tensor")
    divisible(shown, "model.ffn_hidden_size", "parallel.tensor")
    groups = m.query_groups or m.heads
    need(
        m.attention == "mla" or groups % p.tensor == 0 or p.tensor % groups == 0,
        f"{shown('model.query_groups')} is neither a multiple nor a divisor of {shown('parallel.tensor')}",
        f"use a multiple of {p.tensor}",
    )
