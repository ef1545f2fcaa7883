"""torchrun: a script that is run on every machine, which meet at one of them and start again by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch import local
from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started
from launch.quoting import quote, quote_all
from launch.rank_script import container, rank_script
from launch.template import fill
from launch.words import module_lines

SCRIPT = f"{FOLDER}/job.sh"
PORT = 29400  # of the machine where they meet, where none is given: c10d's own


def render(job: Job) -> dict[str, str]:
    """The script, and that of a rank, by their names in the run directory.

    Raises:
        LaunchError: a value that a script or Apptainer cannot carry.
    """
    values = {
        "title": f"{job.ranks} ranks on {job.nodes} machines, {job.ranks_per_node} on each",
        "machines": str(job.nodes + job.spare_nodes),
        "folder": quote(str(job.folder)),
        "nodes": str(job.nodes),
        "ranks_per_node": str(job.ranks_per_node),
        "restarts": str(job.restarts),
        "name": quote(job.title),
        "torchrun": quote_all([*container(job), *_torchrun(job)]),
        "port": str(PORT),
        "modules": module_lines(job),
        "setup": "\n".join(job.setup),
    }
    return {SCRIPT: fill("torchrun.sh", values), **rank_script(job, "torchrun", contained=True)}


def start_command(job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
    """bash, with the script; and where the machines meet, for whoever starts it on each."""
    return (*local.start_command(job, files), *(["HEAD"] if job.nodes + job.spare_nodes > 1 else []))


def start(job: Job, files: Mapping[str, Path]) -> Started:
    """Start it in the background on this machine.

    Raises:
        LaunchError: there are several machines, on each of which somebody has to.
    """
    if job.nodes + job.spare_nodes > 1:
        raise LaunchError(
            f"nodes = {job.nodes}: start {quote_all(start_command(job, files))} on each machine yourself, where HEAD "
            "is the address of one of them"
        )
    return Started("torchrun", local.start(job, files).ids)


def _torchrun(job: Job) -> list[str]:
    """That of the Python which is to run the ranks, or of the PATH."""
    python = job.command[0]
    return [python, "-m", "torch.distributed.run"] if "python" in Path(python).name else ["torchrun"]
