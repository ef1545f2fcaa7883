"""Steps as planned from measured operations beside the same steps as they ran, for layouts and schedules of two ranks.

    python -m tools.planned_measured [--rounds 12] [--steps 3] [ROW ...] [--parts]

Of every row one model is built on two ranks of this machine. Rounds of its operations, as `hcmegatron plan --measure`
runs them, take turns with steps as training takes them, since the machine's pace drifts; medians of the half of them in
which other programs took least of the cores (the last column: how much). The operations alone are what the planner
sees: F, B, I and W of every stage without its neighbours, hops, and what follows the pipeline.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # Ranks are forked, which CUDA does not survive: hidden before anything asks for a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import torch.distributed as dist

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import Config, load_config
from hcmegatron.config.checks import check_config
from hcmegatron.data.corpus import Corpus, find_corpus
from hcmegatron.measure.bench import Bench, together
from hcmegatron.measure.quiet import Sample, quieter, sample
from hcmegatron.measure.run import gathered, merged
from hcmegatron.measure.stages import Times, timed
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.planner.measured import Measured
from hcmegatron.planner.plan import make_plan, time_by_part
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from tools.targets import Targets, exit_status

RANKS = 2
QUICKSTART = Path(__file__).parent.parent / "configs/quickstart.yaml"
DENSE = ["--moe.experts=0", "--model.hidden_size=256", "--model.ffn_hidden_size=704", "--model.heads=8"]
RESIDUAL = ["--connection.kind=residual"]
# name -> settings on top of the quickstart, which is mHC with experts
ROWS: dict[str, list[str]] = {
    "1f1b, dense, residual": [*DENSE, *RESIDUAL, "--parallel.schedule=1f1b"],
    "zb_h1, dense, mHC": [*DENSE, "--parallel.schedule=zb_h1"],
    "zb_v, MoE, mHC": ["--parallel.schedule=zb_v"],
    "dualpipev, MoE, mHC": [],
    "interleaved x2, MoE, residual": [*RESIDUAL, "--parallel.schedule=interleaved", "--parallel.virtual=2"],
    "dualpipe, dense, mHC": [*DENSE, "--parallel.schedule=dualpipe"],
    "DP 2, MoE, mHC": ["--parallel.pipeline=1", "--parallel.schedule=1f1b"],
    "TP 2 + SP, dense, mHC": [
        *DENSE,
        *(
            "--parallel.pipeline=1",
            "--parallel.schedule=1f1b",
            "--parallel.tensor=2",
            "--parallel.sequence=true",
        ),
    ],
}


@dataclass(frozen=True)
class Row:
    """A step as planned and as it ran, seconds.

    Attributes:
        disturbed: most of the time, in the quieter half of rounds and steps, in which other programs had a rank's core.
        took: of the measured steps, by what a rank did (its medians; empty under Megatron's schedules).
        planned: of the planned step, on its busiest rank.
        costs: that were measured.
    """

    planned_s: float
    measured_s: float
    disturbed: float
    planned: Counter[str]
    took: dict[str, float]
    costs: Measured

    @property
    def ratio(self) -> float:
        return self.planned_s / self.measured_s


def config_for(name: str, *more: str) -> Config:
    """A row's configuration."""
    config = load_config(QUICKSTART, [*ROWS[name], *more])
    check_config(config)
    return config


def compare(config: Config, corpus: Corpus, rounds: int, steps: int, path: Path, ranks: RankInfo) -> int:
    """One rank of a row."""
    with process_groups(config, ranks, corpus.fingerprint) as groups:
        bench = Bench(config, groups, corpus)
        took: Times = defaultdict(list)
        of_rounds: list[Sample] = []
        of_steps: list[Sample] = []
        bench.stepper.rehearse()
        bench.round()
        for _ in range(rounds):
            of_rounds.append(sample(bench.round))
            of_steps += [sample(lambda: _step(bench, took)) for _ in range(steps)]
        seconds = [one.value for one in quieter(of_steps)]
        disturbed = max(one.disturbed for one in quieter(of_steps) + quieter(of_rounds))
        operations = merged(of_rounds)
        sizes = bench.communication(operations)
        costs = gathered(config, operations, sizes, bench.where)
        all_took: list[dict[str, float]] = [{}] * ranks.world_size
        dist.all_gather_object(all_took, {what: statistics.median(own) for what, own in took.items()})
    if ranks.rank == 0:
        plan = make_plan(config, costs.machine, ranks.world_size, measured=costs)
        of_ranks = {f"{what}, rank {r}": s for r, own in enumerate(all_took) for what, s in own.items()}
        path.write_bytes(
            pickle.dumps(
                Row(plan.seconds, statistics.median(seconds), disturbed, time_by_part(plan), of_ranks, costs)
            )
        )
    return 0


def _step(bench: Bench, took: Times) -> float:
    """Seconds of a step on the rank that took longest, all having begun together."""
    together()
    own = torch.tensor(timed(lambda: bench.stepper.step(0)), dtype=torch.float64)
    dist.all_reduce(own, dist.ReduceOp.MAX)
    if isinstance(bench.schedule, ScheduleRunner):
        record = bench.schedule.record
        took["pipeline"].append(record.end - record.start)
        took["between actions"].append(sum(record.gaps()))
        for event in record.events():
            took[f"{event.action.kind} {event.action.stage}"].append(event.end - event.start)
    return float(own)


def row(name: str, rounds: int, steps: int, *more: str) -> Row:
    """Build, measure and plan one row."""
    config = config_for(name, *more)
    corpus = find_corpus(config.data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row"
        if launch_ranks(partial(compare, config, corpus, rounds, steps, path), RANKS):
            raise SystemExit(f"{name}: a rank failed")
        return pickle.loads(path.read_bytes())


def main() -> int:
    """Print the table; returns 1 where a step was planned more than 10% wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="ROW", help="a part of its name, such as zb (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="of every round")
    parser.add_argument(
        "--parts", action="store_true", help="what the planned and the measured step consist of"
    )
    options = parser.parse_args()
    chosen = [name for name in ROWS if not options.names or any(part in name for part in options.names)]
    if not chosen:
        parser.error(f"{', '.join(options.names)}: no such row; rows are {'; '.join(ROWS)}")
    targets = Targets()
    print(
        "| two ranks | planned, ms | measured, ms | planned / measured | disturbed |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for name in chosen:
        found = row(name, options.rounds, options.steps)
        targets.between(name, found.ratio, 0.9, 1.1)
        print(
            f"| {name} | {1e3 * found.planned_s:.1f} | {1e3 * found.measured_s:.1f} | {found.ratio:.3f} | "
            f"{found.disturbed:.0%} |",
            flush=True,
        )
        if options.parts:
            print(
                _words("planned", found.planned),
                _words("measured", found.took),
                found.costs.as_yaml(),
                sep="\n",
            )
    return exit_status(targets.missed)


def _words(what: str, seconds: dict[str, float]) -> str:
    return f"{what}: " + ", ".join(f"{name} {1e3 * s:.2f}" for name, s in sorted(seconds.items()) if s > 5e-6)


if __name__ == "__main__":
    raise SystemExit(main())
