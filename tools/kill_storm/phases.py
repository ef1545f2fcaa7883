"""Which phase of a run its ranks are in, for who watches from another process."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hcmegatron.training import checkpoint, run, start_ranks, step

PHASES = ("start", "load", "rehearsal", "step", "evaluation", "save")
PARTIAL = "checkpoints/*.partial"


class Phases:
    """A byte that the ranks of one run write and others read, in memory that forks share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1)

    def now(self) -> str:
        """That of the training, which goes on while threads may be saving."""
        return PHASES[self.memory[0]]

    def saving(self, directory: Path) -> bool:
        """Whether anything is being written of a checkpoint, by whatever thread."""
        if self.now() in ("start", "load"):  # what a killed run has left of one may still be there
            return False
        return self.now() == "save" or any(directory.glob(PARTIAL))

    def begin(self) -> None:
        """Nothing is there yet."""
        self.memory[0] = PHASES.index("start")

    def follow(self) -> None:
        """From now on ranks that are forked from this process say where they are."""
        self._around(checkpoint.Checkpoints, "load", "load", "load")
        self._around(checkpoint.Checkpoints, "save", "save", "step")
        self._around(step.Stepper, "rehearse", "rehearsal", "step")
        self._around(run, "evaluate", "evaluation", "step")
        self._around(start_ranks, "run_rank", "start", "start")

    def _around(self, owner: Any, name: str, during: str, after: str) -> None:
        usual: Callable[..., Any] = getattr(owner, name)
        codes = PHASES.index(during), PHASES.index(after)

        @functools.wraps(usual)
        def noted(*arguments: Any, **options: Any) -> Any:
            self.memory[0] = codes[0]
            try:
                return usual(*arguments, **options)
            finally:
                self.memory[0] = codes[1]

        setattr(owner, name, noted)
