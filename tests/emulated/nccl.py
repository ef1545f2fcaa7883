"""NCCL's process groups, with gloo in their place. Import it in ranks only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.emulated.streams import DEVICE, Event, Stream


@dataclass
class Options:
    """As ProcessGroupNCCL.Options; ``new_group`` writes into it, so that it may serve one group only."""

    is_high_priority_stream: bool = False
    config: SimpleNamespace = field(default_factory=SimpleNamespace)
    taken: bool = False


class Work:
    """Of gloo's, which knows that it is completed once it has been waited for, and may be waited for once."""

    def __init__(self, work: dist.Work) -> None:
        self._work: dist.Work | None = work

    def is_completed(self) -> bool:
        self.wait()
        return True

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None


class Group:
    """What the transport uses of a group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.gloo = group

    def rank(self) -> int:
        return self.gloo.rank()

    def size(self) -> int:
        return self.gloo.size()

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        return Work(self.gloo.send(tensors, peer, tag))

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> Work:
        return Work(self.gloo.recv(tensors, peer, tag))


@contextmanager
def installed(kind: type[Group] = Group) -> Iterator[list[Options]]:
    """Inside, new groups of NCCL's are gloo's. Yields the options that they were given, in order."""
    usual, usual_end = dist.new_group, dist.destroy_process_group
    given: list[Options] = []

    def new_group(*args: Any, backend: str | None = None, pg_options: Any = None, **others: Any) -> Any:
        if backend != "nccl":
            return usual(*args, backend=backend, pg_options=pg_options, **others)
        assert not pg_options.taken, "options that another group was made with"
        pg_options.taken = True
        given.append(pg_options)
        group = usual(*args, backend="gloo", **others)
        return group if group is dist.GroupMember.NON_GROUP_MEMBER else kind(group)

    def destroy_process_group(group: Any = None) -> None:
        usual_end(group.gloo if isinstance(group, Group) else group)

    with (
        mock.patch.object(dist, "new_group", new_group),
        mock.patch.object(dist, "destroy_process_group", destroy_process_group),
        mock.patch.object(dist, "ProcessGroupNCCL", SimpleNamespace(Options=Options), create=True),
        mock.patch.object(torch.cuda, "synchronize", lambda *_: None),
    ):
        yield given


class OnStreams(Group):
    """A group of two ranks with NCCL's rules: each operation goes to the group's stream, behind what the current
    stream has been given; waiting for it holds up the current stream and not the host.

    carried: the device's program is written down without it, where no gloo group carries the data.
    """

    def __init__(self, group: Any, name: str | None = None, rank: int | None = None) -> None:
        super().__init__(group)
        self.stream = Stream(priority=-3, name=name or f"nccl {id(self)}")
        self.own = rank
        self.sent = self.received = 0
        self.channel = name

    def rank(self) -> int:
        return self.gloo.rank() if self.own is None else self.own

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> OnStream:
        self.sent += 1
        return self._begin("send", self.sent, tensors, peer)

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> OnStream:
        self.received += 1
        return self._begin("receive", self.received, tensors, peer)

    def _begin(self, kind: str, number: int, tensors: list[Tensor], peer: int) -> OnStream:
        stream = self.stream
        stream.wait_stream(DEVICE.current[-1])
        for watcher in DEVICE.watchers:
            watcher.message(kind, tensors, stream)
        stream.tick(kind, number=number, channel=self.channel)
        work = None
        if self.gloo is not None:
            with _disable_current_modes():
                work = (self.gloo.send if kind == "send" else self.gloo.recv)(tensors, peer, 0)
        return OnStream(stream.record_event(), work)


class OnStream:
    """As WorkNCCL."""

    def __init__(self, event: Event, work: dist.Work | None) -> None:
        self._event, self._work = event, work

    def is_completed(self) -> bool:
        """The host asks until it is: it has waited for the device."""
        self._finish()
        self._event.synchronize()
        return True

    def wait(self) -> None:
        self._finish()  # the data must be there, for operations run where they are called
        DEVICE.current[-1].wait_event(self._event)

    def _finish(self) -> None:
        if self._work is not None:
            with _disable_current_modes():
                self._work.wait()
            self._work = None
