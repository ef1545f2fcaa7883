"""What the ranks of the emulated NCCL's tests run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from schedules.runtime.gpu import GPU
from tests.emulated import communicators, gpu
from tests.emulated.host import watching
from tests.emulated.queues import COMMUNICATES
from tests.emulated.streams import DEVICE
from tests.runtime.workers import disturb


def started() -> list[dist.ProcessGroup]:
    """Two groups of both ranks, besides torch's own."""
    torch.set_num_threads(1)
    gpu.install()
    dist.init_process_group(GPU.backend, timeout=timedelta(seconds=20))
    return [dist.new_group([0, 1], backend=GPU.backend) for _ in range(2)]


def streams_of_collectives() -> list[tuple[str, str]]:
    """Of each operation, its kind and stream: one that the caller waits for on a side stream, one that it does not,
    another of the first kind on the default stream, and a message; then what the last one's stream has waited for."""
    group, _ = started()
    DEVICE.log.clear()
    tensor, side = torch.ones(3), torch.cuda.Stream()
    with torch.cuda.stream(side):
        dist.all_reduce(tensor, group=group)
    later = dist.all_reduce(tensor, group=group, async_op=True)
    assert "nccl" not in str(DEVICE.compute.clock)  # the current stream has not waited
    dist.all_reduce(tensor, group=group)
    assert any("nccl" in stream for stream in DEVICE.compute.clock), (
        "a communicator's operations have one order"
    )
    later.wait()
    peer = 1 - dist.get_rank()
    (group.send if peer else group.recv)([tensor], peer, 0).wait()
    assert torch.equal(tensor, torch.full((3,), 8.0))
    assert not [item for item in DEVICE.log if item.kind == "host"]
    found = [(item.kind, item.stream) for item in DEVICE.log if item.kind in (*COMMUNICATES, "connect")]
    dist.barrier(group)
    assert DEVICE.log[-1].kind == "host"
    return found


def first_in_another_order() -> None:
    """Each rank begins with another group, whose communicator is made then."""
    groups = started()
    communicators.LIMIT = timedelta(seconds=2)
    for group in groups if dist.get_rank() else reversed(groups):
        dist.all_reduce(torch.ones(1), group=group)


def disordered(touched: bool) -> list:
    """The log of two collectives of different sizes, in another order on each rank; gloo would hang, so the device
    alone is given them."""
    group, _ = started()
    if touched:
        dist.all_reduce(torch.ones(1), group=group)
    DEVICE.log.clear()
    sizes = (1, 2) if dist.get_rank() else (2, 1)
    for size in sizes:
        group._collective("all_reduce", [torch.ones(size)], [torch.ones(size)], None, lambda: None)
    return list(DEVICE.log)


def waits() -> dict[str, int]:
    """What the host waits for in each of these."""
    gpu.install()
    found = {}
    with watching() as watched:
        on_gpu, on_host = torch.ones(4, device="cuda"), torch.ones(4)
        pinned = on_host.pin_memory()
        mask = on_gpu > 0
        index = torch.zeros(1, dtype=torch.long, device="cuda")
        for name, act in {
            "computing": lambda: (on_gpu * 2 + 1).sum(),
            "an item": lambda: on_gpu.sum().item(),
            "the host's item": lambda: on_host.sum().item(),
            "a branch": lambda: bool((on_gpu > 0).all()),
            "a list": lambda: on_gpu.tolist(),
            "a pageable copy": lambda: on_host.to("cuda", non_blocking=True),
            "a pinned copy": lambda: pinned.to("cuda", non_blocking=True),
            "a pinned copy that is waited for": lambda: pinned.to("cuda"),
            "a tensor of numbers": lambda: torch.tensor([1.0], device="cuda"),
            "a copy back": lambda: on_gpu.cpu(),
            "a copy back beside computation": lambda: on_gpu.to("cpu", non_blocking=True),
            "a selection": lambda: on_gpu[mask],
            "a masked fill": lambda: on_gpu.masked_fill(mask, 0.0),
            "an index": lambda: on_gpu[index],
            "an event": lambda: torch.cuda.current_stream().record_event().synchronize(),
            "another stream's event": lambda: torch.cuda.Stream().wait_event(torch.cuda.Event()),
            "new pinned memory": lambda: torch.empty(1 << 20, dtype=torch.uint8, pin_memory=True),
            "pinned memory again": lambda: torch.empty(1 << 20, dtype=torch.uint8, pin_memory=True),
        }.items():
            before = watched.waits.total()
            act()
            found[name] = watched.waits.total() - before
        assert not watched.mixed
        assert (on_gpu + on_host).sum() and watched.mixed.total() == 1
    return found


def times() -> tuple[list[str], float]:
    """What asking events for times raises, until they can say one, and that."""
    gpu.install()
    said = []
    plain, begin, end = (
        torch.cuda.Event(),
        torch.cuda.Event(enable_timing=True),
        torch.cuda.Event(enable_timing=True),
    )
    for prepare in (
        lambda: plain.record(),
        lambda: None,
        lambda: (DEVICE.compute.tick(), begin.record(), end.record()),
    ):
        prepare()
        try:
            begin.elapsed_time(plain if not said else end)
        except RuntimeError as error:
            said.append(str(error))
    GPU.synchronize()
    return said, begin.elapsed_time(end)


def streams_handed_out() -> list[int]:
    """How many streams 40 of one priority are, and how many with 40 of another."""
    gpu.install()
    first = {torch.cuda.Stream(priority=-1).name for _ in range(40)}
    return [len(first), len(first | {torch.cuda.Stream().name for _ in range(40)})]


def stalls(limit: float, directory: Path) -> None:
    """Rank 1 stops computing in its second step, under a watchdog."""
    started()
    disturb("stall", 1, limit, directory, None, GPU.device())
