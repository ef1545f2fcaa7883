"""What messages cost between the ranks of one machine: through shared memory, through gloo's sockets, and as none.

    python -m tools.bench_messages
    python -m tools.bench_messages --mib 4 16 --rounds 9

DualPipeV over 4 ranks; stages sleep for a set time instead of computing (F = I = W = --forward, B = I + W), so that the
ranks of one machine do not compete for its cores. Every step is run with messages of each size through each transport
in turn, round after round. A step is told in units of F, from the first rank's start to the last one's end; beside it
the median of its ratios to the same round's step with messages of no size, which is what a free link takes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

if __name__ == "__main__":
    # Messages between CPUs: no rank needs a GPU, nor makes a context on one.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hcmegatron.platform.gloo import share_event_loop
from schedules import Schedule, generate
from schedules.runtime import DistributedTransport, Runtime, SharedMemoryTransport, Transport
from tools.machine import Others, described, spread
from tools.sleeping_stage import sleeping_stages
from tools.targets import Targets, exit_status

CPU = torch.device("cpu")
RANKS = 4
FREE = "free link"
SHARED, GLOO = "shared memory", "gloo"


def pipeline(schedule: Schedule, transport: Transport, forward: float, elements: int) -> Runtime:
    """This rank's part, with messages of so many fp32 numbers."""
    where, rank = schedule.placement, dist.get_rank()
    message = torch.zeros(elements)
    stages = sleeping_stages(where, rank, forward, message)
    return Runtime(
        schedule, rank, stages, transport, shape=lambda _: (elements,), dtype=torch.float32, device=CPU
    )


def step(runtime: Runtime) -> float:
    """Seconds from the first rank's start to the last one's end."""
    dist.barrier()
    record = runtime.step()
    ends = torch.tensor([-record.start, record.end], dtype=torch.float64)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return float(ends.sum())


def measure(mib: list[float], microbatches: int, forward: float, rounds: int) -> dict[str, list[float]]:
    """Units of F of every round's step, by what it is called. Runs on every rank of the default group."""
    group = dist.group.WORLD
    schedule = generate("dualpipev", group.size(), microbatches)
    where = schedule.placement
    transports = {SHARED: SharedMemoryTransport(group, where), GLOO: DistributedTransport(group, where, CPU)}
    of = partial(pipeline, schedule, forward=forward)
    runtimes = {FREE: of(transports[SHARED], elements=1)} | {
        f"{name}, {size:g} MiB": of(transport, elements=int(size * 2**18))
        for size in mib
        for name, transport in transports.items()
    }
    found: dict[str, list[float]] = {name: [] for name in runtimes}
    for number in range(rounds + 1):
        for name, runtime in runtimes.items():
            seconds = step(runtime)
            if number:  # the first touches every slot and buffer
                found[name].append(seconds / forward)
    transports[SHARED].close()
    return found


def report(found: dict[str, list[float]], most: float) -> list[str]:
    """Prints the table; what missed its target."""
    targets = Targets()
    print(f"{'messages':28}{'step, F':>26}{'over free':>22}  target")
    for name, steps in found.items():
        ratios = [one / free for one, free in zip(steps, found[FREE], strict=True)]
        aimed = name.startswith(SHARED)
        target = targets.at_most(name, statistics.median(ratios), most) if aimed else ""
        print(f"{name:28}{spread(steps, 1):>26}{spread(ratios, 3):>22}  {target}")
    return targets.missed


def _rank_main(rank: int, store: str, settings: tuple[list[float], int, float, int], most: float) -> None:
    torch.set_num_threads(1)
    share_event_loop()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    found = measure(*settings)
    if rank == 0:
        Path(f"{store}.missed").write_text(json.dumps(report(found, most)))
    dist.destroy_process_group()


def main() -> int:
    """Prints the table; returns 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=float, nargs="+", default=[1.0, 4.0, 16.0], help="sizes of messages")
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--forward", type=float, default=0.02, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    others = Others()
    print(described())
    settings = asked.mib, asked.microbatches, asked.forward, asked.rounds
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/store"
        torch.multiprocessing.spawn(_rank_main, (store, settings, 1.03), nprocs=RANKS)
        missed = json.loads(Path(f"{store}.missed").read_text())
    return others.verdict(lambda: exit_status(missed))


if __name__ == "__main__":
    raise SystemExit(main())
