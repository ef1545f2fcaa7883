"""The launchers by name. Each is a module with `render` and `start`; to add one, add a line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from launch.job import Job

LAUNCHERS = {
    "slurm": ("launch.slurm", "a batch script of SLURM"),
    "local": ("launch.local", "ranks on this machine, started by the command itself"),
    "mpi": ("launch.mpi", "mpirun of Open MPI, MPICH or Intel MPI"),
    "torchrun": ("launch.torchrun", "one torchrun on every machine"),
}


class Started(NamedTuple):
    """What was started: the launcher's name, and what it calls the jobs (SLURM's numbers, a process's)."""

    launcher: str
    ids: tuple[str, ...]


class Launcher(Protocol):
    """What a launcher's module has."""

    def render(self, job: Job) -> dict[str, str]:
        """Files by their names relative to the run directory, with their text. Pure: the same job, the same text."""

    def start_command(self, job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
        """The arguments that start the job: what `--print` shows and `start` runs."""

    def start(self, job: Job, files: Mapping[str, Path]) -> Started:
        """Start it, once `files` (those of `render`, by the same names) are written. LaunchError where that fails."""


def find(name: str) -> Launcher:
    """The module of a launcher."""
    return importlib.import_module(LAUNCHERS[name][0])
