"""A bf16 run beside the same run in fp32: loss, and the row sums of mHC's matrix.

    python -m tools.compare_dtypes [--steps 200] [--threads 2] [--section.key=value ...]

One process trains the quickstart's model twice on the same batches. The connections' parameters are fp32 in both.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import ConfigError, load
from hcmegatron.connections.manifold import Manifold
from hcmegatron.data.corpus import find
from hcmegatron.data.dataset import Batches, Text
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from hcmegatron.training.step import Stepper

WINDOW = 20  # steps over which the final loss is averaged


def main() -> None:
    """Prints both losses, their difference, and the row sums of the bf16 run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    asked, overrides = parser.parse_known_args()
    try:
        losses = {dtype: train(dtype, asked.steps, asked.threads, overrides) for dtype in ("fp32", "bf16")}
    except ConfigError as error:
        parser.error(str(error))
    difference = losses["bf16"] / losses["fp32"] - 1
    print(f"bf16 against fp32 after {asked.steps} steps: {difference:+.3%} (aim: within 1%)")


def train(dtype: str, steps: int, threads: int, given: list[str]) -> float:
    """The mean loss of the last steps."""
    settings = {"parallel.pipeline": 1, "parallel.schedule": "megatron_1f1b", "training.dtype": dtype}
    settings |= {"training.steps": steps, "training.threads": threads}
    config = load(
        "configs/quickstart.yaml", [*given, *(f"--{key}={value}" for key, value in settings.items())]
    )
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "tools")
    with process_groups(config, alone) as groups:
        text = Text(find(config.data), ByteTokenizer())
        batches = Batches(text, config)
        chunks = build_model(config, text.tokenizer.vocab_size, groups)
        optimizer = build_optimizer(config, chunks, groups)
        stepper = Stepper(config, chunks, optimizer, build_schedule(config, chunks, groups), batches, groups)
        dtypes = {connection.phi.dtype for connection in manifolds(unwrap(chunks[0]))}
        losses: list[float] = []
        for step in range(1, steps + 1):
            if step == steps:
                sums = watch_row_sums(unwrap(chunks[0]))
            set_learning_rate(
                optimizer, learning_rate(step, config.optimizer, steps), config.optimizer.weight_decay
            )
            losses.append(stepper.step((step - 1) * config.training.global_batch).loss)
            if step % 20 == 0:
                print(f"{dtype} step {step}: loss {losses[-1]:.4f}", flush=True)
    loss = statistics.mean(losses[-WINDOW:])
    print(
        f"{dtype}: loss {loss:.4f} (mean of the last {WINDOW} steps), connections in {dtypes}, "
        f"row sums of mHC's matrix within {max(sums):.1e} of 1 in the last step (aim: 1e-6)"
    )
    return loss


def manifolds(model: torch.nn.Module) -> list[Manifold]:
    """The mHC connections of a model."""
    return [module for module in model.modules() if isinstance(module, Manifold)]


def watch_row_sums(model: torch.nn.Module) -> list[float]:
    """From now on every read adds the largest deviation of a row sum from 1 to the list."""
    found: list[float] = []
    for connection in manifolds(model):
        read = connection.read

        def watched(*arguments: Any, read: Any = read) -> Any:
            x, coefficients = read(*arguments)
            found.append(float((coefficients[2].detach().double().sum(-1) - 1).abs().max()))
            return x, coefficients

        connection.read = watched
    return found


if __name__ == "__main__":
    main()
