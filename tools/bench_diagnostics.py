"""What observing the connections adds to training, as the default is set.

    python -m tools.bench_diagnostics

One process, the quickstart's model, alternating: a step with its observers, and the same with an observation after it.
The difference, in steps, is what one observation takes; over diagnostics.every steps, what it adds to training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Diagnostics
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training.observer_registry import build_observers
from hcmegatron.training.run import one_step
from hcmegatron.training.setup import assemble_run
from tools.alternate import alternating, ratio
from tools.machine import Others, described
from tools.targets import Targets, exit_status

ROUNDS = 15


def main() -> int:
    """Prints both medians, and what an observation takes; returns 1 where it adds more than 2% by default."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    others = Others()
    print(described())
    settings = ["parallel.pipeline=1", "parallel.schedule=megatron_1f1b", "training.threads=1"]
    settings += ["training.log_every=1000", "run.peak_tflops=0.1", "diagnostics.every=2"]
    config = load_config("configs/quickstart.yaml", [f"--{setting}" for setting in settings])
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    corpus = find_corpus(config.data)
    with (
        process_groups(config, alone) as groups,
        tempfile.TemporaryDirectory() as folder,
        assemble_run(config, alone, groups, corpus, Path(folder)) as run,
        build_observers(run) as observers,
    ):
        run.observers = observers
        observers.on_start()
        candidates = {
            name: lambda number=number: observers.on_step(one_step(run, number, 0))
            for name, number in (("step", 1), ("step and observation", 2))
        }
        times = alternating(candidates, ROUNDS, warmup=2)
    for name, seconds in times.items():
        print(f"{name}: {1e3 * statistics.median(seconds):.1f} ms")
    steps = ratio(times, "step and observation", "step") - 1
    share = steps / Diagnostics.every
    targets = Targets()
    print(f"an observation of {config.diagnostics.tokens} tokens: {steps:.2f} steps")
    target = targets.at_most("share of the time", share, 0.02)
    print(f"with diagnostics.every = {Diagnostics.every}: {share:.2%} of the time (target: {target})")
    return others.verdict(lambda: exit_status(targets.missed))


if __name__ == "__main__":
    raise SystemExit(main())
