"""The verb `cancel`: end a run's jobs, with a checkpoint; what waits in a queue does not start."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from launch import record
from launch.job import LaunchError
from launch.queue import ACTIVE, local_process, lock_holders, marker, run, slurm_ids, squeue
from launch.status import rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.description = "End a run: ranks save after the step in progress, and nothing of it starts again."
    parser.add_argument(
        "path", metavar="RUN", type=Path, help="the run directory, or that of an array's runs"
    )
    parser.add_argument("--now", action="store_true", help="without waiting for a step and a checkpoint")


def main(options: argparse.Namespace) -> int:
    """Run the verb. LaunchError: nothing is there to be ended."""
    for path in rows(options.path):
        ids = slurm_ids(path)
        said = _slurm(path, ids, options.now) if ids else _here(path, record.read(path), options.now)
        print(f"{path}: {said}")
    return 0


def _slurm(path: Path, ids: list[str], now: bool) -> str:
    """The job's script is told, and tells its ranks; jobs that wait are taken out of the queue."""
    active = [job for job in squeue(ids) if job.state in ACTIVE]
    if not active:
        return "its jobs have ended already"
    marker(path, "cancel").touch()  # before the signal: the script looks for it when its ranks have ended
    for job in sorted(active, key=lambda job: job.state == "RUNNING"):  # those that wait first
        gently = job.state == "RUNNING" and not now
        _require(run(["scancel", *(["--signal=USR1", "--batch"] if gently else []), job.id]))
    running = [job.id for job in active if job.state == "RUNNING"]
    if not running:
        return f"job {', '.join(job.id for job in active)} is out of the queue"
    if now:
        return f"job {', '.join(running)} is ended"
    return f"job {', '.join(running)} ends after its step, with a checkpoint"


def _require(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise LaunchError(f"scancel: {done.stderr.strip()}")


def _here(path: Path, entry: dict | None, now: bool) -> str:
    """Rank 0 is told, which all ranks heed; or what was started, where there is none yet.

    Raises:
        LaunchError: it is somebody else's.
    """
    holders = lock_holders(path)
    process = local_process(entry) if entry else None
    found = [*([process] if process else []), *holders]
    if not found:
        return "nothing runs there on this machine"
    whom = found[0] if now else found[-1]
    try:
        if now:
            _end_with_descendants(found)
        elif holders:
            os.kill(whom, signal.SIGUSR1)
        else:
            os.killpg(whom, signal.SIGUSR1)  # what it has started too
    except (PermissionError, psutil.AccessDenied):
        raise LaunchError(
            f"{path}: process {whom} is {_owner(whom)}'s; have {_owner(whom)} or root cancel it"
        ) from None
    except ProcessLookupError:
        return f"process {whom} has ended meanwhile"
    if not now:
        return f"process {whom} ends after its step, with a checkpoint"
    job = (entry or {}).get("job", {})
    elsewhere = job.get("nodes", 1) + job.get("spare_nodes", 0) > 1
    return f"process {whom} and all that it has started here are ended" + (
        "; whether ranks on other machines are is not known here" if elsewhere else ""
    )


def _end_with_descendants(numbers: list[int]) -> None:
    """Ranks are in groups and sessions of their own. All are stopped first, so that nothing is started again."""
    stopped: list[psutil.Process] = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(number)
            while new := [each for each in (top, *top.children(recursive=True)) if each not in stopped]:
                stopped += new
                for each in new:
                    with suppress(psutil.NoSuchProcess):
                        each.suspend()
    for each in stopped:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def _owner(number: int) -> str:
    try:
        return psutil.Process(number).username()
    except psutil.Error:
        return "another user"
