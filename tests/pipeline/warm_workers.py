"""What the ranks of the warm start's tests run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist

from hcmegatron.config.schema import Config, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.platform.communicators import start_communicators
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import step
from hcmegatron.training.model import wrap_chunk
from hcmegatron.training.optimizer import build_optimizer
from hcmegatron.training.step import Stepper
from tests.emulated.kernels import loading
from tests.layouts.network import Batches, chunks_of
from tests.model.workers import groups_of


@dataclass
class Start:
    """What was said, and how many kernels the rehearsal launched, and the rest of the run beyond them."""

    said: list[str]
    rehearsed: int
    later: int


def runs(configs: list[Config], warm: bool = True) -> list[Start]:
    """Per configuration a rehearsal, a step and an evaluation, kernels being loaded at their first launch."""
    torch.set_num_threads(1)
    found = []
    for config in configs:
        with groups_of(config) as groups:
            chunks = [wrap_chunk(chunk, config, groups) for chunk in chunks_of(config, groups)]
            batches = Batches(config, groups.dp.rank(), groups.dp.size())
            held = most_held(config, batches.micro_batches, groups.pp.rank())
            execution = Recomputation(
                config.recompute, [unwrap(chunk) for chunk in chunks], micro_batch_tokens(config), *held
            ).execution
            optimizer = build_optimizer(config, chunks, groups)
            schedule = build_forward_backward(config, chunks, groups, execution)
            stepper = Stepper(config, chunks, optimizer, schedule, batches, groups)
            with loading() as mode:
                with (
                    mock.patch.object(
                        step, "GPU", SimpleNamespace(present=lambda: True, synchronize=lambda: None)
                    ),
                    nullcontext() if warm else mock.patch.object(Stepper, "_warm_start", lambda _: []),
                ):
                    said = stepper.rehearse()
                rehearsed = len(mode.loaded)
                stepper.step(0)
                stepper.evaluate(partial(stepper.batches, 1), 4)
                found.append(Start(said, rehearsed, len(mode.loaded) - rehearsed))
    return found


def untouched(config: Config) -> list[str]:
    """Groups of several ranks, this one among them, through which `start_communicators` sent nothing."""
    with groups_of(config) as groups:
        sent = []
        with mock.patch.object(dist, "all_reduce", lambda tensor, group: sent.append(group)):
            start_communicators(groups)
        known = dist.distributed_c10d._world.pg_map
        return sorted({group.group_desc for group in known if group.size() > 1 and group not in sent})
