"""Ranks that this command has started, started again when one has died: what a person would do who sits by.

The command's own process stays: it computes nothing, so that a new start is a fork. What happens is in restarts.jsonl
in the run directory, one line for each death and, by heartbeat.py, one for each first step after a start again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hcmegatron.platform import standard_streams
from hcmegatron.platform.exit_status import DIVERGED, STOPPED, USER_ERROR
from hcmegatron.platform.local_launch import Outcome, launch_apart
from hcmegatron.platform.process_signals import FORWARDED
from hcmegatron.platform.rank_process import Worker
from hcmegatron.platform.restart_policy import Again, Life, next_move

FILE = "restarts.jsonl"
# What a rank leaves for this process: the time of its last sign of life, by the monotonic clock, and the steps done.
Beat = Any  # multiprocessing's RawArray of two doubles
UNKNOWN = -1.0


def supervise(
    worker: Callable[[int, Beat], Worker],
    world_size: int,
    method: Literal["fork", "spawn"],
    directory: Path,
    limit: int,
) -> int:
    """Launch the ranks until they finish, are told to stop, or another start would not help. Returns the exit status.

    Args:
        worker: for a restart's number (0: the first start); leaves its signs of life in the Beat.
        directory: of the run.
        limit: of starts again within any hour.

    Raises:
        ConfigError: a user's mistake, found by the ranks.
        Ended: for a reason in words that all ranks have found.
    """
    beat = multiprocessing.get_context(method).RawArray("d", 2)
    lives: list[Life] = []
    # From one launch to the next signals wait, and end the pause.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        while True:
            beat[:] = time.monotonic(), UNKNOWN
            outcome = launch_apart(worker(len(lives), beat), world_size, method)
            lives.append(Life(time.monotonic(), None if beat[1] == UNKNOWN else int(beat[1]), _dead(outcome)))
            move = next_move(lives, limit)
            if lives[-1].dead:
                _record(directory, _end(len(lives), lives[-1], outcome, beat[0], move))
            if not isinstance(move, Again):
                try:
                    return outcome.say()
                finally:
                    if move.why:
                        standard_streams.tell(
                            f"hcmegatron: not started again: {move.why}; see {directory / FILE}"
                        )
            outcome.say()
            standard_streams.tell(f"hcmegatron: restart {len(lives)} in {move.wait:.0f} s")
            if told := _pause(move.wait):
                standard_streams.tell(
                    f"hcmegatron: stopped by {told} before restart {len(lives)}; continue with checkpoint.resume=auto"
                )
                return STOPPED
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def write(directory: Path, event: dict[str, Any]) -> None:
    """Add a line to restarts.jsonl, in one write. OSError where it cannot be."""
    directory.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": datetime.now().astimezone().isoformat(timespec="milliseconds"), **event})
    descriptor = os.open(directory / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def _dead(outcome: Outcome) -> bool:
    """Whether a rank has died; a reason in words that all ranks have found would come again."""
    cause = outcome.cause
    return bool(
        cause and not cause.ended and not outcome.asked and cause.status not in (USER_ERROR, DIVERGED)
    )


def _end(number: int, life: Life, outcome: Outcome, heard: float, move: Any) -> dict[str, Any]:
    """The line of an end."""
    cause = outcome.cause
    killed = cause.status > 128 and cause.time == 0.0
    how = {"signal": signal.Signals(cause.status - 128).name} if killed else {"status": cause.status}
    return {
        "event": "ended",
        "life": number,
        "cause": {"rank": cause.rank, **how, "said": cause.text.strip().rpartition("\n")[2]},
        "after_step": life.reached,
        "seconds": {"detect": round(outcome.seen - heard, 3), "end": round(life.ended - outcome.seen, 3)},
        **({"restart_in": move.wait} if isinstance(move, Again) else {"gave_up": move.why}),
    }


def _record(directory: Path, event: dict[str, Any]) -> None:
    try:
        write(directory, event)
    except OSError as error:
        standard_streams.tell(f"hcmegatron: warning: {directory / FILE} cannot be written: {error.strerror}")


def _pause(seconds: float) -> str:
    """Wait; or the name of the signal that told this process to end meanwhile."""
    heard = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
    told = signal.sigtimedwait(heard, seconds)
    return signal.Signals(told.si_signo).name if told else ""
