"""What the ranks of the tests of shared memory run."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from schedules import generate
from schedules.actions import Kind
from schedules.placement import Placement
from schedules.runtime import SharedMemoryTransport, cpu_transport, local_peers
from schedules.runtime.shared_memory import COPIED_AT_ONCE, COPIED_AT_ONCE_ON_BUSY_CORES
from schedules.runtime.shared_peer import Peer
from schedules.schedule import Message
from tests.runtime import workers

TYPES = (torch.float32, torch.bfloat16, torch.float64)


def line(ranks: int) -> Placement:
    """A stage a rank."""
    return generate("1f1b", ranks, ranks).placement


def message(source: int, target: int, microbatch: int) -> Message:
    """Stages are ranks."""
    return Message(Kind.F if source < target else Kind.B, source, target, microbatch, source, target)


def values(shape: tuple[int, ...], kind: torch.dtype, mark: int) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 97 + mark).to(kind).view(shape)


def exchange() -> list[str]:
    """Sends tensors of all kinds both ways, lent and copied, over and over; what arrived as it should not."""
    group = dist.group.WORLD
    rank, peer = group.rank(), 1 - group.rank()
    transport = SharedMemoryTransport(group, line(2))
    wrong = []
    shapes = [
        (1,),
        (3, 5),
        (0, 4),
        (COPIED_AT_ONCE // 4 + 1,),
        (2, COPIED_AT_ONCE),
        (COPIED_AT_ONCE_ON_BUSY_CORES // 4 + 1,),
    ]
    for turn in range(3):
        for kind in TYPES:
            pool = transport.buffers(kind, workers.CPU)
            for lent in (True, False):
                receives = [
                    transport.receive(
                        message(peer, rank, index),
                        pool.take(shape) if lent else torch.empty(shape, dtype=kind),
                    )
                    for index, shape in enumerate(shapes)
                ]
                sends = [
                    transport.send(message(rank, peer, index), values(shape, kind, turn + rank))
                    for index, shape in enumerate(shapes)
                ]
                for index in reversed(range(len(shapes))):  # in another order than they come
                    receives[index].wait()
                    found, expected = receives[index].tensor, values(shapes[index], kind, turn + peer)
                    if not torch.equal(found, expected):
                        wrong.append(f"{shapes[index]} of {kind}, lent {lent}")
                    if lent:
                        if pool.own(found) is found or pool.own(expected) is not expected:
                            wrong.append("own")
                        pool.give_back(found)
                for send in sends:
                    send.wait()
                if transport.lent:
                    wrong.append("lent for ever")
    if transport.slots > 4 * len(shapes):  # of several sizes, and the receiver may be one turn behind
        wrong.append(f"{transport.slots} slots for {len(shapes)} messages")
    dist.barrier()
    transport.close()
    return wrong


def crowd(count: int) -> bool:
    """Both send more than a connection holds before either reads."""
    group = dist.group.WORLD
    rank, peer = group.rank(), 1 - group.rank()
    transport = SharedMemoryTransport(group, line(2))
    buffers = [torch.empty(3) for _ in range(count)]
    receives = [
        transport.receive(message(peer, rank, number), buffer) for number, buffer in enumerate(buffers)
    ]
    sends = [
        transport.send(message(rank, peer, number), torch.full((3,), float(number)))
        for number in range(count)
    ]
    for pending in (*sends, *receives):
        pending.wait()
    return all(bool((buffer == number).all()) for number, buffer in enumerate(buffers))


def slots(steps: int) -> tuple[list[int], int]:
    """The number after each step of a pipeline, and that of a step's messages to this rank."""
    group = dist.group.WORLD
    lengths = [3 + m % 4 for m in range(12)]
    schedule = generate("dualpipev", group.size(), len(lengths))
    stages = workers.stages_of(schedule, group.rank(), lengths)
    transport = SharedMemoryTransport(group, schedule.placement)
    own = workers.runtime(schedule, group.rank(), stages, transport, lengths)
    found = []
    for _ in range(steps):
        own.step()
        dist.barrier()
        found.append(transport.slots)
    return found, sum(map(len, own.program.receives.values()))


