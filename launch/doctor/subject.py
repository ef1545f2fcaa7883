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
        gpu: whether the ranks compute on GPUs.
    """

    system: System
    ranks: RankInfo
    directory: Path
    sizes: RunSizes
    gpu: bool
