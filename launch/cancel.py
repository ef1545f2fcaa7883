"""The verb `cancel`: end a run's jobs, with a checkpoint; what waits in a queue does not start."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from pathlib import Path

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
    """Rank 0 is told, which all ranks heed; or what was started, where there is none yet."""
    holders = lock_holders(path)
    process = local_process(entry) if entry else None
    if now and process:
        os.killpg(process, signal.SIGKILL)
        return f"process {process} and its ranks are ended"
    whom = holders[0] if holders else process
    if whom is None:
        return "nothing runs there on this machine"
    number = signal.SIGKILL if now else signal.SIGUSR1
    if holders:
        os.kill(whom, number)
    else:
        os.killpg(whom, number)  # what it has started too
    return f"process {whom} " + ("is ended" if now else "ends after its step, with a checkpoint")
