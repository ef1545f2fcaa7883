"""MPI: a script that starts the ranks with mpirun of Open MPI, MPICH or Intel MPI, whichever it finds."""

from __future__ import annotations

import os
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
# What of these is set says which machines there are: the script reads the files, and mpirun asks SLURM.
_QUEUES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "SLURM_JOB_ID")


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
    """Start it in the background on this machine, which mpirun starts the others from.

    Raises:
        LaunchError: there are several machines, and this is no job of a queue that says which.
    """
    if job.nodes > 1 and not any(os.environ.get(name) for name in _QUEUES):
        raise LaunchError(
            f"nodes = {job.nodes}: no queue says here which machines they are; list them in a file, and start "
            f"{quote_all(start_command(job, files))} HOSTFILE"
        )
    return Started("mpi", local.start(job, files).ids)
