"""Streams and events of a GPU on a CPU, where every operation runs at once: what is kept is which come before which,
and what the host enqueued where. Import it in ranks only: it replaces names of torch.cuda for good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

POOL = 32  # streams that torch has of each priority, handed out in turn


class Clock(dict):
    """A vector clock: by stream, how many operations of it are over."""

    def join(self, other: Clock) -> None:
        for stream, count in other.items():
            if count > self.get(stream, 0):
                self[stream] = count


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

    log: what the host did, in order. host: what it has waited for. watchers: are told of messages. on_wait: are told
    what the host waits for, in words.
    """

    def __init__(self) -> None:
        self.watchers: list[Any] = []
        self.on_wait: list[Callable[[str], None]] = []
        self.log: list[Item] = []
        self.host = Clock()
        self.events = 0
        self.sides = 0
        self.streams: list[Stream] = []
        self.handed_out: Counter[int] = Counter()  # by priority
        self.compute = Stream(name="compute", on=self)
        self.current = [self.compute]

    def forget_streams(self) -> None:
        """As another process begins."""
        self.sides, self.streams = 0, [self.compute]
        self.handed_out.clear()

    def synchronize(self) -> None:
        """The host waits for all streams."""
        self.waits("the device")
        for stream in dict.fromkeys(self.streams):
            stream.record_event().host_waits()

    def waits(self, what: str) -> None:
        for told in self.on_wait:
            told(what)


class Event:
    """As torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.clock, self.number, self.timed, self.stamp = Clock(), -1, enable_timing, 0.0
        self.stream: str | None = None

    def record(self, stream: Stream | None = None) -> None:
        (stream or DEVICE.current[-1]).record_event(self)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or DEVICE.current[-1]).wait_event(self)

    def synchronize(self) -> None:
        DEVICE.waits("an event")
        self.host_waits()

    def host_waits(self) -> None:
        if self.number >= 0:
            DEVICE.log.append(Item("host", number=self.number))
        DEVICE.host.join(self.clock)

    def query(self) -> bool:
        return True

    def over(self) -> bool:
        """Whether the host has waited for it, or for something after it."""
        return self.stream is not None and DEVICE.host.get(self.stream, 0) >= self.clock[self.stream]

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds, by when the host enqueued what comes before them."""
        if not (self.timed and later.timed):
            raise RuntimeError("both events must be created with 'enable_timing=True'")
        if self.stream is None or later.stream is None:
            raise RuntimeError("both events must be recorded before calculating elapsed time")
        if not (self.over() and later.over()):
            raise RuntimeError("both events must be completed before calculating elapsed time")
        return 1e3 * (later.stamp - self.stamp)


class Stream:
    """As torch.cuda.Stream: beyond the pool of its priority, one that was handed out before."""

    cuda_stream = 0
    device = torch.device("cpu")

    def __init__(
        self, device: Any = None, priority: int = 0, *, name: str | None = None, on: Device | None = None
    ) -> None:
        owner = on or DEVICE
        self.priority = priority
        if on is None:
            turn = owner.handed_out[priority]
            owner.handed_out[priority] += 1
            if turn >= POOL:
                pool = [stream for stream in owner.streams[1:] if stream.priority == priority]
                earlier = pool[turn % POOL]
                self.name, self.clock = earlier.name, earlier.clock
                return
        self.name = name or f"side {owner.sides}"
        owner.sides += name is None
        self.clock = Clock({self.name: 0})
        owner.streams.append(self)

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
        event.stream, event.stamp = self.name, time.perf_counter()
        DEVICE.log.append(Item("record", self.name, event.number))
        return event

    def wait_event(self, event: Event) -> None:
        if event.number >= 0:
            DEVICE.log.append(Item("wait", self.name, event.number))
        self.clock.join(event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        DEVICE.waits("a stream")
        self.record_event().host_waits()

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
    cuda.synchronize = lambda *_: DEVICE.synchronize()
    runner.Lanes = lambda _: lanes.Lanes(torch.device("cuda"))


def reset() -> None:
    """Forget what was enqueued so far."""
    DEVICE.log.clear()
