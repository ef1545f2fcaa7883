"""A profiled step on an emulated GPU. It changes the process: handed over by name."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.profiling.observer import Profiler
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.observer import End, Observer, Step
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.emulated import gpu
from tests.layouts.network import Batches, chunks_of
from tests.recompute.workers import digest


def second_step(config: Config, directory: Path | None) -> tuple[float, list[str], list[str]]:
    """Loss and gradients of the second step, and what was said of it where it was profiled: given a directory."""
    torch.set_num_threads(1)
    gpu.install()
    said: list[str] = []
    with process_groups(config, discover_ranks(os.environ)) as groups:
        chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        held = most_held(config, batches.micro_batches, groups.pp.rank())
        models = [unwrap(chunk) for chunk in chunks]
        execution = Recomputation(config.recompute, models, micro_batch_tokens(config), *held).execution
        optimizer = build_optimizer(config, chunks, groups)
        schedule = build_forward_backward(config, chunks, groups, execution)
        stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
        run = SimpleNamespace(
            config=config,
            stepper=stepper,
            chunks=chunks,
            directory=directory,
            position=SimpleNamespace(step=0),
            log=SimpleNamespace(say=lambda *lines: said.extend(lines)),
        )
        # the last would be under torch.profiler, which sees no such GPU
        profiler = Profiler(run, [2, 99]) if directory else Observer(run)
        stepper.rehearse()
        stepper.step(0)
        with profiler.around_step(2):
            result = stepper.step(config.training.global_batch)
        profiler.on_step(Step(2, result, 0.0, 1.0))
        profiler.on_end(End(2, "SIGTERM"))
        gradients = [digest(p.main_grad) for chunk in chunks for p in chunk.parameters()]
        schedule.close()
    return result.loss, gradients, said