def written(microbatches: int) -> tuple[int, int]:
    """How often this rank writes to its peer in a step, and how many messages are sent to it."""
    group = dist.group.WORLD
    schedule = generate("1f1b", group.size(), microbatches)
    lengths = [3] * microbatches
    stages = workers.stages_of(schedule, group.rank(), lengths)
    transport = SharedMemoryTransport(group, schedule.placement)
    own = workers.runtime(schedule, group.rank(), stages, transport, lengths)
    own.step()
    with mock.patch.object(Peer, "put", autospec=True, side_effect=Peer.put) as puts:
        record = own.step()
    dist.barrier()
    return puts.call_count, len(record.sends)


def quicker_sender(microbatch: int) -> float:
    """Rank 0 waits until rank 1 wants what it has sent long before; rank 1 gets it, and then waits by other means."""
    group = dist.group.WORLD
    transport = SharedMemoryTransport(group, line(2))
    found = torch.zeros(3)
    if group.rank() == 0:
        going = transport.send(message(0, 1, microbatch), torch.ones(3))
        dist.barrier()
        going.wait()
    else:
        dist.barrier()
        transport.receive(message(0, 1, microbatch), found).wait()
    dist.barrier()
    return float(found.sum())


def flushed(microbatch: int) -> float:
    """The same, but that rank 1 gets it only when rank 0 waits for it no more."""
    group = dist.group.WORLD
    transport = SharedMemoryTransport(group, line(2))
    found = torch.zeros(3)
    if group.rank() == 0:
        transport.send(message(0, 1, microbatch), torch.ones(3)).wait()
        dist.barrier()
    else:
        coming = transport.receive(message(0, 1, microbatch), found)
        transport.flush()
        dist.barrier()
        coming.wait()
    dist.barrier()
    return float(found.sum())


def mapped() -> int:
    """Mappings of the transports' memory in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:hcmegatron")


def shared_names() -> list[str]:
    """Of what this process shares with others."""
    maps = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return sorted({parts[5] for parts in maps if parts[1] == "rw-s" and len(parts) > 5})


def described() -> int:
    """Descriptors of the transports' memory in this process."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:hcmegatron" in link for link in links)


def many_and_dropped(count: int) -> list[tuple[int, int]]:
    """Descriptors and mappings while `count` messages are under way each way, and after the transport was dropped."""
    group = dist.group.WORLD
    rank, peer = group.rank(), 1 - group.rank()
    transport = SharedMemoryTransport(group, line(2))
    pool = transport.buffers(torch.float32, workers.CPU)
    receives = [transport.receive(message(peer, rank, m), pool.take((3,))) for m in range(count)]
    sends = [transport.send(message(rank, peer, m), torch.ones(3)) for m in range(count)]
    for pending in (*sends, *receives):
        pending.wait()
    found = [(described(), mapped())]
    dist.barrier()
    del transport, pool, receives, sends, pending
    gc.collect()
    dist.barrier()
    return [*found, (described(), mapped())]


def dropped_while_holding() -> tuple[int, int]:
    """Descriptors while a transport is there, and after one was dropped that has not said yet what is free."""
    group = dist.group.WORLD
    rank, peer = group.rank(), 1 - group.rank()
    transport = SharedMemoryTransport(group, line(2))
    pool = transport.buffers(torch.float32, workers.CPU)
    coming = transport.receive(message(peer, rank, 0), pool.take((3,)))
    going = transport.send(message(rank, peer, 0), torch.ones(3))
    coming.wait()
    going.wait()
    pool.give_back(coming.tensor)
    assert transport._holding
    before = described()
    gc.disable()
    del transport, pool, coming, going
    return before, described()


