"""Messages between ranks by NCCL: their speed, what a posted receive occupies, and training over them."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tools.gpu_check.worker import Child, Work, ranks

RANKS = 2
BLOCKS = (1, 4, 16)  # NCCL's max_ctas
SIZES = {False: (1 << 14, 1 << 20, 1 << 24, 1 << 28), True: (1 << 10,)}  # bytes of a message; by: miniature
HELD = 1 << 26  # bytes of the message that a posted receive waits for
WAIT = 1.0  # seconds for which it does
TIMEOUT = timedelta(seconds=20)
LOSSES = 1e-2  # relative: order of sums, and TF32
CASES = {
    "1f1b": ("32", ["--parallel.schedule=1f1b"]),
    "dualpipev, overlapped": ("32", ["--parallel.schedule=dualpipev", "--parallel.overlap=true"]),
    "dualpipev, overlapped, 8 connections": (
        "8",
        ["--parallel.schedule=dualpipev", "--parallel.overlap=true"],
    ),
}


def sharing(work: Work) -> dict[str, str]:
    """The environment in which ranks may share a GPU, where there are too few."""
    if work.miniature or torch.cuda.device_count() >= RANKS:
        return {}
    return {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}


def receives(work: Work) -> None:
    """Two ranks that exchange messages."""
    from hcmegatron.platform.ranks import free_port

    env = {"CUDA_MODULE_LOADING": "LAZY", "CUDA_DEVICE_MAX_CONNECTIONS": "32", **sharing(work)}
    work.children(*ranks(RANKS, f"{__name__}:exchange", free_port(), env))


@contextmanager
def process_group(work: Work) -> Iterator[int]:
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


def group_of(blocks: int | None, work: Work) -> dist.ProcessGroup:
    """A communicator that takes at most so many blocks, connected."""
    options = None
    if not work.miniature:
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        if blocks is not None:
            options.config.max_ctas = blocks
    group = dist.new_group([0, 1], timeout=TIMEOUT, pg_options=options)
    one_way(group, torch.zeros(1, device=work.device))
    return group


def one_way(group: dist.ProcessGroup, tensor: Tensor) -> None:
    """From rank 0 to rank 1, done on both."""
    rank = dist.get_rank()
    (group.send if rank == 0 else group.recv)([tensor], 1 - rank, 0).wait()
    done(tensor)


def done(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def exchange(work: Work) -> None:
    """One rank's part. Rank 0 sends; what a posted receive does is seen on rank 1, which writes that down."""
    with process_group(work) as rank:
        groups = {blocks: group_of(blocks, work) for blocks in BLOCKS}
        waits = first_launch(work, rank, groups[4])
        if rank == 1:
            work.figure("a kernel's first launch behind a posted receive", waits)
        for blocks, group in groups.items():
            occupied(work, rank, group, blocks)
        for blocks, group in {**groups, None: group_of(None, work)}.items():
            speed(work, rank, group, "NCCL's own blocks" if blocks is None else f"max_ctas {blocks}")


def first_launch(work: Work, rank: int, group: dist.ProcessGroup) -> str:
    """Whether the launch of a kernel that is not loaded returns before the message comes, in words."""
    x = torch.ones(1 << 10, device=work.device)
    return waits_for(work, rank, group, lambda: torch.special.erfcx(x))


def waits_for(work: Work, rank: int, group: dist.ProcessGroup, call: Callable[[], object]) -> str:
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


def occupied(work: Work, rank: int, group: dist.ProcessGroup, blocks: int) -> None:
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


def speed(work: Work, rank: int, group: dist.ProcessGroup, name: str) -> None:
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


def training(work: Work) -> None:
    """The quickstart on two ranks beside one: all at once, for no time is measured."""
    from hcmegatron.platform.ranks import free_port

    cases = {name: CASES[name] for name in list(CASES)[: 2 if work.miniature else None]}
    with tempfile.TemporaryDirectory() as folder:
        alone = ["--parallel.pipeline=1", "--parallel.schedule=megatron_1f1b"]
        children: list[Child] = ranks(
            1, f"{__name__}:train", free_port(), name="one rank", directory=f"{folder}/alone", settings=alone
        )
        for name, (connections, settings) in cases.items():
            env = {
                "CUDA_DEVICE_MAX_CONNECTIONS": connections,
                "CUDA_MODULE_LOADING": "EAGER",
                **sharing(work),
            }
            own = {"directory": f"{folder}/{name}", "settings": ["--parallel.pipeline=2", *settings]}
            children += ranks(
                RANKS, f"{__name__}:train", free_port(), env, name, may_fail=connections != "32", **own
            )
        work.children(*children)
        expected = losses(Path(folder, "alone"))
        for name, (connections, _) in cases.items():
            found = losses(Path(folder, name))
            complete = len(found) == len(expected) > 0
            if connections != "32":
                work.figure(name, "completes" if complete else f"stops after {len(found)} steps")
                continue
            apart = max((abs(a / b - 1) for a, b in zip(found, expected, strict=False)), default=1.0)
            detail = f"{len(found)} of {len(expected)} steps, losses apart by {apart:.1e}"
            work.check(f"{name}: the losses of one rank", complete and apart < LOSSES, detail)


def train(work: Work) -> None:
    """One rank of a short run of the quickstart."""
    from hcmegatron.config import check
    from hcmegatron.config.load import load
    from hcmegatron.platform.ranks import discover
    from hcmegatron.training.run import train as run

    steps = 1 if work.miniature else 6
    settings = [
        f"--run.dir={work.arguments['directory']}",
        "--run.tensorboard=false",
        f"--training.steps={steps}",
    ]
    settings += ["--training.eval_every=0", "--training.eval_batches=1", "--parallel.timeout_s=20"]
    if work.miniature:
        settings += ["--training.global_batch=8", "--training.micro_batch=1", "--data.sequence_length=32"]
        settings += ["--training.threads=1"]
    config = load("configs/quickstart.yaml", [*settings, *work.arguments["settings"]])
    check(config)
    if run(config, discover(os.environ)):
        raise RuntimeError("training did not end well; what it said is above")


def losses(directory: Path) -> list[float]:
    """Of every step that was taken."""
    try:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return []
    return [line["loss"] for line in lines if line["kind"] == "train"]
