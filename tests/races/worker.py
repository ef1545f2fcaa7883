"""What the ranks of a variant run: training steps on emulated streams, looked at operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # torch's optimizers import it when they are made: here once for all ranks
import torch.distributed as dist

from hcmegatron.config.schema import Config, Parallel, micro_batch_tokens
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.nodes import Lane, Node
from hcmegatron.model.wgrad_store import WeightGradStore
from hcmegatron.pipeline import runner
from hcmegatron.pipeline.configured_schedule import most_held
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.lanes import Lanes
from hcmegatron.pipeline.micro_batch_graph import MicroBatchGraph
from hcmegatron.platform.distributed import megatron_groups, timeout
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import model
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from megatron.core.transformer.moe import token_dispatcher
from schedules.actions import Kind
from schedules.placement import Placement
from schedules.runtime.in_process import InProcessWorld
from schedules.runtime.torch_distributed import DistributedTransport
from schedules.schedule import Message
from tests.as_on_a_gpu import no_padding
from tests.emulated import nccl, streams
from tests.emulated.races import OnDevice, checking
from tests.emulated.streams import DEVICE, Item
from tests.layouts.network import Batches
from tests.races import collectives, kernels
from tests.races.removal import removed
from tests.races.report import Found
from tests.races.sites import Inside, Site
from tests.recompute.workers import digest
from tests.small_configs import VOCAB
from tools.profile_overlap import all_to_all_of_one_rank

BUCKET = 2000  # parameters, where buckets are small


def found(
    config: Config,
    without: Site | Inside | None = None,
    steps: int = 1,
    small_buckets: bool = False,
    evaluates: bool = False,
    moved: bool = False,
) -> Found:
    """One step on emulated streams, then `steps` that are looked at, without one synchronisation if one is given."""
    torch.set_num_threads(1)
    streams.install()
    with (
        nccl.installed(collectives.Channel),
        mock.patch.object(runner, "pipeline_transport", _transport),
        collectives.on_streams(),
        no_padding(),
        megatron_groups(config) as groups,
        _stepper(config, groups, small_buckets) as stepper,
    ):
        if moved:
            _move(stepper)
        stepper.step(0)
        streams.reset()
        moves = mock.patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", _to_host)
        with (
            moves,
            checking() as checker,
            kernels.watched(checker) if config.kernels == "triton" else nullcontext(),
        ):
            with removed(without) if without else nullcontext():
                for step in range(steps):
                    stepper.step(1 + step)
                if evaluates:
                    _evaluate(stepper)
            findings = dict(checker.findings)
        return Found(dict(checker.operations), findings, essence(DEVICE.log), _digests(stepper))


def plain(config: Config, steps: int = 1) -> list[str]:
    """The digests of the same steps on the CPU alone."""
    torch.set_num_threads(1)
    with no_padding(), megatron_groups(config) as groups, _stepper(config, groups, False) as stepper:
        for step in range(1 + steps):
            stepper.step(step)
        return _digests(stepper)


def handed_over(without: Site | Inside | None = None) -> Found:
    """A tensor from one rank to another over the transport within a process, each on a stream of its own."""
    streams.install()
    world, ranks = InProcessWorld(2), [streams.Stream(name=f"rank {rank}") for rank in range(2)]
    message = Message(Kind.F, 0, 0, 1, 0, 1)
    buffer = torch.empty(4)
    with checking() as checker, removed(without) if without else nullcontext():
        with streams.on(ranks[0]):
            tensor = torch.ones(4).as_subclass(OnDevice)
            world.transport(0).send(message, tensor)
            del tensor
        with streams.on(ranks[1]):
            world.transport(1).receive(message, buffer).wait()
        with streams.on(ranks[0]):
            torch.ones(4)
        findings = dict(checker.findings)
    return Found(dict(checker.operations), findings, essence(DEVICE.log), [])


def left_on_another_lane() -> str:
    """What is said of weight gradients that a node of another lane than computation's leaves for later."""
    store, graph = WeightGradStore(), MicroBatchGraph(Lanes(torch.device("cpu")))

    def backward(gradients: tuple) -> tuple:
        store.open.add(torch.zeros(1), lambda _: None, torch.zeros(1))
        return gradients

    graph.layers = [[SimpleNamespace(node="merge", lane=Lane.HIGH_PRIORITY, backward=backward)]]
    try:
        graph.backward(0, 1, store, "key")
    except AssertionError as error:
        return str(error)
    return "nothing"


@contextmanager
def _stepper(config: Config, groups: Any, small_buckets: bool) -> Iterator[Stepper]:
    with ExitStack() as patches:
        if small_buckets:
            small = partial(model.DistributedDataParallelConfig, bucket_size=BUCKET)
            patches.enter_context(mock.patch.object(model, "DistributedDataParallelConfig", small))
        if config.parallel.overlap:
            patches.enter_context(all_to_all_of_one_rank())
        chunks = model.build_model(config, VOCAB, groups)
        batches = Batches(config, groups.dp.rank(), groups.dp.size())
        models = [unwrap(chunk) for chunk in chunks]
        held = most_held(config, batches.micro_batches, groups.pp.rank())
        recomputation = Recomputation(config.recompute, models, micro_batch_tokens(config), *held)
        recomputation.measured()
        model.gather_parameters(chunks)  # as the trainer does: measuring has set their gathering off
        optimizer = build_optimizer(config, chunks, groups)
        set_learning_rate(optimizer, 0.01, 0.0)
        schedule = build_forward_backward(config, chunks, groups, recomputation.execution)
        yield Stepper(config, chunks, optimizer, schedule, batches, groups)


def _evaluate(stepper: Stepper) -> None:
    """After weights have been read, as for a checkpoint."""
    model.gather_parameters(stepper.chunks)
    for chunk in stepper.chunks:
        for parameter in chunk.parameters():
            parameter.detach().clone()
    stepper.evaluate(partial(stepper.batches, 7), stepper.batches.micro_batches)


def _move(stepper: Stepper) -> None:
    """Layers that begin on another lane than computation's, with a node that changes nothing."""
    first = Node("route", Lane.HIGH_PRIORITY, lambda state, _: (state[0] * 1, *state[1:]))
    for chunk in stepper.chunks:
        for layer in unwrap(chunk).decoder.layers:
            layer.nodes = (first, *layer.nodes)


def _digests(stepper: Stepper) -> list[str]:
    return [digest(parameter.main_grad) for chunk in stepper.chunks for parameter in chunk.parameters()]


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """As Megatron's of a tensor on a GPU: its dispatcher's counts go to the host on a stream of their own."""
    if not torch.is_tensor(tensor):
        return tensor
    (checker,) = DEVICE.watchers
    copy = checker.to_host(tensor)
    if record_stream:
        tensor.record_stream(DEVICE.current[-1])
    return copy.numpy() if as_numpy else copy


def _transport(
    parallel: Parallel, group: dist.ProcessGroup, where: Placement
) -> tuple[DistributedTransport, str]:
    """The one for GPUs."""
    return DistributedTransport(group, where, torch.device("cuda"), timeout=timeout(parallel)), ""


def essence(log: list[Item]) -> list[Item]:
    """Of what a host enqueued, what can hold something up: of its kernels each stream's first."""
    begun: set[str] = set()
    kept = []
    for item in log:
        if item.kind != "kernel" or item.stream not in begun:
            begun.add(item.stream)
            kept.append(item)
    return kept
