"""Phases that are several processes. What starts them imports nothing that takes time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hcmegatron.platform.ranks import free_port
from tools.gpu_check.worker import Child, PhaseContext, ranks

HERE = "tools.gpu_check"
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
LOADING = "CUDA_MODULE_LOADING"
RANKS = 2
MOST_RANKS = 8
LOSSES = 1e-2  # relative: order of sums, and TF32
CASES = {  # connections and settings of a run on two ranks
    "1f1b": ("32", ["--parallel.schedule=1f1b"]),
    "dualpipev, overlapped": ("32", ["--parallel.schedule=dualpipev", "--parallel.overlap=true"]),
    "dualpipev, overlapped, 8 connections": (
        "8",
        ["--parallel.schedule=dualpipev", "--parallel.overlap=true"],
    ),
}


def warm_start(work: PhaseContext) -> None:
    """The host's calls, with modules loaded lazily and eagerly, each in a process that has done nothing else."""
    modes = ("LAZY",) if work.miniature else ("LAZY", "EAGER")
    work.children(*(Child(mode, f"{HERE}.probes:calls", {LOADING: mode}) for mode in modes))


def queues(work: PhaseContext) -> None:
    """How many streams are held up, by the number of connections; unset is CUDA's own choice of 8."""
    values = ("8",) if work.miniature else ("unset", "1", "8", "32")
    work.children(
        *(
            Child(value, f"{HERE}.probes:held_up", {QUEUES: "" if value == "unset" else value})
            for value in values
        )
    )


def receives(work: PhaseContext) -> None:
    """Two ranks that exchange messages."""
    env = {LOADING: "LAZY", QUEUES: "32", **sharing(work)}
    for name in ("NCCL_MAX_CTAS", "NCCL_BUFFSIZE"):  # what they cost is one of the questions
        env.pop(name, None)
    work.children(*ranks(RANKS, f"{HERE}.messages:exchange", free_port(), env))


def pipelines(work: PhaseContext) -> None:
    """A rank for each GPU, an even number of them, for DualPipe."""
    count = 2 if work.miniature else min(MOST_RANKS, work.gpus // 2 * 2)
    work.children(*ranks(count, f"{HERE}.pipelines:one_rank", free_port(), {QUEUES: "32", LOADING: "EAGER"}))


def training(work: PhaseContext) -> None:
    """The quickstart on two ranks beside one: all at once, for no time is measured."""
    cases = {name: CASES[name] for name in list(CASES)[: 2 if work.miniature else None]}
    train = f"{HERE}.correctness:train"
    with tempfile.TemporaryDirectory() as folder:
        alone = ["--parallel.pipeline=1", "--parallel.schedule=megatron_1f1b"]
        children: list[Child] = ranks(
            1, train, free_port(), name="one rank", directory=f"{folder}/alone", settings=alone
        )
        for name, (connections, settings) in cases.items():
            env = {QUEUES: connections, LOADING: "EAGER", **sharing(work)}
            own = {"directory": f"{folder}/{name}", "settings": ["--parallel.pipeline=2", *settings]}
            children += ranks(RANKS, train, free_port(), env, name, may_fail=connections != "32", **own)
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


def losses(directory: Path) -> list[float]:
    """Of every step that was taken."""
    try:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return []
    return [line["loss"] for line in lines if line["kind"] == "train"]


def sharing(work: PhaseContext) -> dict[str, str]:
    """The environment in which ranks share a GPU, where there are too few: allowed to, and with small communicators,
    of which a rank has some twenty (those of six ranks with NCCL's own buffers filled 80 GB)."""
    if work.miniature or work.gpus >= RANKS:
        return {}
    small = {"NCCL_MAX_CTAS": "4", "NCCL_BUFFSIZE": str(1 << 20)}
    return {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_DEBUG": "WARN", **small}
