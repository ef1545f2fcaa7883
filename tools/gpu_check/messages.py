"""Messages between two ranks by NCCL: their speed, and what a posted receive occupies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tools.gpu_check.parents import RANKS
from tools.gpu_check.worker import PhaseContext

BLOCKS = (1, 4, 16)  # NCCL's max_ctas
SIZES = {False: (1 << 14, 1 << 20, 1 << 24, 1 << 28), True: (1 << 10,)}  # bytes of a message; by: miniature
HELD = 1 << 26  # bytes of the message that a posted receive waits for
WAIT = 1.0  # seconds for which it does
TIMEOUT = timedelta(seconds=20)


@contextmanager
def process_group(work: PhaseContext) -> Iterator[int]:
    """torch.distributed, on this rank's GPU; its rank."""
    rank = int(os.environ["RANK"])
    options: dict[str, Any] = {"rank": rank, "world_size": RANKS, "timeout": TIMEOUT}
    if not work.miniature:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("gloo" if work.miniature else "nccl", init_method="env://", **options)
    try:
        yield rank
    finally:
        dist.destroy_process_group()


def group_of(blocks: int | None, work: PhaseContext) -> dist.ProcessGroup:
    """A communicator that takes at most so many blocks, connected."""
    options = None
    if not work.miniature:
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        if blocks is not None:
            options.config.max_ctas = blocks
    group = dist.new_group([0, 1], timeout=TIMEOUT, pg_options=options)
    one_way(group, torch.zeros(1, device=work.device))
    return group


def name_of(blocks: int | None) -> str:
    """Of a communicator, in tables."""
    return "NCCL's own blocks" if blocks is None else f"max_ctas {blocks}"


def weighed(blocks: int | None, work: PhaseContext, rank: int) -> dist.ProcessGroup:
    """`group_of`, with the device memory that it takes written down."""
    if work.miniature:
        return group_of(blocks, work)
    dist.barrier()
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    group = group_of(blocks, work)
    dist.barrier()
    taken = (before - torch.cuda.mem_get_info()[0]) / 2
    if rank == 1:
        shared = torch.cuda.device_count() < RANKS
        both = 1 if shared else 2  # on a GPU of its own a rank sees only what it has taken itself
        work.figure(f"a communicator of two ranks, {name_of(blocks)}", both * taken / 2**20, "MiB a rank")
    return group


def one_way(group: dist.ProcessGroup, tensor: Tensor) -> None:
    """From rank 0 to rank 1, done on both."""
    rank = dist.get_rank()
    (group.send if rank == 0 else group.recv)([tensor], 1 - rank, 0).wait()
    done(tensor)


def done(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def exchange(work: PhaseContext) -> None:
    """One rank's part. Rank 0 sends; what a posted receive does is seen on rank 1, which writes that down."""
    with process_group(work) as rank:
        groups = {blocks: weighed(blocks, work, rank) for blocks in BLOCKS}
        waits = first_launch(work, rank, groups[4])
        if rank == 1:
            work.figure("a kernel's first launch behind a posted receive", waits)
        for blocks, group in groups.items():
            occupied(work, rank, group, blocks)
        for blocks, group in {**groups, None: weighed(None, work, rank)}.items():
            speed(work, rank, group, name_of(blocks))


def first_launch(work: PhaseContext, rank: int, group: dist.ProcessGroup) -> str:
    """Whether the launch of a kernel that is not loaded returns before the message comes, in words."""
    x = torch.ones(1 << 10, device=work.device)
    return waits_for(work, rank, group, lambda: torch.hypot(x, x))


def waits_for(work: PhaseContext, rank: int, group: dist.ProcessGroup, call: Callable[[], object]) -> str:
    """On rank 1, whether a call of the host waits for a receive that was posted before it."""
    buffer = torch.zeros(HELD // 4 if not work.miniature else 256, device=work.device)
    done(buffer)
    dist.barrier()
    done(buffer)
    if rank == 0:
        time.sleep(WAIT if not work.miniature else 0.05)
        group.send([buffer], 1, 0).wait()
        done(buffer)
        return ""
    receive = group.recv([buffer], 0, 0)
    time.sleep(0.05 if not work.miniature else 0.0)
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    receive.wait()
    done(buffer)
    return (
        "waits: a schedule would deadlock"
        if seconds > 0.5 * WAIT
        else f"does not wait ({1e3 * seconds:.1f} ms)"
    )


def occupied(work: PhaseContext, rank: int, group: dist.ProcessGroup, blocks: int) -> None:
    """Multiprocessors on which nothing else runs while a receive is posted, and what a matrix product loses."""
    name = f"a posted receive, max_ctas {blocks}"
    if work.miniature:
        waits_for(work, rank, group, lambda: None)
        if rank == 1:
            work.skipped(f"{name}: multiprocessors", "no GPU")
        return
    count = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    m = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    free = len(places_seen(count)), product(m)  # before, and loaded
    found: list[Any] = []
    waits_for(work, rank, group, lambda: found.extend((len(places_seen(count)), product(m))))
    if rank == 1:
        work.figure(f"{name}: multiprocessors that it holds", free[0] - found[0], f"of {count}")
        work.figure(f"{name}: a matrix product beside it takes", found[1] / free[1], "of its time alone")


def places_seen(count: int) -> set[int]:
    """Numbers of the multiprocessors that programs of 1024 threads came to run on: none fits beside NCCL's."""
    from tools.gpu_check.kernels import places

    seen = torch.zeros(2 * count, dtype=torch.int32, device="cuda")
    places[(8 * count,)](seen, 20000, threads=1024, num_warps=32)
    torch.cuda.current_stream().synchronize()
    return set(seen.nonzero().flatten().tolist())


def product(m: Tensor) -> float:
    """Milliseconds of ten."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    m @ m
    start.record()
    for _ in range(10):
        m @ m
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def speed(work: PhaseContext, rank: int, group: dist.ProcessGroup, name: str) -> None:
    """One way, and both at once."""
    for size in SIZES[work.miniature]:
        out, back = (torch.zeros(size, dtype=torch.uint8, device=work.device) for _ in range(2))
        rounds = max(2, min(50, (1 << 28) // size)) if not work.miniature else 1

        def both(out: Tensor = out, back: Tensor = back) -> None:
            operations = [
                dist.P2POp(dist.isend, out, 1 - rank, group),
                dist.P2POp(dist.irecv, back, 1 - rank, group),
            ]
            for one in dist.batch_isend_irecv(operations):
                one.wait()
            done(out)

        for words, run in (("one way", lambda out=out: one_way(group, out)), ("both ways at once", both)):
            run()
            start = time.perf_counter()
            for _ in range(rounds):
                run()
            seconds = (time.perf_counter() - start) / rounds
            if rank == 0:
                work.figure(f"{size} bytes, {words}, {name}", size / seconds / 1e9, "GB/s each way")
                work.figure(f"{size} bytes, {words}, {name}: time", 1e6 * seconds, "us")
