"""The command's own launch, in a process that may fork: runs whose ranks die of themselves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform import restart_policy
from hcmegatron.training import step
from hcmegatron.training.start_ranks import start_ranks
from hcmegatron.training.train_cli import TRAIN


def restarted(config: Config, deaths: dict[int, int], marks: Path) -> int:
    """Train with --restarts=9, and have the last rank send itself a signal in step `number`, once, for each of deaths.

    Returns:
        the exit status.
    """
    usual_step = step.Stepper.step

    def dying(self: step.Stepper, seen: int) -> step.StepResult:
        number = seen // config.training.global_batch + 1
        mark = marks / f"died-{number}"
        if number in deaths and self.groups.pp.rank() == config.parallel.pipeline - 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), deaths[number])
            signal.pause()
        return usual_step(self, seen)

    step.Stepper.step, restart_policy.FIRST_WAIT_S = dying, 0.05
    return start_ranks(config, "run", find_corpus(config.data), TRAIN, restarts=9)
