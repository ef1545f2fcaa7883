"""What the ranks of an mpirun on several machines need besides its variables: where rank 0 is.

MPI itself runs in a process beside each rank (mpi_meeting.py), for the moment that this takes. So a trainer has no
MPI library in its memory, and an MPI that ends its process (two that do not fit do) ends that one.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform.launcher_end import PATIENCE_S, hydra

LIMIT_S = 300.0  # for all ranks to come to MPI_Init
_BY_HAND = (
    "set MASTER_ADDR and MASTER_PORT by hand (mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=PORT, mpiexec -genv)"
)


class Meeting(NamedTuple):
    """Where rank 0 can be reached, and the interface of this machine that leads there ("": not known)."""

    address: str
    port: int
    interface: str


def meet(source: str, size: int, local_rank: int, ports: range, environ: Mapping[str, str]) -> Meeting:
    """Agree with the other ranks of this launch on where rank 0 is. Collective.

    Args:
        source: the launcher, in words.
        size: how many ranks it says that it has started.
        ports: to choose one of.

    Raises:
        ConfigError: there is no mpi4py, or it was built for another MPI than the launcher's; rank 0 cannot be reached.
    """
    try:
        return _meet(source, size, local_rank, ports, environ)
    except ConfigError:
        if local_rank > 0:
            time.sleep(PATIENCE_S)
        raise


def _meet(source: str, size: int, local_rank: int, ports: range, environ: Mapping[str, str]) -> Meeting:
    if not _installed():
        raise ConfigError(
            f"{source} started ranks on several machines, and mpi4py, which tells them where rank 0 is, is not "
            f"installed; install it for this MPI, or {_BY_HAND}"
        )
    numbers = {
        "size": size,
        "local-rank": local_rank,
        "first-port": ports.start,
        "last-port": ports.stop - 1,
        # Hydra takes a rank that has finalized for one that has ended well, whatever happens to it later.
        "finalize": int(hydra(environ) is None),
    }
    # -P: the modules beside the program do not hide others of their names.
    command = [sys.executable, "-P", str(Path(__file__).with_name("mpi_meeting.py"))]
    command += [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            close_fds=False,  # one of them leads to the launcher
            env=dict(environ),
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"the {size} ranks that {source} started did not meet over MPI within {LIMIT_S:.0f} s; see that MPI's own "
            f"programs run on these machines, or {_BY_HAND}"
        ) from None
    if done.returncode:
        raise ConfigError(
            f"mpi4py cannot start under {source} ({_last_words(done)}): it was built for another MPI than the "
            f"launcher's, or that MPI does not work here; use the launcher of mpi4py's MPI, or {_BY_HAND}"
        )
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    if found["size"] != size:
        raise ConfigError(
            f"{source} started {size} ranks, but mpi4py sees {found['size']} by {found['library']}, another MPI than "
            f"the launcher's; use mpirun of that MPI, install mpi4py for this one, or {_BY_HAND}"
        )
    if "address" not in found:
        raise ConfigError(
            f"rank 0 offered {found['offered'] or 'no address'} at port {found['port']}, and no address is reached by "
            f"all machines; open their firewalls for ports {ports.start} to {ports.stop - 1}, or {_BY_HAND}"
        )
    return Meeting(found["address"], found["port"], found["interface"])


def _installed() -> bool:
    return importlib.util.find_spec("mpi4py") is not None


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """One line of what a process said before it failed: the exception's, or the first that is more than a rule."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip(" -=*\t")]
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or lines or [f"status {done.returncode}"])[-1][:200]
