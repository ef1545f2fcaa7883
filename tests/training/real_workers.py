"""The command itself, in processes of its own that are forked where Megatron-Core is imported already."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from pathlib import Path

from hcmegatron import cli
from hcmegatron.training import run_directory
from tests.training.workers import content

LIMIT_S = 60
OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def trained(arguments: list[str], directory: Path) -> tuple[int, dict]:
    """A whole run: its exit status, and the tensors of its last checkpoint."""
    status = ended(started(arguments, directory.with_suffix(".out")))
    return status, content(sorted((directory / "checkpoints").iterdir())[-1])


def signalled(arguments: list[str], directory: Path, number: int) -> tuple[int, str, int, str, int, dict]:
    """A run that has a rival for its directory, is sent a signal in the middle, and is resumed.

    Returns:
        exit status and words of the rival; exit status of the run and the last line of its log; exit status of the
        resumed run and the tensors of its last checkpoint.
    """
    run = started(arguments, directory.with_suffix(".out"))
    await_step(directory, 2, run)
    resumed = [*arguments, "--checkpoint.resume=true"]
    usual, run_directory.ENDING_S = run_directory.ENDING_S, 0.1  # or the run might have ended by then
    rival = ended(started(resumed, directory.with_suffix(".rival")))
    run_directory.ENDING_S = usual
    os.kill(run, number)
    status = ended(run)
    log = (directory / "train.log").read_text()
    again = trained(resumed, directory)
    return rival, directory.with_suffix(".rival").read_text(), status, log, *again


def started(arguments: list[str], output: Path) -> int:
    """`hcmegatron ARGUMENTS` as a process, whose output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 1)
        os.dup2(to, 2)
        for name in OF_A_LAUNCHER:
            os.environ.pop(name, None)
        status = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Its exit status, negative for a signal; it is killed where it takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"{pid} did not end")


def await_step(directory: Path, step: int, pid: int) -> None:
    """Until a run has written the metrics of a step."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
        metrics = directory / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.002)
    raise TimeoutError(f"no step {step}: {directory.with_suffix('.out').read_text()}")
