"""A bf16 run beside the same run in fp32: loss, and the row sums of mHC's matrix.

    python -m tools.compare_dtypes [--steps 200] [--threads 2] [--section.key=value ...]

One process trains the quickstart's model twice on the same batches. The connections' parameters are fp32 in both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config import ConfigError, load_config
from hcmegatron.connections.manifold import Manifold
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training.observer import Coefficients, Observer, Step
from hcmegatron.training.run import train
from hcmegatron.training.setup import TrainingRun

WINDOW = 20  # steps over which the final loss is averaged


class Comparison(Observer):
    """Keeps every step's loss, the dtypes of mHC's parameters, and the row sums of its matrix in the last step."""

    def __init__(self, run: TrainingRun) -> None:
        self.steps = run.config.training.steps
        self.losses: list[float] = []
        modules = [module for chunk in run.chunks for module in unwrap(chunk).modules()]
        self.dtypes = {module.phi.dtype for module in modules if isinstance(module, Manifold)}
        self.deviations: list[float] = []  # of row sums from 1, the largest of each connection

    def wants_coefficients(self, step: int) -> bool:
        """In the last step."""
        return step == self.steps

    def on_coefficients(self, coefficients: Coefficients) -> None:
        """Row sums, in fp64."""
        *_, res = coefficients.values
        self.deviations.append(float((res.double().sum(-1) - 1).abs().max()))

    def on_step(self, step: Step) -> None:
        """The loss."""
        self.losses.append(step.result.loss)


def main() -> None:
    """Prints both losses, their difference, and the row sums of the bf16 run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    asked, overrides = parser.parse_known_args()
    try:
        losses = {dtype: loss(dtype, asked.steps, asked.threads, overrides) for dtype in ("fp32", "bf16")}
    except ConfigError as error:
        parser.error(str(error))
    difference = losses["bf16"] / losses["fp32"] - 1
    print(f"bf16 against fp32 after {asked.steps} steps: {difference:+.3%} (target: within 1%)")


def loss(dtype: str, steps: int, threads: int, given: list[str]) -> float:
    """The mean loss of the last steps."""
    settings = {"parallel.pipeline": 1, "parallel.schedule": "megatron_1f1b", "training.dtype": dtype}
    settings |= {"training.steps": steps, "training.threads": threads, "training.log_every": WINDOW}
    settings |= {"training.eval_every": 0, "training.eval_batches": 1, "run.tensorboard": "false"}
    made: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"run.dir": f"{folder}/run"}
        config = load_config(
            "configs/quickstart.yaml", [*given, *(f"--{key}={value}" for key, value in settings.items())]
        )
        alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "tools")
        train(config, alone, observers=[lambda run: made.append(Comparison(run)) or made[-1]])
    (found,) = made
    mean = statistics.mean(found.losses[-WINDOW:])
    print(
        f"{dtype}: loss {mean:.4f} (mean of the last {WINDOW} steps), connections in {found.dtypes}, row sums of "
        f"mHC's matrix within {max(found.deviations, default=0.0):.1e} of 1 in the last step (target: 1e-6)"
    )
    return mean


if __name__ == "__main__":
    main()
