"""How a rank's end is told to who started it, where the exit status alone would have the wrong effect. No torch."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Mapping
from contextlib import suppress

from hcmegatron.platform import standard_streams
from hcmegatron.platform.exit_status import CORRUPTED, DIVERGED, STOPPED, USER_ERROR

# All ranks of a launcher find the same mistake. The first of every machine says it, whereupon the launcher ends the
# others; one that exited at once could have the first ended before it has spoken.
PATIENCE_S = 5.0
# torchrun starts the ranks again after every status that is not 0, --max-restarts times, and ends with 1 in any case.
# A script around it names a file here: for what would only come again, that gets the status, and torchrun a 0.
# SLURM's script does too, for a run that was stopped: its ranks end with 0, as those of a finished one.
STATUS_FILE = "HCMEGATRON_STATUS_FILE"
FINAL = (USER_ERROR, DIVERGED, CORRUPTED)


def tell_end(status: int, environ: Mapping[str, str]) -> int:
    """Tell the launcher with what status this rank ends, and return the one to exit with.

    Hydra (MPICH, Intel MPI) ends the other ranks when one is killed, but leaves them waiting when one ends with a
    status that is not 0. It is told in its own protocol, PMI-1, which needs no library. Open MPI needs no telling.
    """
    if (line := hydra(environ)) is not None:
        with suppress(OSError):  # it has gone itself
            os.write(line, f"cmd=abort exitcode={status}\n".encode() if status else b"cmd=finalize\n")
            if select.select([line], [], [], 5.0)[0]:  # its answer, which would meet nobody
                os.read(line, 1024)
    if status in FINAL and "TORCHELASTIC_RUN_ID" in environ and environ.get(STATUS_FILE):
        return 0 if _left(status, environ[STATUS_FILE]) else status
    return status


def tell_stopped(environ: Mapping[str, str]) -> int:
    """Tell the job's script, where it has named a file, that the run was stopped and is to go on. For rank 0.

    Returns:
        The status to exit with: 0, for a launcher takes every other for a failure; STOPPED where the file cannot be
        written, so that the script does not take the run for finished.
    """
    path = environ.get(STATUS_FILE)
    if not path or "TORCHELASTIC_RUN_ID" in environ:  # whose script knows from its own signal
        return 0
    return 0 if _left(STOPPED, path) else STOPPED


def _left(status: int, path: str) -> bool:
    """Whether the file has the status now."""
    try:
        with open(path, "w") as file:
            file.write(f"{status}\n")
    except OSError as error:
        standard_streams.tell(f"hcmegatron: warning: {STATUS_FILE} cannot be written: {error.strerror}")
        return False
    return True


def already_told(environ: Mapping[str, str]) -> bool:
    """Whether a rank of this machine has left its status for the script around torchrun, and said why."""
    path = environ.get(STATUS_FILE)
    return (
        bool(path) and "TORCHELASTIC_RUN_ID" in environ and os.path.isfile(path) and os.path.getsize(path) > 0
    )


def hydra(environ: Mapping[str, str]) -> int | None:
    """The number of the connection to hydra that this rank has inherited; None where hydra did not start it."""
    number = environ.get("PMI_FD", "")
    # Of the launchers with PMI_FD, hydra alone has this; SLURM speaks PMI-2. torchrun's ranks are torchrun's.
    if "MPI_LOCALRANKID" not in environ or "TORCHELASTIC_RUN_ID" in environ or not number.isdecimal():
        return None
    try:
        return int(number) if stat.S_ISSOCK(os.fstat(int(number)).st_mode) else None
    except (OSError, OverflowError):
        return None