def passed_on(elements: int, contiguous: bool) -> float:
    """Rank 0 sends ones, rank 1 sends back what it has received, where it lies, and gives it back before the thread has
    copied it. What rank 0 gets, after it has written something else into the slot."""
    group = dist.group.WORLD
    rank, peer = group.rank(), 1 - group.rank()
    transport = SharedMemoryTransport(group, line(2))
    pool = transport.buffers(torch.float32, workers.CPU)
    coming = transport.receive(message(peer, rank, 0), pool.take((elements,)))
    if rank == 0:
        transport.send(message(0, 1, 0), torch.ones(elements))
        coming.wait()
        found = float(coming.tensor.sum())
    else:
        coming.wait()
        # as long as nothing is taken out of it, the thread copies nothing
        copies, transport._peers[0]._copies = transport._peers[0]._copies, SimpleQueue()
        waiting = transport._peers[0]._copies
        view = coming.tensor.view(2, -1)
        going = transport.send(message(1, 0, 0), (view if contiguous else view.mT).requires_grad_())
        coming.tensor.detach().fill_(7.0)  # as the sender does with what it is given back
        pool.give_back(coming.tensor)
        transport._peers[0]._copies = copies
        copies.put(waiting.get())
        going.wait()
        found = 0.0
    dist.barrier()
    return found


def wrong_size(sent: int) -> str:
    """What the receiver is told."""
    group = dist.group.WORLD
    transport = SharedMemoryTransport(group, line(2))
    told = ""
    if group.rank() == 0:
        transport.send(message(0, 1, 0), torch.zeros(sent)).wait()
    else:
        try:
            transport.receive(message(0, 1, 0), torch.empty(4)).wait()
        except RuntimeError as error:
            told = str(error)
    dist.barrier()
    return told


def silent(seconds: float) -> tuple[float, str]:
    """Waits for what nobody sends: how long, and what is said."""
    group = dist.group.WORLD
    transport = SharedMemoryTransport(group, line(2), timeout=timedelta(seconds=seconds))
    began, told = time.monotonic(), ""
    if group.rank() == 1:
        try:
            transport.receive(message(0, 1, 0), torch.empty(4)).wait()
        except RuntimeError as error:
            told = str(error)
    took = time.monotonic() - began
    dist.barrier()
    return took, told


def lost(directory: Path, sends: bool) -> None:
    """Rank 0 is killed while rank 1 waits for it, as the sender of a large message or as the receiver of one. Rank 1
    writes down how long it waited, under which names it shares memory, and how often once it has dropped it."""
    group = dist.group.WORLD
    transport = SharedMemoryTransport(group, line(2))
    if group.rank() == 0:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        if sends:
            transport.send(message(1, 0, 0), torch.zeros(COPIED_AT_ONCE_ON_BUSY_CORES)).wait()
        else:
            transport.receive(message(0, 1, 0), torch.empty(4)).wait()
    except RuntimeError as error:
        seconds, told = time.monotonic() - began, str(error)
    names = shared_names()
    del transport
    gc.collect()
    (directory / "told").write_text(json.dumps([seconds, told, names, described() + mapped()]))


def chosen(trouble: str) -> str:
    """What is chosen, in words, where rank 1 has this trouble; a step of a pipeline has to work with it."""
    group = dist.group.WORLD
    rank = group.rank()
    refuse = OSError(38, "Function not implemented")
    troubles = {
        "memfd": mock.patch.object(os, "memfd_create", side_effect=refuse),
        "machine": mock.patch.object(Path, "read_text", lambda _: "another"),
        "connect": mock.patch.object(local_peers, "_answer", side_effect=ConnectionError("out of order")),
    }
    lengths = [3] * 8
    schedule = generate("dualpipev", group.size(), len(lengths))
    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(local_peers, "MEETING_S", 1.0))
        if trouble and rank == 1:
            patched.enter_context(troubles[trouble])
        transport, words = cpu_transport(group, schedule.placement)
    stages = workers.stages_of(schedule, rank, lengths)
    workers.runtime(schedule, rank, stages, transport, lengths).step()
    return f"{type(transport).__name__}: {words}"


def spawned(rank: int, store: str) -> None:
    """A rank that was not forked. Its mistakes are the exit status."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    wrong = exchange()
    dist.destroy_process_group()
    assert not wrong, wrong
