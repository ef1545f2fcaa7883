"""Pipeline schedules on the same model over NCCL: time of a step, and what of it is exposed communication."""

from __future__ import annotations

import os
import statistics

from tools.gpu_check.worker import PhaseContext

MODEL = {False: (2048, 4, 4096, 10), True: (16, 2, 8, 1)}  # C, layers a rank, tokens, rounds; by: miniature


def one_rank(work: PhaseContext) -> None:
    """tools.bench_pipeline's measurement. A step's communication is exposed as far as it takes longer than simulated,
    with the costs measured beside it and a link that costs nothing."""
    from hcmegatron.platform.ranks import discover_ranks
    from tools import bench_pipeline
    from tools.pipeline_report import Shape, expected

    place = discover_ranks(os.environ)
    hidden, layers, tokens, rounds = MODEL[work.miniature]
    dtype = "fp32" if work.miniature else "bf16"
    shape = Shape(hidden, layers * place.world_size, tokens, rounds, place.world_size, dtype)
    found = bench_pipeline.measure(shape, place)
    if place.rank:
        return
    free = expected(shape, found)
    for name, steps in found.steps.items():
        taken = statistics.median(steps)
        over = statistics.median(a / b for a, b in zip(steps, found.steps["megatron_1f1b"], strict=True))
        work.figure(f"{name}: a step on {place.world_size} ranks", 1e3 * taken, "ms")
        work.figure(f"{name}: over Megatron's 1F1B", over)
        if name in free:
            exposed = statistics.median(a - b for a, b in zip(steps, free[name], strict=True))
            work.figure(f"{name}: simulated on a free link", 1e3 * statistics.median(free[name]), "ms")
            work.figure(f"{name}: exposed communication", 100 * exposed / taken, "% of the step")
    if found.replica_sync:
        work.figure("dualpipe: summing the copies of stages", 1e3 * found.replica_sync, "ms")
