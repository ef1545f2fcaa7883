"""MPI: a script that starts the ranks with mpirun of Open MPI, MPICH or Intel MPI, whichever it finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch import local
from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started
from launch.quoting import quote, quote_all
from launch.rank_script import rank_script
from launch.template import fill
from launch.words import module_lines

SCRIPT = f"{FOLDER}/job.sh"


def render(job: Job) -> dict[str, str]:
    """The script, and that of a rank, by their names in the run directory.

    Raises:
        LaunchError: what mpirun has no way to do, or a value that a script cannot carry.
    """
    if job.spare_nodes:
        raise LaunchError(
            f"spare_nodes = {job.spare_nodes}: mpirun replaces no machine; use slurm or torchrun"
        )
    values = {
        "title": f"{job.ranks} ranks on {job.nodes} machines, {job.ranks_per_node} on each",
        "folder": quote(str(job.folder)),
        "nodes": str(job.nodes),
        "ranks_per_node": str(job.ranks_per_node),
        "cpus": str(job.cpus_per_rank or 0),
        "restarts": str(job.restarts),
        "exclude": quote_all(job.exclude),
        "modules": module_lines(job),
        "setup": "\n".join(job.setup),
    }
    return {SCRIPT: fill("mpi.sh", values), **rank_script(job, "mpi", contained=False)}


def start_command(job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
    """bash, with the script."""
    return local.start_command(job, files)


def start(job: Job, files: Mapping[str, Path]) -> Started:
    """Start it in the background on this machine, which mpirun starts the others from."""
    return Started("mpi", local.start(job, files).ids)
