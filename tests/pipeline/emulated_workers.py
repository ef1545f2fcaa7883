"""What the ranks of the emulated GPU's tests run: whole training steps, on it or on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from megatron.core import parallel_state
from schedules.runtime.gpu import GPU
from tests.as_on_a_gpu import no_padding
from tests.emulated import gpu, streams
from tests.emulated.host import Place, Watching, watching
from tests.layouts.network import Batches, chunks_of
from tests.model.workers import groups_of
from tests.recompute.workers import digest


@dataclass
class Step:
    """Of the second step: its loss and that of an evaluation after it, digests of every gradient and of the weights
    then, when actions began and ended; and, on the GPU, what the host enqueued, where it waited before that step
    (from the warm start on) and in it, and operations on tensors of both memories."""

    losses: list[float]
    gradients: list[str]
    weights: list[str]
    events: list[tuple[float, float]]
    log: list = field(default_factory=list)
    before: dict[Place, int] = field(default_factory=dict)
    waits: dict[Place, int] = field(default_factory=dict)
    mixed: dict = field(default_factory=dict)


def on_cpu(configs: list[Config]) -> list[Step]:
    torch.set_num_threads(1)
    return list(_steps(configs))


def on_gpu(configs: list[Config]) -> list[Step]:
    torch.set_num_threads(1)
    gpu.install()
    return list(_steps(configs))


def _steps(configs: list[Config]) -> Iterator[Step]:
    with process_groups(configs[0], discover_ranks(os.environ)), no_padding():
        parallel_state.destroy_model_parallel()
        for config in configs:
            with groups_of(config) as groups:
                yield _step(config, groups)


def _step(config: Config, groups: object) -> Step:
    """A rehearsal and two steps, the second of which is looked at."""
    chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    held = most_held(config, batches.micro_batches, groups.pp.rank())
    execution = Recomputation(
        config.recompute, [unwrap(chunk) for chunk in chunks], micro_batch_tokens(config), *held
    ).execution
    optimizer = build_optimizer(config, chunks, groups)
    schedule = build_forward_backward(config, chunks, groups, execution)
    stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
    with watching() if GPU.present() else nullcontext() as watched:
        stepper.rehearse()
        stepper.step(0)
        before = _taken(watched)
        streams.reset()
        loss = stepper.step(config.training.global_batch).loss
        log, waits = list(streams.DEVICE.log), _taken(watched)
        events = [(event.start, event.end) for event in schedule.record.events()]
        validation = stepper.evaluate(partial(batches, 2), 4)
    schedule.close()
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    gradients, weights = [digest(p.main_grad) for p in parameters], [digest(p) for p in parameters]
    mixed = dict(watched.mixed) if watched else {}
    return Step([loss, validation], gradients, weights, events, log, before, waits, mixed)


def _taken(watched: Watching | None) -> dict[Place, int]:
    """Where the host has waited since the last time."""
    if watched is None:
        return {}
    found = dict(watched.waits)
    watched.waits.clear()
    return found
