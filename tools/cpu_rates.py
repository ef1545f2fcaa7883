"""What training on one CPU thread takes, as `hcmegatron study plan` asks of machine.cpu.

    OMP_NUM_THREADS=1 python -m tools.cpu_rates > my-cpu.yaml

Short trainings of the network of configs/stability.yaml, in processor seconds, which other programs' load changes less
than it does the clock's: the difference of two that differ in one thing is what that thing takes. About half a minute.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import sys
import tempfile
import time
from typing import Any

import yaml

from hcmegatron.cli import main
from hcmegatron.config import load_config
from hcmegatron.config.load import scalar
from hcmegatron.connections.kinds import KINDS
from hcmegatron.planner import counts
from hcmegatron.studies.study import with_settings

STEPS = 30
BASE: dict[str, Any] = {
    "model.layers": 4,
    "data.sequence_length": 128,
    "connection.kind": "residual",
    "optimizer.warmup_steps": 0,
    "diagnostics.every": 0,
    "training.eval_batches": 1,
    "run.peak_tflops": 1.0,
}
WIDE = {"model.hidden_size": 256, "model.heads": 4, "model.ffn_hidden_size": 1024}
DEEP = {"model.layers": 16}


def of_training(changes: dict[str, Any], steps: int) -> float:
    """Processor seconds of a training, in a fork of this process, which has everything imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        settings = {**BASE, **changes, "training.steps": steps, "run.dir": f"{folder}/run"}
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(
                main(["train", "stability", *(f"--{key}={scalar(value)}" for key, value in settings.items())])
            )
        if os.waitpid(child, 0)[1]:
            sys.exit(f"a training with {changes} has failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def flops(changes: dict[str, Any]) -> float:
    """Of a step."""
    config = with_settings(load_config("stability"), BASE | changes)
    tokens = config.training.global_batch * config.data.sequence_length
    return 3.0 * tokens * counts.forward_flops(config, counts.whole_model(config)).total()


def rates() -> dict[str, Any]:
    """The figures of hcmegatron.studies.cpu.Cpu."""
    importlib.import_module("hcmegatron.training.run")
    imported = time.process_time()
    once = of_training({}, 1)
    small = (of_training({}, STEPS) - once) / (STEPS - 1)

    def step(changes: dict[str, Any]) -> float:
        return (of_training(changes, STEPS) - (once - small)) / STEPS

    per_flop = (step(WIDE) - small) / (flops(WIDE) - flops({}))
    deeper = DEEP["model.layers"] - BASE["model.layers"]
    layer = (step(DEEP) - small - per_flop * (flops(DEEP) - flops({}))) / deeper
    connections = {"residual": 0.0}
    for kind in KINDS:
        if kind != "residual":
            own = {"connection.kind": kind}
            beside = step(own) - small - per_flop * (flops(own) - flops({}))
            connections[kind] = max(0.0, beside) / (2 * BASE["model.layers"])
    return {
        "gflops": round(1e-9 / per_flop, 1),
        "layer_ms": round(1e3 * layer, 2),
        "step_ms": round(1e3 * max(0.0, small - BASE["model.layers"] * layer - per_flop * flops({})), 2),
        "start_s": round(imported + once - small, 1),
        "connection_ms": {kind: round(1e3 * seconds, 3) for kind, seconds in connections.items()},
    }


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(yaml.safe_dump(rates(), sort_keys=False), end="")
