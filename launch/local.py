"""This machine: the command starts its own ranks. What `hcmegatron train` does without a launcher, as a script."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started
from launch.quoting import quote, quote_all
from launch.rank_script import gpus, refuse_doctor
from launch.template import fill
from launch.words import module_lines, with_environment

SCRIPT = f"{FOLDER}/job.sh"


def render(job: Job) -> dict[str, str]:
    """The script, by its name in the run directory.

    Raises:
        LaunchError: more than one machine, or what is another launcher's.
    """
    if job.nodes + job.spare_nodes != 1:
        raise LaunchError(
            f"nodes = {job.nodes + job.spare_nodes}: local is this machine alone; use slurm or mpi"
        )
    if job.container is not None:
        raise LaunchError(f"container = {job.container}: local starts none; run the command in the container")
    if job.gpus_per_rank and job.gpu_visibility == "one":
        raise LaunchError(
            "gpu_visibility = one: ranks that the command starts itself see all GPUs; use torchrun, or all"
        )
    refuse_doctor(job)
    again = [f"--restarts={job.restarts}"] if job.restarts else []
    values = {
        "title": f"{job.ranks} ranks on this machine",
        "modules": module_lines(job),
        "setup": "\n".join(job.setup),
        "gpus": gpus(job),
        "work": quote(str(job.work_dir)),
        "ended": quote(str(job.folder / "ended")),
        "program": quote_all(with_environment(job, (*job.command, *again))),
    }
    return {SCRIPT: fill("local.sh", values)}


def start_command(job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
    """bash, with the script."""
    return ("bash", str(job.run_dir / SCRIPT))


def start(job: Job, files: Mapping[str, Path]) -> Started:
    """Start it in the background, apart from this terminal; its output is launch/job.log."""
    with (job.folder / "job.log").open("ab") as log:
        process = subprocess.Popen(
            start_command(job, files),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Started("local", (str(process.pid),))
