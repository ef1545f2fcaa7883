"""Takes the throw-away kind and schedule through the program, as a user would; prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.descriptors.throw_away import KIND, LAST_FIRST  # isort: skip  (before configuration)

from hcmegatron import cli
from hcmegatron.config import ConfigError, check_batch, check_config, dump_config, read_config
from hcmegatron.config.ineffective import ineffective
from hcmegatron.connections import accounting
from hcmegatron.planner.buffers import parameters
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.planner.parameters import connection_parameters, total_parameters
from hcmegatron.planner.stages import stages
from hcmegatron.recompute.block_plan import expected_terms, plan_blocks

SMALL = """
connection: {kind: throwaway, n: 3, leak: 0.25, lr_multiplier: 2.0}
model: {layers: 2, hidden_size: 32, heads: 2, ffn_hidden_size: 48, vocab_multiple: 1}
parallel: {pipeline: 2, schedule: last_first}
data: {sequence_length: 16}
optimizer: {warmup_steps: 0}
training: {steps: 2, global_batch: 4, micro_batch: 1, eval_every: 0, eval_batches: 1}
recompute: {mode: block, block_length: "2"}
run: {tensorboard: false, peak_tflops: 0.01}
"""


def refused(overrides: list[str], file: Path, batch: int | None = None) -> str:
    """What is said of settings that do not go together."""
    try:
        config = read_config(file, overrides)[0]
        check_config(config)
        if batch:
            check_batch(config, batch)
    except ConfigError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    """Configuration, counts, plans; then two steps of training on two ranks."""
    file, run = folder / "small.yaml", folder / "run"
    file.write_text(SMALL)
    config, sources = read_config(file)
    connection, C = config.connection, config.model.hidden_size
    seen = {
        "warnings": check_config(config, sources),
        "kept by dump": "leak: 0.25" in dump_config(config),
        "torch": "torch" in sys.modules,
        "refused": [
            refused(["--connection.leak=2"], file),
            refused(["--connection.leek=1"], file),
            refused(["--parallel.schedule=last-furst"], file),
            refused(["--training.global_batch=3"], file),
            refused(["--parallel.overlap=true"], file),
        ],
        "idle": ineffective(read_config(file, ["--connection.tanh=false", "--kernels=triton"])[0]),
        "idle for mhc": ineffective(read_config(file, ["--connection.kind=mhc"])[0]).get("connection.leak"),
        "connections": connection_parameters(config),
        "parameters": total_parameters(config, 257),
        "on ranks": [sum(p.numbers for p in parameters(config, 257, stage)) for stage in stages(2, 2)],
        "flops": training_flops_per_token(config, 257)
        - training_flops_per_token(
            read_config(file, ["--connection.kind=residual", "--recompute.mode=none"])[0], 257
        ),
        "width": accounting.streams(connection),
        "plan": plan_blocks(4, "2", expected_terms(connection, C, 4, 16)).kept,
    }
    from hcmegatron.pipeline.configured_schedule import most_held
    from hcmegatron.training.resume import RULE_OF

    seen["held"] = list(most_held(config, 4, 0))
    seen["rule"] = RULE_OF["connection.leak"].name
    status = cli.main(["train", str(file), f"--run.dir={run}"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen["trained"] = [status, [line["loss"] for line in lines if line["kind"] == "train"]]
    seen["said"] = [KIND.name, LAST_FIRST.name]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
