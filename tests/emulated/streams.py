"""Streams and events of a GPU on a CPU, where every operation runs at once: what is kept is which come before which,
and what the host enqueued where. Import it in ranks only: it replaces names of torch.cuda for good.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Clock(dict):
    """A vector clock: by stream, how many operations of it are over."""

    def join(self, other: Clock) -> None:
        for stream, time in other.items():
            if time > self.get(stream, 0):
                self[stream] = time


class Item(NamedTuple):
    """What the host did: kernel, record, wait, send, receive or collective on a stream; or host: it waited for an
    event; or connect: it waited for the hosts of a communicator's other members.

    number: of an event, or of a message, collective or connection within its channel. what: of a message or
    collective, what all of its members have to agree on.
    """

    kind: str
    stream: str = ""
    number: int = -1
    channel: Hashable = None
    members: int = 2
    what: Hashable = None


class Device:
    """A process's GPU.

    log: what the host did, in order. host: what it has waited for. watchers: are told of messages.
    """

    def __init__(self) -> None:
        self.watchers: list[Any] = []
        self.log: list[Item] = []
        self.host = Clock()
        self.events = 0
        self.sides = 0
        self.compute = Stream(name="compute", on=self)
        self.current = [self.compute]


class Event:
    """As torch.cuda.Event."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock, self.number = Clock(), -1

    def record(self, stream: Stream | None = None) -> None:
        (stream or DEVICE.current[-1]).record_event(self)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or DEVICE.current[-1]).wait_event(self)

    def synchronize(self) -> None:
        if self.number >= 0:
            DEVICE.log.append(Item("host", number=self.number))
        DEVICE.host.join(self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.0


class Stream:
    """As torch.cuda.Stream."""

    cuda_stream = 0
    device = torch.device("cpu")

    def __init__(
        self, device: Any = None, priority: int = 0, *, name: str | None = None, on: Device | None = None
    ) -> None:
        owner = on or DEVICE
        self.name, self.priority = name or f"side {owner.sides}", priority
        owner.sides += name is None
        self.clock = Clock({self.name: 0})

    def tick(self, item: str = "kernel", **more: Any) -> int:
        """One more operation on the stream; its time."""
        self.clock.join(DEVICE.host)
        self.clock[self.name] += 1
        DEVICE.log.append(Item(item, self.name, **more))
        return self.clock[self.name]

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        DEVICE.events += 1
        event.number, event.clock = DEVICE.events, Clock(self.clock)
        DEVICE.log.append(Item("record", self.name, event.number))
        return event

    def wait_event(self, event: Event) -> None:
        if event.number >= 0:
            DEVICE.log.append(Item("wait", self.name, event.number))
        self.clock.join(event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()

    def query(self) -> bool:
        return True


DEVICE = Device()


@contextmanager
def on(stream: Stream | None) -> Iterator[Stream | None]:
    """As torch.cuda.stream."""
    DEVICE.current.append(stream or DEVICE.current[-1])
    try:
        yield stream
    finally:
        DEVICE.current.pop()


def install() -> None:
    """From now on torch.cuda's streams and events are these, and the lanes have streams."""
    import hcmegatron.platform.megatron  # noqa: F401  (the CPU adapter comes first, and is replaced in part)
    from hcmegatron.pipeline import lanes, runner

    cuda = torch.cuda
    cuda.Stream, cuda.Event, cuda.stream = Stream, Event, on
    cuda.current_stream = lambda *_: DEVICE.current[-1]
    cuda.default_stream = lambda *_: DEVICE.compute
    runner.Lanes = lambda _: lanes.Lanes(torch.device("cuda"))


def reset() -> None:
    """Forget what was enqueued so far."""
    DEVICE.log.clear()
