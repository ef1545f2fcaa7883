"""What the ranks of the races' tests run: overlapped steps on emulated streams, looked at operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch

from hcmegatron.config.schema import Config
from hcmegatron.pipeline import runner
from hcmegatron.pipeline.placement import most_held
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.training.model import build_model
from schedules.runtime.torch_distributed import DistributedTransport
from tests.emulated import nccl, streams
from tests.emulated.races import checking
from tests.recompute.workers import digest
from tools import profile_overlap

# Removed one by one, to see that what they are there for is found.
CONTROLS = {
    "waits": lambda: mock.patch.object(streams.Stream, "wait_event", lambda *_: None),
    "recorded streams": lambda: mock.patch.object(torch.Tensor, "record_stream", lambda *_: None),
}


@dataclass
class Found:
    """Of a step: operations by stream, what is wrong, and a digest of every gradient."""

    operations: dict[str, int]
    findings: list[str]
    gradients: list[str]


def found(configs: list[Config], microbatches: int, without: str | None = None) -> list[Found]:
    """Per configuration, a step on emulated streams after one step before it."""
    torch.set_num_threads(1)
    streams.install()
    results = []
    for config in configs:
        with megatron_groups(config) as groups, _step(config, groups, microbatches, True) as (step, chunks):
            step()
            with checking() as checker, CONTROLS[without]() if without else nullcontext():
                step()
            results.append(Found(dict(checker.operations), list(checker.findings), _digests(chunks)))
    return results


def plain(configs: list[Config], microbatches: int) -> list[list[str]]:
    """The digests of the same steps on the CPU alone."""
    torch.set_num_threads(1)
    results = []
    for config in configs:
        with megatron_groups(config) as groups, _step(config, groups, microbatches, False) as (step, chunks):
            step()
            step()
            results.append(_digests(chunks))
    return results


def _digests(chunks: list) -> list[str]:
    return [digest(parameter.main_grad) for chunk in chunks for parameter in chunk.parameters()]


@contextmanager
def _step(config: Config, groups: object, microbatches: int, emulated: bool) -> Iterator[tuple]:
    """A step, and its chunks. Emulated: messages go over NCCL's groups. All-to-alls of one rank communicate."""
    chunks: list = []

    def build(*arguments: object) -> list:
        chunks.extend(build_model(*arguments))
        return chunks

    def held(config: Config, count: int, _: int) -> tuple:
        return most_held(config, count, groups.pp.rank())

    with ExitStack() as patches:
        for name, value in (("MICRO_BATCHES", microbatches), ("most_held", held), ("build_model", build)):
            patches.enter_context(mock.patch.object(profile_overlap, name, value))
        if config.parallel.overlap:
            patches.enter_context(profile_overlap.all_to_all_of_one_rank())
        if emulated:
            patches.enter_context(nccl.installed(_OnStreams))
            patches.enter_context(mock.patch.object(runner, "DistributedTransport", _transport))
        yield profile_overlap.prepared(config, groups), chunks


class _OnStreams(nccl.OnStreams):
    def __init__(self, group: object) -> None:
        super().__init__(group, f"nccl {group.group_name}")


def _transport(group: object, where: object, device: object, **options: object) -> DistributedTransport:
    """The one for GPUs."""
    return DistributedTransport(group, where, torch.device("cuda"), **options)
