"""The whole check in miniature, on a rank that has imported everything: processes are forked from it, not started."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from tools.gpu_check import __main__, processes, worker


class Forked:
    """As much of Popen as the check uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status


def fork(arguments: Sequence[str], env: Mapping[str, str], log: Path, session: bool = True) -> Forked:
    """In place of processes.start."""
    sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()  # its thread, which a fork does not have, would be waited for
    pid = os.fork()
    if pid:
        return Forked(pid)
    status = 1
    try:
        if session:
            os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(out, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        status = worker.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def whole(out: str, phases: Sequence[str] = ()) -> tuple[int, str]:
    """Exit status and output."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    said = io.StringIO()
    with mock.patch.object(processes, "start", fork), contextlib.redirect_stdout(said):
        status = __main__.main(["--out", out, "--miniature", *(["--phases", *phases] if phases else [])])
    return status, said.getvalue()
