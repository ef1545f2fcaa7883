"""SLURM: a batch script that starts the ranks with srun, and comes back by itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from launch.job import FOLDER, Job, LaunchError
from launch.launchers import Started
from launch.quoting import directive, quote, quote_all
from launch.template import fill
from launch.words import module_lines, with_environment

SCRIPT = f"{FOLDER}/job.sh"
_LOG = f"{FOLDER}/job.log"  # relative: sbatch is told the run directory


def render(job: Job) -> dict[str, str]:
    """The batch script, by its name in the run directory.

    Raises:
        LaunchError: a value that a script, its header or SLURM's patterns cannot carry.
    """
    return {SCRIPT: script(job, directives(job))}


def script(job: Job, header: list[str]) -> str:
    """The batch script with these header lines."""
    values = {
        "directives": "\n".join(f"#SBATCH {line}" for line in header),
        "title": f"{job.ranks} ranks on {job.nodes} machines, {job.ranks_per_node} on each",
        "submit": quote_all(start_command(job, {})),
        "run": quote(_plain_pattern(str(job.run_dir))),
        "work": quote(str(job.work_dir)),
        "nodes": str(job.nodes),
        "spare": str(job.spare_nodes),
        "ranks_per_node": str(job.ranks_per_node),
        "restarts": str(job.restarts),
        "chain": str(job.chain),
        "program": quote_all(with_environment(job, job.command)),
        "exclude": quote(",".join(job.exclude)),
        "doctor": quote_all(_doctor(job)),
        "step_options": "\n".join(f"    {quote(option)}" for option in step_options(job)),
        "modules": module_lines(job),
        "setup": "\n".join(job.setup),
        "master": "yes" if "MASTER_ADDR" in job.environment else "",
    }
    return fill("slurm.sh", values)


def directives(job: Job) -> list[str]:
    """What the header asks SLURM for.

    Raises:
        LaunchError: a value that it cannot carry, or no time between the start and the warning.
    """
    if job.time_limit is not None and job.signal_seconds >= 60 * job.time_limit:
        raise LaunchError(
            f"signal_seconds = {job.signal_seconds}: ranks would be told to stop as they start, for time_limit = "
            f"{job.time_limit} minutes; ask for more time"
        )
    per_node = job.ranks_per_node
    options = [
        ("job-name", job.title),
        ("nodes", job.nodes + job.spare_nodes),
        ("ntasks-per-node", per_node),
        ("cpus-per-task", job.cpus_per_rank),
        ("mem", None if job.memory_per_rank_gb is None else f"{job.memory_per_rank_gb * per_node}G"),
        ("gpus-per-node", job.gpus_per_rank * per_node or None),
        ("time", job.time_limit),
        ("account", job.account),
        ("partition", job.partition),
        ("qos", job.qos),
        ("constraint", job.constraint),
        ("reservation", job.reservation),
        ("exclude", ",".join(job.exclude) or None),
        ("signal", f"B:USR1@{job.signal_seconds}"),
        ("output", _LOG),
    ]
    lines = [directive(option, str(value)) for option, value in options if value is not None]
    lines += ["--open-mode=append", "--no-requeue" if job.chain else "--requeue"]
    return lines + (["--no-kill"] if job.spare_nodes else [])


def step_options(job: Job) -> list[str]:
    """Of the srun that starts the ranks: where they run, what they see, and that they end together."""
    options = ["--kill-on-bad-exit=1", "--wait=300"]
    if job.cpus_per_rank is not None:  # srun does not take the header's since SLURM 22.05
        options += [f"--cpus-per-task={job.cpus_per_rank}", "--cpu-bind=cores"]
    if job.gpus_per_rank and job.gpu_visibility == "one":
        options += [f"--gpus-per-task={job.gpus_per_rank}", f"--gpu-bind=single:{job.gpus_per_rank}"]
    if job.container is not None:
        own = [f"{path}:{path}" for path in dict.fromkeys((job.run_dir, job.work_dir))]
        if odd := [mount for mount in (*own, *job.mounts) if "," in mount or mount.count(":") not in (1, 2)]:
            raise LaunchError(f"{odd[0]!r} cannot be mounted: pyxis takes from:to, without commas and colons")
        options += [
            f"--container-image={job.container}",
            f"--container-mounts={','.join((*own, *job.mounts))}",
        ]
        options += [f"--container-workdir={job.work_dir}"]
    return options


def start_command(job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
    """sbatch, in the run directory."""
    return ("sbatch", "--parsable", f"--chdir={job.run_dir}", str(job.run_dir / SCRIPT))


def start(job: Job, files: Mapping[str, Path]) -> Started:
    """Submit the job, or the jobs of its chain, each after the one before.

    Raises:
        LaunchError: sbatch is not here, or refuses.
    """
    command, ids = start_command(job, files), []
    more = _known_bad(job)
    for _ in range(max(1, job.chain)):
        after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
        ids.append(submit([command[0], *more, *after, *command[1:]]))
    return Started("slurm", tuple(ids))


def submit(command: list[str]) -> str:
    """The number that sbatch --parsable gives. LaunchError where it gives none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LaunchError(
            f"{command[0]}: {error.strerror}; submit on a machine that has SLURM's commands"
        ) from None
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]  # of "number;cluster"


def _known_bad(job: Job) -> list[str]:
    """Machines that did not answer in an earlier job of this run: left out, with those of the header."""
    try:
        found = (job.folder / "exclude").read_text().split()
    except OSError:
        return []
    return ["--exclude=" + ",".join(dict.fromkeys((*job.exclude, *found)))] if found else []


def _doctor(job: Job) -> list[str]:
    """The rank of `hcmegatron doctor` that the job begins with, where it is to."""
    if not job.doctor:
        return []
    verb = job.command.index("train")
    words = (*job.command[:verb], "doctor", *job.command[verb + 1 :])
    return with_environment(job, (*words, "--exclude-bad", str(job.folder / "doctor.exclude")))


def _plain_pattern(path: str) -> str:
    """A path that SLURM's file name patterns leave as it is. They are looked for in the directory's name too."""
    if found := re.search(r"[\\%\n]", path):
        raise LaunchError(
            f"run.dir = {path!r}: SLURM takes no {found[0]!r} in the names of logs; choose another"
        )
    return path
