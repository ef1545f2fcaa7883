"""Run directories as runs leave them, in the forms that docs/ give, made without training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from hcmegatron.config import Config
from hcmegatron.config.load import dump_config
from hcmegatron.planner.machines import MACHINES
from hcmegatron.profiling import files as profile_files
from hcmegatron.profiling.rank_step import RankRecord
from hcmegatron.profiling.summary import summarise
from schedules import generate
from schedules.costs import Costs, Link, StageCosts
from schedules.simulate import simulate
from tests.profiling.simulated import records
from tests.small_configs import put

ENVIRONMENT = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "megatron-core": "0.16.1",
    "device": "CPU",
    "command": "x",
}


def lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def train_line(step: int, loss: float | None, **figures: Any) -> dict[str, Any]:
    """A step of 64 tokens in a tenth of a second."""
    found = {"step": step, "kind": "train", "loss": loss, "lr": 1e-3, "grad_norm": 1.0 + step % 7 / 10}
    return (
        found | {"tokens_per_s": 640.0, "tflops_per_rank": 0.5, "memory_gib": 0.75, "seconds": 0.1} | figures
    )


def losses(steps: int, start: float = 5.0) -> list[float]:
    """A curve with a little noise, the same every time."""
    return [start * math.exp(-step / 40) + 1.5 + 0.1 * math.sin(37.0 * step) for step in range(1, steps + 1)]


def make_run(
    path: Path, steps: int = 60, planned: int | None = None, start: float = 5.0, **sections: dict[str, Any]
) -> Path:
    """A run of 2 pipeline ranks under 1f1b, backwards whole, with evaluations after every 20 steps.

    Args:
        planned: training.steps.
        sections: settings of the configuration.
    """
    path.mkdir(parents=True)
    config = put(
        Config(),
        training={"steps": planned or steps, "global_batch": 4, "micro_batch": 1},
        data={"sequence_length": 16},
        parallel={"pipeline": 2, "schedule": "1f1b", "split_backward": False},
        connection={"kind": "mhc", "n": 4},
    )
    put(config, **sections)
    text = dump_config(config)
    (path / "config.yaml").write_text(f"# 0123456789abcdef: written by a run\n{text}")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    entries = []
    for step, loss in enumerate(losses(steps, start), start=1):
        entries.append(train_line(step, loss))
        if step % 20 == 0:
            bits = loss / math.log(2)
            entries.append({"step": step, "kind": "validation", "loss": loss, "bits_per_byte": bits})
    lines(path / "metrics.jsonl", entries)
    peak = {"weights": 2.0**28, "activations": 2.0**27, "deferred weight gradients": 0.0}
    plan = {
        "machine": asdict(MACHINES["h100"]),
        "gpus": 2,
        "microbatches": 4,
        "memory_per_rank": [{"peak": peak}] * 2,
    }
    (path / "plan.json").write_text(json.dumps(plan))
    return path


def add_events(path: Path) -> None:
    """Checkpoints, a restart, a kept bad step, a rewind and a step that was not finite."""
    for step in (20, 40):
        (path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (path / "checkpoints" / "step-00000060.damaged").mkdir()
    ended = {
        "event": "ended",
        "life": 1,
        "cause": {"rank": 1, "signal": "SIGKILL", "said": ""},
        "after_step": 30,
    }
    resumed = {"event": "resumed", "restart": 1, "from_step": 20, "seconds": {"start": 1.5, "load": 0.5}}
    lines(path / "restarts.jsonl", [ended, resumed])
    (path / "anomalies").mkdir()
    (path / "anomalies" / "step-00000033.json").write_text(
        json.dumps({"step": 33, "bad": "loss 14.2 deviations above the median", "loss": 9.1})
    )
    with (path / "metrics.jsonl").open("a") as stream:
        rewind = {"step": 20, "kind": "rewind", "rewound_from": 33, "loss": 9.1, "left_out": [100, 104]}
        stream.write(json.dumps(rewind) + "\n")
        odd = train_line(45, None, nonfinite={"loss": "nan"})
        stream.write(json.dumps(odd) + "\n")


def arrays(step: int, layers: int = 3, n: int = 4) -> dict[str, np.ndarray]:
    """What one observation keeps, of made-up values that depend on the step."""
    random = np.random.default_rng(step)
    names = [f"layer {layer + 1} {part}" for layer in range(layers) for part in ("attention", "mlp")]
    S, close = len(names), min(1.0, 30.0 / (30 + step))
    maps = close * np.eye(n) + (1 - close) / n + random.uniform(0, 0.02, (S, n, n))
    matrix = np.tril(random.uniform(0.2, 1.2, (S + 2, S + 2)), -1)
    return {
        "sublayers": np.array(names),
        "residual_map": maps,
        "composite_map": np.full((S, n, n), 1 / n),
        "pre": random.uniform(0, 1, (S, n)),
        "post": random.uniform(0, 2, (S, n)),
        "gain_forward": 1 + random.uniform(0, 0.2, S),
        "gain_backward": 1 + random.uniform(0, 0.4, S),
        "composite_forward": 1 + np.linspace(0.6, 0, S),
        "composite_backward": 1 + np.linspace(1.4, 0, S) * (1 + step / 100),
        "stream_norm": np.linspace(1, 3, S + 1)[:, None] * np.linspace(0.8, 1.2, n),
        "stream_similarity": np.stack([0.5 * np.eye(n) + 0.5 * i / (S + 1) for i in range(S + 1)]),
        "layer_similarity": np.sort(random.uniform(0.4, 0.99, (S - 1, 3)), axis=1),
        "connection_matrix": matrix,
        "gradient_norm": random.uniform(1e-3, 1e-1, S),
        "sublayer_gradient_norm": random.uniform(0.1, 1, S),
        "gate_saturation": random.uniform(0, 0.6, S),
        "doubly_stochastic_error": random.uniform(0, 0.01, S),
        "ablation_sublayer": random.uniform(0, 0.3, S),
        "ablation_stream": random.uniform(0, 0.5, n),
        "moe_layers": np.arange(2, 2 + layers),
        "expert_load": random.uniform(0, 0.3, (layers, 8)),
        "router_bias": random.uniform(-0.1, 0.1, (layers, 8)),
    }


def add_observations(path: Path, steps: tuple[int, ...] = (20, 40, 60), layers: int = 3) -> None:
    """diagnostics.jsonl and its arrays."""
    (path / "diagnostics").mkdir()
    entries = []
    for step in steps:
        found = arrays(step, layers)
        np.savez_compressed(path / "diagnostics" / f"step-{step:08d}.npz", **found)
        scalars = {
            "composite_gain_forward_max": float(found["composite_forward"].max()),
            "composite_gain_backward_max": float(found["composite_backward"].max()),
            "single_gain_forward_max": float(found["gain_forward"].max()),
            "single_gain_backward_max": float(found["gain_backward"].max()),
            "stream_similarity_mean": 0.4,
            "layer_similarity_median": 0.8,
            "gate_saturation_max": 0.02,
            "doubly_stochastic_error": 1e-4,
        }
        layer, message = "layer 2 mlp", "layer 2 mlp: composite gain 3.1 is above 3; lower optimizer.lr"
        warning = {"code": "gain", "layer": layer, "value": 3.1, "bound": 3.0, "message": message}
        warnings = [warning] if step == steps[-1] else []
        entry = {"step": step, "tokens": 64 * step, "seconds": 0.2, "scalars": scalars, "warnings": warnings}
        entries.append(entry)
    lines(path / "diagnostics.jsonl", entries)


def add_profile(path: Path, name: str = "1f1b") -> list[RankRecord]:
    """profile/ of two ranks in whose step 11 a forward of stage s took 20 + 20 s ms, a message 5 ms; rank 1's clock is
    5 s behind. By the profile's own writers. Returns the records."""
    schedule = generate(name, 2, 4)
    stages = tuple(
        StageCosts(F=1.0 + s, I=1.0 + s, W=1.0 + s, B=2.0 + 2 * s, FB=2.5 + 2.5 * s) for s in (0, 1)
    )
    if schedule.placement.model_stages > 2:
        stages = stages[:1]
    step = simulate(schedule, Costs(stages, Link(latency=0.25), lead=0.5))
    found = [
        replace(record, steps=tuple(replace(own, step=11) for own in record.steps))
        for record in records(step, clocks=[0.0, -5.0])
    ]
    profile_files.write_all(path, found, summarise(found, schedule), {"traceEvents": []})
    return found


def add_memory(path: Path) -> None:
    """What both ranks held; rank 0 a little more since its last step."""
    (path / "memory").mkdir()
    for rank, gib in ((0, 0.8125), (1, 0.625)):
        found = {"rank": rank, "pipeline_rank": rank, "gib": gib, "of": "process"}
        (path / "memory" / f"rank-00{rank}.json").write_text(json.dumps(found))


def make_whole_run(path: Path, steps: int = 60, **settings: Any) -> Path:
    """A run with everything that a report shows."""
    make_run(path, steps, **settings)
    add_events(path)
    add_observations(path)
    add_profile(path, settings.get("parallel", {}).get("schedule", "1f1b"))
    add_memory(path)
    return path
