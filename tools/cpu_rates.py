"""What training on one CPU thread takes, as `hcmegatron study plan` asks of machine.cpu.

    python -m tools.cpu_rates > my-cpu.yaml

Nine short trainings of the network of configs/stability.yaml, in processor seconds, which other programs' load changes
less than it does the clock's: the difference of two that differ in one thing is what that thing takes. About two
minutes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from typing import Any

import yaml

from hcmegatron.config import load_config
from hcmegatron.config.load import scalar
from hcmegatron.connections.kinds import KINDS
from hcmegatron.planner import counts
from hcmegatron.studies.study import with_settings

STEPS = 60
BASE: dict[str, Any] = {
    "model.layers": 4,
    "data.sequence_length": 128,
    "connection.kind": "residual",
    "diagnostics.every": 0,
    "training.eval_batches": 1,
    "run.peak_tflops": 1.0,
}


def processor_seconds(**changes: Any) -> float:
    """Of a whole training, its process's start and end included."""
    settings = {"training.steps": STEPS, "optimizer.warmup_steps": 0} | BASE | changes
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"--{key}={scalar(value)}" for key, value in {**settings, "run.dir": f"{folder}/run"}.items()
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "hcmegatron", "train", "stability", *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def flops(**changes: Any) -> float:
    """Of a step."""
    config = with_settings(load_config("stability"), BASE | changes)
    tokens = config.training.global_batch * config.data.sequence_length
    return 3.0 * tokens * counts.forward_flops(config, counts.whole_model(config)).total()


def rates() -> dict[str, Any]:
    """The figures of hcmegatron.studies.cpu.Cpu."""
    wide = {"model.hidden_size": 256, "model.heads": 4, "model.ffn_hidden_size": 1024}
    deep = {"model.layers": 16}
    once, small = processor_seconds(**{"training.steps": 1}), processor_seconds()
    step = (small - once) / (STEPS - 1)
    per_flop = (processor_seconds(**wide) - small) / STEPS / (flops(**wide) - flops())
    layer = ((processor_seconds(**deep) - small) / STEPS - per_flop * (flops(**deep) - flops())) / 12
    connections = {}
    for kind in KINDS:
        own = {"connection.kind": kind}
        beside = 0.0 if kind == "residual" else (processor_seconds(**own) - small) / STEPS
        connections[kind] = max(0.0, beside - per_flop * (flops(**own) - flops())) / (
            2 * BASE["model.layers"]
        )
    return {
        "gflops": round(1e-9 / per_flop, 1),
        "layer_ms": round(1e3 * layer, 2),
        "step_ms": round(1e3 * max(0.0, step - BASE["model.layers"] * layer - per_flop * flops()), 2),
        "start_s": round(once, 1),
        "connection_ms": {kind: round(1e3 * seconds, 3) for kind, seconds in connections.items()},
    }


if __name__ == "__main__":
    print(yaml.safe_dump(rates(), sort_keys=False), end="")
