"""What the checks of one machine look at: the machine, this rank of it, and the run that is to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hcmegatron.platform.ranks import RankInfo
from launch.doctor.run_sizes import RunSizes
from launch.doctor.system import System


@dataclass(frozen=True)
class Subject:
    """A rank on its machine.

    Attributes:
        directory: where the run is going to write.
        sizes: of the run's messages and checkpoints.
        gpus: how many this rank sees; 0: ranks compute on the CPU.
    """

    system: System
    ranks: RankInfo
    directory: Path
    sizes: RunSizes
    gpus: int

    @property
    def gpu(self) -> bool:
        """Whether ranks compute on GPUs."""
        return self.gpus > 0
