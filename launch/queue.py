"""Whether a run's job waits, runs or is gone: from SLURM's queue, or from who holds the run directory's lock."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from launch import record
from launch.job import FOLDER, LaunchError

ACTIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "RESV_DEL_HOLD",
    "STOPPED",
)
_FORMAT = "%i|%T|%M|%L|%N|%r"


class QueueLine(NamedTuple):
    """A job as squeue shows it. Times are SLURM's words: 1-02:03:04."""

    id: str
    state: str
    ran: str
    left: str
    nodes: str
    reason: str


def squeue(ids: list[str]) -> list[QueueLine]:
    """The jobs that the queue still knows; [] where it knows none.

    Raises:
        LaunchError: squeue is not here, or the controller does not answer.
    """
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", f"--format={_FORMAT}"]
    done = run(command)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise LaunchError(f"squeue: {done.stderr.strip()}")
    return [QueueLine(*line.split("|")) for line in done.stdout.splitlines() if line.count("|") == 5]


def slurm_ids(run_dir: Path) -> list[str]:
    """The numbers of the run's jobs under SLURM: those submitted, or that of the script which somebody has submitted by
    hand and which has begun; [] where it is no run of SLURM's."""
    entry = record.read(run_dir)
    if entry is not None:
        return list(entry["ids"]) if entry["launcher"] == "slurm" else []
    lines = attempts(run_dir)
    return [lines[-1]["job"]] if lines else []


def attempts(run_dir: Path) -> list[dict]:
    """What a batch script has written down, line by line."""
    try:
        lines = marker(run_dir, "attempts.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """One of SLURM's commands. LaunchError where it is not here or does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        raise LaunchError(
            f"{command[0]}: {error.strerror}; ask on a machine that has SLURM's commands"
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} does not answer; ask again when the controller does") from None


def lock_holders(run_dir: Path) -> list[int]:
    """Processes of this machine that hold the run directory's lock: rank 0 of the job there."""
    try:
        lock = os.stat(run_dir / ".lock")
        table = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    place = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    fields = [line.split() for line in table]
    return [int(line[4]) for line in fields if line[1] == "FLOCK" and line[5] == place and int(line[4]) > 0]


def local_process(entry: dict) -> int | None:
    """The process that `launch` started on this machine, while it lives; None: another machine's, or it has ended."""
    if entry["host"] != platform.node() or entry["launcher"] == "slurm":
        return None
    try:
        process = psutil.Process(int(entry["ids"][0]))
        run_dir = entry["job"]["run_dir"]
        ours = any(run_dir in word for word in process.cmdline())  # and no later one of the same number
    except (psutil.Error, ValueError, IndexError, KeyError):
        return None
    return process.pid if ours and process.status() != psutil.STATUS_ZOMBIE else None


def require_idle(run_dir: Path) -> None:
    """LaunchError where a job of this run waits or runs already."""
    if words := busy(run_dir):
        raise LaunchError(f"run.dir = {run_dir}: {words}; hcmegatron cancel {run_dir} ends it")


def busy(run_dir: Path) -> str:
    """Whether a job of this run waits or runs, in words; "" where none does.

    Raises:
        LaunchError: it was given to SLURM, whose commands are not here.
    """
    entry = record.read(run_dir)
    if lock_holders(run_dir) or (entry and local_process(entry)):
        return "a run is going on there"
    ids = slurm_ids(run_dir)
    active = [job for job in squeue(ids) if job.state in ACTIVE] if ids else []
    return f"job {active[0].id} is {active[0].state} already" if active else ""


def marker(run_dir: Path, name: str) -> Path:
    """A file by which a job's script and these verbs tell each other something."""
    return run_dir / FOLDER / name
