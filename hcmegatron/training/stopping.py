"""What ends a run before its last step: a signal that any rank got."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType

import torch
import torch.distributed as dist

from hcmegatron.platform.distributed import device
from hcmegatron.platform.rank_process import TORCHRUN_ENDED


class StopFlag:
    """Set by SIGTERM, SIGUSR1 (SLURM's --signal), SIGINT or SIGHUP: the run ends after the step in progress and saves.

    So does the end of a rank's torchrun (TORCHRUN_ENDED), which is a failure: other machines' torchruns start again.

    A second SIGINT ends this process at once, whatever it is doing. What was ignored when the process started (SIGHUP
    under nohup) stays ignored.

    Args:
        launched: this rank is one of several that the command started. That ends them at a second Ctrl-C, and passes
            the first one on, which is a rank's second where a whole process tree was sent one.
    """

    def __init__(self, launched: bool = False) -> None:
        self.launched = launched
        self.asked: int | None = None
        self._agreed = 0
        self._speaks = dist.get_rank() == 0  # asked now: a signal may come when the groups have ended
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, TORCHRUN_ENDED):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked != number:
            if not self.launched:
                # A handler in Python would wait for a collective that may never end.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._speaks:
                _say(b"hcmegatron: SIGINT: ending after this step, with a checkpoint; again: at once\n")
        self.asked = self.asked or number

    def agreed(self) -> bool:
        """Whether any rank was asked. Collective, until the answer is yes."""
        if not self._agreed:
            number = torch.tensor([self.asked or 0], device=device())
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self._agreed = int(number.item())
        return self._agreed > 0

    @property
    def name(self) -> str:
        """Of the signal that all ranks have agreed to end for, or ""."""
        if self.orphaned:
            return f"{TORCHRUN_ENDED.name} (a rank's torchrun has ended)"
        return signal.Signals(self._agreed).name if self._agreed else ""

    @property
    def orphaned(self) -> bool:
        """Whether all ranks have agreed to end because a rank's torchrun has."""
        return self._agreed == TORCHRUN_ENDED


def _say(line: bytes) -> None:
    """Write a line to standard error within a signal's handler, or nothing where it takes nothing.

    Not by way of a stream, which may be in use where the signal interrupts. A pipe that is full would hold the handler,
    and with it the rank, for as long as nobody reads.
    """
    with contextlib.suppress(OSError):
        if select.select((), (2,), (), 0)[1]:
            os.write(2, line)
