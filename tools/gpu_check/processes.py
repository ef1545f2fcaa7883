"""Starting and ending the processes of a phase, by exec: a process that has looked for a GPU cannot be forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(
    arguments: Sequence[str], env: Mapping[str, str], log: Path, session: bool = True
) -> subprocess.Popen:
    """tools.gpu_check.worker with these arguments.

    Args:
        log: where what it prints goes.
        session: it leads one of its own, by which `end` finds all that it has started.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.gpu_check.worker", *arguments],
            cwd=ROOT,
            env={**env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=session,
        )


def end(session: int, patience: float = 5.0) -> bool:
    """Kill every process of a session; whether none is left.

    Args:
        patience: seconds. A process that waits for a driver that hangs outlives its killing.
    """
    until = time.monotonic() + patience
    while members := _members(session):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has ended meanwhile
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _members(session: int) -> list[int]:
    """Those that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The second field is the name in brackets, which may hold anything.
            state, _, _, own, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(own) == session and state not in "ZX":
            found.append(int(folder.name))
    return found
