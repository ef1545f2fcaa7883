"""What the event loops of idle gloo groups cost: steps with a loop for every group, as torch has it, and with one.

    python -m tools.bench_loops [--pairs 5] [--steps 6]

Two ranks on this machine, one thread each, under our 1F1B (the model of tools.bench_pipeline, shared memory),
started anew for every measurement: first with one kind of loops, then with the other, and the other way round in the
next pair. A measurement is the median of its steps; interruptions are the kernel's count of switches that took the core
away from the rank's main thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Ranks are forked, which CUDA does not survive: hidden before anything asks for a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hcmegatron.platform import distributed
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from tools.bench_pipeline import ScheduledModel
from tools.machine import Others, described
from tools.pipeline_report import RANKS, Shape, config_for
from tools.targets import Targets, exit_status

SHAPE = Shape(hidden=512, layers=8, tokens=128, rounds=1)


class Measured(NamedTuple):
    """Of a rank: seconds of a step, loops, and interruptions a second."""

    seconds: float
    loops: int
    interruptions: float


def rank_main(shared: bool, steps: int, path: str, ranks: RankInfo) -> int:
    """One rank."""
    if not shared:
        distributed.share_event_loop = lambda: None
    config = config_for("1f1b", SHAPE)
    with process_groups(config, ranks) as groups:
        candidate = ScheduledModel(config, groups)
        for _ in range(2):
            candidate.step()
        before = _interruptions()
        seconds = [candidate.step() for _ in range(steps)]
        taken = _interruptions() - before
        names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    if ranks.rank == 0:
        loops = sum(name.startswith("gloo_tcp_loop") for name in names)
        found = Measured(statistics.median(seconds), loops, taken / sum(seconds))
        Path(path).write_text(json.dumps(found))
    return 0


def _interruptions() -> int:
    status = Path(f"/proc/self/task/{os.getpid()}/status").read_text()
    return int(status.partition("nonvoluntary_ctxt_switches:")[2].split()[0])


def main() -> int:
    """Print the table; returns 1 where one loop is no quicker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of a measurement")
    given = parser.parse_args()
    others = Others()
    print(described())
    found: dict[bool, list[Measured]] = {False: [], True: []}
    with tempfile.NamedTemporaryFile("r") as file:
        for pair in range(given.pairs):
            for shared in ((False, True), (True, False))[pair % 2]:
                if failed := launch_ranks(partial(rank_main, shared, given.steps, file.name), RANKS):
                    return failed
                file.seek(0)
                found[shared].append(Measured(*json.load(file)))
    targets = Targets()
    print("| | step, ms | interruptions a second | over a loop a group |\n|---|---|---|---|")
    for shared, name in ((False, "a loop a group"), (True, "one loop")):
        own = found[shared]
        ratios = sorted(a.seconds / b.seconds for a, b in zip(own, found[False], strict=True))
        middle = statistics.median(ratios)
        if shared:
            targets.below("one loop / a loop a group", middle, 1)
        spread = f"{middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})" if shared else ""
        step = 1e3 * statistics.median(one.seconds for one in own)
        interrupted = statistics.median(one.interruptions for one in own)
        print(f"| {name} ({own[0].loops}) | {step:.0f} | {interrupted:.0f} | {spread} |")
    return others.verdict(lambda: exit_status(targets.missed))


if __name__ == "__main__":
    raise SystemExit(main())
