"""An observer that kills the torchrun of a rank once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hcmegatron.training.observer import Observer, Step
from hcmegatron.training.setup import TrainingRun

MARK = "HCMEGATRON_TEST_KILLS_TORCHRUN"


class KillsTorchrun(Observer):
    """That of the rank on the machine that is marked, after step 3, in a run that has not been through this.

    torchrun numbers machines of one address by its process's number, so that any rank may be on any of them.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_step(self, step: Step) -> None:
        done = Path(self.run.config.run.dir) / "killed"
        if step.number == 3 and os.environ.get(MARK) and not done.exists():
            done.touch()
            os.kill(os.getppid(), signal.SIGKILL)
