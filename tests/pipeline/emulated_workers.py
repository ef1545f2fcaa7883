"""What the ranks of the emulated GPU's tests run: whole training steps, on it or on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.placement import most_held
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import discover
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import wrap
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from megatron.core import parallel_state
from schedules.runtime.gpu import GPU
from tests.emulated import gpu, streams
from tests.emulated.host import watching
from tests.layouts.network import Batches, chunks_of
from tests.model.workers import groups_of
from tests.recompute.workers import digest


@dataclass
class Step:
    """Of the second step: the loss, digests of every gradient and of the weights after it; and, on the GPU, what the
    host enqueued, where it waited, operations on tensors of both memories, and when actions began and ended."""

    loss: float
    gradients: list[str]
    weights: list[str]
    log: list = field(default_factory=list)
    waits: dict = field(default_factory=dict)
    mixed: dict = field(default_factory=dict)
    events: list = field(default_factory=list)


def on_cpu(configs: list[Config]) -> list[Step]:
    torch.set_num_threads(1)
    return list(_steps(configs))


def on_gpu(configs: list[Config]) -> list[Step]:
    torch.set_num_threads(1)
    gpu.install()
    return list(_steps(configs))


def _steps(configs: list[Config]) -> Iterator[Step]:
    with process_groups(configs[0], discover(os.environ)):
        parallel_state.destroy_model_parallel()
        for config in configs:
            with groups_of(config) as groups:
                yield _step(config, groups)


def _step(config: Config, groups: object) -> Step:
    """A rehearsal and two steps, the second of which is looked at."""
    chunks = [wrap(chunk, config, groups) for chunk in chunks_of(config, groups)]
    batches = Batches(config, groups.dp.rank(), groups.dp.size())
    held = most_held(config, batches.micro_batches, groups.pp.rank())
    Recomputation(config, [unwrap(chunk) for chunk in chunks], *held)
    optimizer = build_optimizer(config, chunks, groups)
    schedule = build_schedule(config, chunks, groups)
    stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
    with watching() if GPU.present() else nullcontext() as watched:
        stepper.rehearse()
        stepper.step(0)
        if watched:
            watched.waits.clear()
        streams.reset()
        loss = stepper.step(config.training.global_batch).loss
        log = list(streams.DEVICE.log)
    schedule.close()
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    step = Step(loss, [digest(p.main_grad) for p in parameters], [digest(p) for p in parameters], log)
    if watched:
        step.waits, step.mixed = dict(watched.waits), dict(watched.mixed)
        step.events = [(event.start, event.end) for event in schedule.record.events()]
    return step
