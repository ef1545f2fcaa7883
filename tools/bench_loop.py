"""What the training loop adds to the bare forward, backward and optimizer of the same model.

    python -m tools.bench_loop

One process, the quickstart's model, alternating: a step of the loop with all its observers (data, schedule, finite
checks, metrics, log files, TensorBoard) and the same micro-batches through model and optimizer, with nothing around.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load_config
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
    """Prints both medians and the ratio, loop over bare; returns 1 where it misses its target."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    others = Others()
    print(described())
    settings = ["parallel.pipeline=1", "parallel.schedule=megatron_1f1b", "training.threads=1"]
    settings += ["training.log_every=1000", "run.peak_tflops=0.1"]
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
        batches, (chunk,) = run.stepper.batches, run.chunks
        made = [batches(0, index) for index in range(batches.micro_batches)]
        observers.on_start()

        def loop() -> None:
            observers.on_step(one_step(run, 1, 0))

        def bare() -> None:
            chunk.zero_grad_buffer()
            for batch in made:
                output = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
                output.sum().backward()
            chunk.scale_gradients(1.0 / output.numel() / len(made))
            run.optimizer.step()

        times = alternating({"loop": loop, "bare": bare}, ROUNDS, warmup=2)
    found = ratio(times, "loop", "bare")
    for name, seconds in times.items():
        print(f"{name}: {1e3 * statistics.median(seconds):.1f} ms a step")
    targets = Targets()
    print(f"loop / bare: {found:.3f} (target: {targets.at_most('loop / bare', found, 1.05)})")
    return others.verdict(lambda: exit_status(targets.missed))


if __name__ == "__main__":
    raise SystemExit(main())
