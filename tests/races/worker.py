"""What the ranks of a variant run: training steps on emulated streams, looked at operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.nodes import Lane, Node
from hcmegatron.pipeline import cut, lanes, runner
from hcmegatron.pipeline.placement import most_held
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.recompute import tape
from hcmegatron.recompute.attach import Recomputation
from hcmegatron.training import data_parallel, model
from hcmegatron.training.optimizer import build_optimizer, set_learning_rate
from hcmegatron.training.step import Stepper
from schedules.actions import Kind
from schedules.plan import Message
from schedules.runtime.in_process import InProcessWorld
from schedules.runtime.torch_distributed import DistributedTransport
from tests.emulated import nccl, streams
from tests.emulated.races import OnDevice, checking, innermost
from tests.emulated.streams import DEVICE, Item
from tests.layouts.cases import VOCAB
from tests.layouts.network import Batches
from tests.races import collectives, kernels
from tests.races.report import Found
from tests.races.sites import Site
from tests.recompute.workers import digest
from tools.profile_overlap import all_to_all_of_one_rank

BUCKET = 2000  # parameters, where buckets are small


def found(
    config: Config,
    without: Site | None = None,
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
        mock.patch.object(runner, "DistributedTransport", _transport),
        collectives.on_streams(),
        megatron_groups(config) as groups,
        _stepper(config, groups, small_buckets) as stepper,
    ):
        if moved:
            _move(stepper)
        stepper.step(0)
        streams.reset()
        with checking() as checker, kernels.watched(checker) if config.kernels == "triton" else nullcontext():
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
    with megatron_groups(config) as groups, _stepper(config, groups, False) as stepper:
        for step in range(1 + steps):
            stepper.step(step)
        return _digests(stepper)


def handed_over(without: Site | None = None) -> Found:
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


@contextmanager
def removed(site: Site) -> Iterator[None]:
    """Inside, the call does nothing; calls from elsewhere do what they always do."""
    with ExitStack() as patches:
        for owner, instead in _INSTEAD[site.call]:
            usual = getattr(owner, site.call)

            def called(
                *args: Any, usual: Callable = usual, instead: Callable = instead, **kwargs: Any
            ) -> Any:
                frame = innermost()
                return (instead if frame and site.holds(frame) else usual)(*args, **kwargs)

            patches.enter_context(mock.patch.object(owner, site.call, called))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _completed(work: collectives.Work) -> bool:
    work.arrive()
    return True


@contextmanager
def _placed(own: lanes.Lanes, lane: Lane, chain: lanes.Chain, needs: object = ()) -> Iterator[None]:
    """On the lane, with nothing waited for and nothing recorded."""
    stream = own._streams.get(lane) or DEVICE.current[-1]
    with streams.on(stream):
        yield
    chain.lane, chain.done = lane, stream.record_event()


# What has each call, and what is left of it: the data of a message are there, but no stream has waited for it.
_INSTEAD: dict[str, list[tuple[Any, Callable]]] = {
    "wait_event": [(streams.Stream, _nothing)],
    "wait_stream": [(streams.Stream, _nothing)],
    "record_stream": [(torch.Tensor, _nothing)],
    "is_completed": [(collectives.Work, _completed)],
    "wait": [(collectives.Work, collectives.Work.arrive)],
    "start_param_sync": [(data_parallel.DataParallel, _nothing)],
    "_used_here": [(tape, _nothing)],
    "join": [(cut.Pass, _nothing)],
    "on": [(lanes.Lanes, _placed)],
}


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
        Recomputation(config, models, *held).measured()
        optimizer = build_optimizer(config, chunks, groups)
        set_learning_rate(optimizer, 0.01, 0.0)
        schedule = build_schedule(config, chunks, groups)
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


def _transport(group: object, where: object, device: object, **options: object) -> DistributedTransport:
    """The one for GPUs."""
    return DistributedTransport(group, where, torch.device("cuda"), **options)


def essence(log: list[Item]) -> list[Item]:
    """Of what a host enqueued, what can hold something up: of its kernels each stream's first, and no wait for what
    was enqueued before."""
    begun: set[str] = set()
    recorded: set[int] = set()
    kept = []
    for item in log:
        if item.kind == "record":
            recorded.add(item.number)
        if (item.kind == "kernel" and item.stream in begun) or (
            item.kind in ("wait", "host") and item.number not in recorded
        ):
            continue
        begun.add(item.stream)
        kept.append(item)
    return kept
