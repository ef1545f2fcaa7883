"""NCCL's communicators as a backend of torch.distributed over gloo, by NCCL's rules; import it in ranks only.

- Made at the first operation, while the hosts of all members wait for each other; two ranks' messages in a group have a
  communicator of their own.
- The operations of a communicator run in the order in which they were enqueued, which has to be the same on all
  members. There are no tags: messages of one direction are matched by their order.
- What the caller waits for at once (async_op=False) runs on the current stream, and the rest on the communicator's own,
  behind what the current stream has been given.
- Waiting for work makes the current stream wait, not the host. A barrier is for the host.

gloo carries the data where the work is waited for, because operations on tensors run where they are called. Whether the
ranks would get on without that is what `queues` says afterwards, from what each host has enqueued.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.emulated.streams import DEVICE, Event, Item, Stream

NAME = "emulated_nccl"
LIMIT = timedelta(seconds=60)  # of waiting for the other members' hosts


@dataclass
class Options:
    """As ProcessGroupNCCL.Options, which `new_group` writes into: good for one group only."""

    is_high_priority_stream: bool = False
    config: SimpleNamespace = field(default_factory=SimpleNamespace)
    _timeout: timedelta | None = None
    taken: bool = False


class Work(dist.Work):
    """As WorkNCCL."""

    def __init__(self, event: Event, work: dist.Work | None, host: bool = False) -> None:
        super().__init__()
        self.event, self.work, self.host = event, work, host

    def is_completed(self) -> bool:
        """Whoever asks goes on asking until it is: the host has waited for the device."""
        self._arrive()
        DEVICE.waits("a message")
        self.event.host_waits()
        return True

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._arrive()
        if self.host:
            DEVICE.waits("a barrier")
            self.event.host_waits()
        else:
            DEVICE.current[-1].wait_event(self.event)
        return True

    def _arrive(self) -> None:
        if self.work is not None:
            with _disable_current_modes():
                self.work.wait()
            self.work = None


class Communicator(dist.ProcessGroup):
    """A process group. `made`: of every communicator in it, its last operation's end and how many there were."""

    every: list[Communicator] = []  # noqa: RUF012, of this process

    def __init__(self, about: Any, options: Options | None) -> None:
        super().__init__(about.group_rank, about.group_size)
        options = options or Options()
        assert not options.taken, f"{about.group_id}: options that another group was made with"
        options.taken = True
        self.options, self.id = options, about.group_id
        self.members = about.global_ranks_in_group or list(range(about.group_size))
        self.store = dist.PrefixStore("connect", about.store)
        self.gloo = dist.ProcessGroupGloo(
            dist.PrefixStore("gloo", about.store), about.group_rank, about.group_size, about.timeout
        )
        self.priority = -3 if options.is_high_priority_stream else 0
        self.made: dict[Hashable, _Made] = {}
        self.every.append(self)

    @property
    def group_name(self) -> str:
        return self.id

    def getBackendName(self) -> str:
        return NAME

    def shutdown(self) -> None:
        if self in self.every:
            self.every.remove(self)

    abort = shutdown

    # Messages between two ranks.

    def send(self, tensors: list[Tensor], peer: int, tag: int = 0) -> Work:
        made = self._connect(frozenset((self.rank(), peer)))
        return self._message("send", tensors, made, (self.rank(), peer))

    def recv(self, tensors: list[Tensor], peer: int, tag: int = 0) -> Work:
        made = self._connect(frozenset((self.rank(), peer)))
        return self._message("receive", tensors, made, (peer, self.rank()))

    def _message(self, kind: str, tensors: list[Tensor], made: _Made, way: tuple[int, int]) -> Work:
        stream = made.stream
        stream.wait_stream(DEVICE.current[-1])
        for watcher in DEVICE.watchers:
            watcher.message(kind, tensors, stream)
        made.messages[way] = number = made.messages.get(way, 0) + 1
        stream.tick(kind, number=number, channel=(self.id, *way), what=_sizes(tensors))
        begin, peer = (self.gloo.send, way[1]) if kind == "send" else (self.gloo.recv, way[0])
        with _disable_current_modes():
            work = begin(tensors, peer, 0)
        made.last = stream.record_event()
        return Work(made.last, work)

    # Collectives.

    def _collective(
        self,
        name: str,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        options: Any,
        begin: Callable[[], dist.Work],
    ) -> Work:
        made = self._connect(None)
        asynchronous = bool(getattr(options, "asyncOp", True))
        stream = made.stream if asynchronous else DEVICE.current[-1]
        if asynchronous:
            stream.wait_stream(DEVICE.current[-1])
        if made.last is not None:
            stream.wait_event(made.last)
        for watcher in DEVICE.watchers:
            watcher.access(f"nccl {name}", list(inputs), list(outputs), stream=stream)
            if asynchronous:  # which torch keeps until the work is waited for
                for tensor in (*inputs, *outputs):
                    watcher.record(tensor, stream)
        made.collectives += 1
        # what is sent to each differs from rank to rank, and who broadcasts has no output
        agreed = name, *(_sizes(inputs or outputs) if name in ("all_reduce", "broadcast", "reduce") else ())
        stream.tick("collective", number=made.collectives, channel=self.id, members=self.size(), what=agreed)
        if made.work is not None:
            made.work._arrive()  # gloo would work at both at once
        with _disable_current_modes():
            work = begin()
            if not asynchronous:
                work.wait()
        made.last = stream.record_event()
        made.work = Work(made.last, work if asynchronous else None)
        return made.work

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        opts = opts or dist.AllreduceOptions()
        return self._collective(
            "all_reduce", tensors, tensors, opts, lambda: self.gloo.allreduce(tensors, opts)
        )

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any) -> Work:
        return self._collective(
            "all_reduce",
            tensors,
            tensors,
            opts,
            lambda: _each([_one(self.gloo.allreduce, [tensor], opts) for tensor in tensors]),
        )

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Work:
        own = self.rank() == opts.rootRank
        return self._collective(
            "broadcast",
            [] if own else tensors,
            tensors if own else [],
            opts,
            lambda: self.gloo.broadcast(tensors, opts),
        )

    def reduce(self, tensors: list[Tensor], opts: Any) -> Work:
        return self._collective("reduce", tensors, tensors, opts, lambda: self.gloo.reduce(tensors, opts))

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        opts = opts or dist.AllgatherOptions()
        return self._collective(
            "all_gather", outputs[0], inputs, opts, lambda: self.gloo.allgather(outputs, inputs, opts)
        )

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        opts = opts or dist.AllgatherOptions()
        return self._collective(
            "all_gather_single",
            [output],
            [input],
            opts,
            lambda: self.gloo._allgather_base(output, input, opts),
        )

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> Work:
        return self._collective(
            "all_gather_single",
            outputs,
            inputs,
            opts,
            lambda: _each(
                [self.gloo._allgather_base(*pair, opts) for pair in zip(outputs, inputs, strict=True)]
            ),
        )

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> Work:
        return self._collective(
            "reduce_scatter",
            outputs,
            inputs[0],
            opts,
            lambda: self.gloo.reduce_scatter(outputs, inputs, opts),
        )

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any) -> Work:
        return self._collective(
            "reduce_scatter_single",
            [output],
            [input],
            opts,
            lambda: self.gloo._reduce_scatter_base(output, input, opts),
        )

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> Work:
        return self._collective(
            "reduce_scatter_single",
            outputs,
            inputs,
            opts,
            lambda: _each(
                [self.gloo._reduce_scatter_base(*pair, opts) for pair in zip(outputs, inputs, strict=True)]
            ),
        )

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any
    ) -> Work:
        return self._collective(
            "all_to_all_single",
            [output],
            [input],
            opts,
            lambda: self.gloo.alltoall_base(output, input, output_sizes, input_sizes, opts),
        )

    def barrier(self, opts: Any = None) -> Work:
        work = self._collective("barrier", [], [], SimpleNamespace(asyncOp=True), self.gloo.barrier)
        work.host = True
        return work

    # As torch before 2.13 calls them.
    _allgather_base, allgather_into_tensor_coalesced = all_gather_single, all_gather_single_coalesced
    _reduce_scatter_base, reduce_scatter_tensor_coalesced = (
        reduce_scatter_single,
        reduce_scatter_single_coalesced,
    )
    alltoall_base = all_to_all_single

    def _connect(self, pair: frozenset[int] | None) -> _Made:
        """The communicator of two ranks or of the group: at its first use the host waits for the other members'."""
        if pair not in self.made:
            everyone = sorted(pair) if pair is not None else list(range(self.size()))
            key = "-".join(map(str, everyone)) if pair is not None else "all"
            DEVICE.log.append(Item("connect", number=0, channel=(self.id, key), members=len(everyone)))
            DEVICE.waits("a communicator's members")
            self.store.set(f"{key} {self.rank()}", "")
            try:
                self.store.wait([f"{key} {rank}" for rank in everyone], LIMIT)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{NAME}: {self.id}'s communicator of {everyone} is made at its first operation, and not all of "
                    f"them have come to it in {LIMIT.total_seconds():g} s"
                ) from error
            self.made[pair] = _Made(Stream(priority=self.priority, name=f"nccl {self.id} {key}"))
        return self.made[pair]


@dataclass
class _Made:
    stream: Stream
    last: Event | None = None
    work: Work | None = None  # of the last collective
    collectives: int = 0
    messages: dict[tuple[int, int], int] = field(default_factory=dict)


class _each(dist.Work):
    """All of them."""

    def __init__(self, works: list[dist.Work]) -> None:
        super().__init__()
        self.works = works

    def wait(self, timeout: timedelta | None = None) -> bool:
        for work in self.works:
            work.wait()
        return True


def _one(begin: Callable, tensors: list[Tensor], opts: Any) -> dist.Work:
    """Of a coalesced reduction."""
    own = dist.AllreduceOptions()
    own.reduceOp = opts.reduceOp
    return begin(tensors, own)


def _sizes(tensors: Sequence[Tensor]) -> tuple:
    return tuple((tensor.numel(), tensor.dtype) for tensor in tensors)


def register() -> None:
    """The backend's name is known from now on, and what NCCL's groups take as options is there."""
    if NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(NAME, Communicator, extended_api=True, devices=["cpu"])
    dist.ProcessGroupNCCL = SimpleNamespace(Options=Options)
